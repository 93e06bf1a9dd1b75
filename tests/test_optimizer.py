# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The optimiser of one client: its learning rate over a run, and what a state forgets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mhd_jax import optimizer as lib
from tests import small


@pytest.mark.parametrize(
    ("schedule", "after"),
    [("constant", [1.0, 1.0, 1.0]), ("linear", [1.0, 0.5, 0.0]), ("cosine", [1.0, 0.5, 0.0])],
)
def test_the_rate_rises_to_its_highest_and_then_stays_or_falls(
    schedule: str, after: list[float]
) -> None:
    config = small.config(
        optimizer__learning_rate=1.0, optimizer__warmup_steps=4, optimizer__schedule=schedule,
        train__steps=12,
    )  # fmt: skip
    rate = lib.learning_rate(config)
    np.testing.assert_allclose([rate(step) for step in range(3)], [0.25, 0.4375, 0.625], rtol=1e-6)
    np.testing.assert_allclose([rate(step) for step in (4, 8, 12)], after, atol=1e-6)


def _after(steps: int, **changes: Any) -> tuple[optax.GradientTransformation, Any, Any, Any]:
    """An optimiser after some steps on the same gradient: it, its state, gradient, parameters."""
    config = small.config(optimizer__weight_decay=0.0, optimizer__clip_norm=0.0, **changes)
    optimizer, params = lib.make_optimizer(config), {"w": jnp.ones(3)}
    opt_state, gradient = optimizer.init(params), {"w": jnp.full(3, 0.1)}
    for _ in range(steps):
        _, opt_state = optimizer.update(gradient, opt_state, params)
    return optimizer, opt_state, gradient, params


def test_a_client_that_was_away_learns_at_the_rate_of_the_run() -> None:
    settings = {
        "optimizer__name": "sgd", "optimizer__momentum": 0.0, "optimizer__warmup_steps": 0,
        "optimizer__schedule": "linear", "train__steps": 10,
    }  # fmt: skip
    optimizer, late, gradient, params = _after(2, **settings)
    update, _ = optimizer.update(gradient, lib.at_step(late, jnp.asarray(5)), params)
    expected, _ = optimizer.update(gradient, _after(5, **settings)[1], params)
    np.testing.assert_array_equal(update["w"], expected["w"])


def test_schedules_of_hyperparameters_follow_the_run_too() -> None:
    """The rate is that of the step, after time away and after a restart that Adam forgets by."""
    rate = optax.linear_schedule(1.0, 0.0, 10)
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=rate)
    params, gradient = {"w": jnp.ones(3)}, {"w": jnp.full(3, 0.1)}
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(gradient, state, params)
    late = lib.at_step(state, jnp.asarray(5))
    anew = lib.restarted(late, optimizer.init(params), jnp.asarray(True))
    for there in (late, anew):
        update, after = optimizer.update(gradient, there, params)
        np.testing.assert_allclose(-update["w"], 0.5, rtol=1e-4)
        np.testing.assert_allclose(after.hyperparams["learning_rate"], 0.5)


def test_an_optimiser_that_starts_anew_takes_first_steps_again() -> None:
    """Adam's count starts anew with its averages: a first step is as long as the learning rate."""
    optimizer, opt_state, gradient, params = _after(
        30, optimizer__warmup_steps=0, optimizer__schedule="constant", optimizer__learning_rate=2e-3
    )
    fresh = optimizer.init(params)
    kept = lib.restarted(opt_state, fresh, jnp.asarray(False))
    jax.tree.map(np.testing.assert_array_equal, kept, opt_state)
    anew = lib.restarted(opt_state, fresh, jnp.asarray(True))
    update, _ = optimizer.update(gradient, anew, params)
    np.testing.assert_allclose(-update["w"], 2e-3, rtol=1e-4)
    clock = [leaf for leaf in jax.tree.leaves(anew) if jnp.issubdtype(leaf.dtype, jnp.integer)]
    assert sorted(int(count) for count in clock) == [0, 30]  # the learning rate's goes on
