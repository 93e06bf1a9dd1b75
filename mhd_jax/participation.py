# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who takes part in a step, and the places that they take in its arrays.

Clients that take no part neither train nor publish. A step gathers the rows of those who do, is
the step of a smaller system, and puts the rows back. Its arrays have one place for each of them;
a place that nobody takes is computed, read by nobody and written nowhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Int

from mhd_jax import rng
from mhd_jax.edges import NOBODY
from mhd_jax.errors import ConfigError
from mhd_jax.graph import read_matrix
from mhd_jax.parallel import CLIENTS, Layout
from mhd_jax.trees import AnyTree

STEPS_COUNTED = 20_000
"""Steps of a run whose clients are counted device by device before it starts."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attendance:
    """Who takes part in every step of one seed: a pure function of (seed, step).

    Attributes:
      seed: of the draw.
      most: clients that take part at once; of more that are available so many are drawn, all
        subsets equally likely.
      available: who is there, step after step, from the beginning again after the last.
      blocks: which block of places each client sits in: one for every group and device.
      first: the first place of each block.
      num_places: N, over all blocks.
    """

    seed: int
    most: int
    available: Bool[np.ndarray, "n K"]
    blocks: Int[np.ndarray, " K"]
    first: Int[np.ndarray, " b"] = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    num_places: int = 0

    @property
    def fewest(self) -> int:
        """Clients that take part at least."""
        return min(self.most, int(self.available.sum(axis=1).min()))

    def clients(self, step: int) -> Int[np.ndarray, " a"]:
        """Who takes part in a step, in ascending order."""
        there = np.flatnonzero(self.available[step % len(self.available)])
        if len(there) <= self.most:
            return there
        draw = rng.generator(self.seed, "participation", step)
        return np.sort(draw.choice(there, self.most, replace=False))

    def crowds(self, step: int) -> Int[np.ndarray, " b"]:
        """How many of them sit in each block."""
        return np.bincount(self.blocks[self.clients(step)], minlength=int(self.blocks.max()) + 1)

    def places(self, step: int) -> Int[np.ndarray, " N"]:
        """The client at every place, in ascending order; `NOBODY` at places that are left."""
        clients = self.clients(step)
        block = self.blocks[clients]
        crowd = np.bincount(block, minlength=len(self.first))
        nth = np.arange(len(clients)) - (np.cumsum(crowd) - crowd)[block]
        out = np.full(self.num_places, NOBODY, np.int32)
        out[self.first[block] + nth] = clients
        return out


@dataclasses.dataclass(frozen=True)
class Roster:
    """Clients and places of a run.

    Attributes:
      layout: of all clients on the devices.
      places: of the places of one step; `layout` where everybody takes part in every step.
      attendances: one per seed; () where everybody takes part in every step.
    """

    layout: Layout
    places: Layout
    attendances: tuple[Attendance, ...] = ()

    # --- On the host

    def seated(self, start: int, stop: int, seeds: int) -> Int[np.ndarray, "n R N"]:
        """The client at every place in steps start..stop - 1; N = 0 where everybody takes part."""
        if not self.attendances:
            return np.zeros((stop - start, seeds, 0), np.int32)
        steps = range(start, stop)
        return np.stack([[who.places(step) for who in self.attendances] for step in steps])

    def spread(
        self, values: np.ndarray, seated: Int[np.ndarray, "*n N"], missing: Any = np.nan
    ) -> np.ndarray:
        """Values of the places `[*n, N, ...]` as values of all clients `[*n, K, ...]`.

        Args:
          values: one for every place.
          seated: the clients there; N = 0 where everybody takes part: values stay what they are.
          missing: what clients have that take no part.
        """
        if not self.attendances:
            return values
        lead, rest = seated.shape[:-1], values.shape[seated.ndim :]
        shape = (int(np.prod(lead)), self.layout.num_clients + 1, *rest)
        flat = np.full(shape, missing, values.dtype)
        row = np.arange(len(flat))[:, None]  # NOBODY writes into the last column, cut off below
        flat[row, seated.reshape(len(flat), -1)] = values.reshape(len(flat), -1, *rest)
        return flat[:, :-1].reshape(*lead, self.layout.num_clients, *rest)

    # --- Inside `shard_map`

    def ids(self, group: int, seated: Int[Array, " N"]) -> Int[Array, " k"]:
        """Index among all clients of every local place of a group; beyond all for nobody."""
        own = self.own(group)
        if not self.attendances:
            return own
        return jnp.where(seated[own] < 0, self.layout.num_clients, seated[own])

    def own(self, group: int) -> Int[Array, " k"]:
        """Index among all places of every local place of a group."""
        count = self.places.rows[group] // self.places.client_devices
        first = self.places.offsets[group] + jax.lax.axis_index(CLIENTS) * count
        return first + jnp.arange(count)

    def rows(self, group: int, seated: Int[Array, " N"]) -> Int[Array, " k"] | None:
        """The local row of every local place; rows that do not exist for nobody, None for all."""
        if not self.attendances:
            return None
        count = self.layout.rows[group] // self.layout.client_devices
        first = self.layout.offsets[group] + jax.lax.axis_index(CLIENTS) * count
        who = seated[self.own(group)]
        return jnp.where(who < 0, count + jnp.arange(len(who)), who - first)

    def everywhere(self, seated: Int[Array, " N"]) -> Int[Array, " N"] | None:
        """The client at every place of all devices, different numbers beyond all for nobody."""
        if not self.attendances:
            return None
        beyond = self.layout.num_clients + jnp.arange(len(seated))
        return jnp.where(seated < 0, beyond, seated)


def take(tree: AnyTree, rows: Int[Array, " k"] | None) -> AnyTree:
    """The rows of those who take part; an empty place gets an arbitrary row, never read."""
    if rows is None:
        return tree
    return jax.tree.map(lambda x: x.at[rows].get(mode="clip"), tree)


def put_back(tree: AnyTree, changed: AnyTree, rows: Int[Array, " k"] | None) -> AnyTree:
    """The tree with those rows changed; those of nobody are dropped."""
    if rows is None:
        return changed
    return jax.tree.map(
        lambda x, new: x.at[rows].set(new, mode="drop", unique_indices=True), tree, changed
    )


# --- From the settings ----------------------------------------------------------------------------


def make_roster(
    config: ml_collections.ConfigDict, layout: Layout, seeds: Sequence[int], steps: int
) -> Roster:
    """Who takes part in a run of `steps` steps.

    Raises:
      ConfigError: `clients.active` or `clients.trace` is not what the settings page says.
    """
    most = active_clients(config)
    trace = _trace(config)
    everybody = Roster(layout, layout)
    if layout.num_clients != config.clients.num:  # a pooled model always takes part
        return everybody
    if most == layout.num_clients and (trace is None or trace.all()):
        return everybody
    available = np.ones((1, layout.num_clients), bool) if trace is None else trace
    blocks = _blocks(layout)
    drawn = [Attendance(seed, most, available, blocks) for seed in seeds]
    slots = _slots(layout, drawn, steps)
    devices = layout.client_devices
    places = Layout(layout.mesh, tuple(devices * n for n in slots), layout.idle_devices)
    first = np.concatenate(
        [start + np.arange(devices) * n for start, n in zip(places.offsets, slots, strict=True)]
    )
    seated = (dataclasses.replace(who, first=first, num_places=places.num_clients) for who in drawn)
    return Roster(layout, places, tuple(seated))


def active_clients(config: ml_collections.ConfigDict) -> int:
    """How many clients take part in a step at most, from `clients.active`.

    >>> from mhd_jax.config import default_config
    >>> config = default_config()
    >>> config.clients.num, config.clients.active = 4096, 0.05
    >>> active_clients(config)
    205
    """
    active, clients = config.clients.active, config.clients.num
    if 0 < active <= 1:
        return max(1, round(active * clients))
    if active < 2 or active > clients or active != int(active):
        accepted = "a share above 0, at most 1"
        accepted += f", or a whole number from 2 to {clients} clients" if clients > 1 else ""
        raise ConfigError("clients.active", active, accepted)
    return int(active)


def _trace(config: ml_collections.ConfigDict) -> Bool[np.ndarray, "n K"] | None:
    """Who is there, from the file `clients.trace`; None without one."""
    path, clients = config.clients.trace, config.clients.num
    if not path:
        return None
    found = np.asarray(read_matrix(path, clients, setting="clients.trace", edge_lists=False))
    if found.ndim != 2 or found.shape[1] != clients or not len(found):
        accepted = f"a row for each step, each with a column for each of {clients} clients"
        raise ConfigError("clients.trace", path, f"{accepted}, not shape {found.shape}")
    for step, client in np.argwhere((found != 0) & (found != 1)):
        entry = found[step].tolist()[client]  # as Python shows it, without a type of NumPy
        accepted = f"entries 0 or 1, not {entry!r} in row {step}, column {client}"
        raise ConfigError("clients.trace", path, accepted)
    if empty := np.flatnonzero(~found.any(axis=1)).tolist():
        raise ConfigError("clients.trace", path, f"somebody in every row, not nobody in {empty[0]}")
    return found.astype(bool)


def _blocks(layout: Layout) -> Int[np.ndarray, " K"]:
    """The block of every client: its group, and in it its device."""
    devices = layout.client_devices
    return np.concatenate(
        [
            group * devices + np.arange(size) * devices // rows
            for group, (size, rows) in enumerate(zip(layout.groups, layout.rows, strict=True))
        ]
    )


def _slots(layout: Layout, drawn: Sequence[Attendance], steps: int) -> tuple[int, ...]:
    """Places of each group on a device: the most clients there at any time of the run."""
    devices, groups = layout.client_devices, len(layout.groups)
    most = drawn[0].most
    bound = [min(most, rows // devices) for rows in layout.rows]
    if devices == groups == 1:
        return (min(most, int(drawn[0].available.sum(axis=1).max())),)
    if steps > STEPS_COUNTED:
        return tuple(bound)
    size = devices * groups
    crowds = functools.reduce(
        np.maximum,
        (np.pad(who.crowds(step), (0, size))[:size] for who in drawn for step in range(steps)),
    )
    return tuple(max(1, int(crowds[g * devices :][:devices].max())) for g in range(groups))
