# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Settings that are compared as defaults: today's, the paper's rule under them, those of 0.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]

FORMER: Settings = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.01,
    "distill.nu_aux": 3.0,
    "distill.split_nu_aux": False,
    "distill.fade_in": 0.0,
    "distill.alignment": 0.0,
}
"""The defaults of version 0.1."""

CANDIDATES: dict[str, Settings] = {
    "defaults": {},
    "MHD (no alignment)": {"distill.alignment": 0.0},
    "defaults of 0.1": FORMER,
}
