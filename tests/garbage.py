# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How Python looks for garbage while tests run."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Looks for garbage less often.

    Tracing makes many objects that stay, and looking through them again and again costs more than
    a twentieth of the time.
    """
    gc.collect()
    gc.freeze()  # what is there now stays
    gc.set_threshold(100_000, 20, 100)
