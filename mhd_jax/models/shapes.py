# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a client's network is made of, found by tracing it on shapes: nothing is computed."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.extend
from jax.interpreters import partial_eval

from mhd_jax.inputs import Sample, network_input
from mhd_jax.models import bridge
from mhd_jax.trees import Variables


def variable_shapes(model: nn.Module, sample: Sample, rows: int = 1) -> Variables:
    """All variables of one client by kind, as shapes; `rows` samples are traced."""
    init = lambda x: model.init(bridge.keys(jax.random.key(0)), x, train=False)  # noqa: E731
    return jax.eval_shape(init, network_input(sample, rows))


def count_params(model: nn.Module, sample: Sample) -> int:
    """Trainable parameters of one client."""
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model, sample)["params"]))


def embedding_width(model: nn.Module, sample: Sample) -> int:
    """D, the numbers of an embedding."""
    shapes = jax.eval_shape(
        lambda x: model.init_with_output(bridge.keys(jax.random.key(0)), x, train=False)[0],
        network_input(sample),
    )
    return shapes[1].shape[-1]


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


def draws(model: nn.Module, sample: Sample) -> bool:
    """Whether what the network says in training is a matter of chance, as with dropout."""

    def apply(key: jax.Array, variables: Variables, x: jax.Array) -> Any:
        keys = bridge.keys(key)
        return model.apply(variables, x, train=True, rngs=keys, mutable=["batch_stats"])

    variables, x = variable_shapes(model, sample), network_input(sample)
    traced = jax.make_jaxpr(apply)(jax.random.key(0), variables, x).jaxpr
    _, used = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return used[0]
