# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The optimiser of one client, its learning rate, and what is done to its state between updates."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool

from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.registry import Registry, is_ours
from mhd_jax.trees import PyTree, unfit_type

WANTED = "a function from the config to an optax.GradientTransformation"


class OptimizerFactory(Protocol):
    """Makes the optimiser of one client from the settings of a run."""

    def __call__(self, config: ml_collections.ConfigDict) -> optax.GradientTransformation:
        """The optimiser of a client, whose gradients are clipped before.

        Parameters come as {"model": {"network": ..., "head": ...}, "projections": ...}, and `init`
        and `update` are traced. `learning_rate` is the schedule that the settings ask for. Where
        clients take part in some steps only, Optax's schedules follow the steps of the run, other
        counters the client's own updates.
        """
        ...


OPTIMIZERS: Registry[OptimizerFactory] = Registry("optimizer.name")


@OPTIMIZERS.register("sgd")
def sgd(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""
    chosen = config.optimizer
    plain = optax.sgd(learning_rate(config), momentum=chosen.momentum or None)
    if not chosen.weight_decay:
        return plain
    return optax.chain(optax.add_decayed_weights(chosen.weight_decay), plain)


@OPTIMIZERS.register("adamw")
def adamw(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    Source: I. Loshchilov and F. Hutter, 2017, https://arxiv.org/abs/1711.05101.
    """
    chosen = config.optimizer
    return optax.adamw(learning_rate(config), b1=chosen.momentum, weight_decay=chosen.weight_decay)


def make_optimizer(
    config: ml_collections.ConfigDict, params: Sequence[PyTree] = ()
) -> optax.GradientTransformation:
    """The optimiser of one client: clipping by its own global norm, then that of the settings.

    Args:
      config: see `mhd_jax.config.default_config`.
      params: shapes of parameters on which one of your own is tried.

    Raises:
      ConfigError: an unknown name; or of one's own, something else than an optimiser, updates that
        are not like parameters, or a state that does not keep its shapes and types.
    """
    name, clip_norm = config.optimizer.name, config.optimizer.clip_norm
    factory = OPTIMIZERS.get(name)
    with of_piece("optimizer.name", name, WANTED):
        made = factory(config)
    if not isinstance(made, optax.GradientTransformation):
        raise ConfigError("optimizer.name", name, f"{WANTED}, not to {type(made).__name__}")
    if not is_ours(factory):
        for tree in params:
            _try(name, made, tree)
    return optax.chain(optax.clip_by_global_norm(clip_norm), made) if clip_norm else made


def _try(name: str, made: optax.GradientTransformation, params: PyTree) -> None:
    """Raises `ConfigError` for an optimiser that cannot take a second step."""
    with of_piece("optimizer.name", name, f"{WANTED} of such parameters"):
        before = jax.eval_shape(made.init, params)
        updates, after = jax.eval_shape(made.update, params, before, params)
    if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, params):
        raise ConfigError("optimizer.name", name, "updates of the shapes of the parameters")
    if unfit := unfit_type(updates, params):
        accepted = f"updates of floating point, as parameters are, not {unfit}"
        raise ConfigError("optimizer.name", name, accepted)
    kind = lambda x: (x.shape, x.dtype)  # noqa: E731
    if jax.tree.map(kind, before) != jax.tree.map(kind, after):
        accepted = "a state that has the same shapes and types after an update"
        raise ConfigError("optimizer.name", name, accepted)


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


def restarted(opt_state: PyTree, fresh: PyTree, where: Bool[Array, ""]) -> PyTree:
    """An optimiser's state that starts anew, but for its learning rate, if `where` is True.

    Averages of gradients go back to 0 together with the count that corrects their bias: without it
    Adam's first updates would be several times as long as its learning rate.

    Args:
      opt_state: what it is.
      fresh: what `init` makes of the present parameters.
      where: whether to start anew.
    """

    def chosen(part: Any, new: Any) -> Any:
        return part if _is_clock(part) else jnp.where(where, new, part)

    return jax.tree.map(chosen, opt_state, fresh, is_leaf=_is_clock)


def _is_clock(part: Any) -> bool:
    """Whether a part of an optimiser's state counts the steps of a schedule."""
    return isinstance(part, _clocks())


@functools.cache  # not when this module is imported, as it wakes up the devices
def _clocks() -> tuple[type, ...]:
    """What schedules have in a state: `optax.inject_hyperparams` has one of the second for each."""
    injected = jax.eval_shape(lambda: optax.WrappedSchedule(optax.constant_schedule(0.0)).init())
    return optax.ScaleByScheduleState, type(injected)  # the second has no public name
