# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Which samples a step reads: shuffled epochs, as a pure function of (seed, client, step)."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int

from mhd_jax import rng


@functools.lru_cache(maxsize=1024)
def epoch_order(
    seed: int, purpose: str, client: int, size: int, epoch: int
) -> Int[np.ndarray, " size"]:
    """The order in which a client walks its `size` samples in one epoch."""
    order = rng.generator(seed, purpose, client, epoch).permutation(size).astype(np.int32)
    order.flags.writeable = False  # cached, so shared
    return order


def batch_indices(
    seed: int, purpose: str, client: int, size: int, batch_size: int, start: int, stop: int
) -> Int[np.ndarray, "n batch_size"]:
    """Positions of the samples of steps start..stop - 1 among a client's own samples.

    Step t reads the samples t * batch_size, ... of an endless walk through shuffled epochs, so a
    batch may span two epochs and, where it is larger than `size`, holds samples more than once.

    Args:
      seed: the run's seed.
      purpose: names the walk, "private" or "public".
      client: the walker.
      size: number of samples walked.
      batch_size: samples per step.
      start: first step.
      stop: one past the last step.

    >>> walk = batch_indices(0, "private", 3, size=5, batch_size=5, start=0, stop=2)
    >>> [sorted(row.tolist()) for row in walk]
    [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    """
    first, last = start * batch_size, stop * batch_size
    epochs = range(first // size, -(-last // size))
    walk = np.concatenate(
        [epoch_order(seed, purpose, client, size, epoch) for epoch in epochs]
        or [np.zeros(0, np.int32)]
    )
    begin = first - epochs.start * size
    return walk[begin : begin + last - first].reshape(stop - start, batch_size)
