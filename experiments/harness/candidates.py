# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What is compared: methods, and settings as defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]

ALL_PEERS: Settings = {"graph.peers_per_step": 0}
"""Everybody teaches in every step."""

PAPER: Settings = {"distill.alignment": 0.0}
"""The paper's method under the other defaults."""

PAPER_ALL_PEERS: Settings = {**PAPER, **ALL_PEERS}
"""The same, hearing everybody in every step."""

FORMER: Settings = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.01,
    "distill.nu_emb": 1.0,
    "distill.nu_aux": 3.0,
    "distill.split_nu_aux": False,
    "distill.fade_in": 0.0,
    **PAPER_ALL_PEERS,
}
"""The defaults of version 0.1."""

DIRICHLET: Settings = {"partition.name": "dirichlet", "partition.alpha": 0.1}
"""Many clients have one class, and some a handful of samples."""

DATA: Mapping[str, Settings] = {
    "digits": {},
    "digits at 28 px": {"data.image_size": 28},
    "CIFAR-10": {"data.name": "cifar10", "data.image_size": 16},
    "Tiny ImageNet": {
        "data.name": "tiny_imagenet32", "data.image_size": 16, "data.num_classes": 20,
    },
}  # fmt: skip
"""Images on which defaults are tried."""

CANDIDATES: dict[str, Settings] = {
    "defaults": {},
    "MHD (no alignment)": PAPER,
    "defaults of 0.1": FORMER,
}

METHODS = {
    "aligned": "aligned MHD (ours)",
    "aligned-all": "aligned MHD, all peers in every step",
    "aligned-mixup": "aligned MHD, all peers, with mixup",
    "mhd": "MHD",
    "mhd-all": "MHD, all peers in every step",
    "fedavg": "FedAvg",
    "fedmd": "FedMD",
    "codistillation": "codistillation",
    "codistillation-mixup": "codistillation, with mixup",
    "feddf": "FedDF",
    "gossip": "gossip",
    "supervised": "supervised, data pooled",
    "isolated": "isolated",
}
"""The methods that are compared, and what tables call them."""

CHANGES: dict[str, Settings] = {
    "aligned": {"method": "mhd"},  # the default
    "mhd": {"method": "mhd", **PAPER},
    "mhd-all": {"method": "mhd", **PAPER_ALL_PEERS},
    "aligned-all": {"method": "mhd", **ALL_PEERS},
    "aligned-mixup": {"method": "mhd", **ALL_PEERS, "distill.mixup": 0.25},
    "codistillation-mixup": {"method": "codistillation", "distill.mixup": 0.25},
}
"""Settings of those that are not a method's name alone."""

WHAT_IS_OURS = (
    "MHD is the paper's rule, the most confident teacher, but only two random peers teach in a "
    "step. Aligned MHD, the default, first divides each teacher's predictions by their mean over "
    "the public set, and ignores peers whose predictions are unrelated to the images."
)
"""Stands below tables that compare methods."""

SAME_FOR_ALL = (
    "All methods take the same number of steps with the same batches, optimiser and learning rate. "
    "These were chosen for aligned MHD; nothing was tuned for the other methods."
)
"""Stands there, too."""
