# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The parts of a run, built and checked in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import ml_collections

from mhd_jax import config as config_lib
from mhd_jax import exchange, federation, methods, optimizer, seating
from mhd_jax import privacy as privacy_lib
from mhd_jax.data import sources
from mhd_jax.data.batches import Visits, repeats
from mhd_jax.data.feed import Feed, Resident, device_memory
from mhd_jax.data.order import Federation
from mhd_jax.experiment import checks, traffic
from mhd_jax.experiment.clients import Clients, make_clients
from mhd_jax.experiment.experiment import Experiment
from mhd_jax.models import shapes, statistics
from mhd_jax.step import StepParts

STEPS_PER_CALL = 50  # where nobody asks for another number and loops are not slow


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
    shapes.forget()  # in a notebook, a network's code may read what another cell has changed
    config_lib.validate(config)
    method = methods.build(config)
    checks.before_data(config)
    seeds = tuple(config.seed + replica for replica in range(config.num_seeds))
    source, other = data or federation.data_sets(config)
    federations = tuple(federation.federate(config, seed, source, other) for seed in seeds)
    checks.check(config, method, source.num_classes)
    checks.check_classes(federations)
    checks.check_metrics(config, method, federations)
    topologies = traffic.make_topologies(config, method, federations)
    planned = config.train.steps + max(config.train.steps_per_call, STEPS_PER_CALL)  # at most
    clients = make_clients(config, method, source, seeds, planned)
    if method.distillation is not None:
        checks.warn_of_few_samples(config, federations)
        checks.warn_of_small_clients(config, clients.by_batch, federations)
    visits = traffic.make_visits(config, method, topologies, clients.layout)
    trained = federation.trained_on(method, federations)
    privacy = _privacy(config, clients, trained, _own_public(config, source, other))
    feed = federation.make_feed(
        config, method, trained, clients.roster, visits, memory or device_memory(), privacy
    )
    parts = _parts(config, method, clients, visits, feed, privacy)
    who = clients.roster.attendances
    readers = exchange.make_readers(config, method, topologies, seeds, config.train.steps, who)
    parts = dataclasses.replace(
        parts,
        routes=traffic.make_routes(topologies, readers, parts),
        repeats=repeats(len(federations[0].public_indices), config.data.public_batch_size),
    )
    return Experiment(
        config=config,
        seeds=seeds,
        federations=federations,
        topologies=topologies,
        readers=readers,
        parts=parts,
        feed=feed,
        ledgers=traffic.make_ledgers(config, parts, readers[0], clients, topologies),
        memory=seating.host_memory(clients.roster) if parts.brought else None,
    )


def _parts(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    clients: Clients,
    visits: Visits,
    feed: Feed,
    privacy: privacy_lib.Privacy | None,
) -> StepParts:
    """What the step is compiled from, messages going everywhere."""
    private, distilling = method.weights(method.steps_shown(config.train.steps)).T
    offsets = clients.layout.offsets
    return StepParts(
        roster=clients.roster,
        method=method,
        models=clients.models,
        baseline_models=clients.baseline_models,
        optimizer=optimizer.make_optimizer(config, clients.parameters),
        encoding=exchange.make_encoding(config, method, clients.num_classes),
        load=feed.load,
        num_classes=clients.num_classes,
        replicas=config.num_seeds,
        steps_per_call=_steps_per_call(config, clients.convolutional, feed),
        convolutional=clients.convolutional,
        embedding_width=traffic.sent_width(config, method, clients),
        pauses=method.distillation is not None and bool((distilling == 0).any()),
        rests=bool((private == 0).any()),
        frozen=sum(offset < config.clients.frozen for offset in offsets),
        visits=visits,
        attackers=traffic.make_attackers(config, method, clients, visits),
        privacy=privacy,
        brought=config.clients.offload == "host",
        paces=statistics.paces(clients.models, clients.sample),
        baseline_paces=statistics.paces(clients.baseline_models, clients.sample),
    )


def _own_public(
    config: ml_collections.ConfigDict, source: sources.Source, other: sources.Split | None
) -> bool:
    """Whether public samples are among those that clients came with.

    A share that is drawn before clients get the rest is not.
    """
    if other is None:
        return federation.kept_silos(config, source) is not None
    return sources.PRIVATE in sources.made_public(config.data)


def _privacy(
    config: ml_collections.ConfigDict,
    clients: Clients,
    federations: Sequence[Federation],
    own_public: bool,
) -> privacy_lib.Privacy | None:
    """What happens to private gradients, checked."""
    privacy = privacy_lib.build(config)
    if privacy is None:
        return None
    networks = [(model, clients.sample) for model in clients.models]
    privacy_lib.check(
        config,
        [fed.partition.sizes for fed in federations],
        batch_statistics=bool(clients.by_batch.any()),
        draws=any(shapes.draws(*network) for network in networks),
        own_public=own_public,
    )
    return privacy


def _steps_per_call(config: ml_collections.ConfigDict, convolutional: bool, feed: Feed) -> int:
    """Steps per dispatch: what was asked for, 1 where images are streamed, or 50.

    1 as well where the host brings the clients of every step, and for convolutions on a CPU: those
    with groups or dilation, which are left to XLA, are up to a fifth slower in a loop there.
    """
    asked, train = config.train.steps_per_call, config.train
    if config.clients.offload == "host":
        return 1
    if not asked:
        streamed = not isinstance(feed, Resident)  # 50 steps of images would fill the memory
        slow = convolutional and jax.default_backend() == "cpu"
        asked = 1 if slow or streamed else STEPS_PER_CALL
    return min(asked, train.steps, train.log_every, train.eval_every, train.checkpoint_every)
