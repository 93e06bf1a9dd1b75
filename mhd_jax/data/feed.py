# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How samples get to the devices: resident (all at the start) or streaming (as they are needed).

Both feeds follow one order of samples, `order.SampleOrder`, and both keep the private images of a
client on the devices that own it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

from mhd_jax import rng
from mhd_jax.data import augment
from mhd_jax.data.batches import Visits
from mhd_jax.data.order import Federation, SampleOrder
from mhd_jax.data.sources import Split
from mhd_jax.errors import ConfigError
from mhd_jax.inputs import Batch, StepInputs
from mhd_jax.parallel import CLIENTS, DATA, Layout
from mhd_jax.trees import Tree

DeviceData = Mapping[str, Any]
"""Arrays that stay on the devices, by name; or their shapes, or how they lie on the mesh."""

Entries = tuple[tuple[Tree, ...], Tree]
"""What a step needs from the host: of each group of clients, and of the public batch."""


class Feed(Protocol):
    """Gives every step its samples."""

    @property
    def data(self) -> DeviceData:
        """Arrays that live on the devices for the whole run.

        Leaves are [R, ...], or [1, ...] where one copy serves all replicas.
        """
        ...

    @property
    def why(self) -> str:
        """What made this feed the chosen one, for people."""
        ...

    def data_shapes(self) -> DeviceData:
        """Shapes and types of `data`, nothing read."""
        ...

    def data_specs(self) -> DeviceData:
        """How they lie on the mesh."""
        ...

    def inputs(self, start: int, stop: int) -> Entries:
        """What steps start..stop - 1 need from the host, private per group and public."""
        ...

    def input_shapes(self, count: int) -> Entries:
        """Shapes and types of `inputs` for `count` steps, nothing read."""
        ...

    def input_specs(self) -> Entries:
        """How that lies on the mesh."""
        ...

    def load(self, data: DeviceData, inputs: StepInputs, seed: Array, step: Array) -> Batch:
        """One step's batch inside the step, on one device."""
        ...


@dataclasses.dataclass(frozen=True)
class Preparation:
    """From stored samples to the network's input: augmentation and normalisation, on the device.

    Attributes:
      augment: name of the augmentation on the device.
      statistics: mean and standard deviation per channel or feature for every replica;
        [R, 2, 0] for ids, which enter a network as they are.
      visits: how long a public sample stays, in the view that it came in.
      mixup: how much of another public sample is mixed into one at most.
    """

    augment: str
    statistics: Float[np.ndarray, "R 2 C"]
    visits: Visits = Visits()
    mixup: float = 0.0

    def test(self, images: Array, replica: int = 0) -> Array:
        """[B, ...] stored samples, normalised only."""
        return _normalized(images, self.statistics[replica])

    def test_all(self, images: Array) -> Array:
        """[R, B, ...]: the same for every replica."""
        return jnp.stack([self.test(images, replica) for replica in range(len(self.statistics))])

    def train(self, images: Array, keys: Array, statistics: Float[Array, "2 C"]) -> Array:
        """[B, ...] stored images and one key each, augmented and normalised."""
        return _normalized(augment.augment(self.augment, keys, images), statistics)

    def private(
        self,
        images: Array,
        statistics: Float[Array, "2 C"],
        seed: Array,
        step: Array,
        clients: Int[Array, " k"],
    ) -> Array:
        """[k, B, ...]: the batch of each of these clients with its own draws."""
        base = rng.stream(seed, "augment private", step)
        first = jax.lax.axis_index(DATA) * images.shape[1]
        keys = jax.vmap(lambda client: _keys(base, client, first, images.shape[1]))(clients)
        return jax.vmap(self.train, in_axes=(0, 0, None))(images, keys, statistics)

    def public(
        self, images: Array, statistics: Float[Array, "2 C"], seed: Array, step: Array
    ) -> Array:
        """[B', ...]: the same augmented, mixed batch for all clients."""
        first = jax.lax.axis_index(DATA) * images.shape[0]
        came = self.visits.origin(step, first + np.arange(images.shape[0]))

        def keys(purpose: str) -> Array:
            return jax.vmap(lambda when, place: rng.stream(seed, purpose, when, 0, place))(*came)

        samples = self.train(images, keys("augment public"), statistics)
        if not self.mixup:
            return samples
        # Neighbours at this distance came in the same step, and stay together as long as they stay.
        others = _earlier(samples, self.visits.count)
        return augment.mixup(keys("mixup"), samples, others, self.mixup)


def _normalized(samples: Array, statistics: Float[Array | np.ndarray, "2 C"]) -> Array:
    """`augment.normalize`, and ids as they are."""
    return augment.normalize(samples, *statistics) if statistics.size else samples


def _earlier(samples: Float[Array, "B ..."], distance: int) -> Float[Array, "B ..."]:
    """What lies so many places before each, or before the end, however devices share the batch."""
    devices = jax.lax.axis_size(DATA)
    if devices == 1:
        return jnp.roll(samples, distance, axis=0)
    ring = [(device, (device + 1) % devices) for device in range(devices)]
    before = jax.lax.ppermute(samples[-distance:], DATA, ring)
    return jnp.concatenate([before, samples[:-distance]])


def _keys(base: Array, client: Array | int, first: Array, size: int) -> Array:
    """One key per sample by its place in the whole batch, however devices share the batch."""
    return rng.each(jax.random.fold_in(base, client), first + np.arange(size))


class Resident:
    """All images on the devices from the start, as stored; a step gathers by index."""

    def __init__(self, order: SampleOrder, preparation: Preparation) -> None:
        self.why = "data.feed = resident"
        self._order = order
        self._preparation = preparation
        self._layout = order.layout
        self.test = order.federations[0].source.test
        self._public = _public_sets(order.federations)

    @functools.cached_property
    def data(self) -> DeviceData:
        """The images and labels of all clients and the public images; read on first use."""
        public = np.stack([fed.public.images(fed.public_indices) for fed in self._public])
        return {
            "private": tuple(self._private(group) for group in range(len(self._layout.groups))),
            "public": self._layout.put(public),
            "statistics": self._layout.put(self._preparation.statistics),
        }

    def _private(self, group: int) -> tuple[jax.Array, jax.Array]:
        """Images [R, k, N, ...] and labels [R, k, N] of a group, padded to the largest client.

        A process decodes the samples of the clients on its own devices and of no others.
        """
        shapes = self.data_shapes()["private"][group]

        def images(split: Split, owned: np.ndarray) -> np.ndarray:
            return split.images(owned)

        def labels(split: Split, owned: np.ndarray) -> np.ndarray:
            return split.labels[owned].astype(np.int32)

        made = [
            self._rows(group, read, shape.shape, shape.dtype)
            for read, shape in zip((images, labels), shapes, strict=True)
        ]
        return made[0], made[1]

    def _rows(
        self,
        group: int,
        read: Callable[[Split, np.ndarray], np.ndarray],
        shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> jax.Array:
        """One array [R, k, N, ...] made device by device; inert rows and padding are 0."""
        layout = self._layout

        @functools.cache  # devices of the same rows share one array
        def part(start: int, stop: int) -> np.ndarray:
            out = np.zeros((shape[0], stop - start, *shape[2:]), dtype)
            for replica, fed in enumerate(self._order.federations):
                for row in range(start, min(stop, layout.groups[group])):
                    owned = fed.partition.indices[layout.offsets[group] + row]
                    out[replica, row - start, : len(owned)] = read(fed.source.train, owned)
            return out

        def local(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = (index[1] if index else slice(None)).indices(shape[1])
            return part(start, stop)

        return jax.make_array_from_callback(shape, layout.sharding(None, CLIENTS), local)

    @property
    def _longest(self) -> int:
        """Samples of the client that has most."""
        return max(int(fed.partition.sizes.max()) for fed in self._order.federations)

    def data_shapes(self) -> DeviceData:
        """Shapes and types of `data`, nothing read."""
        first, replicas = self._order.federations[0], len(self._order.federations)
        train, public = first.source.train, first.public
        private = tuple(
            (
                jax.ShapeDtypeStruct(
                    (replicas, rows, self._longest, *train.image_shape), train.dtype
                ),
                jax.ShapeDtypeStruct((replicas, rows, self._longest), np.int32),
            )
            for rows in self._layout.rows
        )
        shape = (len(self._public), len(first.public_indices), *public.image_shape)
        statistics = self._preparation.statistics
        return {
            "private": private,
            "public": jax.ShapeDtypeStruct(shape, public.dtype),
            "statistics": jax.ShapeDtypeStruct(statistics.shape, statistics.dtype),
        }

    def data_specs(self) -> DeviceData:
        """Private data with its client, public data everywhere."""
        rows = P(None, CLIENTS)
        private = ((rows, rows),) * len(self._layout.groups)
        return {"private": private, "public": P(), "statistics": P()}

    def inputs(self, start: int, stop: int) -> Entries:
        """Positions only."""
        return self._order.private(start, stop), self._order.public(start, stop)

    def input_shapes(self, count: int) -> Entries:
        """Positions only."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.inputs(0, count))

    def input_specs(self) -> Entries:
        """Clients over devices, batches over the data axis."""
        rows = P(None, None, CLIENTS, DATA)
        return (rows,) * len(self._layout.groups), P(None, None, DATA)

    def load(self, data: DeviceData, inputs: StepInputs, seed: Array, step: Array) -> Batch:
        """Gathers, augments and normalises."""
        images, labels, weights = [], [], []
        places, expected = self._order.poisson_places, self._order.batch_size
        for group, (stored, owned) in enumerate(data["private"]):
            index, roster = inputs.private[group], self._order.roster
            rows, clients = roster.rows(group, inputs.seated), roster.ids(group, inputs.seated)
            if places:  # a mean over places, times this, is a sum over the expected batch
                weights.append((index >= 0) * jnp.float32(places / expected))
                index = jnp.maximum(index, 0)
            take = functools.partial(_samples, rows=rows, index=index)
            images.append(
                self._preparation.private(take(stored), data["statistics"], seed, step, clients)
            )
            labels.append(take(owned))
        public = self._preparation.public(
            data["public"][inputs.public], data["statistics"], seed, step
        )
        return Batch(tuple(images), tuple(labels), public, tuple(weights))


def _public_sets(federations: Sequence[Federation]) -> Sequence[Federation]:
    """The replicas whose public sets are stored: the first alone where all have the same."""
    first = federations[0]
    same = all(
        fed.public is first.public and np.array_equal(fed.public_indices, first.public_indices)
        for fed in federations
    )
    return federations[:1] if same else federations


def _samples(
    stored: Array, rows: Int[Array, " k"] | None, index: Int[Array, "k B"]
) -> Shaped[Array, "k B ..."]:
    """The samples that each client, or each of those in some rows, takes of what it holds."""
    if rows is None:
        return jax.vmap(lambda x, at: x[at])(stored, index)
    return stored.at[rows[:, None], index].get(mode="clip")


# --- Which feed -----------------------------------------------------------------------------------

RESIDENT_SHARE = 0.5  # of a device's memory; the rest is for parameters and activations


def resident_bytes(feed: Resident, layout: Layout) -> int:
    """Bytes that resident data, training and test set, take on the fullest device."""
    shapes = feed.data_shapes()
    private = sum(map(_bytes, jax.tree.leaves(shapes["private"])))
    test = feed.test
    return (
        -(-private // layout.client_devices)
        + _bytes(shapes["public"])
        + len(test) * math.prod(test.image_shape) * test.dtype.itemsize // layout.data_devices
    )


def device_memory() -> int:
    """Bytes of memory of one device; on CPU its share of the machine's."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit", total // jax.local_device_count())


def streams(setting: str, needed: int, memory: int, host_augment: str) -> tuple[bool, str]:
    """Whether samples are streamed, from `data.feed`, and why; what "auto" decides is logged.

    Args:
      setting: "auto", "resident" or "streaming".
      needed: bytes a device would need for resident data, see `resident_bytes`.
      memory: bytes it has.
      host_augment: name of an augmentation that only streaming can do, or "".

    Raises:
      ConfigError: resident data and an augmentation on the host.
    """
    if setting == "resident" and host_augment:
        raise ConfigError("data.feed", setting, f"streaming for data.augment = {host_augment!r}")
    if setting != "auto":
        return setting == "streaming", f"data.feed = {setting}"
    large = needed > RESIDENT_SHARE * memory
    reason = (
        f"{needed / 2**20:,.0f} MiB of samples a device "
        f"{'exceed' if large else 'fit into'} half of {memory / 2**20:,.0f} MiB"
    )
    if host_augment:
        reason = f"data.augment = {host_augment} runs on the host"
    chosen = bool(host_augment) or large
    why = f"data.feed = auto: {'streaming' if chosen else 'resident'}, as {reason}"
    logging.info("%s", why)
    return chosen, why


def _bytes(shape: jax.ShapeDtypeStruct) -> int:
    return math.prod(shape.shape) * shape.dtype.itemsize
