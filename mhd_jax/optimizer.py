# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The optimiser of one client, its learning rate, and what is done to its state between updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool

from mhd_jax.trees import PyTree


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """The optimiser of one client: clipping by its own global norm, then SGD or AdamW."""
    chosen = config.optimizer
    rate = learning_rate(config)
    parts = [optax.clip_by_global_norm(chosen.clip_norm)] if chosen.clip_norm else []
    if chosen.name == "sgd":
        if chosen.weight_decay:
            parts.append(optax.add_decayed_weights(chosen.weight_decay))
        parts.append(optax.sgd(rate, momentum=chosen.momentum or None))
    else:
        parts.append(optax.adamw(rate, b1=chosen.momentum, weight_decay=chosen.weight_decay))
    return optax.chain(*parts)


def learning_rate(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Linear warm-up to `learning_rate`, then constant or falling to 0 over the remaining steps."""
    chosen, steps = config.optimizer, config.train.steps
    warmup = min(chosen.warmup_steps, steps)
    rest = max(steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(chosen.learning_rate),
        "cosine": optax.cosine_decay_schedule(chosen.learning_rate, rest),
        "linear": optax.linear_schedule(chosen.learning_rate, 0.0, rest),
    }[chosen.schedule]
    if not warmup:
        return after
    rise = optax.linear_schedule(chosen.learning_rate / warmup, chosen.learning_rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def at_step(opt_state: PyTree, step: jax.Array) -> PyTree:
    """An optimiser's state whose learning rate is that of a step of the run.

    Clients that take part in some steps only have made fewer updates than the run has steps.
    """

    def set_clock(part: Any) -> Any:
        return part._replace(count=jnp.full_like(part.count, step)) if _is_clock(part) else part

    return jax.tree.map(set_clock, opt_state, is_leaf=_is_clock)


def reset_moments(opt_state: PyTree, where: Bool[Array, ""]) -> PyTree:
    """An optimiser's state that starts anew, but for its learning rate, if `where` is True.

    Averages of gradients go to 0 together with the count that corrects their bias: without it
    Adam's first updates would be several times as long as its learning rate.
    """

    def fresh(part: Any) -> Any:
        return part if _is_clock(part) else jnp.where(where, jnp.zeros_like(part), part)

    return jax.tree.map(fresh, opt_state, is_leaf=_is_clock)


def _is_clock(part: Any) -> bool:
    """Whether a part of an optimiser's state counts the steps of its learning rate."""
    return isinstance(part, optax.ScaleByScheduleState)
