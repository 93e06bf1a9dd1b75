# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How samples get to the devices: resident (all at the start) or streaming (as they are needed).

Both feeds follow one order of samples, `batches.batch_indices`, and both keep the private images
of a client on the devices that own it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from mhd_jax import rng
from mhd_jax.data import augment, batches
from mhd_jax.data.partition import Partition
from mhd_jax.data.sources import Source, Split
from mhd_jax.parallel import CLIENTS, DATA, Layout
from mhd_jax.step import Batch, Plan

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Federation:
    """One replica's data: who owns which samples.

    Attributes:
      seed: the replica's seed.
      source: private training set, test set and normalisation.
      partition: the private samples of every client.
      public: the split public images come from; its labels are never read.
      public_indices: the public set within that split.
    """

    seed: int
    source: Source
    partition: Partition
    public: Split
    public_indices: Int[np.ndarray, " P"]


class Feed(Protocol):
    """Gives every step its samples."""

    @property
    def data(self) -> PyTree:
        """Arrays that live on the devices for the whole run, leaves [R, ...]."""
        ...

    def data_specs(self) -> PyTree:
        """How they lie on the mesh."""
        ...

    def plan(self, start: int, stop: int) -> tuple[tuple[PyTree, ...], PyTree]:
        """What steps start..stop - 1 need from the host, private per cohort and public."""
        ...

    def plan_specs(self) -> tuple[tuple[PyTree, ...], PyTree]:
        """How that lies on the mesh."""
        ...

    def load(self, data: PyTree, plan: Plan, seed: Array, step: Array) -> Batch:
        """One step's batch inside the step, on one device."""
        ...


@dataclasses.dataclass(frozen=True)
class Walks:
    """The order of samples of all replicas and clients."""

    federations: Sequence[Federation]
    layout: Layout
    batch_size: int
    public_batch_size: int

    def private(self, start: int, stop: int) -> tuple[Int[np.ndarray, "n R K B"], ...]:
        """Positions among each client's own samples, per cohort with padded rows."""
        walks = np.stack(
            [
                [
                    batches.batch_indices(
                        fed.seed, "private", client, size, self.batch_size, start, stop
                    )
                    for client, size in enumerate(fed.partition.sizes.tolist())
                ]
                for fed in self.federations
            ]
        )
        return self.layout.split(np.moveaxis(walks, 2, 0), axis=2)

    def public(self, start: int, stop: int) -> Int[np.ndarray, "n R P"]:
        """Positions within each replica's public set."""
        walks = [
            batches.batch_indices(
                fed.seed, "public", 0, len(fed.public_indices), self.public_batch_size, start, stop
            )
            for fed in self.federations
        ]
        return np.stack(walks, axis=1)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """From stored images to the network's input: augmentation and normalisation, on the device."""

    augment: str
    mean: Sequence[float]
    std: Sequence[float]

    def test(self, images: Array) -> Array:
        """[B, ...] stored images, normalised only."""
        return augment.normalize(images, self.mean, self.std)

    def train(self, images: Array, keys: Array) -> Array:
        """[B, ...] stored images and one key each, augmented and normalised."""
        return self.test(augment.augment(self.augment, keys, images))

    def private(self, images: Array, seed: Array, step: Array, first_client: Array) -> Array:
        """[k, B, ...]: every client's batch with its own draws."""
        base = rng.stream(seed, "augment private", step)
        first = jax.lax.axis_index(DATA) * images.shape[1]
        clients = first_client + np.arange(images.shape[0])
        keys = jax.vmap(lambda client: _keys(base, client, first, images.shape[1]))(clients)
        return jax.vmap(self.train)(images, keys)

    def public(self, images: Array, seed: Array, step: Array) -> Array:
        """[B', ...]: the same augmented batch for all clients."""
        base = rng.stream(seed, "augment public", step)
        first = jax.lax.axis_index(DATA) * images.shape[0]
        return self.train(images, _keys(base, 0, first, images.shape[0]))


def _keys(base: Array, client: Array | int, first: Array, size: int) -> Array:
    """One key per sample by its place in the whole batch, however devices share the batch."""
    return augment.sample_keys(jax.random.fold_in(base, client), first + np.arange(size))


class Resident:
    """All images on the devices from the start, as stored; a step gathers by index."""

    def __init__(self, walks: Walks, preparation: Preparation) -> None:
        self._walks = walks
        self._preparation = preparation
        self._layout = walks.layout
        public = np.stack([fed.public.images(fed.public_indices) for fed in walks.federations])
        self.data = {
            "private": tuple(self._private(cohort) for cohort in range(len(self._layout.cohorts))),
            "public": self._layout.put(public),
        }

    def _private(self, cohort: int) -> tuple[jax.Array, jax.Array]:
        """Images [R, k, N, ...] and labels [R, k, N] of a cohort, padded to the largest client.

        A process decodes the samples of the clients on its own devices and of no others.
        """
        federations = self._walks.federations
        longest = max(int(fed.partition.sizes.max()) for fed in federations)
        shape = (len(federations), self._layout.rows[cohort], longest)
        sample = federations[0].source.train.images(np.zeros(1, np.int64))

        def images(split: Split, owned: np.ndarray) -> np.ndarray:
            return split.images(owned)

        def labels(split: Split, owned: np.ndarray) -> np.ndarray:
            return split.labels[owned].astype(np.int32)

        make = functools.partial(self._rows, cohort)
        return (
            make(images, (*shape, *sample.shape[1:]), sample.dtype),
            make(labels, shape, np.dtype(np.int32)),
        )

    def _rows(
        self,
        cohort: int,
        read: Callable[[Split, np.ndarray], np.ndarray],
        shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> jax.Array:
        """One array [R, k, N, ...] made device by device; inert rows and padding are 0."""
        layout = self._layout

        @functools.cache  # devices of the same rows share one array
        def part(start: int, stop: int) -> np.ndarray:
            out = np.zeros((shape[0], stop - start, *shape[2:]), dtype)
            for replica, fed in enumerate(self._walks.federations):
                for row in range(start, min(stop, layout.cohorts[cohort])):
                    owned = fed.partition.indices[layout.offsets[cohort] + row]
                    out[replica, row - start, : len(owned)] = read(fed.source.train, owned)
            return out

        def local(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (index[1] if index else slice(None)).indices(shape[1])
            return part(start, stop)

        return jax.make_array_from_callback(shape, layout.sharding(None, CLIENTS), local)

    def data_specs(self) -> PyTree:
        """Private data with its client, public data everywhere."""
        rows = P(None, CLIENTS)
        return {"private": ((rows, rows),) * len(self._layout.cohorts), "public": P()}

    def plan(self, start: int, stop: int) -> tuple[tuple[PyTree, ...], PyTree]:
        """Positions only."""
        return self._walks.private(start, stop), self._walks.public(start, stop)

    def plan_specs(self) -> tuple[tuple[PyTree, ...], PyTree]:
        """Clients over devices, batches over the data axis."""
        rows = P(None, None, CLIENTS, DATA)
        return (rows,) * len(self._layout.cohorts), P(None, None, DATA)

    def load(self, data: PyTree, plan: Plan, seed: Array, step: Array) -> Batch:
        """Gathers, augments and normalises."""
        images, labels = [], []
        for cohort, (stored, owned) in enumerate(data["private"]):
            index = plan.private[cohort]
            first = self._layout.offsets[cohort] + jax.lax.axis_index(CLIENTS) * len(index)
            take = jax.vmap(lambda x, at: x[at])
            images.append(self._preparation.private(take(stored, index), seed, step, first))
            labels.append(take(owned, index))
        public = self._preparation.public(data["public"][plan.public], seed, step)
        return Batch(tuple(images), tuple(labels), public)
