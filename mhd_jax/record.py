# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What is said of a run before its first step and kept after its last."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mhd_jax import graph
from mhd_jax import privacy as privacy_lib
from mhd_jax.evaluator import Evaluation
from mhd_jax.exchange import Fresh, Stale
from mhd_jax.experiment import Experiment
from mhd_jax.models import statistics
from mhd_jax.reporting import terminal
from mhd_jax.results import Accuracies, SeedResult, Summary

TURNS_LOOKED_AT = 100  # graphs of a changing sequence that warnings at the start are about


def warn(experiment: Experiment) -> None:
    """Warns, before the first step, of clients out of reach and of settings of the graph."""
    config, topology = experiment.config, experiment.topologies[0]
    if experiment.parts.method.exchanges:
        graph.warn_unreachable(topology.ever(config.train.steps, most=TURNS_LOOKED_AT))
    reader = experiment.readers[0]
    pool_slots = reader.pool_slots if isinstance(reader, Stale) else 0
    asked = max(config.graph.peers_per_step, 0)
    graph.warn_without_effect(dataclasses.replace(topology, peers_per_step=asked), pool_slots)


def describe(experiment: Experiment) -> str:
    """The lines printed before the first step."""
    first, config = experiment.federations[0], experiment.config
    topology = experiment.topologies[0]
    return terminal.describe_run(
        config,
        private_samples=first.partition.sizes.tolist(),
        public_samples=len(first.public_indices),
        test_samples=len(first.source.test),
        primary_labels=first.partition.primary,
        partition_hash=first.partition.hash(),
        client_names=experiment.client_names,
        graph={
            **graph.describe(topology.at(0)),
            "name": experiment.parts.method.own_graph,
            "changes": topology.changes,
        },
        num_params=experiment.num_params,
        num_heads=experiment.parts.models[0].num_heads,
        statistics=statistics.describe(experiment.parts.paces),
        device=f"{device()}; {experiment.mesh}",
        feed=experiment.feed.why,
        exchange=_teachers(experiment),
        privacy=_privacy(experiment),
    )


def _teachers(experiment: Experiment) -> str:
    """Who may teach in a step, and how they are found; "" where nobody does."""
    chosen = experiment.parts.method.distillation
    if chosen is None:
        return ""
    reader, screened = experiment.readers[0], bool(chosen.screening)
    drawn = experiment.topologies[0].peers_per_step
    if drawn and isinstance(reader, Fresh):
        heard = ", as far as they are heard" if screened else ""
        return f"{drawn} random peers a step{heard}"
    return reader.form.describe(screened)


def _privacy(experiment: Experiment) -> str:
    privacy = experiment.parts.privacy
    if privacy is None:
        return ""
    delta, found = experiment.config.privacy.delta, experiment.epsilons[0]
    return privacy_lib.describe(privacy, delta, found)


def summarize(
    experiment: Experiment,
    evaluation: Evaluation,
    speed: Mapping[str, float],
    accuracies: Sequence[tuple[int, Sequence[float]]] = (),
) -> Summary:
    """The contents of `summary.json`.

    Args:
      experiment: the run.
      evaluation: of its last state.
      speed: `steps_per_second` and `compile_seconds`.
      accuracies: of all evaluations, (step, shared accuracy of the last head of every seed).
    """
    config, ledger = experiment.config, experiment.ledger
    seeds = [
        _seed_values(experiment, evaluation, index)
        | {"bytes_to": each.until(config.bytes_to, [(at, of[index]) for at, of in accuracies])}
        for index, each in enumerate(experiment.ledgers)
    ]
    return Summary(
        method=config.method,
        config=config.to_dict(),
        versions=versions(),
        device=device(),
        mesh=experiment.mesh,
        client_names=experiment.client_names,
        class_names=experiment.class_names,
        num_params=experiment.num_params,
        num_classes=experiment.federations[0].source.num_classes,
        steps=config.train.steps,
        steps_per_second=speed["steps_per_second"],
        compile_seconds=speed["compile_seconds"],
        **seeds[0],
        bytes_per_step=ledger.record(),
        bytes_sent=ledger.sent(config.train.steps),
        bytes_published=ledger.published(config.train.steps),
        replicas=tuple(SeedResult(**values) for values in seeds) if len(seeds) > 1 else (),
    )


def _seed_values(experiment: Experiment, found: Evaluation, index: int) -> dict[str, Any]:
    """The fields of a `SeedResult`."""
    baseline = None
    if found.baseline is not None:
        shared, private = (values[index] for values in found.baseline)
        own = found.own_baseline
        baseline = Accuracies(
            shared_accuracy=shared, private_accuracy=private,
            own_test_accuracy=None if own is None else own[index],
        )  # fmt: skip
    federation = experiment.federations[index]
    partition = federation.partition
    topology = experiment.topologies[index]
    return {
        "seed": experiment.seeds[index],
        "partition_hash": partition.hash(),
        "normalization": np.array([federation.mean, federation.std]),
        "shared_accuracy": found.shared[index],
        "private_accuracy": found.private[index],
        "own_test_accuracy": None if found.own is None else found.own[index],
        "isolated_baseline": baseline,
        "metrics": {name: value[index] for name, value in found.metrics.items()},
        "liars": list(experiment.liars),
        "frozen": experiment.config.clients.frozen,
        "class_accuracy": _by_class(found.correct[index], experiment.evaluator.count),
        "label_histogram": experiment.evaluator.histograms[index],
        "primary_labels": partition.primary,
        "epsilon": experiment.epsilons[index],
        "adjacency": topology.at(0),
        "adjacency_union": topology.ever(experiment.config.train.steps),
    }


def _by_class(
    correct: Float[np.ndarray, "K H C"], count: Float[np.ndarray, " C"]
) -> Float[np.ndarray, "K H C"]:
    """Accuracy on every class, NaN where there is nothing to test it on."""
    return np.where(count > 0, correct / np.maximum(count, 1), np.nan)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what its numbers depend on."""
    names = ("mhd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def device() -> str:
    """Number, kind and platform of the devices."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
