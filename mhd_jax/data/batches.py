# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Which samples a step reads: shuffled epochs, as a pure function of (seed, client, step)."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Int

from mhd_jax import rng

ORDERS_CACHED = 1024


@functools.lru_cache(maxsize=ORDERS_CACHED)
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


def walks_of(
    seed: int,
    purpose: str,
    sizes: Int[np.ndarray, " K"],
    batch_size: int,
    start: int,
    clients: Int[np.ndarray, "n N"],
) -> Int[np.ndarray, "n N batch_size"]:
    """`batch_indices` of some clients, others in each step; 0 for a client below 0.

    Only the epochs that somebody walks in are shuffled.

    Args:
      seed: see `batch_indices`, as all others.
      purpose: names the walk.
      sizes: samples of every client.
      batch_size: samples per step.
      start: first step.
      clients: who walks, step by step.
    """
    step, place = np.nonzero(clients >= 0)
    client = clients[step, place].astype(np.int64)
    at = (start + step)[:, None] * batch_size + np.arange(batch_size)
    epoch, position = np.divmod(at, sizes[client][:, None])
    keys = (client[:, None] * (epoch.max(initial=0) + 1) + epoch).ravel()
    order = keys.argsort(kind="stable")
    first = np.flatnonzero(np.diff(keys[order], prepend=-1))
    walks = np.empty(len(keys), np.int32)
    named = np.divmod(keys[order][first], epoch.max(initial=0) + 1)
    draws = rng.generators(seed, purpose, *named)
    lengths = sizes[named[0]].tolist()
    position = position.ravel()
    for draw, size, part in zip(draws, lengths, np.split(order, first[1:]), strict=True):
        walks[part] = draw.permutation(size)[position[part]]
    out = np.zeros((*clients.shape, batch_size), np.int32)
    out[step, place] = walks.reshape(-1, batch_size)
    return out


def walks(
    seed: int, purpose: str, sizes: Int[np.ndarray, " K"], batch_size: int, start: int, stop: int
) -> Int[np.ndarray, "n K batch_size"]:
    """`batch_indices` of all clients, also quick for thousands of clients with few samples each.

    Args:
      seed: see `batch_indices`, as all others.
      purpose: names the walk.
      sizes: samples of every client.
      batch_size: samples per step.
      start: first step.
      stop: one past the last step.
    """
    begin, length = start * batch_size, (stop - start) * batch_size
    first, last = begin // sizes, -(-(begin + length) // sizes)
    epochs = last - first
    if epochs.sum() <= ORDERS_CACHED // 2:  # the next call finds the unfinished epochs kept
        rows = [
            batch_indices(seed, purpose, client, size, batch_size, start, stop)
            for client, size in enumerate(sizes.tolist())
        ]
        return np.stack(rows, axis=1)
    clients = np.repeat(np.arange(len(sizes)), epochs)
    numbers = np.arange(len(clients)) - np.repeat(np.cumsum(epochs) - epochs - first, epochs)
    out = np.empty((len(sizes), length), np.int32)
    orders = rng.generators(seed, purpose, clients, numbers)
    whose = zip(clients.tolist(), sizes[clients].tolist(), numbers.tolist(), strict=True)
    for draw, (client, size, epoch) in zip(orders, whose, strict=True):
        at = epoch * size - begin  # where this epoch begins in the client's row
        order = draw.permutation(size)
        out[client, max(at, 0) : at + size] = order[max(-at, 0) : length - at]
    return out.reshape(len(sizes), stop - start, batch_size).swapaxes(0, 1)
