# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a client's network is made of, found by tracing it on shapes: nothing is computed.

Tracing a deep network takes a second, and many ask: what was found is kept until `forget`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.extend.core.primitives import copy_p, stop_gradient_p
from jax.interpreters import partial_eval

from mhd_jax.inputs import Sample, network_input
from mhd_jax.models import bridge
from mhd_jax.trees import Variables

P = ParamSpec("P")
T = TypeVar("T")

_CACHES: list[functools._lru_cache_wrapper[Any]] = []


def forget() -> None:
    """Traces anew from here on: what a network reads beside its fields may have changed."""
    for cache in _CACHES:
        cache.cache_clear()


def _kept(function: Callable[P, T]) -> Callable[P, T]:
    """Answers the same question about an equal network once."""
    _CACHES.append(functools.lru_cache(maxsize=64)(function))
    remembered = cast(Callable[P, T], _CACHES[-1])

    @functools.wraps(function)
    def ask(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            hash((*args, *kwargs.values()))
        except TypeError:  # a module with an array among its fields, for example
            return function(*args, **kwargs)
        return remembered(*args, **kwargs)

    return ask


@_kept
def _initialised(model: nn.Module, sample: Sample, rows: int) -> tuple[Any, Variables]:
    """What `init_with_output` returns, as shapes: ((logits, embedding), variables)."""

    def init(x: jax.Array) -> Any:
        return model.init_with_output(bridge.keys(jax.random.key(0)), x, train=False)

    return jax.eval_shape(init, network_input(sample, rows))


def variable_shapes(model: nn.Module, sample: Sample, rows: int = 1) -> Variables:
    """All variables of one client by kind, as shapes; `rows` samples are traced."""
    return _initialised(model, sample, rows)[1]


def count_params(model: nn.Module, sample: Sample) -> int:
    """Trainable parameters of one client."""
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model, sample)["params"]))


def embedding_width(model: nn.Module, sample: Sample) -> int:
    """D, the numbers of an embedding."""
    (_, embedding), _ = _initialised(model, sample, 1)
    return embedding.shape[-1]


@_kept
def has_convolutions(model: nn.Module, sample: Sample) -> bool:
    """Whether the network convolves, along one axis or several."""
    variables, x = variable_shapes(model, sample), network_input(sample)
    forward = lambda variables, x: model.apply(variables, x, train=False)  # noqa: E731
    return _convolves(jax.make_jaxpr(forward)(variables, x).jaxpr)


def _convolves(traced: jax.extend.core.Jaxpr) -> bool:
    """Whether a program, or one that it calls, has a convolution."""
    return any(
        equation.primitive is jax.lax.conv_general_dilated_p
        or any(map(_convolves, jax.extend.core.jaxprs_in_params(equation.params)))
        for equation in traced.eqns
    )


def has_statistics(model: nn.Module, sample: Sample) -> bool:
    """Whether the network normalises with statistics of the batch."""
    return bool(variable_shapes(model, sample).get("batch_stats"))


@_kept
def _training_pass(model: nn.Module, sample: Sample) -> jax.extend.core.ClosedJaxpr:
    """One pass in training as a program: (key, variables, x) to (outputs, new statistics)."""

    def apply(key: jax.Array, variables: Variables, x: jax.Array) -> Any:
        keys = bridge.keys(key)
        return model.apply(variables, x, train=True, rngs=keys, mutable=["batch_stats"])

    variables = variable_shapes(model, sample)
    return jax.make_jaxpr(apply)(jax.random.key(0), variables, network_input(sample))


@_kept
def draws(model: nn.Module, sample: Sample) -> bool:
    """Whether what the network says in training is a matter of chance, as with dropout."""
    traced = _training_pass(model, sample).jaxpr
    _, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return used[0]


@_kept
def statistics_momentum(model: nn.Module, sample: Sample) -> Variables:
    """What a step of training keeps of each running statistic: numbers in a tree as `batch_stats`.

    A running average becomes momentum * old + (1 - momentum) * new, so that its derivative by the
    old one is the momentum, whichever layer keeps it. What comes of the old one in any other way,
    such as a count, has 0; so has everything where it cannot be told.
    """
    variables = variable_shapes(model, sample)
    stats, tree = jax.tree.flatten(variables.get("batch_stats", {}))
    if not stats:
        return {}
    step = jax.extend.core.jaxpr_as_fun(_without_stops(_training_pass(model, sample)))

    def derivatives(key: jax.Array, variables: Variables, x: jax.Array) -> list[jax.Array]:
        def new(old: Variables) -> list[jax.Array]:
            inputs = key, {**variables, "batch_stats": old}, x
            return step(*jax.tree.leaves(inputs))[-len(stats) :]

        old = variables["batch_stats"]
        found = jax.jvp(new, (old,), (jax.tree.map(_tangent, old),))[1]
        return [jnp.zeros(()) if one.dtype == jax.dtypes.float0 else one for one in found]

    try:
        derived = jax.make_jaxpr(derivatives)(jax.random.key(0), variables, network_input(sample))
        momenta = [_constant(derived, output) for output in range(len(stats))]
    except TypeError:  # old statistics reach a `jax.custom_vjp`, which has no such derivative
        momenta = [0.0] * len(stats)
    return cast(Variables, jax.tree.unflatten(tree, momenta))


def _without_stops(traced: jax.extend.core.ClosedJaxpr) -> jax.extend.core.ClosedJaxpr:
    """The same program, differentiable where it stops gradients: NNX does for statistics."""
    equations = [
        equation.replace(primitive=copy_p) if equation.primitive is stop_gradient_p else equation
        for equation in traced.eqns
    ]
    return traced.replace(jaxpr=traced.jaxpr.replace(eqns=equations))


def _tangent(leaf: jax.Array) -> Any:
    """Ones; integers have tangents of a type of their own."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.ones(leaf.shape, leaf.dtype)
    return np.zeros(leaf.shape, jax.dtypes.float0)


def _constant(traced: jax.extend.core.ClosedJaxpr, output: int) -> float:
    """One output of a program, all of whose numbers are alike; 0 if it depends on the inputs."""
    wanted = [other == output for other in range(len(traced.out_avals))]
    program, used = partial_eval.dce_jaxpr(traced.jaxpr, wanted)
    if any(used):
        return 0.0
    (value,) = jax.extend.core.jaxpr_as_fun(traced.replace(jaxpr=program))()
    return round(float(np.mean(value)), 5)  # float32 has no 0.9
