# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""From a config to the data of a run: who owns which samples, and how they reach the devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from mhd_jax import methods
from mhd_jax import privacy as privacy_lib
from mhd_jax.data import augment, batches, sources, streaming
from mhd_jax.data.batches import Visits
from mhd_jax.data.feed import Feed, Preparation, Resident, resident_bytes, streams
from mhd_jax.data.order import Federation, SampleOrder
from mhd_jax.data.partition import BY_KEY, partition, pooled, split_public
from mhd_jax.errors import ConfigError, suggest
from mhd_jax.inputs import Sample
from mhd_jax.participation import Roster

DataSets = tuple[sources.Source, sources.Split | None]
"""Private data and, where `data.public_name` names another data set, public images."""


def data_sets(config: ml_collections.ConfigDict) -> DataSets:
    """One source for all replicas; public images come in the shape of the private ones."""
    source = sources.source(config.data)
    if source.silos and config.partition.name != BY_KEY:
        logging.warning(
            "partition.name = %s: deals the samples out anew, although %s says whose they are; "
            "%s leaves them where they are",
            config.partition.name, source.name, BY_KEY,
        )  # fmt: skip
    if not config.data.public_name:
        return source, source.public
    other = sources.public_split(config.data, source.image_shape, source.train.dtype)
    for whose in sources.made_public(config.data):
        logging.warning("data.public_name = %s: %s are public, too", config.data.public_name, whose)
    return source, other


def federate(
    config: ml_collections.ConfigDict,
    seed: int,
    source: sources.Source,
    other: sources.Split | None,
) -> Federation:
    """Divides the samples of one replica among clients and the public set.

    Args:
      config: of the run.
      seed: of the replica.
      source: of private samples.
      other: where public samples come from; None for a part of the training set.

    Raises:
      ConfigError: the data set comes with another number of clients, or a client gets no sample.
    """
    labels, silos = source.train.labels, kept_silos(config, source)
    if silos:
        _check_silos(config, source.name, silos)
    if other is None:
        private, public = split_public(len(labels), config.data.public_fraction, seed)
        split, indices = source.train, public
    else:
        private, public = np.arange(len(labels)), np.zeros(0, np.int64)
        split, indices = other, np.arange(len(other))
    parts = partition(
        labels, source.num_classes, config.clients.num, config.partition, seed,
        private=private, public=public, owner=silos.owner if silos else None,
    )  # fmt: skip
    if config.data.public_batch_size > len(indices):
        logging.warning(
            "data.public_batch_size = %d is larger than the public set of %d samples: "
            "a batch holds some of them more than once",
            config.data.public_batch_size, len(indices),
        )  # fmt: skip
    mean, std = source.mean, source.std
    if not mean:
        fitting = "data.public_fraction" if other is None else "public"
        setting = "data.public_name" if config.data.public_name else fitting
        mean, std = sources.measured_statistics(split, indices, setting)
    return Federation(seed, source, parts, split, indices, mean, std)


def _check_silos(config: ml_collections.ConfigDict, name: str, silos: sources.Silos) -> None:
    """Raises `ConfigError` for another number of clients, or one whom the classes leave empty."""
    if len(silos.names) != config.clients.num:
        accepted = f"{len(silos.names)}, the number of clients that {name} comes with"
        raise ConfigError("clients.num", config.clients.num, accepted)
    count = config.data.num_classes
    empty = np.flatnonzero(np.bincount(silos.owner, minlength=len(silos.names)) == 0)
    if count and len(empty):
        missing = f"no sample of {silos.names[empty[0]]!r} is of the first {count}"
        accepted = f"classes of which every client has samples, but {missing}"
        raise ConfigError("data.num_classes", count, accepted)


def kept_silos(config: ml_collections.ConfigDict, source: sources.Source) -> sources.Silos | None:
    """The clients that the data set comes with, if the run keeps them."""
    return source.silos if config.partition.name == BY_KEY else None


def sample_of(source: sources.Source) -> Sample:
    """One sample as a network sees it: ids as they are, everything else in float32."""
    dtype = jnp.int32 if sources.is_ids(source.train.dtype) else jnp.float32
    return jax.ShapeDtypeStruct(source.image_shape, dtype)


def check_augment(name: str) -> None:
    """Raises `ConfigError` where neither devices nor the host have an augmentation of that name."""
    if name not in augment.AUGMENTS and name not in streaming.HOST_AUGMENTS:
        known = [*augment.AUGMENTS, *streaming.HOST_AUGMENTS]
        raise ConfigError("data.augment", name, suggest(name, known))


def _is_on_host(name: str) -> bool:
    return name not in augment.AUGMENTS and name in streaming.HOST_AUGMENTS


def preparation(
    config: ml_collections.ConfigDict,
    federations: Sequence[Federation],
    visits: Visits = Visits(),  # noqa: B008
    mixup: float = 0.0,
) -> Preparation:
    """What happens to samples on the device; an augmentation of the host leaves nothing to it.

    Raises:
      ConfigError: there is no such augmentation, or it cannot change such samples.
    """
    name = config.data.augment
    check_augment(name)
    on_host = _is_on_host(name)
    split = federations[0].source.train
    if on_host:
        if len(split.image_shape) != 3:
            augment.refuse(name, split.image_shape)
        if split.image_shape[2] not in (1, 3):
            accepted = f"none for images of {split.image_shape[2]} channels: {name} needs 1 or 3"
            raise ConfigError("data.augment", name, accepted)
    else:
        augment.check(name, split.image_shape, split.dtype)
    statistics = np.array([(fed.mean, fed.std) for fed in federations], np.float32)
    return Preparation("none" if on_host else name, statistics, visits, mixup)


def _mixup(method: methods.Method, source: sources.Source) -> float:
    """How much of another public sample is mixed into one at most.

    Raises:
      ConfigError: samples are ids and should be mixed.
    """
    asked = method.distillation.mixup if method.distillation else 0.0
    if asked and sources.is_ids(source.train.dtype):
        raise ConfigError("distill.mixup", asked, "0 for ids, which have no mean")
    return asked


def _poisson_places(
    config: ml_collections.ConfigDict, federations: Sequence[Federation], roster: Roster
) -> int:
    """Places of a Poisson batch, which the devices that share it can divide evenly."""
    sizes = np.concatenate([fed.partition.sizes for fed in federations])
    needed = batches.poisson_places(sizes, config.data.batch_size, config.train.steps)
    return -(-needed // roster.layout.data_devices) * roster.layout.data_devices


def make_feed(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    federations: Sequence[Federation],
    roster: Roster,
    visits: Visits,
    memory: int,
    privacy: privacy_lib.Privacy | None,
) -> Feed:
    """Resident or streaming, as `data.feed` says and as much memory as there is allows.

    Args:
      config: of the run.
      method: says how public samples are mixed.
      federations: one per replica, as they are trained on.
      roster: who takes part when.
      visits: how long public samples stay.
      memory: of a device, in bytes.
      privacy: of the private gradients, if they have any.

    Raises:
      ConfigError: the samples cannot be changed as asked for, or streaming was asked for beside
        privacy.
    """
    places = _poisson_places(config, federations, roster) if privacy is not None else 0
    sizes = config.data.batch_size, config.data.public_batch_size
    order = SampleOrder(federations, roster, *sizes, visits, places)
    mixup = _mixup(method, federations[0].source)
    prepared = preparation(config, federations, visits, mixup)
    resident = Resident(order, prepared)
    name = config.data.augment
    on_host = name if _is_on_host(name) else ""
    needed = resident_bytes(resident, roster.layout)
    streamed, why = streams(config.data.feed, needed, memory, on_host)
    feed: Resident | streaming.Streaming = resident
    if streamed and privacy is not None:
        accepted = "resident with privacy: a stream walks through shuffled epochs, and the "
        accepted += "accountant assumes Poisson samples"
        raise ConfigError("data.feed", config.data.feed, accepted)
    if streamed:
        feed = streaming.Streaming(order, prepared, on_host, config.data.workers)
    elif config.data.workers:
        logging.warning(
            "data.workers = %d: no effect, as samples stay on the devices", config.data.workers
        )
    feed.why = why
    return feed


def trained_on(method: methods.Method, federations: Sequence[Federation]) -> tuple[Federation, ...]:
    """Who trains on which samples: one client on all of them where the method pools."""
    if not method.pooled:
        return tuple(federations)
    return tuple(dataclasses.replace(fed, partition=pooled(fed.partition)) for fed in federations)
