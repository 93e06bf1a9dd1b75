# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What the host decides about every step, as arrays: batches, who reads whom, weights, averages.

All of it is a function of (seed, step), so a resumed run asks for the steps that are left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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

    def host_inputs(self, start: int, stop: int) -> StepInputs:
        """The inputs of steps start..stop - 1 as host arrays."""
        private, public = self.feed.inputs(start, stop)
        made = self.host_exchange(start, stop)._replace(private=private, public=public)
        if self.parts.routes is None:
            return made
        return made._replace(reads=tuple(map(self.parts.routes.translate, made.reads)))

    def host_exchange(self, start: int, stop: int) -> StepInputs:
        """The same less the batches: who reads whom, of all clients, weights, averages."""
        steps = np.arange(start, stop)
        seated = self.parts.roster.seated(start, stop, len(self.readers))
        readings = [reader(start, stop) for reader in self.readers]
        averaging = self.parts.method.averaging
        return StepInputs(
            private=(),
            public=(),
            reads=self._reads([reading.reads for reading in readings]),
            versions=np.stack([r.versions for r in readings], axis=1),
            write=readings[0].write,
            weights=self.parts.method.when(steps),
            average=averaging.due(steps) if averaging else np.zeros(len(steps), bool),
            mixing=self._mixing(steps),
            label_shares=self._shares(seated),
            seated=seated,
        )

    def inputs(self, start: int, stop: int) -> StepInputs:
        """The same on the devices."""
        return self.layout.put_tree(
            self.host_inputs(start, stop), input_specs(self.layout, self.feed)
        )

    def exchange(self, step: int) -> StepInputs:
        """`host_exchange` of one step, on the devices."""
        made = self.host_exchange(step, step + 1)
        return self.layout.put_tree(made, exchange_specs(self.layout))

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

    def _mixing(self, steps: np.ndarray) -> np.ndarray:
        """Averaging matrices [n, R, K, K] in padded rows; empty without averaging."""
        averaging, layout = self.parts.method.averaging, self.layout
        if averaging is None:
            return np.zeros((len(steps), len(self.topologies), 0, 0), np.float32)
        num_clients = layout.num_clients
        uniform = np.full((num_clients, num_clients), 1 / num_clients)
        out = np.zeros((len(steps), len(self.topologies), num_clients, num_clients), np.float32)
        for index in np.flatnonzero(averaging.due(steps)):
            for replica, topology in enumerate(self.topologies):
                neighbours = averaging.matrix == "graph"
                out[index, replica] = (
                    graph.metropolis_weights(topology.at(int(steps[index])))
                    if neighbours
                    else uniform
                )
        return layout.pad(out, 0, axis=2)


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
