# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Small experiments on digits that compile in a few seconds, for the tests of whole steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from mhd_jax import audit, rng
from mhd_jax import experiment as experiment_lib
from mhd_jax.config import default_config, update
from mhd_jax.experiment import Experiment
from mhd_jax.state import State
from tests import reference

WIDTH = 8  # embedding width of the small network


def config(**changes: Any) -> ml_collections.ConfigDict:
    """Four clients with two aux heads and a narrow network; `graph__name="cycle"` sets a field.

    All peers teach in every step, and there is no isolated baseline, which takes a third of the
    time to compile.
    """
    made = default_config()
    settings = {
        "clients.num": 4,
        "model.width": 16,
        "heads.aux": 2,
        "isolated_baseline": False,
        "data.batch_size": 8,
        "data.public_batch_size": 8,
        "train.steps": 6,
        "train.log_every": 3,
        "train.eval_every": 6,
        "train.checkpoint_every": 3,
        "parallel.client_devices": 1,
        "graph.peers_per_step": 0,
    }
    update(made, settings | {name.replace("__", "."): value for name, value in changes.items()})
    return made


def build(**changes: Any) -> Experiment:
    """The experiment of `config(**changes)`."""
    return experiment_lib.build(config(**changes))


def mixup_weights(seed: int, step: int, places: int, most: float) -> np.ndarray:
    """How much of the sample before each is mixed into it."""
    keys = [rng.stream(seed, "mixup", step, 0, place) for place in range(places)]
    return np.array([jax.random.uniform(key) for key in keys]) * most


def public_batch(experiment: Experiment, step: int = 0) -> np.ndarray:
    """What all clients see of the public set at a step, by NumPy; not of samples that stay."""
    fed, chosen = experiment.federations[0], experiment.parts.method.distillation
    at = np.asarray(experiment.feed.inputs(step, step + 1)[1])[0, 0]
    samples = fed.public.images(fed.public_indices[at]) - np.array(fed.mean, np.float32)
    weights = mixup_weights(fed.seed, step, len(at), chosen.mixup if chosen else 0.0)
    return reference.mixup(samples / np.array(fed.std, np.float32), weights).astype(np.float32)


def arguments(experiment: Experiment, state: State | None = None, start: int = 0) -> tuple:
    """What one call of the step takes, for as many steps as a call can do."""
    count = min(experiment.parts.steps_per_call, experiment.config.train.steps)
    return (
        experiment.init_state() if state is None else state,
        experiment.feed.data,
        experiment.schedule.inputs(start, start + experiment.parts.steps_per_call),
        experiment.seed_array,
        experiment.layout.put(np.int32(count)),
    )


def walk(
    experiment: Experiment, calls: int
) -> Iterator[tuple[State, dict[str, np.ndarray], State]]:
    """(state before, metrics, state after) of each call, the states on the host."""
    state, done = None, 0
    for _ in range(calls):
        args = arguments(experiment, state, done)
        before = jax.tree.map(np.asarray, args[0])
        state, metrics = experiment.step(*args)
        done += int(args[-1])
        joined = {
            name: experiment.parts.places.join(value, axis=2)
            for name, value in jax.device_get(metrics).items()
        }
        yield before, joined, jax.tree.map(np.asarray, state)


def run(experiment: Experiment, calls: int = 1) -> tuple[State, dict[str, np.ndarray]]:
    """The state after `calls` calls, and the last call's metrics [n, R, K, ...]."""
    state: State | None = None
    metrics, done = None, 0
    for _ in range(calls):
        args = arguments(experiment, state, done)
        state, metrics = experiment.step(*args)
        done += int(args[-1])
    assert state is not None
    fetched = jax.device_get(metrics)
    return state, {k: experiment.parts.places.join(v, axis=2) for k, v in fetched.items()}


def clients(experiment: Experiment, state: State) -> list[np.ndarray]:
    """All parameters of all clients, inert rows left out, [R, K, ...] each."""
    return [
        np.asarray(leaf)[:, :size]
        for size, cohort in zip(experiment.layout.groups, state.clients, strict=True)
        for leaf in jax.tree.leaves(cohort.params)
    ]


def compiled_text(experiment: Experiment) -> str:
    """The optimised program of the step."""
    return audit.compiled_text(experiment)


def collectives(text: str) -> list[tuple[str, str]]:
    """(operation, shape) of every array that a collective in a compiled program moves."""
    return [(found.operation, str(found.shape)) for found in audit.parse(text)]
