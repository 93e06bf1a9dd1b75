# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Convolutions that stay fast when clients are stacked.

`jax.vmap` of a convolution whose kernel differs from client to client is a grouped convolution.
Some platforms run that far slower than the same work written otherwise, so the convolution and
both its gradients are separate operations here, each with a choice of lowerings:

- `grouped`: what `jax.vmap` makes of it, one convolution with `feature_group_count`;
- `unrolled`: one convolution per client, all in one program;
- `looped`: the same as a loop over clients, so that compile time does not grow with them.

All lowerings compute the same numbers up to rounding, under any nesting of `vmap`, `scan` and
`shard_map`, whether inputs, kernels or both are stacked. `flax.linen.Conv` and `flax.nnx.Conv` of
networks from elsewhere take them as well, see `mhd_jax.models.bridge`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import DTypeLike
from jaxtyping import Array, Float

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
    """The static numbers of one convolution, for each of its axes: one, two or three of them.

    Attributes:
      kernel: size of the kernel.
      strides: step from window to window.
      padding: zeros before and after the input.
      size: of the input.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    size: tuple[int, ...]

    @property
    def axes(self) -> list[tuple[int, int, int, int, int]]:
        """Kernel, stride, padding before, size and size of the result along every axis."""
        return [
            (window, stride, low, size, (size + low + high - window) // stride + 1)
            for window, stride, (low, high), size in zip(
                self.kernel, self.strides, self.padding, self.size, strict=True
            )
        ]

    @property
    def layout(self) -> lax.ConvDimensionNumbers:
        """Samples first and channels last; of kernels, channels in and out last."""
        return _channels_last(len(self.kernel))


def _channels_last(axes: int) -> lax.ConvDimensionNumbers:
    samples = (0, axes + 1, *range(1, axes + 1))
    return lax.ConvDimensionNumbers(samples, (axes + 1, axes, *range(axes)), samples)


def _convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The plain convolution, x [B, H, W, C], kernel [kh, kw, C, O] -> [B, H', W', O]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        dimension_numbers=geometry.layout,
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
    padding = [
        (window - 1 - low, size - stride * (out - 1) - 1 + low)
        for window, stride, low, size, out in geometry.axes
    ]
    return lax.conv_general_dilated(
        gradient,
        lax.rev(kernel, range(kernel.ndim - 2)).swapaxes(-2, -1),
        (1,) * len(padding),
        padding,
        lhs_dilation=geometry.strides,
        dimension_numbers=geometry.layout,
    )


def _kernel_gradient(x: Array, gradient: Array, geometry: Geometry) -> Array:
    """The gradient by the kernel [kh, kw, C, O], as a convolution over the batch.

    On CPU it is written as a forward convolution, for the reason `_input_gradient` gives.
    """
    if jax.default_backend() != "cpu":
        shape = (*geometry.kernel, x.shape[-1], gradient.shape[-1])
        kernel = jax.ShapeDtypeStruct(shape, gradient.dtype)
        return jax.linear_transpose(lambda k: _convolve(x, k, geometry), kernel)(gradient)[0]
    padding = [
        (low, stride * (out - 1) + window - size - low)
        for window, stride, low, size, out in geometry.axes
    ]
    inner, last = range(1, x.ndim - 1), x.ndim - 1
    result = lax.conv_general_dilated(
        x.transpose(last, *inner, 0),
        gradient.transpose(*inner, 0, last),
        (1,) * len(padding),
        padding,
        rhs_dilation=geometry.strides,
        dimension_numbers=geometry.layout,
    )
    return result.transpose(*inner, 0, last)


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
    x: Float[Array, "B ... C"], kernel: Float[Array, "... C O"], geometry: Geometry, lowering: str
) -> Float[Array, "B ... O"]:
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


def convolution(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    *,
    lowering: str = "auto",
    **other: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` for layers that call it; `vmap` takes the chosen lowering.

    Convolutions with groups of channels, dilation, another layout or a precision of their own are
    left to XLA.
    """
    size, window = lhs.shape[1:-1], rhs.shape[:-2]
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    usual = (
        resolve(lowering) != "grouped"
        and lhs.dtype == rhs.dtype
        and 1 <= len(window) <= 3
        and numbers == _channels_last(len(window))
        and {*(lhs_dilation or ()), *(rhs_dilation or ())} <= {1}
        and all(value in (None, 1) for value in other.values())
    )
    if not usual:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            **other,
        )  # fmt: skip
    strides = tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return stacked_convolution(lhs, rhs, Geometry(window, strides, pads, size), lowering)


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
        pad = (size - 1) // 2
        geometry = Geometry((size, size), (self.stride,) * 2, ((pad, pad),) * 2, (height, width))
        y = stacked_convolution(
            x.astype(self.dtype), kernel.astype(self.dtype), geometry, self.lowering
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        return y
