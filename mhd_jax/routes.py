# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Which messages go to which device, where clients read few of all others.

An all-gather carries every message to every device. Where the clients of a device read only a few
others, such as their neighbours on a cycle, each device sends what is read s devices further on, in
one permutation for every shift s that occurs. A device then has a table of the messages that its
clients may read, their own among them, in client order: the candidates of its students.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from mhd_jax.edges import NOBODY, Edges, to_lists
from mhd_jax.parallel import CLIENTS

MOST_SHIFTS = 16
"""Permutations a step, one after another, beyond which a single all-gather is preferred."""


@dataclasses.dataclass(frozen=True, eq=False)
class Routes:
    """The deliveries of a step over D devices with k clients each, K in all.

    Attributes:
      reads: who may read whom at any time of the run, bool [K, K].
      devices: D.
    """

    reads: Bool[np.ndarray, "K K"]
    devices: int

    # --- On the host

    @property
    def each(self) -> int:
        """k, clients of a device."""
        return len(self.reads) // self.devices

    @functools.cached_property
    def needed(self) -> Bool[np.ndarray, "D K"]:
        """Whose messages the clients of each device may read, their own included."""
        by_device = self.reads.reshape(self.devices, self.each, -1).any(axis=1)
        return by_device | (self._home == np.arange(self.devices)[:, None])

    @functools.cached_property
    def sends(self) -> Mapping[int, Int[np.ndarray, "D n"]]:
        """By shift s, which of its clients' messages each device sends to the s-th after it."""
        found, at = {}, np.arange(self.devices)
        wanted = self.needed.reshape(self.devices, self.devices, self.each)  # reader, sender, row
        for shift in range(1, self.devices):
            rows = to_lists(wanted[(at + shift) % self.devices, at])
            if rows.shape[1]:
                found[shift] = rows
        return found

    @functools.cached_property
    def table(self) -> Int[np.ndarray, "D M"]:
        """The client at every place of each device's table; `NOBODY` at places that are left."""
        return to_lists(self.needed)

    @functools.cached_property
    def received(self) -> int:
        """Messages that arrive at the device that most arrive at, those that fill up included."""
        arriving = np.zeros(self.devices, int)
        for shift, rows in self.sends.items():
            arriving += np.roll(rows.shape[1] * self._busy(rows), shift)
        return int(arriving.max())

    def worth_it(self) -> bool:
        """Whether they carry at most half of what an all-gather would, in few permutations."""
        others = len(self.reads) - self.each
        return 2 * self.received <= others and len(self.sends) <= MOST_SHIFTS

    def translate(self, reads: Edges) -> Edges:
        """Lists of clients, ids [..., K, w], as lists of places in the table of their device."""
        device = self._home[:, None]
        form = dataclasses.replace(reads.form, candidates=self.table.shape[1])
        return Edges(self._place[device, reads.ids], reads.count, form)

    def describe(self) -> str:
        """A few words for people.

        >>> ring = np.roll(np.eye(8, dtype=bool), 1, axis=0)
        >>> Routes(ring, 4).describe()
        'a device receives 1 of 6 messages of other devices'
        """
        others = len(self.reads) - self.each
        return f"a device receives {self.received:,} of {others:,} messages of other devices"

    @functools.cached_property
    def _home(self) -> Int[np.ndarray, " K"]:
        """The device of every client."""
        return np.arange(len(self.reads)) // self.each

    @functools.cached_property
    def _place(self) -> Int[np.ndarray, "D K+1"]:
        """The place of every client in each device's table, of nobody in the last column."""
        place = np.where(self.needed, self.needed.cumsum(axis=1) - 1, NOBODY)
        return np.pad(place, ((0, 0), (0, 1)), constant_values=NOBODY).astype(np.int32)

    @functools.cached_property
    def _arrival(self) -> Int[np.ndarray, "D M"]:
        """Where each place of the table is found: among one's own messages, then shift by shift."""
        devices, nobody = np.arange(self.devices), len(self.reads)
        clients = [np.arange(nobody).reshape(self.devices, self.each)]
        for shift, rows in self.sends.items():
            home = (devices - shift) % self.devices
            sent = rows[home]
            clients.append(np.where(sent == NOBODY, nobody, home[:, None] * self.each + sent))
        return np.argsort(np.concatenate(clients, axis=1), axis=1)[:, : self.table.shape[1]]

    @staticmethod
    def _busy(rows: Int[np.ndarray, "D n"]) -> Bool[np.ndarray, " D"]:
        """Which devices send anything; the others take no part in a permutation."""
        return (rows != NOBODY).any(axis=1)

    # --- Inside `shard_map`

    def deliver(self, x: Shaped[Array, "k ..."]) -> Shaped[Array, "M ..."]:
        """What the local clients and those whom they read send, in the order of the table."""
        here, devices = jax.lax.axis_index(CLIENTS), np.arange(self.devices)
        arrived = [x]
        for shift, rows in self.sends.items():
            busy = devices[self._busy(rows)]
            pairs = list(zip(busy.tolist(), ((busy + shift) % self.devices).tolist(), strict=True))
            sent = x[jnp.asarray(np.maximum(rows, 0))[here]]
            arrived.append(jax.lax.ppermute(sent, CLIENTS, pairs))
        return jnp.concatenate(arrived)[jnp.asarray(self._arrival)[here]]

    def own(self) -> Int[Array, " k"]:
        """The places of the local clients."""
        mine = np.arange(len(self.reads)).reshape(self.devices, self.each)
        places = np.take_along_axis(self._place, mine, axis=1)
        return jnp.asarray(places)[jax.lax.axis_index(CLIENTS)]

    def clients(self) -> Int[Array, " M"]:
        """The client at every place of the local table."""
        return jnp.asarray(self.table)[jax.lax.axis_index(CLIENTS)]
