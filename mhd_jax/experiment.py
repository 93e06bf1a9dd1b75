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
from jaxtyping import Float

from mhd_jax import config as config_lib
from mhd_jax import distill, evaluate, exchange, graph, methods, models, parallel, state
from mhd_jax.data import augment, sources
from mhd_jax.data.feed import Federation, Feed, Preparation, Resident, Walks
from mhd_jax.data.partition import partition, pooled, split_public
from mhd_jax.errors import ConfigError
from mhd_jax.parallel import DATA, Layout
from mhd_jax.schedule import Schedule, plan_specs
from mhd_jax.state import State
from mhd_jax.step import System, make_step

TEST_CHUNK = 500  # test samples per forward pass


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run, built and checked but not started.

    Attributes:
      config: the validated config.
      seeds: one per replica.
      federations: one per replica, data as handed to clients before any pooling.
      schedule: what the host decides about every step.
      system: the fixed parts of the step.
      feed: where samples come from.
      ledger: bytes per client.
    """

    config: ml_collections.ConfigDict
    seeds: tuple[int, ...]
    federations: tuple[Federation, ...]
    schedule: Schedule
    system: System
    feed: Feed
    ledger: exchange.Ledger

    @property
    def layout(self) -> Layout:
        """Who owns which client."""
        return self.system.layout

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image as the network sees it."""
        return self.federations[0].source.image_shape

    def init_state(self, abstract: bool = False) -> State:
        """The initial state, sharded; with `abstract` its shapes and shardings only."""
        return state.init_state(
            self.seeds,
            self.layout,
            self.system.models,
            self.system.control_models,
            self.system.optimizer,
            self.image_shape,
            pool_slots=self.schedule.readers[0].pool_slots,
            same_start=self.system.method.same_start,
            abstract=abstract,
        )

    @functools.cached_property
    def step(self) -> Any:
        """The jitted step; see `step.make_step`."""
        return make_step(self.system, plan_specs(self.layout, self.feed), self.feed.data_specs())

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """Counts correct test predictions."""
        return Evaluator(self)

    @functools.cached_property
    def seed_array(self) -> jax.Array:
        """Seeds [R] on every device."""
        return self.layout.put(np.asarray(self.seeds, np.uint32))


class Evaluator:
    """The test set on the devices, and the two accuracies of all clients and heads on it."""

    def __init__(self, experiment: Experiment) -> None:
        system, source = experiment.system, experiment.federations[0].source
        self._experiment = experiment
        self._chunks = _test_chunks(source, system.layout)
        make = functools.partial(
            evaluate.make_counter,
            system.layout,
            num_classes=source.num_classes,
            prepare=_preparation(experiment.config, source).test,
        )
        self._count = make(models=system.models)
        self._count_control = make(models=system.control_models)
        self.count = np.bincount(source.test.labels, minlength=source.num_classes)
        self.histograms = [
            fed.partition.histogram(fed.source.train.labels, source.num_classes)
            for fed in experiment.federations
        ]

    def correct(
        self, current: State
    ) -> tuple[Float[np.ndarray, "R K H C"], Float[np.ndarray, "R K 1 C"] | None]:
        """Correct test predictions by replica, client, head and class; control likewise."""
        layout = self._experiment.layout
        clients = evaluate.count_all(self._count, layout, current.clients, self._chunks)
        if not current.control:
            return clients, None
        control = evaluate.count_all(self._count_control, layout, current.control, self._chunks)
        return clients, control

    def accuracies(self, correct: Float[np.ndarray, "R K H C"]) -> tuple[np.ndarray, np.ndarray]:
        """Shared and private accuracy, [R, K, H] each."""
        pairs = []
        for found, owned in zip(correct, self.histograms, strict=True):
            everyone = np.broadcast_to(found, (len(owned), *found.shape[1:]))  # pooled: one for all
            pairs.append(evaluate.shared_and_private(everyone, self.count, owned))
        return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])

    def metrics(self, correct: Float[np.ndarray, "R K H C"]) -> dict[str, np.ndarray]:
        """The metrics of the setting `metrics` by name, [R, K, H] each."""
        values = {}
        for name in self._experiment.config.metrics:
            runs = []
            for found, owned in zip(correct, self.histograms, strict=True):
                everyone = np.broadcast_to(found, (len(owned), *found.shape[1:]))
                runs.append(evaluate.measure(name, everyone, self.count, owned))
            values[name] = np.stack(runs)
        return values


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Builds a run and makes every check that can be made before compiling.

    Raises:
      ConfigError: naming the setting, its value and what is accepted.
    """
    config_lib.validate(config)
    method = methods.build(config)
    seeds = tuple(config.seed + replica for replica in range(config.replicas))
    federations = _federations(config, seeds)
    source = federations[0].source
    _check_pieces(config, method, source.num_classes)
    topologies = [graph.topology(config.graph, config.clients.num, seed) for seed in seeds]
    layout = _layout(config, method)
    feed = _feed(config, method, federations, layout)
    readers = [
        exchange.make_reader(config, method, topology, seed)
        for topology, seed in zip(topologies, seeds, strict=True)
    ]
    built = _models(config, source.num_classes, method.num_heads(config.heads.aux))
    control = _models(config, source.num_classes, 1) if _wants_control(config, method) else ()
    encoding = exchange.make_encoding(config, method, source.num_classes)
    system = System(
        layout=layout,
        method=method,
        models=built,
        control_models=control,
        optimizer=state.make_optimizer(config),
        encoding=encoding,
        load=feed.load,
        num_classes=source.num_classes,
        replicas=config.replicas,
        window=_window(config, built, source.image_shape),
    )
    return Experiment(
        config=config,
        seeds=seeds,
        federations=federations,
        schedule=Schedule(layout, method, topologies, readers, feed),
        system=system,
        feed=feed,
        ledger=_ledger(config, system, readers[0], source.image_shape),
    )


def _check_pieces(
    config: ml_collections.ConfigDict, method: methods.Method, num_classes: int
) -> None:
    """Calls confidence, rule, loss and metrics once, on shapes or zeros."""
    chosen = method.distillation
    if chosen is not None:
        distill.check_pieces(
            rule=chosen.rule, confidence=chosen.confidence, loss=chosen.loss,
            num_classes=num_classes,
        )  # fmt: skip
    for name in evaluate.chosen_metrics(config.metrics):
        shape = (config.clients.num, method.num_heads(config.heads.aux), num_classes)
        owned = np.zeros((shape[0], num_classes))
        evaluate.measure(name, np.zeros(shape), np.ones(num_classes, int), owned)


# --- Data -----------------------------------------------------------------------------------------


def _federations(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> tuple[Federation, ...]:
    """The data of every replica: one source, a partition per seed."""
    source = sources.source(config.data)
    other = _public_source(config, source)
    return tuple(_federation(config, seed, source, other) for seed in seeds)


def _public_source(
    config: ml_collections.ConfigDict, source: sources.Source
) -> sources.Source | None:
    """The data set that public images come from where it is not the training set."""
    if not config.data.public_name:
        return None
    settings = config.data.copy_and_resolve_references().unlock()
    settings.name, settings.split = config.data.public_name, "train"
    settings.image_size = source.image_shape[0]
    other = sources.source(settings)
    if other.image_shape != source.image_shape:
        raise ConfigError(
            "data.public_name", config.data.public_name,
            f"images of shape {source.image_shape} like those of {source.name}, "
            f"not {other.image_shape}",
        )  # fmt: skip
    return other


def _federation(
    config: ml_collections.ConfigDict,
    seed: int,
    source: sources.Source,
    other: sources.Source | None,
) -> Federation:
    labels = source.train.labels
    if other is None:
        private, public = split_public(len(labels), config.data.public_fraction, seed)
        split, indices = source.train, public
    else:
        private, public = np.arange(len(labels)), np.zeros(0, np.int64)
        split, indices = other.train, np.arange(len(other.train))
    parts = partition(
        labels, source.num_classes, config.clients.num, config.partition, seed,
        private=private, public=public,
    )  # fmt: skip
    if config.data.public_batch_size > len(indices):
        logging.warning(
            "data.public_batch_size = %d is larger than the public set of %d samples: "
            "a batch holds some of them more than once",
            config.data.public_batch_size, len(indices),
        )  # fmt: skip
    return Federation(seed, source, parts, split, indices)


def _preparation(config: ml_collections.ConfigDict, source: sources.Source) -> Preparation:
    augment.AUGMENTS.get(config.data.augment)
    return Preparation(config.data.augment, source.mean, source.std)


def _feed(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    federations: Sequence[Federation],
    layout: Layout,
) -> Feed:
    if method.pooled:
        federations = [
            dataclasses.replace(fed, partition=pooled(fed.partition)) for fed in federations
        ]
    walks = Walks(tuple(federations), layout, config.data.batch_size, config.data.public_batch_size)
    return Resident(walks, _preparation(config, federations[0].source))


def _test_chunks(source: sources.Source, layout: Layout) -> list[evaluate.Chunk]:
    """The test set on the devices in equal chunks, the last padded with labels of -1."""
    count = len(source.test)
    size = min(TEST_CHUNK, count)
    size += -size % layout.data_devices
    chunks = []
    for start in range(0, count, size):
        index = np.arange(start, min(start + size, count))
        missing = size - len(index)
        images = source.test.images(index)
        images = np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1))
        labels = np.pad(
            source.test.labels[index].astype(np.int32), (0, missing), constant_values=-1
        )
        chunks.append((layout.put(images, DATA), layout.put(labels, DATA)))
    return chunks


# --- Clients --------------------------------------------------------------------------------------


def _layout(config: ml_collections.ConfigDict, method: methods.Method) -> Layout:
    sizes = [1] if method.pooled else [count for _, count in config_lib.cohorts(config)]
    if method.averaging is not None and len(sizes) > 1:
        raise ConfigError(
            "cohorts", config.cohorts, f"one architecture: {config.method} averages parameters"
        )
    data_devices = config.parallel.data_devices
    if config.model.norm == "batch" and data_devices != 1:
        if data_devices:
            logging.warning("model.norm = batch: every device normalises with its part of a batch")
        data_devices = data_devices or 1
    return parallel.make_layout(
        sizes,
        client_devices=config.parallel.client_devices,
        data_devices=data_devices,
        batch_sizes=(config.data.batch_size, config.data.public_batch_size),
    )


def _models(
    config: ml_collections.ConfigDict, num_classes: int, num_heads: int
) -> tuple[models.MultiHeadClassifier, ...]:
    """One classifier per cohort."""
    settings = config.model.to_dict()
    return tuple(
        models.build(
            {**settings, "name": name},
            num_classes,
            num_heads,
            head=config.heads.name,
            conv=config.parallel.conv,
        )  # fmt: skip
        for name, _ in config_lib.cohorts(config)
    )


def _wants_control(config: ml_collections.ConfigDict, method: methods.Method) -> bool:
    """A control group makes sense beside clients that exchange something."""
    exchanges = method.distillation is not None or method.averaging is not None
    return config.control and exchanges and not method.pooled


def _window(
    config: ml_collections.ConfigDict,
    built: Sequence[models.MultiHeadClassifier],
    image_shape: Sequence[int],
) -> int:
    """Steps per dispatch: what was asked for, or 1 for convolutions on CPU and else up to 50.

    On CPU the gradient of a convolution inside a loop runs outside the fast library and is some
    30 times slower than the same one in straight-line code.
    """
    asked, train = config.train.steps_per_call, config.train
    if not asked:
        loops_are_slow = jax.default_backend() == "cpu" and any(
            has_convolutions(model, image_shape) for model in built
        )
        asked = 1 if loops_are_slow else 50
    return min(asked, train.steps, train.log_every, train.eval_every, train.checkpoint_every)


def has_convolutions(model: models.MultiHeadClassifier, image_shape: Sequence[int]) -> bool:
    """Whether any parameter is a convolution kernel (two spatial axes and more)."""
    return any(leaf.ndim >= 4 for leaf in jax.tree.leaves(param_shapes(model, image_shape)))


def _ledger(
    config: ml_collections.ConfigDict,
    system: System,
    reader: exchange.Reader,
    image_shape: Sequence[int],
) -> exchange.Ledger:
    """What every client sends, in bytes."""
    chosen, predictions, parameters = system.method.distillation, [], []
    for size, model in zip(system.layout.cohorts, system.models, strict=True):
        parameters += [4.0 * count_params(model, image_shape)] * size
        sent = 0
        if chosen is not None:
            rows = config.data.public_batch_size * max(reader(0, 1).versions.shape[1], 1)
            heads = system.method.num_heads(config.heads.aux)
            shape = (rows, heads if chosen.nu_pred else 0, system.num_classes)
            width = state.embedding_width(model, image_shape) if chosen.nu_emb else 0
            sent = exchange.message_bytes(system.encoding, shape, width)
        predictions += [float(sent)] * size
    return exchange.Ledger(
        predictions=np.asarray(predictions),
        snapshots=np.asarray(parameters) / config.exchange.refresh_steps,
        fedavg=np.asarray(parameters) / config.average.every,
        method=system.method,
        average_every=config.average.every,
    )


def count_params(model: models.MultiHeadClassifier, image_shape: Sequence[int]) -> int:
    """Trainable parameters of one client, from shapes alone."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model, image_shape)))


def param_shapes(model: models.MultiHeadClassifier, image_shape: Sequence[int]) -> Any:
    """The tree of one client's parameters as shapes, nothing computed."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    init = lambda x: model.init(jax.random.key(0), x, train=False)  # noqa: E731
    return jax.eval_shape(init, image)["params"]
