# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Normalisation layers against Flax's own, and when running statistics change."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax.models.norm import EPSILON, BatchNorm, GroupNorm, norm, num_groups, renormalised


def inputs(*shape: int) -> jax.Array:
    return 3 * jax.random.normal(jax.random.key(0), shape) + 1


def perturbed(variables: Any) -> Any:
    """Scales and biases other than 1 and 0, so that the test sees them."""
    keys = iter(jax.random.split(jax.random.key(1), 10))
    return jax.tree.map(lambda x: x + jax.random.uniform(next(keys), x.shape), variables)


@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 4, 24)])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_group_norm_equals_flax(shape: tuple[int, ...], groups: int) -> None:
    x = inputs(*shape)
    ours, theirs = GroupNorm(groups=groups), nn.GroupNorm(num_groups=groups, epsilon=1e-5)
    variables = perturbed(ours.init(jax.random.key(0), x, train=False))

    def loss(module: nn.Module, variables: Any, x: jax.Array, *args: bool) -> jax.Array:
        y: Any = module.apply(variables, x, *args)
        return jnp.sin(y).sum()

    both = [
        jax.jit(jax.value_and_grad(lambda v, x: loss(ours, v, x, True), (0, 1)))(variables, x),
        jax.jit(jax.value_and_grad(lambda v, x: loss(theirs, v, x), (0, 1)))(variables, x),
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *both)


def test_layer_norm_of_vectors_equals_flax() -> None:
    x = inputs(4, 10)
    y, _ = norm("layer", jnp.float32).init_with_output(jax.random.key(0), x, train=True)
    z, _ = nn.LayerNorm(epsilon=1e-5).init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, z, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 16, 20, 64, 100, 256, 2048])
def test_groups_divide_the_channels(channels: int) -> None:
    groups = num_groups(channels)
    assert channels % groups == 0 and 1 <= groups <= 32


def test_batch_norm_equals_flax_in_values_and_running_statistics() -> None:
    x = inputs(6, 3, 3, 8)
    ours, theirs = BatchNorm(momentum=0.8), nn.BatchNorm(momentum=0.8, epsilon=1e-5)
    variables = perturbed(ours.init(jax.random.key(0), x, train=False))
    y, new = ours.apply(variables, x, train=True, mutable=["batch_stats"])
    z, expected = theirs.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_allclose(y, z, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), new, expected)
    y = np.asarray(ours.apply(variables, x, train=False))
    z = np.asarray(theirs.apply(variables, x, use_running_average=True))
    np.testing.assert_allclose(y, z, atol=1e-4)


@pytest.mark.parametrize(("shape", "axes"), [((6, 8), (0,)), ((4, 3, 5, 2), (0, 2, 3))])
def test_renormalised_inputs_have_the_gradient_of_batch_normalisation(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    """And their own values, to the bit."""
    x = inputs(*shape)

    def stepwise(x: jax.Array) -> jax.Array:
        """Normalised by the batch, then given back what that took, as constants."""
        mean = x.mean(axes, keepdims=True)
        deviation = jnp.sqrt(x.var(axes, keepdims=True) + EPSILON)
        taken = jax.lax.stop_gradient((mean, deviation))
        return (x - mean) / deviation * taken[1] + taken[0]

    np.testing.assert_array_equal(renormalised(x, axes), x)
    found, expected = (
        jax.jit(jax.grad(lambda x, made=made: jnp.sin(made(x)).sum()))(x)
        for made in (lambda x: renormalised(x, axes), stepwise)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axes), 0, atol=1e-4)
    np.testing.assert_allclose((found * x).sum(axes), 0, atol=1e-4)


def test_renormalised_half_precision_is_summed_in_full() -> None:
    x = inputs(512, 4)
    half, full = (
        jax.grad(lambda x: (renormalised(x, (0,)) ** 2).sum())(x.astype(kind)).astype(jnp.float32)
        for kind in (jnp.bfloat16, jnp.float32)
    )
    np.testing.assert_allclose(half, full, atol=0.1)


def test_batch_statistics_stay_unless_training_and_mutable() -> None:
    x = inputs(6, 8)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(8))
    _, same = layer.apply(variables, x, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])
    y = np.asarray(layer.apply(variables, x, train=True))
    np.testing.assert_allclose(y.mean(0), np.zeros(8), atol=1e-5)


@pytest.mark.parametrize("kind", ["layer", "group", "batch", "none"])
def test_statistics_are_float32_and_results_have_the_asked_type(kind: str) -> None:
    x = inputs(4, 3, 3, 16).astype(jnp.bfloat16) + 100
    layer = norm(kind, jnp.bfloat16)
    y, variables = layer.init_with_output(jax.random.key(0), x, train=True)
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
