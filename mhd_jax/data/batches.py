# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Which samples a step reads, as a pure function of (seed, client, step).

Shuffled epochs, or, where privacy is accounted for, Poisson samples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy import stats

from mhd_jax import rng

WALKERS_KEPT = 1024
EPOCHS_KEPT = 2
"""Of a walker: a call begins in the epoch in which the one before ended, or in the next."""


@dataclasses.dataclass(frozen=True)
class Visits:
    """How often a public sample is read with what was sent of it once.

    The samples of a public batch have places. Exchange n brings every D-th place, those with
    place % D == n % D, the next samples of the walk: of these alone predictions travel, B' / D a
    time. Each stays where it is for D exchanges in a row. Up to exchange D - 1, a place that has
    had no sample yet holds the newest of its D neighbours. With D = 1 all is new every time.

    Attributes:
      count: D.
      every: steps from one exchange to the next.
    """

    count: int = 1
    every: int = 1

    def exchange(self, step: Any) -> Any:
        """Number of the exchange whose samples a step reads."""
        return step // self.every

    def sent(self, exchange: Any, places: Any) -> Any:
        """The exchange that brought what lies in `places`; NumPy or JAX integers, broadcast.

        >>> Visits(count=3).sent(np.array([[0], [1], [2], [3], [4]]), np.arange(3)).tolist()
        [[0, 0, 0], [0, 1, 1], [0, 1, 2], [3, 1, 2], [3, 4, 2]]
        """
        last = exchange - (exchange - places) % self.count
        return last + (last < 0) * (exchange - last)

    def origin(self, step: Any, places: Any) -> tuple[Any, Any]:
        """Step and place in which what lies in `places` at `step` came."""
        sent = self.sent(self.exchange(step), places)
        return sent * self.every, places - places % self.count + sent % self.count


def public_indices(
    seed: int, size: int, batch_size: int, visits: Visits, start: int, stop: int
) -> Int[np.ndarray, "n batch_size"]:
    """Positions within the public set of the samples that steps start..stop - 1 read.

    Args:
      seed: see `batch_indices`, as `start` and `stop`.
      size: of the public set.
      batch_size: B', a multiple of D.
      visits: how long samples stay.
      start: first step.
      stop: one past the last step.

    >>> public_indices(0, 90, 4, Visits(2), 0, 3).tolist()
    [[19, 19, 13, 13], [19, 48, 13, 89], [1, 48, 67, 89]]
    """
    exchanges, places = visits.exchange(np.arange(start, stop)), np.arange(batch_size)
    sent = visits.sent(exchanges[:, None], places)
    first, last = int(sent.min()), int(exchanges[-1])
    new = batch_size // visits.count
    walk = batch_indices(seed, "public", 0, size, new, first, last + 1)
    return walk[sent - first, places // visits.count]


def repeats(size: int, batch_size: int) -> float:
    """How often a public batch holds the same sample, on average over the batch.

    With c_u copies of sample u it is sum c_u^2 / B': sums of independent values, one for each
    sample, vary like those of B' / repeats samples that are all different. That a batch which
    spans two epochs of a larger public set may hold a sample twice is left out.

    Args:
      size: of the public set.
      batch_size: B'.

    >>> repeats(130, 64), repeats(32, 64), repeats(48, 64)
    (1.0, 2.0, 1.5)
    """
    whole, rest = divmod(batch_size, size)
    return (rest * (whole + 1) ** 2 + (size - rest) * whole**2) / batch_size


def epoch_order(
    seed: int, purpose: str, client: int, size: int, epoch: int
) -> Int[np.ndarray, " size"]:
    """The order in which a client walks its `size` samples in one epoch."""
    return _orders(seed, purpose, client, size)(epoch)


@functools.lru_cache(maxsize=WALKERS_KEPT)
def _orders(
    seed: int, purpose: str, client: int, size: int
) -> Callable[[int], Int[np.ndarray, " size"]]:
    """A walker's orders by epoch, of which the last ones are kept: each is as long as its data."""

    @functools.lru_cache(maxsize=EPOCHS_KEPT)
    def order(epoch: int) -> Int[np.ndarray, " size"]:
        shuffled = rng.generator(seed, purpose, client, epoch).permutation(size).astype(np.int32)
        shuffled.flags.writeable = False  # cached, so shared
        return shuffled

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
    if epochs.sum() <= WALKERS_KEPT // 2:  # the next call finds the unfinished epochs kept
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


# --- Poisson sampling -----------------------------------------------------------------------------

OVERFLOW = 1e-6  # probability that any batch of a run is larger than its places


def poisson_places(sizes: Int[np.ndarray, " K"], batch_size: int, steps: int) -> int:
    """Places that hold every Poisson batch of a run, but for a probability below `OVERFLOW`.

    Args:
      sizes: samples of every client, of all seeds.
      batch_size: expected samples in a batch, at most the smallest size.
      steps: of the run.

    >>> poisson_places(np.array([5600]), 32, steps=2000)
    72
    """
    tail = OVERFLOW / (len(sizes) * steps)
    return int(stats.binom.isf(tail, sizes, batch_size / sizes).max())


def poisson(
    seed: int,
    sizes: Int[np.ndarray, " K"],
    batch_size: int,
    places: int,
    start: int,
    stop: int,
) -> Int[np.ndarray, "n K places"]:
    """Positions of the samples of steps start..stop - 1, each drawn with the same probability.

    Every sample of a client is in a step's batch with probability batch_size / size, whatever
    else is in it: the number is drawn first, then a set of that size.

    Args:
      seed: the run's seed.
      sizes: samples of every client.
      batch_size: expected samples in a batch, at most the smallest size.
      places: in a batch; those that are left over hold -1.
      start: first step.
      stop: one past the last step.

    Raises:
      RuntimeError: a batch does not fit its places; see `poisson_places`.
    """
    out = np.full((stop - start, len(sizes), places), -1, np.int32)
    steps, clients = np.divmod(np.arange(out[..., 0].size), len(sizes))
    draws = rng.generators(seed, "poisson", clients, steps + start)
    for draw, at, client in zip(draws, steps.tolist(), clients.tolist(), strict=True):
        size = int(sizes[client])
        count = draw.binomial(size, batch_size / size)
        if count > places:
            raise RuntimeError(
                f"step {start + at}: Poisson sampling drew {count} samples of client {client} for "
                f"{places} places, which happens in one of {1 / OVERFLOW:,.0f} runs; leaving "
                "samples out would void the privacy claim, so start again with another seed"
            )
        out[at, client, :count] = draw.choice(size, count, replace=False, shuffle=False)
    return out
