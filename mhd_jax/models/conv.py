# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Convolutions that stay fast when clients are stacked.

`jax.vmap` of a convolution whose kernel differs from client to client is a grouped convolution.
Some platforms run that far slower than the same work written otherwise, so the convolution and
both its gradients are separate operations here, each with a choice of lowerings:

- `grouped`: what `jax.vmap` makes of it, one convolution with `feature_group_count`;
- `unrolled`: one convolution per client, all in one program;
- `matmul`: shifted copies of the input and one batched matrix product.

All lowerings compute the same numbers up to rounding, under any nesting of `vmap`, `scan` and
`shard_map`, whether inputs, kernels or both are stacked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

LAYOUT = ("NHWC", "HWIO", "NHWC")

Operation = Callable[[Array, Array], Array]


class Lowering(NamedTuple):
    """How one pass is computed: as convolution or matrix product, and how it is stacked."""

    products: bool
    unrolled: bool


class Passes(NamedTuple):
    """The lowering of each of the three passes of a convolution."""

    forward: Lowering
    input_gradient: Lowering
    kernel_gradient: Lowering


GROUPED = Passes(*[Lowering(products=False, unrolled=False)] * 3)
UNROLLED = Passes(*[Lowering(products=False, unrolled=True)] * 3)
MATMUL = Passes(*[Lowering(products=True, unrolled=False)] * 3)
PASSES = {"grouped": GROUPED, "unrolled": UNROLLED, "matmul": MATMUL}

AUTO = {
    "cpu": UNROLLED._replace(kernel_gradient=Lowering(products=True, unrolled=True)),
    "gpu": UNROLLED,
    "tpu": GROUPED,
}


def passes(lowering: str) -> Passes:
    """The lowering of each pass; "auto" looks up the platform, one that is not known as a GPU."""
    if lowering == "auto":
        return AUTO.get(jax.default_backend(), AUTO["gpu"])
    return PASSES[lowering]


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
    """The gradient by the input as a forward convolution of the result's gradient.

    XLA's own gradient is the same convolution with a reversed window, which its CPU backend runs
    30 times slower inside a loop (`lax.scan`); this form is as fast there as outside.
    """
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
    """The gradient by the kernel as a forward convolution over the batch, for the same reason."""
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


def _windows(x: Array, geometry: Geometry) -> Array:
    """Copies of x shifted by every kernel position, [B, H', W', kh * kw * C]."""
    pad = (geometry.padding, geometry.padding)
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    (height, width), step = geometry.output, geometry.stride
    return jnp.concatenate(
        [
            x[:, i : i + step * (height - 1) + 1 : step, j : j + step * (width - 1) + 1 : step]
            for i in range(geometry.kernel[0])
            for j in range(geometry.kernel[1])
        ],
        axis=-1,
    )


def _columns(x: Array, geometry: Geometry) -> Array:
    """Copies of x shifted by every kernel column only, [B, H + 2 p, W', kw * C]; stride 1."""
    edge, zero = geometry.padding, jnp.zeros((), x.dtype)
    after = geometry.output[1] - geometry.size[1] - edge
    shifts = [(edge - j, after + j, 0) for j in range(geometry.kernel[1])]
    return jnp.concatenate(
        [lax.pad(x, zero, [(0, 0, 0), (edge, edge, 0), shift, (0, 0, 0)]) for shift in shifts],
        axis=-1,
    )


def _convolve_products(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution as a matrix product.

    With stride 1 only the kernel's columns are copied and its rows become more outputs, shifted
    and added afterwards: kw + kh times the memory of the input instead of kw * kh times.
    """
    rows, columns, channels, features = kernel.shape
    if geometry.stride > 1:
        return _windows(x, geometry) @ kernel.reshape(-1, features)
    flat = kernel.transpose(1, 2, 0, 3).reshape(columns * channels, rows * features)
    product = _columns(x, geometry) @ flat
    height = geometry.output[0]
    return functools.reduce(
        jnp.add,
        [product[:, i : i + height, :, i * features : (i + 1) * features] for i in range(rows)],
    )


def _input_gradient_products(gradient: Array, kernel: Array, geometry: Geometry) -> Array:
    """The gradient by the input as a matrix product."""
    rows, columns, channels, features = kernel.shape
    if geometry.stride == 1 and rows == columns:
        mirrored = dataclasses.replace(
            geometry, size=geometry.output, padding=rows - 1 - geometry.padding
        )
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        return _convolve_products(gradient, flipped, mirrored)
    product = gradient @ kernel.reshape(-1, features).T
    pieces = []
    for index in range(rows * columns):
        piece = product[..., index * channels : (index + 1) * channels]
        edges = [
            (at - geometry.padding, size + geometry.padding - at - geometry.stride * (out - 1) - 1)
            for at, size, out in zip(
                divmod(index, columns), geometry.size, geometry.output, strict=True
            )
        ]
        spread = [(low, high, geometry.stride - 1) for low, high in edges]
        zero = jnp.zeros((), piece.dtype)
        pieces.append(lax.pad(piece, zero, [(0, 0, 0), *spread, (0, 0, 0)]))
    return functools.reduce(jnp.add, pieces)


def _kernel_gradient_products(x: Array, gradient: Array, geometry: Geometry) -> Array:
    """The gradient by the kernel as a matrix product; with stride 1 see `_convolve_products`."""
    (rows, columns), channels, features = geometry.kernel, x.shape[-1], gradient.shape[-1]
    if geometry.stride > 1:
        windows = _windows(x, geometry).reshape(-1, rows * columns * channels)
        product = windows.T @ gradient.reshape(-1, features)
        return product.reshape(rows, columns, channels, features)
    shifted = jnp.concatenate(
        [jnp.pad(gradient, ((0, 0), (i, rows - 1 - i), (0, 0), (0, 0))) for i in range(rows)],
        axis=-1,
    )
    left = _columns(x, geometry).reshape(-1, columns * channels)
    product = left.T @ shifted.reshape(-1, rows * features)
    return product.reshape(columns, channels, rows, features).transpose(2, 0, 1, 3)


def _unrolled(operation: Operation) -> Operation:
    """`operation` with a batching rule that repeats it for every row of the mapped axis."""
    mapped = custom_vmap(operation)

    @mapped.def_vmap
    def rule(
        axis_size: int, in_batched: list[bool], left: Array, right: Array
    ) -> tuple[Array, bool]:
        rows = [
            mapped(left[row] if in_batched[0] else left, right[row] if in_batched[1] else right)
            for row in range(axis_size)
        ]
        return jnp.stack(rows), True

    return mapped


def _lower(lowering: Lowering, direct: Any, products: Any, geometry: Geometry) -> Operation:
    """One pass of the convolution with its lowering under `vmap`."""
    operation = functools.partial(products if lowering.products else direct, geometry=geometry)
    return _unrolled(operation) if lowering.unrolled else operation


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def stacked_convolution(
    x: Float[Array, "B H W C"], kernel: Float[Array, "kh kw C O"], geometry: Geometry, lowering: str
) -> Float[Array, "B h w O"]:
    """The convolution of one client; `vmap` over clients takes the chosen lowering.

    Args:
      x: images.
      kernel: filters.
      geometry: sizes, stride and padding.
      lowering: "auto", "grouped", "unrolled" or "matmul".
    """
    chosen = passes(lowering).forward
    return _lower(chosen, _convolve, _convolve_products, geometry)(x, kernel)


def _forward(
    x: Array, kernel: Array, geometry: Geometry, lowering: str
) -> tuple[Array, tuple[Array, Array]]:
    return stacked_convolution(x, kernel, geometry, lowering), (x, kernel)


def _backward(
    geometry: Geometry, lowering: str, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    chosen = passes(lowering)
    by_input = _lower(chosen.input_gradient, _input_gradient, _input_gradient_products, geometry)
    by_kernel = _lower(
        chosen.kernel_gradient, _kernel_gradient, _kernel_gradient_products, geometry
    )
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
    dtype: Any = jnp.float32
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
