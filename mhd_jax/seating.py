# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The rows of those who take part in a step: gathered for it, and put back after it.

Either the step does both itself, as the clients who take no part wait on the devices, or they wait
in the memory of the host, and the devices hold those of one step alone. The functions are the same:
JAX sees the host's processor as one more device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from mhd_jax.edges import NOBODY
from mhd_jax.errors import ConfigError
from mhd_jax.parallel import CLIENTS, DATA, Layout, on_mesh
from mhd_jax.participation import Roster, put_back, take
from mhd_jax.state import Learners, State, shardings, specs
from mhd_jax.trees import AnyTree

Groups = tuple[AnyTree, ...]


def seat(roster: Roster, state: State, seated: Int[Array, " N"]) -> State:
    """The state of those who take part, in the order of their places.

    Args:
      roster: clients and places.
      state: of all clients of one system on this device, without the axis of replicas.
      seated: the client at every place; N = 0 where everybody takes part.
    """
    rows = [roster.rows(group, seated) for group in range(len(roster.layout.groups))]

    def of_groups(trees: Groups[Any]) -> Groups[Any]:
        return tuple(take(tree, at) for tree, at in zip(trees, rows, strict=bool(trees)))

    return state.replace(
        clients=of_groups(state.clients),
        baseline=of_groups(state.baseline),
        pool=of_groups(state.pool),
        marginals=take(state.marginals, roster.everywhere(seated)),
    )


def unseat(roster: Roster, everyone: State, changed: State, seated: Int[Array, " N"]) -> State:
    """The inverse of `seat`: everybody's state with that of those who took part changed."""
    rows = [roster.rows(group, seated) for group in range(len(roster.layout.groups))]

    def of_groups(old: Groups[Any], new: Groups[Any]) -> Groups[Any]:
        return tuple(put_back(*trees) for trees in zip(old, new, rows, strict=bool(old)))

    return changed.replace(
        clients=of_groups(everyone.clients, changed.clients),
        baseline=of_groups(everyone.baseline, changed.baseline),
        pool=of_groups(everyone.pool, changed.pool),
        marginals=put_back(everyone.marginals, changed.marginals, roster.everywhere(seated)),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class HostMemory:
    """Clients that wait in the memory of the host, `clients.offload = "host"`.

    Attributes:
      roster: clients and places as they lie there.
      devices: the places as they lie on the devices.
    """

    roster: Roster
    devices: Layout

    @property
    def layout(self) -> Layout:
        """Of all clients, in host memory."""
        return self.roster.layout

    def seat(self, state: State, seated: Int[np.ndarray, "R N"]) -> State:
        """Puts those who take part on the devices.

        Args:
          state: of all clients, in host memory; it stays there.
          seated: the client at every place, by seed.
        """
        found = self._seat(state, self.layout.put(seated))
        return jax.device_put(found, shardings(found, self.devices))

    def unseat(self, state: State, changed: State, seated: Int[np.ndarray, "R N"]) -> State:
        """The state of all clients, in host memory, after those who took part come back.

        Args:
          state: as it was before, in host memory; donated.
          changed: of those who took part, on the devices.
          seated: as in `seat`.
        """
        back = jax.device_put(changed, shardings(changed, self.roster.places))
        return self._unseat(state, back, self.layout.put(seated))

    def seated_shapes(self, state: State) -> State:
        """What `seat` returns, as shapes, types and shardings."""
        replicas = jax.tree.leaves(state.clients)[0].shape[0]
        seated = jax.ShapeDtypeStruct((replicas, self.devices.num_clients), np.int32)
        found = jax.eval_shape(self._seat, state, seated)
        return jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
            found, shardings(found, self.devices),
        )  # fmt: skip

    def turns(
        self, learners: Groups[Learners]
    ) -> Iterator[tuple[Int[np.ndarray, " N"], Groups[Learners]]]:
        """All clients, as many at a time as there are places: who they are, and what they know.

        What comes is on the devices and can predict, but has no optimiser.
        """
        replicas = len(jax.tree.leaves(learners)[0])
        known = tuple(group.replace(opt_state=()) for group in learners)
        state = State(self.layout.put(np.int32(0)), known, (), ())
        for seated in self._takes_turns():
            here = np.broadcast_to(seated, (replicas, len(seated)))
            yield seated, self.seat(state, here).clients

    def _takes_turns(self) -> Iterator[Int[np.ndarray, " N"]]:
        layout, slots = self.layout, self.devices.groups
        most = max(-(-size // n) for size, n in zip(layout.groups, slots, strict=True))
        for turn in range(most):
            clients = [np.arange(turn * n, (turn + 1) * n) for n in slots]
            yield np.concatenate(
                [
                    np.where(nth < size, first + nth, NOBODY).astype(np.int32)
                    for nth, first, size in zip(clients, layout.offsets, layout.groups, strict=True)
                ]
            )

    @functools.cached_property
    def _seat(self) -> Callable[[State, Array], State]:
        return self._compiled(seat, (specs(), P()), donate=())

    @functools.cached_property
    def _unseat(self) -> Callable[[State, State, Array], State]:
        return self._compiled(unseat, (specs(), specs(), P()), donate=(0,))

    def _compiled(
        self, function: Callable[..., State], in_specs: Sequence[Any], donate: Sequence[int]
    ) -> Callable[..., State]:
        """The function for every seed, run by the host's processor."""
        axes_of_state: dict[str, Any] = {
            "step": None, "clients": 0, "baseline": 0, "pool": 0, "marginals": 0, "cache": 0,
        }  # fmt: skip
        of_seeds = State(**axes_of_state)
        axes = (*[of_seeds] * (len(in_specs) - 1), 0)
        each = jax.vmap(functools.partial(function, self.roster), axes, of_seeds)
        sharded = on_mesh(each, self.layout, in_specs=tuple(in_specs), out_specs=specs())
        return jax.jit(sharded, donate_argnums=tuple(donate))


def host_memory(roster: Roster) -> HostMemory:
    """Host memory for the clients of a run.

    Args:
      roster: clients and places on the devices.

    Raises:
      ConfigError: everybody takes part in every step, there are several processes, or JAX was told
        not to use the host's processor.
    """
    setting, value = "clients.offload", "host"
    if not roster.attendances:
        accepted = "none where everybody takes part in every step: nobody waits (clients.active)"
        raise ConfigError(setting, value, accepted)
    if jax.process_count() > 1:
        raise ConfigError(setting, value, "none where a run has several processes")
    try:
        processor = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        accepted = "none, or cpu in JAX_PLATFORMS beside the accelerator, as in cuda,cpu"
        raise ConfigError(setting, value, accepted) from error
    mesh = Mesh(np.array([[processor]]), (CLIENTS, DATA), axis_types=(AxisType.Auto,) * 2)
    there = Roster(
        Layout(mesh, roster.layout.groups), Layout(mesh, roster.places.groups), roster.attendances
    )
    return HostMemory(there, roster.places)
