# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Measures the clients of a run on its test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mhd_jax import evaluate
from mhd_jax.data import sources
from mhd_jax.evaluate import Chunk, OwnChunk
from mhd_jax.parallel import CLIENTS, DATA, Layout
from mhd_jax.seating import HostMemory
from mhd_jax.state import Learners, State

TEST_CHUNK = 500  # samples per forward pass, and ...
MOST_PASSES = 2**17  # ... so many times the clients of a device, if they are many
MOST_PADDED = 4  # times their number: what clients' own test samples may take on the devices

_AnyChunk = TypeVar("_AnyChunk", Chunk, OwnChunk)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one pass over the test set found, for R seeds.

    Attributes:
      correct: correct predictions by client, head and class.
      shared: shared accuracy.
      private: private accuracy.
      baseline: shared and private accuracy of the isolated baseline, None without one.
      metrics: the further metrics by name.
      own: accuracy on the client's own test samples, None where clients have none.
      own_baseline: that of the isolated baseline.
    """

    correct: Float[np.ndarray, "R K H C"]
    shared: Float[np.ndarray, "R K H"]
    private: Float[np.ndarray, "R K H"]
    baseline: tuple[Float[np.ndarray, "R K 1"], Float[np.ndarray, "R K 1"]] | None
    metrics: Mapping[str, Float[np.ndarray, "R K H"]]
    own: Float[np.ndarray, "R K H"] | None = None
    own_baseline: Float[np.ndarray, "R K 1"] | None = None


class Evaluator:
    """The test set on the devices, and what is measured on it.

    Args:
      layout: who owns which client.
      models: one per group of clients.
      baseline_models: those of the isolated baseline, or ().
      source: with the test set.
      silos: clients with test samples of their own; None where there are no such.
      histograms: private samples by client and class, [K, C] for each seed.
      metrics: names of further metrics.
      prepare: stored images [B, ...] to normalised ones for every replica, [R, B, ...].
      keep: whether test images stay on the devices.
      memory: of the host, where clients wait in it.

    Attributes:
      count: test samples of every class, [C].
      histograms: see above.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        models: tuple[nn.Module, ...],
        baseline_models: tuple[nn.Module, ...],
        source: sources.Source,
        silos: sources.Silos | None = None,
        histograms: Sequence[Int[np.ndarray, "K C"]],
        metrics: Sequence[str],
        prepare: Callable[[Array], Array],
        keep: bool,
        memory: HostMemory | None = None,
    ) -> None:
        self._layout, self._memory = layout, memory
        self._chunks = TestChunks(source.test, source.test.labels, layout, keep)
        self._own: _OwnTests | None = None
        if silos is not None and silos.test is not None:
            self._own = _OwnTests(silos, layout, keep, (models, baseline_models), prepare, memory)
        self._metrics = metrics
        self._count, self._count_baseline = (
            evaluate.make_counter(layout, each, source.num_classes, prepare)
            for each in (models, baseline_models)
        )
        self.count = np.bincount(source.test.labels, minlength=source.num_classes)
        self.histograms = histograms

    def evaluate(self, state: State) -> Evaluation:
        """One pass over the test set, two where there is an isolated baseline."""
        correct = self._counted(self._count, state.clients)
        shared, private = self._accuracies(correct)
        baseline = None
        if state.baseline:
            baseline = self._accuracies(self._counted(self._count_baseline, state.baseline))
        metrics = {name: self._measure(name, correct) for name in self._metrics}
        own, own_baseline = self._own.accuracies(state) if self._own else (None, None)
        return Evaluation(correct, shared, private, baseline, metrics, own, own_baseline)

    def _counted(
        self, count: Callable[..., Any], learners: tuple[Learners, ...]
    ) -> Float[np.ndarray, "R K H C"]:
        chunks = self._chunks
        return evaluate.count_all(count, self._layout, learners, lambda _: chunks, self._memory)

    def _accuracies(
        self, correct: Float[np.ndarray, "R K H C"]
    ) -> tuple[Float[np.ndarray, "R K H"], Float[np.ndarray, "R K H"]]:
        pairs = [
            evaluate.shared_and_private(found, self.count, owned)
            for found, owned in self._by_seed(correct)
        ]
        return np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])

    def _measure(
        self, name: str, correct: Float[np.ndarray, "R K H C"]
    ) -> Float[np.ndarray, "R K H"]:
        return np.stack(
            [
                evaluate.measure(name, found, self.count, owned)
                for found, owned in self._by_seed(correct)
            ]
        )

    def _by_seed(
        self, correct: Float[np.ndarray, "R k H C"]
    ) -> Iterator[tuple[Float[np.ndarray, "K H C"], Int[np.ndarray, "K C"]]]:
        """Counts and private samples of every seed; a pooled model counts for every client."""
        for found, owned in zip(correct, self.histograms, strict=True):
            yield np.broadcast_to(found, (len(owned), *found.shape[1:])), owned


class _OwnTests:
    """The test samples that belong to clients, each of which counts for its own client."""

    def __init__(
        self,
        silos: sources.Silos,
        layout: Layout,
        keep: bool,
        models: Sequence[tuple[nn.Module, ...]],
        prepare: Callable[[Array], Array],
        memory: HostMemory | None,
    ) -> None:
        assert silos.test is not None
        clients = len(silos.names)
        self._layout, self._memory = layout, memory
        self._sizes = np.bincount(silos.test_owner, minlength=clients)
        self._chunks: Callable[[Int[np.ndarray, " N"]], Iterable[Chunk | OwnChunk]]
        self._pooled = layout.num_clients != clients
        if self._pooled:  # one model predicts the samples of all
            chunks = TestChunks(silos.test, silos.test_owner, layout, keep)
            self._chunks = lambda _: chunks
            self._counters = [evaluate.make_counter(layout, m, clients, prepare) for m in models]
        else:
            places = layout if memory is None else memory.devices
            self._chunks = OwnChunks(silos, self._sizes, places, keep and memory is None)
            self._counters = [evaluate.make_own_counter(layout, m, prepare) for m in models]

    def accuracies(
        self, state: State
    ) -> tuple[Float[np.ndarray, "R K H"], Float[np.ndarray, "R K 1"] | None]:
        """Of the clients and of the isolated baseline; NaN for a client without test samples."""
        found: list[Any] = [None, None]
        for index, learners in enumerate((state.clients, state.baseline)):
            if learners:
                correct = self._correct(self._counters[index], learners)
                with np.errstate(invalid="ignore"):
                    found[index] = correct / self._sizes[:, None]
        return found[0], found[1]

    def _correct(
        self, count: Callable[..., tuple[Array, ...]], learners: tuple[Learners, ...]
    ) -> Float[np.ndarray, "R K H"]:
        found = evaluate.count_all(count, self._layout, learners, self._chunks, self._memory)
        return found[:, 0].swapaxes(1, 2) if self._pooled else found


def chunk_size(samples: int, clients: int) -> int:
    """Of so many samples those that so many clients on a device predict at once.

    >>> chunk_size(10_000, 100), chunk_size(10_000, 2**16)
    (500, 2)
    """
    return min(TEST_CHUNK, samples, max(MOST_PASSES // clients, 1))


def _chunk_size(samples: int, layout: Layout) -> int:
    """Samples of a chunk, the same number on each device that shares a client's batches."""
    size = chunk_size(samples, sum(layout.rows) // layout.client_devices)
    return size + -size % layout.data_devices


class _Kept(Generic[_AnyChunk]):
    """Chunks that stay on the devices after the first passage, if they are to be kept.

    Args:
      keep: whether they are.
    """

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._chunks: list[_AnyChunk] = []

    def chunks(self, made: Iterable[_AnyChunk]) -> Iterator[_AnyChunk]:
        """Those that were kept, else those of `made`, which is used only then."""
        if self._chunks:
            yield from self._chunks
            return
        kept = []
        for chunk in made:
            if self._keep:
                kept.append(chunk)
            yield chunk
        self._chunks = kept


class OwnChunks:
    """Test samples of clients in chunks on the devices, those of a client with the client.

    A chunk has as many samples of every client, labels of -1 where a client has no more.

    Args:
      silos: whose samples they are; there are such.
      sizes: how many each client has, [K].
      layout: of the clients that are asked for at once, on the devices.
      keep: whether chunks stay on the devices, unless most of them is padding; if so, callers must
        always ask for all clients.
    """

    def __init__(
        self, silos: sources.Silos, sizes: Int[np.ndarray, " K"], layout: Layout, keep: bool
    ) -> None:
        assert silos.test is not None
        self._split, self._layout = silos.test, layout
        longest = int(sizes.max())
        self._size = _chunk_size(longest, layout)
        columns = longest + -longest % self._size
        keep = keep and len(sizes) * columns <= MOST_PADDED * len(silos.test)
        self._kept: _Kept[OwnChunk] = _Kept(keep)
        order = np.argsort(silos.test_owner, kind="stable")
        self._index = np.full((len(sizes), columns), -1)
        self._index[np.arange(columns) < sizes[:, None]] = order

    def __call__(self, clients: Int[np.ndarray, " N"]) -> Iterator[OwnChunk]:
        """The chunks for clients at the places of the devices, -1 for nobody."""
        index = np.where(clients[:, None] < 0, -1, self._index[clients])
        starts = range(0, index.shape[1], self._size)
        return self._kept.chunks(
            self._chunk(index[:, start : start + self._size]) for start in starts
        )

    def _chunk(self, index: Int[np.ndarray, "N B"]) -> OwnChunk:
        split, there = self._split, index >= 0
        images = np.zeros((*index.shape, *split.image_shape), split.dtype)
        images[there] = split.images(index[there])
        labels = np.where(there, split.labels[index], -1).astype(np.int32)

        def placed(values: np.ndarray) -> tuple[Array, ...]:
            parts = self._layout.split(values, axis=0)
            return tuple(self._layout.put(part, CLIENTS, DATA) for part in parts)

        return placed(images), placed(labels)


class TestChunks:
    """Test samples in equal chunks on the devices, the last padded with labels of -1.

    Args:
      split: the samples.
      bins: what they are counted by, [M]: their labels, or their clients.
      layout: the devices.
      keep: whether chunks stay on the devices after the first passage or are read every time.
    """

    __test__ = False  # pytest: this is no test

    def __init__(
        self, split: sources.Split, bins: Int[np.ndarray, " M"], layout: Layout, keep: bool
    ) -> None:
        self._split = split
        self._bins = bins
        self._layout = layout
        self._kept: _Kept[Chunk] = _Kept(keep)
        self._size = _chunk_size(len(split), layout)

    def __iter__(self) -> Iterator[Chunk]:
        samples = np.arange(len(self._split))
        starts = range(0, len(samples), self._size)
        return self._kept.chunks(
            self._chunk(samples[start : start + self._size]) for start in starts
        )

    def _chunk(self, index: np.ndarray) -> Chunk:
        missing = self._size - len(index)
        images = self._split.images(index)
        images = np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1))

        def padded(values: Int[np.ndarray, " M"]) -> Array:
            chosen = values[index].astype(np.int32)
            return self._layout.put(np.pad(chosen, (0, missing), constant_values=-1), DATA)

        return self._layout.put(images, DATA), padded(self._split.labels), padded(self._bins)
