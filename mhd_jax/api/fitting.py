# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""`fit`: an experiment from its settings to its end, in one call."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence

import ml_collections
from etils import epath
from numpy.typing import ArrayLike

from mhd_jax import config as config_lib
from mhd_jax import federation, train, weights
from mhd_jax.api.pieces import Piece, use
from mhd_jax.api.run import Run
from mhd_jax.data.sources import Source
from mhd_jax.errors import ConfigError
from mhd_jax.runtime.workdir import Workdir
from mhd_jax.weights import Given


def fit(
    config: ml_collections.ConfigDict | Mapping[str, object] | None = None,
    workdir: epath.PathLike | None = None,
    *,
    head: Piece | None = None,
    model: Piece | None = None,
    confidence: Piece | None = None,
    rule: Piece | None = None,
    graph: Piece | ArrayLike | None = None,
    partition: Piece | None = None,
    source: Piece | Source | None = None,
    method: Piece | None = None,
    encoding: Piece | None = None,
    metric: Piece | Sequence[Piece] | None = None,
    attack: Piece | None = None,
    augment: Piece | None = None,
    optimizer: Piece | None = None,
    aggregator: Piece | None = None,
    loss: Piece | None = None,
    init_from: Given | Sequence[Given] = None,
) -> Run:
    """Runs an experiment to its end, or resumes the one in `workdir`.

    A piece is the name of a registered one, or an object, which is registered under its own
    ``__name__`` (see `register` for objects without one). What each has to be:

    Args:
      config: a full config, or only the settings that differ from the defaults, by dotted name,
        such as ``{"clients.num": 4, "train.steps": 500}``.
      workdir: the directory of the run; None for a temporary one that lives as long as the `Run`.
      head: a Linen module class with the fields `num_classes` and `num_heads`;
        ``(embedding [B, D], train) -> logits [B, H, C]``.
      model: an embedding network, ``(x [B, ...], train) -> embedding [B, D]``, where `train` may be
        left out: a Linen module or its class, or an NNX module class that takes `rngs`
        (`functools.partial` gives a class its arguments); or a function from `ModelSettings` to one
        of these.
      confidence: ``log_probs [..., C] -> [...]``, larger is surer.
      rule: a `TeacherRule`, from candidates to an index, weights, or a `mhd_jax.distill.Target`.
      graph: ``(num_clients, rng, **settings) -> bool [K, K]``, ``(step) -> bool [K, K]`` for a
        graph that changes, or the matrix itself. ``A[i, j]``: client i learns from client j.
      partition: ``(labels, num_classes, num_clients, config, rng) -> Owners``.
      source: a `Source` (see `from_arrays`), or ``(dir, split, shape) -> Source``. One that comes
        with its clients (see `from_clients`) sets `clients.num`, and `partition.name` to "by_key"
        unless `partition` is given too.
      method: ``config -> Method``.
      encoding: ``config -> Encoding``.
      metric: ``(correct [K, H, C], count [C], owned [K, C]) -> [K, H]``, beside those that
        `metrics` names.
      attack: ``(honest [N, B, h, C], view) -> [N, B, h, C]``, what the clients in `attack.clients`
        publish instead of their predictions.
      augment: ``(key, sample [...]) -> sample`` of the same shape and type, on the devices.
      optimizer: ``config -> optax.GradientTransformation``, of one client; gradients are clipped
        before, see `mhd_jax.optimizer`.
      aggregator: ``(everyone, leaves [K, ...], weights [k, K], trim) -> leaves [k, ...]``, what
        clients make of each other's parameters where a method averages them.
      loss: ``(student [..., C], target [..., C]) -> [...]``, of logits, where a method such as
        fedmd mixes these.
      init_from: weights that clients start from, for all alike or a sequence with those of each,
        None for a client that starts from scratch: trees, see `mhd_jax.weights`, or the paths that
        `model.init_from` takes.

    Returns:
      The finished run.

    Raises:
      ConfigError: a setting, or a piece, that cannot work; before any compilation.
      WorkdirError: a workdir that cannot be used, or that holds a run with other settings.
      DivergedError: a loss is no longer finite.
    """
    pieces = {
        "head": head, "model": model, "confidence": confidence, "rule": rule, "graph": graph,
        "partition": partition, "source": source, "method": method, "encoding": encoding,
        "metric": metric, "attack": attack, "augment": augment, "optimizer": optimizer,
        "aggregator": aggregator, "loss": loss,
    }  # fmt: skip
    made = _config(config)
    if workdir == "" or not isinstance(workdir, str | os.PathLike | None):
        raise ConfigError("workdir", workdir, "a path, or None for a temporary directory")
    use(made, pieces)
    _check_used(made, model is not None, graph is not None)
    if init_from is not None:
        made.model.init_from = weights.named(init_from)
    temporary = workdir is None
    path = tempfile.mkdtemp(prefix="mhd_jax_") if workdir is None else workdir
    try:
        if isinstance(source, Source) and (directory := Workdir(path)).finished():
            data = federation.federate(made, made.seed, *federation.data_sets(made))
            directory.claim(made, data.fingerprint)
        train.train_and_evaluate(made, path)
    except BaseException:
        if temporary:
            shutil.rmtree(path, ignore_errors=True)
        raise
    run = Run(path, made, source if isinstance(source, Source) else None)
    if temporary:
        weakref.finalize(run, shutil.rmtree, path, ignore_errors=True)
    return run


def _check_used(config: ml_collections.ConfigDict, model: bool, graph: bool) -> None:
    """Raises `ConfigError` where a given network or graph is none of several that settings name."""
    models = config_lib.client_models(config) if model else ()  # that of model.name unless others
    graphs = config.graph.sequence if graph else ()
    for argument, name, others, several in (
        ("model", config.model.name, "clients.models", [name for name, _ in models]),
        ("graph", config.graph.name, "graph.sequence", list(graphs)),
    ):
        if several and name not in several:
            accepted = f"one of those that {others} names, {', '.join(map(str, several))}"
            raise ConfigError(argument, name, accepted)


def _config(
    config: ml_collections.ConfigDict | Mapping[str, object] | None,
) -> ml_collections.ConfigDict:
    """A config of our own to change."""
    if isinstance(config, ml_collections.ConfigDict):
        config_lib.check_names(config)
        return config.copy_and_resolve_references()
    if not isinstance(config, Mapping | None):
        accepted = "a ConfigDict, or settings by their names such as {'graph.name': 'cycle'}"
        raise ConfigError("config", config, accepted)
    made = config_lib.default_config()
    config_lib.update(made, config or {})
    return made
