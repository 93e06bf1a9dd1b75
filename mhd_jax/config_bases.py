# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Settings that several files in `configs/` start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SMALL_IMAGES: dict[str, dict[str, Any]] = {
    "": {
        "data.batch_size": 64,
        "data.public_batch_size": 64,
        "data.augment": "crop_flip",
        "model.name": "resnet18",
        "heads.aux": 2,
        "distill.nu_aux": 1.0,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 0.002,
        "optimizer.warmup_steps": 500,
        "optimizer.weight_decay": 0.0001,
        "train.steps": 20_000,
        "train.log_every": 100,
        "train.eval_every": 1_000,
        "train.checkpoint_every": 2_000,
    },
    "tpu": {
        "data.batch_size": 128,
        "data.public_batch_size": 128,
        "model.name": "resnet18",
        "model.dtype": "bfloat16",
    },
    "cpu": {
        "data.image_size": 16,
        "data.batch_size": 32,
        "data.public_batch_size": 32,
        "data.augment": "none",
        "model.name": "cnn",
        "model.width": 16,
        "heads.aux": 1,
        "optimizer.warmup_steps": 100,
        "optimizer.weight_decay": 0.0,
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
        "heads.aux": 1,
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
