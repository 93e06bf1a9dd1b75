# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Convolutions that stay fast when clients are stacked.

`jax.vmap` of a convolution whose kernel differs from client to client is a grouped convolution.
Some platforms run that far slower than the same work written otherwise, so the convolution and
both its gradients are separate operations here, each with a choice of lowerings:

- `grouped`: what `jax.vmap` makes of it, one convolution with `feature_group_count`;
- `unrolled`: one convolution per client, all in one program;
- `looped`: the same as a loop over clients, so that compile time does not grow with them.

All lowerings compute the same numbers up to rounding, under any nesting of `vmap`, `scan` and
`shard_map`, whether inputs, kernels or both are stacked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike
from jaxtyping import Array, Float

LAYOUT = ("NHWC", "HWIO", "NHWC")

Operation = Callable[[Array, Array], Array]

# Measured, see docs/speed.md: on two CPU cores with ResNet-8, on a GPU with ResNet-18. A TPU is not
# measured yet; its compiler batches groups.
AUTO = {"cpu": "unrolled", "gpu": "unrolled", "tpu": "grouped"}


def resolve(lowering: str) -> str:
    """The lowering that "auto" stands for on this platform; any other is returned as it is."""
    if lowering != "auto":
        return lowering
    return AUTO.get(jax.default_backend(), AUTO["gpu"])


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The static numbers of one convolution: kernel and input sizes are (height, width)."""

    kernel: tuple[int, int]
    stride: int
    padding: int
    size: tuple[int, int]

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        height, width = (
            (size + 2 * self.padding - kernel) // self.stride + 1
            for size, kernel in zip(self.size, self.kernel, strict=True)
        )
        return height, width


def _convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The plain convolution, x [B, H, W, C], kernel [kh, kw, C, O] -> [B, H', W', O]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (geometry.stride,) * 2,
        [(geometry.padding,) * 2] * 2,
        dimension_numbers=LAYOUT,
    )


def _input_gradient(gradient: Array, kernel: Array, geometry: Geometry) -> Array:
    """The gradient by the input [B, H, W, C], as a convolution of the result's gradient.

    On CPU it is written as a forward convolution: XLA's own gradient is the same convolution with
    a reversed window, which falls out of the fast library inside a loop (`lax.scan`, 30 times
    slower), whereas this form is as fast there as outside.
    """
    if jax.default_backend() != "cpu":
        shape = (gradient.shape[0], *geometry.size, kernel.shape[2])
        x = jax.ShapeDtypeStruct(shape, gradient.dtype)
        return jax.linear_transpose(lambda x: _convolve(x, kernel, geometry), x)(gradient)[0]
    padding = []
    for size, out, window in zip(geometry.size, geometry.output, geometry.kernel, strict=True):
        low = window - 1 - geometry.padding
        padding.append((low, size - geometry.stride * (out - 1) - 1 + geometry.padding))
    return lax.conv_general_dilated(
        gradient,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        padding,
        lhs_dilation=(geometry.stride,) * 2,
        dimension_numbers=LAYOUT,
    )


def _kernel_gradient(x: Array, gradient: Array, geometry: Geometry) -> Array:
    """The gradient by the kernel [kh, kw, C, O], as a convolution over the batch.

    On CPU it is written as a forward convolution, for the reason `_input_gradient` gives.
    """
    if jax.default_backend() != "cpu":
        shape = (*geometry.kernel, x.shape[-1], gradient.shape[-1])
        kernel = jax.ShapeDtypeStruct(shape, gradient.dtype)
        return jax.linear_transpose(lambda k: _convolve(x, k, geometry), kernel)(gradient)[0]
    padding = []
    for size, out, window in zip(geometry.size, geometry.output, geometry.kernel, strict=True):
        reach = geometry.stride * (out - 1) + window
        padding.append((geometry.padding, reach - size - geometry.padding))
    result = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        gradient.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        rhs_dilation=(geometry.stride,) * 2,
        dimension_numbers=LAYOUT,
    )
    return result.transpose(1, 2, 0, 3)


def _row_by_row(operation: Operation, looped: bool) -> Operation:
    """`operation` with a batching rule that repeats it for every row of the mapped axis."""
    mapped = custom_vmap(operation)

    @mapped.def_vmap
    def rule(
        axis_size: int, in_batched: list[bool], left: Array, right: Array
    ) -> tuple[Array, bool]:
        def one(row: int | Array) -> Array:
            return mapped(
                left[row] if in_batched[0] else left, right[row] if in_batched[1] else right
            )

        if looped:
            return lax.map(one, jnp.arange(axis_size)), True
        return jnp.stack([one(row) for row in range(axis_size)]), True

    return mapped


def _lower(lowering: str, one_pass: Callable[..., Array], geometry: Geometry) -> Operation:
    """One pass of the convolution with its lowering under `vmap`."""
    chosen = resolve(lowering)
    operation = functools.partial(one_pass, geometry=geometry)
    if chosen == "grouped":
        return operation
    return _row_by_row(operation, looped=chosen == "looped")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def stacked_convolution(
    x: Float[Array, "B H W C"], kernel: Float[Array, "kh kw C O"], geometry: Geometry, lowering: str
) -> Float[Array, "B h w O"]:
    """The convolution of one client; `vmap` over clients takes the chosen lowering.

    Args:
      x: images.
      kernel: filters.
      geometry: sizes, stride and padding.
      lowering: "auto", "grouped", "unrolled" or "looped".
    """
    return _lower(lowering, _convolve, geometry)(x, kernel)


def _forward(
    x: Array, kernel: Array, geometry: Geometry, lowering: str
) -> tuple[Array, tuple[Array, Array]]:
    return stacked_convolution(x, kernel, geometry, lowering), (x, kernel)


def _backward(
    geometry: Geometry, lowering: str, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    by_input = _lower(lowering, _input_gradient, geometry)
    by_kernel = _lower(lowering, _kernel_gradient, geometry)
    return by_input(gradient, kernel), by_kernel(x, gradient)


stacked_convolution.defvjp(_forward, _backward)


class Conv(nn.Module):
    """A 2-D convolution with the parameters of `flax.linen.Conv` and symmetric padding.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel, an odd number.
      stride: step in both directions.
      use_bias: whether a bias is added.
      dtype: type of activations and arithmetic; parameters are float32.
      lowering: see the module's docstring.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w O"]:
        """Convolves with padding (kernel_size - 1) / 2, so that stride 1 keeps the size."""
        size = self.kernel_size
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        _, height, width, _ = x.shape
        geometry = Geometry((size, size), self.stride, (size - 1) // 2, (height, width))
        y = stacked_convolution(
            x.astype(self.dtype), kernel.astype(self.dtype), geometry, self.lowering
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        return y
