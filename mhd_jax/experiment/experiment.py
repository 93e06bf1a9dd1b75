# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A run, built and checked but not started."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jaxtyping import Bool, Float, Int

from mhd_jax import exchange, federation, graph, results, state, weights
from mhd_jax import privacy as privacy_lib
from mhd_jax.data.feed import Feed, Resident
from mhd_jax.data.order import Federation
from mhd_jax.evaluator import Evaluator
from mhd_jax.inputs import Sample
from mhd_jax.models import shapes
from mhd_jax.parallel import Layout
from mhd_jax.schedule import Schedule, input_specs
from mhd_jax.seating import HostMemory
from mhd_jax.state import State
from mhd_jax.step import StepParts, cache_shapes, make_step


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run, built and checked but not started.

    Attributes:
      config: the validated config.
      seeds: one per replica.
      federations: one per replica, data as handed to clients before any pooling.
      topologies: one per replica.
      readers: one per replica.
      parts: the fixed parts of the step.
      feed: where samples come from.
      ledgers: bytes per client, one for each seed.
      memory: of the host, where clients that take no part wait in it; None where they wait on the
        devices.
    """

    config: ml_collections.ConfigDict
    seeds: tuple[int, ...]
    federations: tuple[Federation, ...]
    topologies: Sequence[graph.Topology]
    readers: Sequence[exchange.Reader]
    parts: StepParts
    feed: Feed
    ledgers: tuple[exchange.Ledger, ...]
    memory: HostMemory | None = None

    @functools.cached_property
    def schedule(self) -> Schedule:
        """What the host decides about every step."""
        shares = _label_shares(self.config, self.federations)
        return Schedule(self.parts, self.topologies, self.readers, self.feed, shares)

    @property
    def layout(self) -> Layout:
        """Who owns which client."""
        return self.parts.layout

    @property
    def home(self) -> Layout:
        """Where the state of all clients lies between steps: on the devices or in host memory."""
        return self.memory.layout if self.memory else self.layout

    @property
    def mesh(self) -> str:
        """One line for people: where clients are, and what travels between devices."""
        routes = self.parts.routes
        said = [self.layout.describe(), *([routes.describe()] if routes else [])]
        return "; ".join([*said, *(["clients wait in host memory"] if self.memory else [])])

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one sample, such as that of an image."""
        return self.federations[0].source.image_shape

    @property
    def sample(self) -> Sample:
        """One sample as the network sees it."""
        return federation.sample_of(self.federations[0].source)

    @property
    def client_names(self) -> tuple[str, ...]:
        """The clients' names, () where they have none but their numbers."""
        silos = federation.kept_silos(self.config, self.federations[0].source)
        return silos.names if silos else ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes' names, () where they have none but their numbers."""
        names = self.federations[0].source.class_names
        return () if names == tuple(map(str, range(len(names)))) else names

    @property
    def ledger(self) -> exchange.Ledger:
        """Bytes per client for the first seed."""
        return self.ledgers[0]

    @functools.cached_property
    def num_params(self) -> list[int]:
        """Trained parameters of every client, with what brings embeddings to a common width."""
        learners = self.init_state(abstract=True).clients
        return [
            sum(int(np.prod(leaf.shape[2:])) for leaf in jax.tree.leaves(group.params))
            for size, group in zip(self.layout.groups, learners, strict=True)
            for _ in range(size)
        ]

    @property
    def liars(self) -> tuple[int, ...]:
        """The clients that lie."""
        return self.parts.attackers.clients if self.parts.attackers else ()

    @property
    def counted(self) -> Bool[np.ndarray, " K"]:
        """Which clients means are of; all are measured, even where one pooled model trains."""
        clients = len(self.federations[0].partition.sizes)
        return results.counted(clients, self.liars, self.config.clients.frozen)

    def init_state(self, abstract: bool = False) -> State:
        """The initial state, sharded, at `home`; with `abstract` its shapes and shardings only."""
        if abstract:
            return self._initial.shapes
        made = self.random_state()
        return state.start_from(made, self.home, *self.weights) if self.weights else made

    def random_state(self) -> State:
        """The same without the weights that clients are given."""
        return self._initial.make()

    @functools.cached_property
    def _initial(self) -> state.Initial:
        return state.initial(
            self.seeds,
            self.home,
            self.parts.models,
            self.parts.baseline_models,
            self.parts.optimizer,
            self.sample,
            pool_slots=self.readers[0].pool_slots,
            marginals=_marginals(self.parts, self.readers[0].pool_slots),
            with_publishers=self.parts.routes is not None,
            cache=cache_shapes(
                self.parts,
                [shapes.embedding_width(model, self.sample) for model in self.parts.models],
                self.config.data.public_batch_size,
            ),
            same_start=self.parts.method.same_start,
        )

    def seat(self, everyone: State, step: int) -> State:
        """What a step takes, on the devices: with `memory` the state of those who take part."""
        if self.memory is None:
            return everyone
        return self.memory.seat(everyone, self._places(step))

    def unseat(self, everyone: State, changed: State, step: int) -> State:
        """The state of all clients after a step, from that before it, which is donated."""
        if self.memory is None:
            return changed
        return self.memory.unseat(everyone, changed, self._places(step))

    def seated_shapes(self) -> State:
        """Shapes, types and shardings of what a step takes."""
        everyone = self.init_state(abstract=True)
        return self.memory.seated_shapes(everyone) if self.memory else everyone

    def _places(self, step: int) -> Int[np.ndarray, "R N"]:
        return self.parts.roster.seated(step, step + 1, self.parts.replicas)[0]

    @functools.cached_property
    def weights(self) -> tuple[Sequence[weights.Flat], Sequence[weights.Flat]] | tuple[()]:
        """What clients, and their isolated baseline, start from; () where nothing is given.

        Raises:
          ConfigError: `model.init_from` cannot be read, or does not fit a client's network.
        """
        name = self.config.model.init_from
        given = weights.read(name, self.layout.num_clients)
        if not given:
            return ()
        parts, clients, baseline = self.parts, [], []
        for group, size in enumerate(self.layout.groups):
            wanted = shapes.variable_shapes(parts.models[group], self.sample)
            twins = parts.baseline_models[group : group + 1]
            alone = [shapes.variable_shapes(twin, self.sample) for twin in twins]
            for client in range(self.layout.offsets[group], self.layout.offsets[group] + size):
                who = f"client {(self.client_names or range(client + 1))[client]}"
                clients.append(weights.fitted(given[client], wanted, who, name))
                baseline += [weights.main_head(clients[-1], shape) for shape in alone]
        return clients, baseline

    @functools.cached_property
    def step(self) -> Any:
        """The jitted step; see `step.make_step`."""
        return make_step(self.parts, input_specs(self.layout, self.feed), self.feed.data_specs())

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """Measures clients on the test set."""
        parts, source = self.parts, self.federations[0].source
        return Evaluator(
            parts.layout,
            models=parts.models,
            baseline_models=parts.baseline_models,
            source=source,
            silos=federation.kept_silos(self.config, source),
            histograms=[fed.histogram for fed in self.federations],
            metrics=self.config.metrics,
            prepare=federation.preparation(self.config, self.federations).test_all,
            keep=isinstance(self.feed, Resident),
            memory=self.memory,
        )

    @functools.cached_property
    def epsilons(self) -> tuple[Float[np.ndarray, " K"] | None, ...]:
        """Epsilon of every client after the run, by seed; None without a claim."""
        method = self.parts.method
        return tuple(
            privacy_lib.epsilons(self.config, method, fed.partition.sizes)
            for fed in federation.trained_on(method, self.federations)
        )

    @functools.cached_property
    def seed_array(self) -> jax.Array:
        """Seeds [R] on every device."""
        return self.layout.put(np.asarray(self.seeds, np.uint32))


def _marginals(parts: StepParts, pool_slots: int) -> tuple[int, ...]:
    """Shape (K, H, C) of the moving average that alignment keeps; () for none.

    Snapshots are aligned with the batch's own mean: each would need an average of its own.
    """
    chosen = parts.method.distillation
    if pool_slots or chosen is None or not (chosen.aligns and chosen.alignment_momentum):
        return ()
    heads = chosen.published_heads(parts.models[0].num_heads)
    return (parts.layout.num_clients, heads, parts.num_classes)


def _label_shares(
    config: ml_collections.ConfigDict, federations: Sequence[Federation]
) -> Float[np.ndarray, "R K C"] | None:
    """Every client's label distribution, if clients publish it."""
    if not config.distill.publish_label_shares:
        return None
    counts = np.stack([fed.histogram for fed in federations])
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
