# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What the host decides about every step, as arrays: batches, who reads whom, weights, averages.

All of it is a function of (seed, step), so a resumed run asks for the steps that are left.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from mhd_jax import edges, graph
from mhd_jax.data.feed import Feed
from mhd_jax.edges import Edges
from mhd_jax.exchange import Reader
from mhd_jax.graph import Topology
from mhd_jax.inputs import StepInputs
from mhd_jax.parallel import CLIENTS, Layout
from mhd_jax.step.parts import StepParts


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The inputs of every step of a run, R replicas.

    Attributes:
      parts: of the step, which says who takes part, what is averaged when, and what goes where.
      topologies: one per replica.
      readers: one per replica.
      feed: gives the batch entries.
      label_shares: label distributions [R, K, C], where clients publish them.
    """

    parts: StepParts
    topologies: Sequence[Topology]
    readers: Sequence[Reader]
    feed: Feed
    label_shares: Float[np.ndarray, "R K C"] | None = None

    @property
    def layout(self) -> Layout:
        """Who owns which client."""
        return self.parts.layout

    def host_inputs(self, start: int, stop: int, rows: int = 0) -> StepInputs:
        """The inputs of steps start..stop - 1 as host arrays.

        Args:
          start: the first step.
          stop: the step after the last.
          rows: of the arrays, where a call has room for more steps than there are; those that are
            left repeat the last step, and nobody may run them.
        """
        private, public = self.feed.inputs(start, stop)
        made = self.host_exchange(start, stop, rows)._replace(private=private, public=public)
        if self.parts.routes is not None:
            made = made._replace(reads=tuple(map(self.parts.routes.translate, made.reads)))
        if rows <= stop - start:
            return made
        mixing = made.mixing  # which has as many rows already
        return _longer(made._replace(mixing=()), rows)._replace(mixing=mixing)

    def host_exchange(self, start: int, stop: int, rows: int = 0) -> StepInputs:
        """The same less the batches: who reads whom, of all clients, weights, averages.

        There are averaging matrices for `rows` steps, if these are more; all else is not repeated.
        """
        steps = np.arange(start, stop)
        seated = self.parts.roster.seated(start, stop, len(self.readers))
        readings = [reader(start, stop) for reader in self.readers]
        average, mixing = self._averages(steps, max(rows, len(steps)))
        return StepInputs(
            private=(),
            public=(),
            reads=self._reads([reading.reads for reading in readings]),
            versions=np.stack([r.versions for r in readings], axis=1),
            write=readings[0].write,
            weights=self.parts.method.weights(steps),
            average=average,
            mixing=mixing,
            label_shares=self._shares(seated),
            seated=seated,
        )

    def inputs(self, start: int, stop: int, rows: int = 0) -> StepInputs:
        """`host_inputs` on the devices."""
        return self._put(self.host_inputs(start, stop, rows), input_specs(self.layout, self.feed))

    def exchange(self, step: int) -> StepInputs:
        """`host_exchange` of one step, on the devices."""
        return self._put(self.host_exchange(step, step + 1), exchange_specs(self.layout))

    def _put(self, made: StepInputs, specs: StepInputs) -> StepInputs:
        """Inputs on the devices; an averaging matrix that never changes goes there once."""
        if not self._one_matrix:
            return self.layout.put_tree(made, specs)
        placed = self.layout.put_tree(made._replace(mixing=()), specs)
        return placed._replace(mixing=self._matrix_on_devices)

    def _reads(self, per_seed: Sequence[Edges]) -> tuple[Edges, ...]:
        """Per group [n, R, K]; inert rows read nobody."""
        every = edges.stack(per_seed, axis=1)
        places = self.parts.places
        counts = places.split(every.count, axis=2)
        listed = every.form.kind != "pairs"  # shifted, so that padding with 0 means nobody
        ids = places.split(every.ids - edges.NOBODY if listed else every.ids, axis=2)
        return tuple(
            Edges(part + edges.NOBODY if listed else part, count, every.form)
            for part, count in zip(ids, counts, strict=True)
        )

    def _shares(self, seated: Int[np.ndarray, "n R N"]) -> np.ndarray:
        """Label distributions for n steps; empty where clients keep them to themselves."""
        count, seeds, places = seated.shape
        if self.label_shares is None:
            return np.zeros((count, seeds, 0, 0), np.float32)
        shares = self.label_shares.astype(np.float32)
        if places:
            return shares[np.arange(seeds)[:, None], seated]  # of nobody somebody's: never read
        return np.broadcast_to(shares, (count, *shares.shape))

    def _averages(
        self, steps: Int[np.ndarray, " n"], rows: int
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "m R K K"]]:
        """Which averaging matrix every step ends with, -1 for no average, and the matrices.

        There are as many matrices for all calls of so many rows, some of them without use. Uniform
        weights need none, as devices make them.
        """
        averaging, nobody = self.parts.method.averaging, np.full(len(steps), -1, np.int32)
        none = np.zeros((1, len(self.topologies), 0, 0), np.float32)
        if averaging is None:
            return nobody, none
        due = averaging.due(steps)
        if averaging.matrix == "uniform":
            return np.where(due, 0, nobody), none
        if self._one_matrix:
            return np.where(due, 0, nobody), self._matrix
        # Graphs that take turns do so in all replicas at once.
        first = self.topologies[0]
        turns = np.array([first.turn(int(step)) for step in steps])
        _, leading, which = np.unique(turns[due], return_index=True, return_inverse=True)
        nobody[due] = which
        size = min(-(-rows // averaging.every), first.most_turns(rows))
        shape = self.layout.rows[0], self.layout.num_clients
        out = np.zeros((size, len(self.topologies), *shape), np.float32)
        for index, step in enumerate(steps[due][leading]):
            out[index] = self._weights(int(step))
        return nobody, out

    def _weights(self, step: int) -> Float[np.ndarray, "R K K"]:
        """With which neighbours average at a step, in padded rows."""
        made = [graph.metropolis_weights(each.at(step)) for each in self.topologies]
        return self.layout.pad(np.stack(made).astype(np.float32), 0, axis=1)

    @property
    def _one_matrix(self) -> bool:
        """Whether neighbours average with the same weights in the whole run."""
        averaging = self.parts.method.averaging
        by_graph = averaging is not None and averaging.matrix == "graph"
        return by_graph and not any(each.changes for each in self.topologies)

    @functools.cached_property
    def _matrix(self) -> Float[np.ndarray, "1 R K K"]:
        """These weights."""
        return self._weights(0)[None]

    @functools.cached_property
    def _matrix_on_devices(self) -> jax.Array:
        return self.layout.put(self._matrix, *exchange_specs(self.layout).mixing)


def _longer(made: StepInputs, rows: int) -> StepInputs:
    """Arrays of so many rows, the last of which is repeated."""

    def longer(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)])

    longest: StepInputs = jax.tree.map(longer, made)
    return longest


def input_specs(layout: Layout, feed: Feed) -> StepInputs:
    """How every entry lies on the mesh; matches `Schedule.inputs`."""
    private, public = feed.input_specs()
    return exchange_specs(layout)._replace(private=private, public=public)


def exchange_specs(layout: Layout) -> StepInputs:
    """The same for inputs without batches; matches `Schedule.exchange`."""
    rows = P(None, None, CLIENTS)
    return StepInputs(
        private=(), public=(), reads=(rows,) * len(layout.groups), versions=P(), write=P(),
        weights=P(), average=P(), mixing=rows, label_shares=P(), seated=P(),
    )  # fmt: skip
