# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Digits and graphs for any number of clients, as many samples for each."""

from __future__ import annotations

from typing import Any

import numpy as np

from mhd_jax import rng
from mhd_jax.config import default_config
from mhd_jax.data import sources

EACH = 16  # private samples of a client, on average
PUBLIC = 256
GRAPHS: dict[str, dict[str, Any]] = {
    "small world": {"graph.name": "small_world", "graph.probability": 0.05},
    "random regular": {"graph.name": "random_regular"},
}


@sources.SOURCES.register("many_digits")
def many_digits(directory: str, split: str, shape: sources.Shape) -> sources.Source:
    """scikit-learn's digits, moved by some pixels and with noise, as many as `split` asks for.

    Most are moved by a pixel or none, at most by three; what leaves on one side comes in on the
    other.

    Args:
      directory: not used; the images come with scikit-learn.
      split: "train[:N]" for N samples, "train" for as many as there are digits.
      shape: that of digits.
    """
    del directory, shape
    digits = sources.source(default_config().data)
    count = int(split.partition(":")[2].rstrip("]") or len(digits.train))
    draw = rng.generator(0, "many digits")
    index = np.arange(count) % len(digits.train)
    images = digits.train.images(index)
    for down, right in np.ndindex(3, 3):
        some = draw.random(count) < 1 / 9
        images[some] = np.roll(images[some], (down - 1, right - 1), axis=(1, 2))
    noisy = images + draw.normal(0, 0.05, images.shape)
    train_set = (noisy.clip(0, 1).astype(np.float32), digits.train.labels[index])
    test = (digits.test.images(np.arange(len(digits.test))), digits.test.labels)
    return sources.from_arrays("many_digits", train_set, test)


def size(clients: int) -> dict[str, Any]:
    """Settings that grow with the clients: as many private samples each, `PUBLIC` public ones."""
    total = clients * EACH + PUBLIC
    return {
        "clients.num": clients, "data.split": f"train[:{total}]",
        "data.public_fraction": PUBLIC / total,
    }  # fmt: skip
