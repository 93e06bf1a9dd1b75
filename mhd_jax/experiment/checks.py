# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Checks of a run as a whole: names before data are read, then what needs method and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Bool

from mhd_jax import (
    aggregation,
    attacks,
    distill,
    evaluate,
    exchange,
    federation,
    graph,
    methods,
    models,
    optimizer,
    participation,
)
from mhd_jax import config as config_lib
from mhd_jax.data.order import Federation
from mhd_jax.data.partition import PARTITIONS
from mhd_jax.errors import ConfigError
from mhd_jax.registry import Registry, is_ours
from mhd_jax.wording import listed

NAMED: Mapping[str, Registry[Any]] = {
    registry.setting: registry
    for registry in (
        PARTITIONS, models.HEADS, exchange.ENCODINGS, attacks.ATTACKS, aggregation.AGGREGATORS,
        distill.RULES, methods.METHODS, optimizer.OPTIMIZERS,
    )
}  # fmt: skip
"""Settings that name a piece whatever the others are, and where it is found."""

READ_BY: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "partition.skew": ("partition.name", ("primary_labels",)),
    "partition.primary_labels": ("partition.name", ("primary_labels",)),
    "partition.alpha": ("partition.name", ("dirichlet", "quantity")),
    "partition.min_size": ("partition.name", ("dirichlet", "quantity")),
    "partition.shards_per_client": ("partition.name", ("shards",)),
    "partition.classes_per_client": ("partition.name", ("classes_per_client",)),
    "graph.degree": ("graph.name", ("random_regular", "small_world")),
    "graph.islands": ("graph.name", ("islands",)),
    "graph.bridges": ("graph.name", ("islands",)),
    "graph.probability": ("graph.name", ("erdos_renyi", "small_world")),
    "exchange.top_k": ("exchange.encoding", ("top_k",)),
    "exchange.pool_size": ("exchange.mode", ("stale",)),
    "distill.nu_aux": ("method", ("mhd",)),
    "distill.nu_main": ("method", ("fedmd", "feddf", "codistillation")),
    "distill.loss": ("method", ("fedmd",)),
    "average.rule": ("method", ("fedavg", "gossip", "feddf")),
    "average.trim": ("average.rule", ("trimmed_mean", "krum")),
    "rounds.private_steps": ("method", ("fedmd", "feddf")),
    "rounds.public_steps": ("method", ("fedmd", "feddf")),
}
"""Settings that some pieces of ours alone read: what picks the piece, and those that do."""

_TEACHING = ("mhd", "fedmd", "feddf", "codistillation")
READ_BY_METHODS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "distill.rule", "distill.confidence", "distill.temperature", "distill.include_self",
            "distill.same_rank", "distill.alignment", "distill.alignment_momentum",
            "distill.screening", "distill.mixup", "distill.class_frequencies",
            "distill.publish_label_shares", "exchange.every", "exchange.cache",
        ),
        _TEACHING,
    ),
    **dict.fromkeys(("distill.nu_emb", "distill.split_nu_aux", "heads.aux"), ("mhd",)),
    **dict.fromkeys(("distill.fade_in", "exchange.mode"), ("mhd", "codistillation")),
    "average.every": ("fedavg", "gossip"),
}  # fmt: skip
"""Settings of an exchange that some methods of ours alone read."""

_RESNETS = tuple(name for name in models.MODELS.here() if name.startswith("resnet"))
READ_BY_NETWORKS: Mapping[str, tuple[str, ...]] = {
    "model.depth": ("mlp", "mlp_small", "mlp_large", "cnn", "vit"),
    **dict.fromkeys(("model.stem", "model.remat", "model.signed_embedding"), _RESNETS),
}
"""Settings that some networks of ours alone read."""

BY_CONFIDENCE = ("most_confident", "class_thresholds", "capped", "agreement", "reputation")
"""Rules of ours that read `distill.confidence`."""


def before_data(config: ml_collections.ConfigDict) -> None:
    """Names, and numbers that need no data: reading the data may take minutes.

    Raises:
      ConfigError: naming the setting, its value and what is accepted.
    """
    flat = config_lib.flatten(config)
    for registry in NAMED.values():
        registry.get(flat[registry.setting])
    for name, _ in config_lib.client_models(config):
        models.MODELS.get(name)
    models.network_settings(config.model.to_dict(), config.parallel.conv_lowering)
    graph.check_settings(config.graph)
    federation.check_augment(config.data.augment)
    evaluate.chosen_metrics(config.metrics)
    participation.active_clients(config)


def check(config: ml_collections.ConfigDict, method: methods.Method, num_classes: int) -> None:
    """All of them.

    Raises:
      ConfigError: naming the setting, its value and what is accepted.
    """
    _check_pieces(config, method, num_classes)
    _check_frozen(config, method)
    _check_alignment(config, method, num_classes)
    _warn_of_idle_settings(config, method)


def _check_pieces(
    config: ml_collections.ConfigDict, method: methods.Method, num_classes: int
) -> None:
    """Calls confidence, rule, loss and mean of parameters once, on shapes or a few numbers."""
    chosen = method.distillation
    if chosen is not None:
        distill.check_pieces(
            rule=chosen.rule, confidence=chosen.confidence, loss=chosen.loss,
            num_classes=num_classes, label_shares=config.distill.publish_label_shares,
        )  # fmt: skip
    if method.averaging is not None:
        aggregation.check(method.averaging.rule)


FEW = 4
"""Private samples: a main head that has fewer, often of one class, may lose what it knows."""


def warn_of_few_samples(
    config: ml_collections.ConfigDict, federations: Sequence[Federation]
) -> None:
    """Warns of clients with fewer than `FEW` private samples, of the seed that has most of them."""
    if count := _with_fewer(federations, FEW, _learning(config)):
        made = config.partition.name in ("dirichlet", "quantity")
        logging.warning(
            "%d of %d clients have fewer than %d private samples, and their main heads may lose "
            "their task%s", count, config.clients.num, FEW,
            f"; partition.min_size = {FEW} gives everybody more" if made else "",
        )  # fmt: skip


def warn_of_small_clients(
    config: ml_collections.ConfigDict,
    by_batch: Bool[np.ndarray, " K"],
    federations: Sequence[Federation],
) -> None:
    """Warns of clients whose batch statistics rest on a few samples, each several times.

    Args:
      config: of the run.
      by_batch: whose network normalises with statistics of the batch.
      federations: one per seed; the count is that of the seed that has most of them.
    """
    learning, batch_size = by_batch & _learning(config), config.data.batch_size
    if count := _with_fewer(federations, batch_size, learning):
        logging.warning(
            "%d of %d clients with batch normalisation have fewer private samples than "
            "data.batch_size = %d, and their main heads may lose their task; networks that "
            "normalise each sample alone keep it (built-in ones: model.norm = layer or group)",
            count, learning.sum(), batch_size,
        )  # fmt: skip


def _learning(config: ml_collections.ConfigDict) -> Bool[np.ndarray, " K"]:
    """Which clients are not frozen."""
    return np.arange(config.clients.num) >= config.clients.frozen


def _with_fewer(
    federations: Sequence[Federation], samples: int, among: Bool[np.ndarray, " K"]
) -> int:
    """How many of some clients have fewer private samples, for the seed that has most of them."""
    return max(int((among & (fed.partition.sizes < samples)).sum()) for fed in federations)


def check_classes(federations: Sequence[Federation]) -> None:
    """Warns of classes that nobody learns or is tested on.

    Raises:
      ConfigError: a client none of whose classes is tested.
    """
    source = federations[0].source
    held = [fed.histogram for fed in federations]
    tested = np.bincount(source.test.labels, minlength=source.num_classes) > 0
    if unheld := np.flatnonzero(~held[0].any(axis=0)).tolist():
        from_0 = "" if (source.train.labels == 0).any() else "; are labels counted from 0?"
        logging.warning("no client has private samples of the classes %s%s", listed(unheld), from_0)
    if untested := np.flatnonzero(~tested).tolist():
        logging.warning(
            "the test set has no sample of the classes %s: accuracies are those of the other %d",
            listed(untested), tested.sum(),
        )  # fmt: skip
    for histogram in held:
        if len(alone := np.flatnonzero(~histogram[:, tested].any(axis=1))):
            accepted = f"test samples of a class that client {alone[0]} has: "
            accepted += listed(np.flatnonzero(histogram[alone[0]]).tolist())
            raise ConfigError("data.name", source.name, accepted)


def check_metrics(
    config: ml_collections.ConfigDict, method: methods.Method, federations: Sequence[Federation]
) -> None:
    """Calls metrics on such counts as evaluations will give them.

    Raises:
      ConfigError: see `evaluate.check_metric`.
    """
    source, heads = federations[0].source, method.num_heads(config.heads.aux)
    count = np.bincount(source.test.labels, minlength=source.num_classes)
    for name in evaluate.chosen_metrics(config.metrics):
        for fed in federations:
            evaluate.check_metric(name, heads, count, fed.histogram)


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


def _check_alignment(
    config: ml_collections.ConfigDict, method: methods.Method, num_classes: int
) -> None:
    """Refuses what alignment cannot do and warns of what weakens it.

    Raises:
      ConfigError: frequencies that are not those of the classes.
    """
    chosen = method.distillation
    if chosen is None or not chosen.aligns:
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
    follows = method.distillation is not None and not method.hears_everybody
    idle = {
        **_idle_of_run(config, method, follows),
        **_never_due(config, method, follows),
        **_idle_of_data(config.data),
        **_idle_of_graph(config, method, follows),
        **_idle_of_teachers(config, method),
    }
    values = config_lib.flatten(config)
    for name, (holds, what) in (*idle.items(), *_idle_of_pieces(config).items()):
        if holds:
            logging.warning("%s = %s: %s", name, values[name], what)


def _idle_of_run(
    config: ml_collections.ConfigDict, method: methods.Method, follows: bool
) -> dict[str, tuple[bool, str]]:
    """Settings of the run as a whole, whether they are idle, and why."""
    steps, chosen = config.train.steps, method.distillation
    active = config_lib.default_config().clients.active
    teaches = config.method in _TEACHING and _ours("method", config.method)
    weighs = chosen is not None and bool(chosen.nu_pred or chosen.nu_emb)
    return {
        "method": (
            teaches and not weighs,
            "nothing is distilled, as all weights (distill.nu_...) are 0, or no head reads another",
        ),
        "distill.fade_in": (
            follows and config.distill.fade_in == 1,
            "distillation reaches its full weight at the last step only",
        ),
        "exchange.every": (
            chosen is not None and steps > 1 and config.exchange.every >= steps,
            f"of {steps:,} steps only the first distils",
        ),
        "exchange.embedding_width": (
            config.exchange.embedding_width > 0 and not (chosen is not None and chosen.nu_emb),
            "no effect, as no embeddings are published",
        ),
        "attack.clients": (
            config.attack.name == attacks.NONE and bool(config.attack.clients),
            "nobody lies while attack.name = none",
        ),
        "clients.active": (
            method.pooled and config.clients.active != active,
            f"no effect, as {config.method} trains one model in every step",
        ),
        "train.steps_per_call": (
            config.train.steps_per_call > 1 and config.clients.offload == "host",
            "1 with clients.offload = host, which brings the clients of each step",
        ),
    }


def _never_due(
    config: ml_collections.ConfigDict, method: methods.Method, follows: bool
) -> dict[str, tuple[bool, str]]:
    """Settings of what comes for the first time after some steps, whether the run is over by then.

    All of them may have their defaults, which suit longer runs.
    """
    steps, ours = config.train.steps, _ours("method", config.method)
    averages = ours and config.method in READ_BY_METHODS["average.every"]
    rounds = ours and isinstance(method.when, methods.Rounds)
    stale = follows and config.exchange.mode == "stale"
    first = {  # the step, counted from 0
        "average.every": (averages, config.average.every - 1, "nobody averages"),
        "rounds.private_steps": (
            rounds, config.rounds.private_steps, "no round gets as far as its public steps",
        ),
        "exchange.refresh_steps": (
            stale, config.exchange.refresh_steps, "nobody reads other snapshots than the first",
        ),
        "attack.start": (
            config.attack.name != attacks.NONE, config.attack.start, "nobody lies",
        ),
    }  # fmt: skip
    return {
        name: (applies and step >= steps, f"in {steps:,} steps {what}")
        for name, (applies, step, what) in first.items()
    }


def _idle_of_data(chosen: ml_collections.ConfigDict) -> dict[str, tuple[bool, str]]:
    """Settings of public samples, whether they are idle, and why."""
    fraction, elsewhere = config_lib.default_config().data.public_fraction, chosen.public_name
    return {
        "data.public_fraction": (
            bool(elsewhere) and chosen.public_fraction != fraction,
            f"no effect, as public samples come from data.public_name = {elsewhere}",
        ),
        "data.public_dir": (
            bool(chosen.public_dir) and not elsewhere,
            "no effect without data.public_name",
        ),
    }


def _idle_of_graph(
    config: ml_collections.ConfigDict, method: methods.Method, follows: bool
) -> dict[str, tuple[bool, str]]:
    """Settings of the graph, whether they are idle, and why."""
    chosen, own = config.graph, bool(method.own_graph)
    why = f"{config.method} averages with all neighbours"
    if own:
        who = "everybody reads everybody" if method.hears_everybody else "nobody reads anybody"
        why = f"with {config.method} {who}"
    lost = "no message ever arrives" if follows else why
    return {
        "graph.name": (own and chosen.name != "complete", why),
        "graph.sequence": (own and bool(chosen.sequence), why),
        "graph.every": (own and chosen.every > 0, why),
        "graph.drop": (chosen.drop == 1 if follows else chosen.drop > 0, lost),
        "graph.peers_per_step": (not follows and chosen.peers_per_step > 0, why),
    }


def _idle_of_teachers(
    config: ml_collections.ConfigDict, method: methods.Method
) -> dict[str, tuple[bool, str]]:
    """Settings of teachers that the method sets itself, whether they are idle, and why."""
    chosen, usual = method.distillation, config_lib.default_config().distill
    if chosen is None:
        return {}
    given = config.distill
    idle = {
        f"distill.{name}": (
            given[name] not in (usual[name], getattr(chosen, name)),
            f"with {config.method} it is {getattr(chosen, name)}",
        )
        for name in ("rule", "confidence", "temperature", "include_self", "same_rank")
    }
    unaligned = "no effect, as nothing is aligned"
    frequencies = bool(given.class_frequencies) and not chosen.aligns
    idle["distill.class_frequencies"] = (frequencies, unaligned)
    snapshots = method.snapshot_rounds or config.exchange.mode == "stale"
    momentum = given.alignment_momentum != usual.alignment_momentum
    by_batch = "no effect on snapshots, which are aligned by the mean of each batch"
    idle["distill.alignment_momentum"] = (
        momentum and (snapshots or not chosen.aligns), by_batch if chosen.aligns else unaligned,
    )  # fmt: skip
    alone = given.mixup > 0 and config.data.public_batch_size == 1
    idle["distill.mixup"] = (alone, "no effect with data.public_batch_size = 1: there is no other")
    known = _ours("distill.rule", chosen.rule)
    unread = f"distill.rule = {chosen.rule} does not read it"
    shares = known and given.publish_label_shares and chosen.rule != "label_share"
    idle["distill.publish_label_shares"] = (shares, f"published, but {unread}")
    if given.confidence == chosen.confidence != usual.confidence:
        unsure = known and chosen.rule not in BY_CONFIDENCE
        sent = "published, but " if chosen.publishes_energy else ""
        idle["distill.confidence"] = (unsure, sent + unread)
    return idle


def _idle_of_pieces(config: ml_collections.ConfigDict) -> dict[str, tuple[bool, str]]:
    """Settings of pieces that are not chosen, whether they are idle, and who would read them.

    A piece of somebody else's may read any of them.
    """
    given = config_lib.flatten(config)
    usual = config_lib.flatten(config_lib.default_config())
    readings = [
        *((name, *reading) for name, reading in READ_BY.items()),
        *((name, "method", readers) for name, readers in READ_BY_METHODS.items()),
        *((name, "model.name", readers) for name, readers in READ_BY_NETWORKS.items()),
    ]
    found = {}
    for name, picks, readers in readings:
        picks, chosen = _picked(config, picks)
        idle = given[name] != usual[name] and not set(readers) & set(chosen)
        why = f"no effect with {picks} = {', '.join(chosen)}, only with {' or '.join(readers)}"
        found[name] = (idle and all(_ours(picks, piece) for piece in chosen), why)
    return found


def _picked(config: ml_collections.ConfigDict, picks: str) -> tuple[str, tuple[str, ...]]:
    """The setting that really picks where `picks` does by default, and the pieces it names."""
    if picks == "graph.name" and config.graph.sequence:
        return "graph.sequence", config.graph.sequence
    if picks == "model.name" and config.clients.models:
        return "clients.models", tuple(dict.fromkeys(name for name, _ in config.clients.models))
    return picks, (config_lib.flatten(config)[picks],)


def _ours(setting: str, name: str) -> bool:
    """Whether the piece of this name is the package's."""
    registries: dict[str, Registry[Any]] = {
        **NAMED,
        **dict.fromkeys((graph.GRAPHS.setting, "graph.sequence"), graph.GRAPHS),
        **dict.fromkeys((models.MODELS.setting, "clients.models"), models.MODELS),
    }
    registry = registries.get(setting)
    if registry is None or name not in registry:
        return True  # a word, such as the modes of exchange
    return is_ours(registry.get(name))
