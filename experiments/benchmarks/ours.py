# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Our side of the benchmarks: runs without end on data of a given shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.benchmarks.timing import Contender
from experiments.harness.stepping import SteppedRun
from mhd_jax.config import default_config, update
from mhd_jax.data import sources
from mhd_jax.experiment import Experiment

ENDLESS = 10**9  # steps of a run that is timed and never finished
# The method as published under plain SGD, which the other sides of the benchmarks state as well.
PUBLISHED: Mapping[str, Any] = {
    "optimizer.name": "sgd", "optimizer.learning_rate": 0.01, "distill.nu_aux": 3.0,
    "distill.split_nu_aux": False, "distill.fade_in": 0.0, "distill.alignment": 0.0,
    "graph.peers_per_step": 0,
}  # fmt: skip
TINY = {"clients.num": 2, "model.width": 8, "heads.aux": 1, "train.steps_per_call": 2,
        "data.batch_size": 8, "data.public_batch_size": 8}  # fmt: skip


@functools.cache
def digits(clients: int) -> sources.Source:
    """scikit-learn's digits, repeated so that 8, 16, ... clients have as many samples as 8."""
    found = sources.source(default_config().data)
    times = -(-clients // 8)
    index = np.tile(np.arange(len(found.train)), times)
    train = (found.train.images(index), found.train.labels[index])
    test = (found.test.images(np.arange(len(found.test))), found.test.labels)
    return sources.from_arrays("digits", train, test)


@functools.cache
def photographs(samples: int = 2000, side: int = 32) -> sources.Source:
    """Noise in the shape of CIFAR-10."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, side, side, 3), np.uint8)
    labels = np.arange(samples) % 10
    return sources.from_arrays("noise", (images, labels), (images[:100], labels[:100]))


def endless(settings: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config of such a run."""
    config = default_config()
    every = {f"train.{name}": ENDLESS for name in ("steps", "eval_every", "checkpoint_every")}
    fixed = {"isolated_baseline": False, "partition.name": "iid", **PUBLISHED}
    update(config, {**fixed, **every, **settings})
    return config


def build(
    settings: Mapping[str, Any],
    source: sources.Source | None = None,
    change: Callable[[Experiment], Experiment] = lambda experiment: experiment,
) -> SteppedRun:
    """The run with these settings, without end, evaluation or isolated baseline unless asked for.

    Samples are dealt evenly, so that all clients have as many. They are digits for dense networks,
    noise for others unless there is a source.
    """
    config = endless(settings)
    if source is None:
        source = digits(config.clients.num) if config.model.name == "mlp" else photographs()
    return SteppedRun(config, (source, None), change)


def contender(name: str, stepper: SteppedRun) -> Contender:
    """For `timing.alternate`."""
    return Contender(name, stepper.run, stepper.compile_seconds, stepper.unit)


def host_params(experiment: Experiment) -> list[Any]:
    """The initial parameters of every client of the first seed as numpy trees."""
    (cohort,) = experiment.init_state().clients
    stacked = jax.device_get(cohort.params["model"])
    return [
        jax.tree.map(lambda x, client=client: x[0, client], stacked)
        for client in range(experiment.layout.num_clients)
    ]
