# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Stacked convolutions: every lowering gives the numbers of the plain convolution."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from mhd_jax.models.conv import (
    AUTO,
    Conv,
    Geometry,
    convolution,
    resolve,
    stacked_convolution,
)

LAYOUTS = {
    1: ("NWC", "WIO", "NWC"),
    2: ("NHWC", "HWIO", "NHWC"),
    3: ("NDHWC", "DHWIO", "NDHWC"),
}
LOWERINGS = ("auto", "grouped", "unrolled", "looped")
CLIENTS, BATCH, CHANNELS, FEATURES = 4, 2, 3, 5
Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def plain(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, geometry.strides, geometry.padding, dimension_numbers=LAYOUTS[x.ndim - 2]
    )


def operands(geometry: Geometry) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (CLIENTS, BATCH, *geometry.size, CHANNELS))
    return x, jax.random.normal(keys[1], (CLIENTS, *geometry.kernel, CHANNELS, FEATURES)) / 5


def outcome(stacked: Convolution) -> Callable[[jax.Array, jax.Array], Any]:
    """Values and both gradients of a stacked convolution."""

    def loss(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = stacked(x, kernel)
        return jnp.sin(y).sum(), y

    return jax.value_and_grad(loss, (0, 1), has_aux=True)


def every_lowering(geometry: Geometry, stack: Callable[[Convolution], Convolution]) -> None:
    """Compiles all lowerings and the reference in one program and compares them."""

    @jax.jit
    def run(x: jax.Array, kernel: jax.Array) -> list[Any]:
        lowered = [
            functools.partial(_convolution, geometry=geometry, lowering=lowering)
            for lowering in LOWERINGS
        ]
        return [
            outcome(stack(one))(x, kernel)
            for one in [functools.partial(plain, geometry=geometry), *lowered]
        ]

    expected, *found = run(*operands(geometry))
    for result in found:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), result, expected
        )


def _convolution(x: jax.Array, kernel: jax.Array, geometry: Geometry, lowering: str) -> jax.Array:
    return stacked_convolution(x, kernel, geometry, lowering)


GEOMETRIES = {
    "3x3": Geometry((3, 3), (1, 1), ((1, 1),) * 2, (6, 5)),
    "3x3, stride 2": Geometry((3, 3), (2, 2), ((1, 1),) * 2, (8, 7)),
    "1x1, stride 2": Geometry((1, 1), (2, 2), ((0, 0),) * 2, (6, 5)),
    "7x7, stride 2": Geometry((7, 7), (2, 2), ((3, 3),) * 2, (10, 9)),
    "2x4, strides 1 and 3, unlike sides": Geometry((2, 4), (1, 3), ((0, 1), (2, 0)), (5, 8)),
    "one axis": Geometry((5,), (2,), ((1, 3),), (9,)),
    "three axes": Geometry((2, 3, 1), (1, 2, 1), ((0, 1), (1, 1), (0, 0)), (3, 4, 2)),
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_inputs_and_kernels_stacked(geometry: Geometry) -> None:
    every_lowering(geometry, jax.vmap)


@pytest.mark.parametrize("geometry", [GEOMETRIES["3x3"]], ids=["3x3"])
def test_shared_input(geometry: Geometry) -> None:
    every_lowering(geometry, lambda one: lambda x, kernel: jax.vmap(one, (None, 0))(x[0], kernel))


@pytest.mark.parametrize("geometry", [GEOMETRIES["3x3, stride 2"]], ids=["3x3, stride 2"])
def test_shared_kernel(geometry: Geometry) -> None:
    every_lowering(geometry, lambda one: lambda x, kernel: jax.vmap(one, (0, None))(x, kernel[0]))


def test_not_stacked() -> None:
    every_lowering(GEOMETRIES["3x3"], lambda one: lambda x, kernel: one(x[0], kernel[0]))


def test_replicas_of_clients() -> None:
    def nested(one: Convolution) -> Convolution:
        def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
            x, kernel = x.reshape(2, 2, *x.shape[1:]), kernel.reshape(2, 2, *kernel.shape[1:])
            return jax.vmap(jax.vmap(one))(x, kernel).reshape(-1, *x.shape[2:4], FEATURES)

        return run

    every_lowering(GEOMETRIES["3x3"], nested)


def test_inside_scan() -> None:
    def scanned(one: Convolution) -> Convolution:
        def body(carry: jax.Array, args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
            return carry, jax.vmap(one)(*jax.tree.map(lambda a: a[None], args))

        return lambda x, kernel: lax.scan(body, jnp.zeros(()), (x, kernel))[1]

    every_lowering(GEOMETRIES["3x3"], scanned)


def test_inside_shard_map() -> None:
    mesh = jax.make_mesh((2,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))

    def sharded(one: Convolution) -> Convolution:
        rows = P("clients")
        return jax.shard_map(
            jax.vmap(one), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
        )

    every_lowering(GEOMETRIES["3x3"], sharded)


def test_accelerators_take_the_gradients_of_jax() -> None:
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
        every_lowering(GEOMETRIES["3x3, stride 2"], jax.vmap)


def test_auto_is_a_choice_for_every_platform() -> None:
    for platform, lowering in AUTO.items():
        with mock.patch.object(jax, "default_backend", lambda platform=platform: platform):
            assert resolve("auto") == lowering in LOWERINGS[1:]
            assert resolve("looped") == "looped"
    with mock.patch.object(jax, "default_backend", lambda: "another"):
        assert resolve("auto") == AUTO["gpu"]


def groups_of(one: Convolution, x: jax.Array, kernel: jax.Array) -> set[int]:
    """Group counts of all convolutions of a stack and its gradients."""
    jaxpr = str(jax.make_jaxpr(outcome(jax.vmap(one)))(x, kernel))
    return {int(word.split("=")[1]) for word in jaxpr.split() if "feature_group_count=" in word}


def test_unrolled_has_no_grouped_convolution() -> None:
    x, kernel = operands(GEOMETRIES["3x3"])

    def groups(lowering: str) -> set[int]:
        one = functools.partial(_convolution, geometry=GEOMETRIES["3x3"], lowering=lowering)
        return groups_of(one, x, kernel)

    assert groups("unrolled") == groups("looped") == {1}
    assert CLIENTS in groups("grouped")


@pytest.mark.parametrize("stride", [1, 2])
def test_the_module_equals_flax(stride: int) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    ours = Conv(4, 3, stride, use_bias=True)
    theirs = nn.Conv(4, (3, 3), (stride, stride), padding=((1, 1), (1, 1)))
    variables = ours.init(jax.random.key(1), x)
    shapes = jax.eval_shape(lambda: theirs.init(jax.random.key(1), x))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    found, expected = (np.asarray(module.apply(variables, x)) for module in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=1e-5)


ASKED: dict[str, dict[str, Any]] = {
    "SAME, stride 2": {"window_strides": (2, 2), "padding": "SAME"},
    "VALID": {"window_strides": (1, 1), "padding": "VALID"},
    "unlike sides": {"window_strides": (1, 2), "padding": [(0, 2), (1, 0)]},
}
LEFT_ALONE: dict[str, dict[str, Any]] = {
    "dilation": {"rhs_dilation": (2, 1)},
    "dilated input": {"lhs_dilation": (1, 2), "padding": [(1, 1), (1, 1)]},
    "groups": {"feature_group_count": 3},
    "precision": {"precision": lax.Precision.HIGHEST},
    "grouped": {"lowering": "grouped"},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_the_function_is_that_of_jax(asked: dict[str, Any]) -> None:
    """Called as `flax.linen.Conv` calls it."""
    x, kernel = operands(Geometry((3, 3), (1, 1), ((1, 1),) * 2, (7, 6)))
    ours = functools.partial(convolution, dimension_numbers=LAYOUTS[2], **asked)
    theirs = functools.partial(lax.conv_general_dilated, dimension_numbers=LAYOUTS[2], **asked)
    found, expected = (outcome(jax.vmap(one))(x, kernel) for one in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert groups_of(ours, x, kernel) == {1}


@pytest.mark.parametrize("asked", LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
def test_other_convolutions_are_left_alone(asked: dict[str, Any]) -> None:
    x, kernel = operands(Geometry((3, 3), (1, 1), ((1, 1),) * 2, (7, 6)))
    if "feature_group_count" in asked:
        kernel = jnp.tile(kernel[..., :1, :], (1, 1, 1, 1, 3))
    usual = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": LAYOUTS[2]} | asked
    ours = functools.partial(convolution, **usual)
    usual.pop("lowering", None)
    theirs = functools.partial(lax.conv_general_dilated, **usual)
    assert str(jax.make_jaxpr(ours)(x[0], kernel[0])) == str(
        jax.make_jaxpr(theirs)(x[0], kernel[0])
    )


def test_another_layout_is_left_alone() -> None:
    """Channels first, as they are where no layout is given."""
    x, kernel = jnp.ones((2, 3, 6, 5)), jnp.ones((4, 3, 3, 3))
    ours, theirs = (
        functools.partial(one, window_strides=(1, 1), padding="SAME")
        for one in (convolution, lax.conv_general_dilated)
    )
    assert str(jax.make_jaxpr(ours)(x, kernel)) == str(jax.make_jaxpr(theirs)(x, kernel))
