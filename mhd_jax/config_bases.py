# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Settings that several files in `configs/` start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Only what the data or the hardware asks for; the method and the optimiser keep their defaults,
# which hold on everything in `experiments/robustness.py`.
SMALL_IMAGES: dict[str, dict[str, Any]] = {
    "": {
        "data.augment": "crop_flip",  # photographs: shifted and mirrored they are still the same
        "model.name": "resnet18",
        "train.steps": 20_000,  # one or two hundred passages through a client's images
        "train.log_every": 100,
        "train.eval_every": 1_000,
        "train.checkpoint_every": 2_000,
    },
    "tpu": {
        "data.batch_size": 128,  # matrix units want large batches and bfloat16
        "data.public_batch_size": 128,
        "model.name": "resnet18",
        "model.dtype": "bfloat16",
    },
    "cpu": {
        "data.image_size": 16,  # a quarter of the pixels and half of the batch: minutes, not hours
        "data.batch_size": 32,
        "data.public_batch_size": 32,
        "data.augment": "none",  # some thirty passages at most
        "model.name": "cnn",
        "model.width": 16,
        "train.steps": 3_000,
        "train.log_every": 50,
        "train.eval_every": 500,
        "train.checkpoint_every": 500,
    },
    "smoke": {
        "data.image_size": 8,
        "data.split": "train[:2000]",
        "data.batch_size": 8,
        "data.public_batch_size": 8,
        "model.name": "cnn",
        "model.width": 8,
        "model.depth": 2,
        "train.steps": 6,
        "train.log_every": 2,
        "train.eval_every": 6,
        "train.checkpoint_every": 6,
    },
}
"""Eight clients on natural images of 32 pixels, by variant."""


def small_images(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The variants of `SMALL_IMAGES` with other or further settings, and further variants.

    >>> small_images({"": {"data.name": "cifar10"}})["smoke"]["model.depth"]
    2
    """
    names = dict.fromkeys([*SMALL_IMAGES, *changes])
    return {name: {**SMALL_IMAGES.get(name, {}), **changes.get(name, {})} for name in names}
