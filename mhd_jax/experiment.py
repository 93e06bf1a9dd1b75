# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""From a config to everything a run needs: data, clients, step, schedule, evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from jax.interpreters import partial_eval
from jaxtyping import Bool, Float, Int

from mhd_jax import (
    attacks,
    distill,
    evaluate,
    exchange,
    federation,
    graph,
    methods,
    models,
    parallel,
    participation,
    seating,
    state,
    weights,
)
from mhd_jax import config as config_lib
from mhd_jax import privacy as privacy_lib
from mhd_jax.data.batches import Visits
from mhd_jax.data.feed import (
    Federation,
    Feed,
    Resident,
    device_memory,
)
from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.evaluator import Evaluator
from mhd_jax.inputs import Sample, network_input
from mhd_jax.models import bridge
from mhd_jax.parallel import Layout
from mhd_jax.participation import Roster
from mhd_jax.routes import Routes
from mhd_jax.schedule import Schedule, input_specs
from mhd_jax.seating import HostMemory
from mhd_jax.state import State
from mhd_jax.step import StepParts, cache_shapes, make_step
from mhd_jax.trees import Variables

STEPS_PER_CALL = 50  # where nobody asks for another number and loops are not slow
VARIABLES = ("params", "batch_stats")
"""Kinds of variables that a client's state keeps."""

LONGEST_PERIOD = 100_000
"""Steps in which a method has shown all that it does."""


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
      ledger: bytes per client.
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
    ledger: exchange.Ledger
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
    def honest(self) -> Bool[np.ndarray, " K"]:
        """Which clients do not lie; all are measured, even where one pooled model trains."""
        liars, clients = self.parts.attackers, len(self.federations[0].partition.sizes)
        return ~np.isin(np.arange(clients), liars.clients if liars else ())

    def init_state(self, abstract: bool = False) -> State:
        """The initial state, sharded, at `home`; with `abstract` its shapes and shardings only."""
        given = () if abstract else self.weights
        made = state.init_state(
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
                [state.embedding_width(model, self.sample) for model in self.parts.models],
                self.config.data.public_batch_size,
            ),
            same_start=self.parts.method.same_start,
            abstract=abstract,
        )
        return state.start_from(made, self.home, *given) if given else made

    def seat(self, everyone: State, step: int) -> State:
        """What a step takes, on the devices: with `memory` the state of those who take part."""
        if self.memory is None:
            return everyone
        return self.memory.seat(everyone, self._places(step))

    def leave(self, everyone: State, changed: State, step: int) -> State:
        """The state of all clients after a step, from that before it, which is donated."""
        if self.memory is None:
            return changed
        return self.memory.leave(everyone, changed, self._places(step))

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
        given = weights.read(self.config.model.init_from, self.layout.num_clients)
        if not given:
            return ()
        parts, clients, baseline = self.parts, [], []
        for group, size in enumerate(self.layout.groups):
            shapes = variable_shapes(parts.models[group], self.sample)
            for client in range(self.layout.offsets[group], self.layout.offsets[group] + size):
                who = f"client {(self.client_names or range(client + 1))[client]}"
                clients.append(weights.fitted(given[client], shapes, who))
                if parts.baseline_models:
                    alone = variable_shapes(parts.baseline_models[group], self.sample)
                    baseline.append(weights.main_head(clients[-1], alone))
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
            histograms=[
                fed.partition.histogram(fed.source.train.labels, source.num_classes)
                for fed in self.federations
            ],
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


def build(
    config: ml_collections.ConfigDict, data: federation.DataSets | None = None, memory: int = 0
) -> Experiment:
    """Builds a run and makes every check that can be made before compiling.

    Args:
      config: see `mhd_jax.config.default_config`.
      data: what to learn from; None for the data sets that the config names.
      memory: bytes of a device, for `data.feed = auto`; 0 asks the device.

    Raises:
      ConfigError: naming the setting, its value and what is accepted.
    """
    config_lib.validate(config)
    method = methods.build(config)
    seeds = tuple(config.seed + replica for replica in range(config.num_seeds))
    source, other = data or federation.data_sets(config)
    federations = tuple(federation.federate(config, seed, source, other) for seed in seeds)
    _check_pieces(config, method, source.num_classes)
    _check_frozen(config, method)
    topologies = [
        _with_drawn_peers(
            config, method, graph.make_topology(config.graph, config.clients.num, fed.seed),
            fed.partition.sizes,
        )
        for fed in federations
    ]  # fmt: skip
    built = _models(config, source.num_classes, method.num_heads(config.heads.aux))
    sample = federation.sample_of(source)
    _check_networks(built, sample)
    roster = _roster(config, method, _layout(config, method, built, sample), seeds)
    visits = _visits(config, method, topologies, roster.layout)
    trained = federation.trained_on(method, federations)
    privacy = _privacy(config, built, trained, own_public=other is None)
    feed = federation.make_feed(
        config, method, trained, roster, visits, memory or device_memory(), privacy
    )
    baseline = _models(config, source.num_classes, 1) if _wants_baseline(config, method) else ()
    encoding = exchange.make_encoding(config, method, source.num_classes)
    _check_alignment(config, method, source.num_classes)
    _warn_of_idle_settings(config, method)
    convolutional = any(has_convolutions(model, sample) for model in built)
    steps_per_call = _steps_per_call(config, convolutional, feed)
    horizon = config.train.steps + steps_per_call  # the last call is planned to its full length
    who = roster.attendances
    readers = exchange.make_readers(config, method, topologies, seeds, horizon, who)
    attackers = _attackers(config, method)
    weights = method.when(np.arange(min(config.train.steps, LONGEST_PERIOD)))
    sent_anew = method.distillation is not None and visits.count == 1 and attackers is None
    routes = _routes(topologies, readers, roster) if sent_anew else None
    parts = StepParts(
        roster=roster,
        method=method,
        models=built,
        baseline_models=baseline,
        optimizer=state.make_optimizer(config),
        encoding=encoding,
        load=feed.load,
        num_classes=source.num_classes,
        replicas=config.num_seeds,
        steps_per_call=steps_per_call,
        convolutional=convolutional,
        embedding_width=_embedding_width(config, method, built, sample),
        pauses=method.distillation is not None and bool((weights[:, 1] == 0).any()),
        rests=bool((weights[:, 0] == 0).any()),
        frozen=sum(offset < config.clients.frozen for offset in roster.layout.offsets),
        visits=visits,
        routes=routes,
        attackers=attackers,
        privacy=privacy,
        brought=config.clients.offload == "host",
    )
    return Experiment(
        config=config,
        seeds=seeds,
        federations=federations,
        topologies=topologies,
        readers=readers,
        parts=parts,
        feed=feed,
        ledger=_ledger(config, parts, readers[0], sample),
        memory=seating.host_memory(roster) if parts.brought else None,
    )


def _check_pieces(
    config: ml_collections.ConfigDict, method: methods.Method, num_classes: int
) -> None:
    """Calls confidence, rule, loss and metrics once, on shapes or zeros."""
    chosen = method.distillation
    if chosen is not None:
        distill.check_pieces(
            rule=chosen.rule, confidence=chosen.confidence, loss=chosen.loss,
            num_classes=num_classes, label_shares=config.distill.publish_label_shares,
        )  # fmt: skip
    for name in evaluate.chosen_metrics(config.metrics):
        shape = (config.clients.num, method.num_heads(config.heads.aux), num_classes)
        owned = np.zeros((shape[0], num_classes))
        evaluate.measure(name, np.zeros(shape), np.ones(num_classes, int), owned)


def _check_frozen(config: ml_collections.ConfigDict, method: methods.Method) -> None:
    """Frozen clients teach; they know something, and nobody averages parameters with them.

    Raises:
      ConfigError: otherwise.
    """
    frozen = config.clients.frozen
    if not frozen:
        return
    if frozen >= config.clients.num:
        accepted = f"fewer than clients.num = {config.clients.num}: somebody has to learn"
        raise ConfigError("clients.frozen", frozen, accepted)
    if method.distillation is None or method.averaging is not None:
        accepted = f"0: {config.method} does not learn from published predictions alone"
        raise ConfigError("clients.frozen", frozen, accepted)
    if not config.model.init_from:
        accepted = "the weights of the clients that clients.frozen keeps as they are"
        raise ConfigError("model.init_from", "", accepted)


def _attackers(
    config: ml_collections.ConfigDict, method: methods.Method
) -> attacks.Attackers | None:
    """Who lies about what the method sends; see `attacks.make`."""
    chosen = method.distillation
    predictions = chosen is not None and bool(chosen.nu_pred)
    vectors = method.averaging is not None or chosen is not None and bool(chosen.nu_emb)
    return attacks.make(config, predictions=predictions, vectors=vectors)


def _check_alignment(
    config: ml_collections.ConfigDict, method: methods.Method, num_classes: int
) -> None:
    """Refuses what alignment cannot do and warns of what weakens it.

    Raises:
      ConfigError: frequencies that are not those of the classes.
    """
    chosen = method.distillation
    if chosen is None or not chosen.alignment or not chosen.nu_pred:
        return
    frequencies = chosen.class_frequencies
    if frequencies and len(frequencies) != num_classes:
        accepted = f"one number of at least 0 for each of {num_classes} classes"
        raise ConfigError("distill.class_frequencies", frequencies, accepted)
    if config.exchange.encoding == "top_k":
        logging.warning(
            "distill.alignment = %g with exchange.encoding = top_k: the encoding has lost the "
            "small probabilities that alignment compares; much of its effect is lost",
            chosen.alignment,
        )


def _warn_of_idle_settings(config: ml_collections.ConfigDict, method: methods.Method) -> None:
    """Says which settings have no effect, or hardly any, in a run of this length."""
    steps, distils = config.train.steps, method.distillation is not None
    idle = {
        "distill.fade_in": (
            distils and config.distill.fade_in == 1,
            "distillation reaches its full weight at the last step only",
        ),
        "graph.drop": (distils and config.graph.drop == 1, "no message ever arrives"),
        "exchange.every": (
            distils and steps > 1 and config.exchange.every >= steps,
            f"of {steps:,} steps only the first distils",
        ),
        "attack.start": (
            config.attack.name != attacks.NONE and config.attack.start >= steps,
            f"in {steps:,} steps nobody lies",
        ),
    }
    values = config_lib.flatten(config)
    for name, (holds, what) in idle.items():
        if holds:
            logging.warning("%s = %s: %s", name, values[name], what)


def _with_drawn_peers(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    topology: graph.Topology,
    sizes: Int[np.ndarray, " K"],
) -> graph.Topology:
    """With as many peers a step as the method draws, where the config leaves it to the method.

    Readers that keep what they have read, and pools of snapshots, stay with all of their peers. So
    does everybody where most clients have few peers: whoever has many there, as the centre of a
    star, is the only one through whom the others hear of each other. And where clients have few
    private samples on average, as two of them know too little.
    """
    own = method.distillation.peers if method.distillation else 0
    left_to_it = config.graph.peers_per_step < 0 and config.exchange.mode == "fresh"
    if not (own and left_to_it) or config.exchange.cache > 1:
        return topology
    if np.mean(sizes) < methods.ENOUGH or np.median(topology.at(0).sum(axis=1)) <= own:
        return topology  # the samples first: the graph of thousands of clients is large
    return dataclasses.replace(topology, peers_per_step=own)


def _routes(
    topologies: Sequence[graph.Topology], readers: Sequence[exchange.Reader], roster: Roster
) -> Routes | None:
    """Which messages go to which device, where that is known before the run and saves traffic.

    None on one device, for several groups of clients, where not everybody takes part in every step,
    for graphs that change and for old teachers: there all messages go to all devices.
    """
    layout = roster.layout
    fixed = all(isinstance(reader, exchange.Fresh) for reader in readers)
    fixed = fixed and not (roster.attendances or any(each.changes for each in topologies))
    even = layout.rows == layout.groups and len(layout.groups) == 1
    sparse = readers[0].form.kind == "lists"
    if layout.client_devices == 1 or not (fixed and even and sparse):
        return None
    reads = np.logical_or.reduce([topology.at(0) for topology in topologies])
    routes = Routes(reads, layout.client_devices)
    return routes if routes.worth_it() else None


def _embedding_width(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    built: Sequence[models.MultiHeadClassifier],
    sample: Sample,
) -> int:
    """Numbers in which an embedding travels, 0 for all it has.

    Raises:
      ConfigError: more than the narrowest embedding has.
    """
    asked, chosen = config.exchange.embedding_width, method.distillation
    if not asked or chosen is None or not chosen.nu_emb:
        return 0
    narrowest = min(state.embedding_width(model, sample) for model in built)
    if asked > narrowest:
        accepted = f"0 to {narrowest}, the width of the narrowest embedding"
        raise ConfigError("exchange.embedding_width", asked, accepted)
    return int(asked)


def _visits(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    topologies: Sequence[graph.Topology],
    layout: Layout,
) -> Visits:
    """How often what was sent of a public sample is read.

    Raises:
      ConfigError: readers cannot keep what they have read, or samples cannot take turns.
    """
    count = config.exchange.cache
    if count == 1 or method.distillation is None:
        return Visits()
    accepted = ""
    steps = np.arange(min(config.train.steps, LONGEST_PERIOD))
    if (method.distils(steps) != (steps % config.exchange.every == 0)).any():
        accepted = f"1: {config.method} distils at times of its own"
    elif config.exchange.mode == "stale":
        accepted = "1 with exchange.mode = stale, or exchange.mode = fresh: snapshots change"
    elif not all(topology.static for topology in topologies):
        accepted = "1 with a graph that changes: a new reader lacks what was sent before"
    elif config.data.public_batch_size // layout.data_devices % count:
        share = config.data.public_batch_size // layout.data_devices
        accepted = f"a divisor of {share}, the public samples of a step and device"
    if accepted:
        raise ConfigError("exchange.cache", count, accepted)
    return Visits(count, config.exchange.every)


def _marginals(parts: StepParts, pool_slots: int) -> tuple[int, ...]:
    """Shape (K, H, C) of the moving average that alignment keeps; () for none.

    Snapshots are aligned with the batch's own mean: each would need an average of its own.
    """
    chosen = parts.method.distillation
    if (
        pool_slots
        or chosen is None
        or not (chosen.alignment and chosen.alignment_momentum and chosen.nu_pred)
    ):
        return ()
    heads = chosen.published_heads(parts.models[0].num_heads)
    return (parts.layout.num_clients, heads, parts.num_classes)


def _label_shares(
    config: ml_collections.ConfigDict, federations: Sequence[Federation]
) -> Float[np.ndarray, "R K C"] | None:
    """Every client's label distribution, if clients publish it."""
    if not config.distill.publish_label_shares:
        return None
    counts = np.stack(
        [
            fed.partition.histogram(fed.source.train.labels, fed.source.num_classes)
            for fed in federations
        ]
    )
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def _privacy(
    config: ml_collections.ConfigDict,
    built: Sequence[models.MultiHeadClassifier],
    federations: Sequence[Federation],
    own_public: bool,
) -> privacy_lib.Privacy | None:
    """What happens to private gradients, checked."""
    privacy, first = privacy_lib.build(config), federations[0].source
    if privacy is None:
        return None
    sample = federation.sample_of(first)
    privacy_lib.check(
        config,
        [fed.partition.sizes for fed in federations],
        batch_statistics=_has_statistics(built, sample),
        draws=any(_draws(model, sample) for model in built),
        own_public=own_public and federation.kept_silos(config, first) is not None,
    )
    return privacy


def _has_statistics(built: Sequence[models.MultiHeadClassifier], sample: Sample) -> bool:
    """Whether any network normalises with statistics of the batch."""
    return any(variable_shapes(model, sample).get("batch_stats") for model in built)


def _draws(model: models.MultiHeadClassifier, sample: Sample) -> bool:
    """Whether what the network says in training is a matter of chance, as with dropout."""

    def apply(key: jax.Array, variables: Variables, x: jax.Array) -> Any:
        keys = bridge.keys(key)
        return model.apply(variables, x, train=True, rngs=keys, mutable=["batch_stats"])

    variables, x = variable_shapes(model, sample), network_input(sample)
    traced = jax.make_jaxpr(apply)(jax.random.key(0), variables, x).jaxpr
    _, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return used[0]


# --- Clients --------------------------------------------------------------------------------------


def _layout(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    built: Sequence[models.MultiHeadClassifier],
    sample: Sample,
) -> Layout:
    sizes = [1] if method.pooled else [count for _, count in config_lib.client_models(config)]
    if method.averaging is not None and len(sizes) > 1:
        raise ConfigError(
            "clients.models",
            config.clients.models,
            f"one architecture: {config.method} averages parameters",
        )
    data_devices = config.parallel.data_devices
    if data_devices != 1 and _has_statistics(built, sample):
        if data_devices:
            logging.warning("batch statistics: every device normalises with its part of a batch")
        data_devices = data_devices or 1
    return parallel.make_layout(
        sizes,
        client_devices=config.parallel.client_devices,
        data_devices=data_devices,
        batch_sizes=(config.data.batch_size, config.data.public_batch_size),
    )


def _roster(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    layout: Layout,
    seeds: Sequence[int],
) -> Roster:
    """Who takes part in a step.

    Raises:
      ConfigError: not everybody does, and something in the run rests on everybody.
    """
    # The last call is planned to its full length.
    horizon = config.train.steps + max(config.train.steps_per_call, STEPS_PER_CALL)
    roster = participation.make_roster(config, layout, seeds, horizon)
    why = ""
    if method.averaging is not None:
        why = f"{config.method} averages the parameters of all clients"
    elif config.attack.name != attacks.NONE:
        why = "attack.clients lie in every step"
    elif config.clients.frozen:
        why = "the clients of clients.frozen teach in every step"
    elif config.exchange.cache > 1 and method.distillation is not None:
        why = "with exchange.cache readers keep what everybody has sent"
    elif privacy_lib.build(config) is not None:
        why = "privacy is accounted for in clients that take part in every step"
    if roster.attendances and why:
        name = "trace" if config.clients.active == 1 else "active"
        raise ConfigError(f"clients.{name}", config.clients[name], f"everybody: {why}")
    return roster


def _models(
    config: ml_collections.ConfigDict, num_classes: int, num_heads: int
) -> tuple[models.MultiHeadClassifier, ...]:
    """One classifier per group."""
    settings = config.model.to_dict()
    return tuple(
        models.build(
            {**settings, "name": name},
            num_classes,
            num_heads,
            head=config.heads.name,
            conv_lowering=config.parallel.conv_lowering,
        )  # fmt: skip
        for name, _ in config_lib.client_models(config)
    )


def _check_networks(built: Sequence[models.MultiHeadClassifier], sample: Sample) -> None:
    """Traces every network on one sample.

    Raises:
      ConfigError: a network that cannot take such samples, or with another output than [B, D], or
        with variables that a state does not keep.
    """
    for model in built:
        shape = network_input(sample).shape[1:]
        accepted = f"a network for samples of shape {shape}"
        with of_piece("model.name", bridge.label(model.network), accepted):
            kinds = set(variable_shapes(model, sample))
        other = kinds - set(VARIABLES)
        if other:
            raise ConfigError(
                "model.name", bridge.label(model.network),
                f"a network whose variables are of the kinds {', '.join(VARIABLES)}, not "
                f"{', '.join(sorted(other))} too",
            )  # fmt: skip


def _wants_baseline(config: ml_collections.ConfigDict, method: methods.Method) -> bool:
    """An isolated baseline makes sense beside clients that exchange something."""
    exchanges = method.distillation is not None or method.averaging is not None
    return config.isolated_baseline and exchanges and not method.pooled


def _steps_per_call(config: ml_collections.ConfigDict, convolutional: bool, feed: Feed) -> int:
    """Steps per dispatch: what was asked for, 1 where images are streamed, or 50.

    1 as well where the host brings the clients of every step, and for convolutions on a CPU: plain
    ones (`flax.linen.Conv`) are up to a fifth slower in a loop there.
    """
    asked, train = config.train.steps_per_call, config.train
    if config.clients.offload == "host":
        return 1
    if not asked:
        streamed = not isinstance(feed, Resident)  # 50 steps of images would fill the memory
        slow = convolutional and jax.default_backend() == "cpu"
        asked = 1 if slow or streamed else STEPS_PER_CALL
    return min(asked, train.steps, train.log_every, train.eval_every, train.checkpoint_every)


def has_convolutions(model: models.MultiHeadClassifier, sample: Sample) -> bool:
    """Whether any parameter is a convolution kernel (two spatial axes and more)."""
    return any(leaf.ndim >= 4 for leaf in jax.tree.leaves(param_shapes(model, sample)))


def _ledger(
    config: ml_collections.ConfigDict,
    parts: StepParts,
    reader: exchange.Reader,
    sample: Sample,
) -> exchange.Ledger:
    """What every client sends, in bytes."""
    chosen, predictions, parameters = parts.method.distillation, [], []
    for size, model in zip(parts.layout.groups, parts.models, strict=True):
        variables = jax.tree.leaves(variable_shapes(model, sample))  # batch statistics travel along
        parameters += [float(sum(leaf.size for leaf in variables))] * size
        sent = 0
        if chosen is not None:
            rows = config.data.public_batch_size // parts.visits.count
            rows *= max(reader(0, 1).versions.shape[1], 1)
            shape = (rows, chosen.published_heads(model.num_heads), parts.num_classes)
            width = parts.embedding_width or state.embedding_width(model, sample)
            width = width if chosen.nu_emb else 0
            sent = exchange.message_bytes(parts.encoding, shape, width, chosen.publishes_energy)
        predictions += [float(sent)] * size
    travels = parts.encoding.embedding_type if parts.method.averaging else jnp.float32
    return exchange.Ledger(
        predictions=np.asarray(predictions),
        snapshots=4.0 * np.asarray(parameters) / config.exchange.refresh_steps,
        fedavg=jnp.dtype(travels).itemsize * np.asarray(parameters) / config.average.every,
        method=parts.method,
        average_every=config.average.every,
        once=4.0 * parts.num_classes if config.distill.publish_label_shares else 0.0,
        attendance=next(iter(parts.roster.attendances), None),
    )


def count_params(model: models.MultiHeadClassifier, sample: Sample) -> int:
    """Trainable parameters of one client, from shapes alone."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model, sample)))


def param_shapes(model: models.MultiHeadClassifier, sample: Sample) -> Variables:
    """The tree of one client's parameters as shapes, nothing computed."""
    return variable_shapes(model, sample)["params"]


def variable_shapes(model: models.MultiHeadClassifier, sample: Sample) -> Variables:
    """All of one client's variables as shapes, nothing computed."""
    init = lambda x: model.init(bridge.keys(jax.random.key(0)), x, train=False)  # noqa: E731
    return jax.eval_shape(init, network_input(sample))
