# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Devices: the mesh, who owns which client, and how arrays get there.

The mesh has two axes. `clients` splits the client axis: every device owns whole clients, their
parameters and their private data. `data` splits the batches of a client over several devices.
The mesh of the devices is made here and nowhere else.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mhd_jax.errors import ConfigError
from mhd_jax.trees import AnyTree

CLIENTS, DATA = "clients", "data"
IN_FLIGHT = 2  # the devices work on one call while the next one is queued


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which rows of the client axis exist and how they lie on the mesh.

    Attributes:
      mesh: devices [client_devices, data_devices].
      groups: number of clients of every group.
      idle_devices: devices that take no part.
    """

    mesh: Mesh
    groups: tuple[int, ...]
    idle_devices: int = 0

    @property
    def num_clients(self) -> int:
        """K, over all groups."""
        return sum(self.groups)

    @property
    def client_devices(self) -> int:
        """Size of the mesh axis `clients`."""
        return self.mesh.shape[CLIENTS]

    @property
    def data_devices(self) -> int:
        """Size of the mesh axis `data`."""
        return self.mesh.shape[DATA]

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of every group: its clients, padded to a multiple of the client devices."""
        return tuple(-(-size // self.client_devices) * self.client_devices for size in self.groups)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Index of every group's first client among all clients."""
        return tuple(int(start) for start in np.cumsum((0, *self.groups))[:-1])

    def local_clients(self) -> list[int]:
        """The clients that devices of this process own; all of them where there is one process."""
        mine = jax.process_index()
        owned = [any(d.process_index == mine for d in row) for row in self.mesh.devices]
        return [
            offset + client
            for offset, size, rows in zip(self.offsets, self.groups, self.rows, strict=True)
            for client in range(size)
            if owned[client * self.client_devices // rows]
        ]

    def sharding(self, *spec: str | None) -> NamedSharding:
        """The sharding with the given mesh axis (or None) per array axis."""
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def pad(self, array: np.ndarray, group: int, axis: int) -> np.ndarray:
        """Appends zero rows for the inert clients of a group along `axis`."""
        missing = self.rows[group] - self.groups[group]
        if not missing:
            return array
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, missing)
        return np.pad(array, widths)

    def split(self, array: np.ndarray, axis: int) -> tuple[np.ndarray, ...]:
        """Splits an array over all clients into one padded array per group."""
        parts = np.split(array, list(self.offsets[1:]), axis=axis)
        return tuple(self.pad(part, group, axis) for group, part in enumerate(parts))

    def put_tree(self, tree: AnyTree, specs: AnyTree) -> AnyTree:
        """Puts a tree of host arrays on the mesh, one `PartitionSpec` per leaf or subtree."""
        is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
        if jax.process_count() == 1:
            sharding = jax.tree.map(
                lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=is_spec
            )
            return jax.device_put(tree, sharding)

        def put(spec: PartitionSpec, part: Any) -> Any:
            return jax.tree.map(lambda leaf: self.put(leaf, *spec), part)

        return jax.tree.map(put, specs, tree, is_leaf=is_spec)

    def join(self, parts: Sequence[np.ndarray | jax.Array], axis: int) -> np.ndarray:
        """The inverse of `split`: one array over all clients, inert rows left out."""
        kept = [
            np.take(np.asarray(part), range(size), axis=axis)
            for part, size in zip(parts, self.groups, strict=True)
        ]
        return np.concatenate(kept, axis=axis)

    def put(self, array: np.ndarray | np.generic, *spec: str | None) -> jax.Array:
        """Puts a host array on the mesh; every process passes the same global value."""
        array, sharding = np.asarray(array), self.sharding(*spec)
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        with jax.transfer_guard_host_to_device("allow"):  # as explicit as `device_put` is
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def fetch(self, tree: AnyTree) -> AnyTree:
        """Whole arrays on the host of every process; scalars and metrics, never images."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        return multihost_utils.process_allgather(tree, tiled=True)

    def describe(self) -> str:
        """One line for people: mesh, clients, inert rows and idle devices."""
        idle = sum(self.rows) - self.num_clients
        many = "" if self.num_clients == 1 else "s"
        text = (
            f"{self.num_clients} client{many} on {self.client_devices} x {self.data_devices} "
            f"(clients x data) {self.mesh.devices.flat[0].platform} devices"
        )
        text += f", {idle} inert rows" if idle else ""
        text += f", {self.idle_devices} devices idle" if self.idle_devices else ""
        return text + (f", {jax.process_count()} processes" if jax.process_count() > 1 else "")


def make_layout(
    groups: Sequence[int],
    *,
    client_devices: int = 0,
    data_devices: int = 0,
    batch_sizes: Sequence[int] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Layout:
    """Lays clients out over devices.

    With both numbers 0 the clients are spread until no device has fewer; devices that are left
    then share the batches of a client, as far as the batch sizes can be divided. Every process
    takes part with the same number of devices.

    Args:
      groups: clients of every group.
      client_devices: devices along the client axis; 0 takes as many as make the largest number
        of clients on one device smallest, and of those the fewest.
      data_devices: devices that share one client's batches; 0 stands for 1 where `client_devices`
        is given.
      batch_sizes: batch sizes that `data_devices` has to divide.
      devices: all of `jax.devices()` by default.

    Raises:
      ConfigError: more devices asked for than there are, a batch that cannot be split, or a number
        of devices that the processes cannot share evenly.
    """
    devices = list(devices if devices is not None else jax.devices())
    _check_asked(len(devices), client_devices, data_devices, batch_sizes)
    owners = sorted({device.process_index for device in devices})
    shapes = [
        (clients, data)
        for clients, data in _meshes(len(devices), client_devices, data_devices, batch_sizes)
        if clients * data % len(owners) == 0
    ]
    if not shapes:
        raise ConfigError(
            "parallel.client_devices", client_devices,
            f"a number of devices that {len(owners)} processes can share evenly",
        )  # fmt: skip

    def cost(shape: tuple[int, int]) -> tuple[int, int, int]:
        clients, data = shape
        return sum(-(-size // clients) for size in groups), -data, clients

    chosen = min(shapes, key=cost)
    each = math.prod(chosen) // len(owners)
    used = [d for owner in owners for d in [d for d in devices if d.process_index == owner][:each]]
    if len(used) < len(devices):
        logging.info("%d of %d devices stay idle", len(devices) - len(used), len(devices))
    grid = np.asarray(used).reshape(chosen)
    mesh = Mesh(grid, (CLIENTS, DATA), axis_types=(AxisType.Auto,) * 2)
    return Layout(mesh, tuple(groups), idle_devices=len(devices) - len(used))


def _check_asked(
    available: int, client_devices: int, data_devices: int, batch_sizes: Sequence[int]
) -> None:
    """Raises `ConfigError` for a batch that cannot be split, and for more devices than exist."""
    for size in batch_sizes:
        if data_devices and size % data_devices:
            raise ConfigError("parallel.data_devices", data_devices, f"a divisor of batch {size}")
    if client_devices * max(data_devices, 1) > available or data_devices > available:
        setting = "client" if client_devices else "data"
        raise ConfigError(
            f"parallel.{setting}_devices", client_devices or data_devices,
            f"at most {available} devices in all, "
            f"not {max(client_devices, 1) * max(data_devices, 1)}",
        )  # fmt: skip


def _meshes(
    available: int, client_devices: int, data_devices: int, batch_sizes: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """The meshes [clients, data] to choose from."""
    alone = data_devices or (1 if client_devices else 0)
    for data in [alone] if alone else range(1, available + 1):
        if any(size % data for size in batch_sizes):
            continue
        for clients in [client_devices] if client_devices else range(1, available // data + 1):
            yield clients, data


def on_mesh(
    function: Callable[..., Any], layout: Layout, in_specs: object, out_specs: object
) -> Callable[..., Any]:
    """`jax.shard_map` over the mesh; inside, arrays are one device's part.

    Replication of outputs is by construction (every device computes the same scalars), which the
    checker cannot see through custom derivatives, so it is off. Arrays without elements are made
    inside: as inputs they crash the compiler of jaxlib 0.11 on several devices.
    """

    @functools.wraps(function)  # a compiled program is called by its name
    def call(*args: object) -> Any:
        leaves, tree = jax.tree.flatten(args)
        specs = jax.tree.leaves(jax.tree.broadcast(in_specs, args))
        full = [place for place, leaf in enumerate(leaves) if leaf.size]

        def inside(*parts: jax.Array) -> Any:
            given = dict(zip(full, parts, strict=True))
            rebuilt = [
                given[i] if i in given else _part_without_elements(leaf, layout.mesh, spec)
                for i, (leaf, spec) in enumerate(zip(leaves, specs, strict=True))
            ]
            return function(*jax.tree.unflatten(tree, rebuilt))

        mapped = jax.shard_map(
            inside, mesh=layout.mesh, in_specs=tuple(specs[i] for i in full), out_specs=out_specs,
            check_vma=False,
        )  # fmt: skip
        return mapped(*(leaves[i] for i in full))

    return call


def _part_without_elements(x: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    return jnp.zeros(NamedSharding(mesh, spec).shard_shape(x.shape), x.dtype)


class InFlight:
    """Calls that were dispatched and may not be done yet, at most `IN_FLIGHT` of them.

    JAX dispatches as fast as the host can, and the images of all those calls lie in device memory.
    On CPU a program with collectives may even stop for good: with 32 computations queued on a
    device, XLA's launch on it waits for one of them, those already launched on other devices wait
    for this one in a collective, and all threads are taken.
    """

    def __init__(self) -> None:
        self._results: collections.deque[object] = collections.deque()

    def add(self, result: object) -> None:
        """Takes what a call returned, nothing of it donated to a later call; waits if need be."""
        self._results.append(result)
        if len(self._results) > IN_FLIGHT:
            jax.block_until_ready(self._results.popleft())


def gather_clients(x: jax.Array) -> jax.Array:
    """All devices' rows of the client axis, in order: the only exchange between clients."""
    if jax.lax.axis_size(CLIENTS) == 1:
        return x  # XLA copies where there is nothing to gather
    return jax.lax.all_gather(x, CLIENTS, axis=0, tiled=True)
