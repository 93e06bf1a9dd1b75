# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Normalisation layers; all statistics are float32 whatever the type of the activations.

Both layers reduce to sums over positions for each channel and one multiply-add for each element:
reductions that keep the last axis are the ones that vectorise.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

EPSILON = 1e-5
MAX_GROUPS = 32
CHANNELS_PER_GROUP = 8


def num_groups(channels: int) -> int:
    """How many groups `channels` are split into: at most 32, of 8 channels or more.

    >>> [num_groups(channels) for channels in (4, 16, 24, 64, 512)]
    [1, 2, 3, 8, 32]
    """
    most = max(1, min(MAX_GROUPS, channels // CHANNELS_PER_GROUP))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _moments(x: Float[Array, "... C"], axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and mean of squares over `axes`, in float32 and one pass over the data."""
    x = x.astype(jnp.float32)
    return x.mean(axes), (x * x).mean(axes)


def _inverse_deviation(mean: Array, square: Array) -> Array:
    """1 / sqrt(variance + epsilon) from the first two moments."""
    return jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + EPSILON)


def _of_every_sample(bias: Float[Array, " C"], samples: int) -> Float[Array, "B C"]:
    """A row of its own for each sample, whose gradient is summed over positions first.

    On a GPU the compiler would make one sum over samples and positions of it, which has as many
    results as there are channels, and so leaves most of the device without work.
    """
    rows = jnp.broadcast_to(bias, (samples, *bias.shape))
    return rows if jax.default_backend() == "cpu" else jax.lax.optimization_barrier(rows)


class GroupNorm(nn.Module):
    """Group normalisation of each sample (Wu and He 2018, https://arxiv.org/abs/1803.08494).

    Attributes:
      groups: number of groups, 0 for `num_groups(C)`; 1 is layer normalisation.
      dtype: type of the result.
      scale_init: initial values of the scale.
    """

    groups: int = 0
    dtype: DTypeLike = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "B ... C"], train: bool) -> Float[Array, "B ... C"]:
        """Normalises over positions and the channels of a group, alike in training and after."""
        del train
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = self.groups or num_groups(channels)

        def over_group(moment: Float[Array, "B C"]) -> Float[Array, "B C"]:
            # Spread by broadcasting: `jnp.repeat` is a gather, whose gradient is a serial scatter.
            split = moment.reshape(-1, groups, channels // groups)
            return jnp.broadcast_to(split.mean(2, keepdims=True), split.shape).reshape(moment.shape)

        mean, square = (over_group(m) for m in _moments(x, tuple(range(1, x.ndim - 1))))
        factor = scale * _inverse_deviation(mean, square)
        shift = _of_every_sample(bias, len(x)) - mean * factor
        shape = (x.shape[0], *(1,) * (x.ndim - 2), channels)
        return (x * factor.reshape(shape) + shift.reshape(shape)).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with running statistics in the collection `batch_stats`.

    In training the batch's own statistics normalise, and the running ones are updated if the
    caller made the collection mutable; in evaluation the running ones normalise.

    Attributes:
      momentum: how much of the running statistics a step keeps.
      dtype: type of the result.
      scale_init: initial values of the scale.
    """

    momentum: float = 0.9
    dtype: DTypeLike = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "B ... C"], train: bool) -> Float[Array, "B ... C"]:
        """Normalises each channel over the batch (training) or by the running statistics."""
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_variance = self.variable("batch_stats", "var", jnp.ones, shape)
        if train:
            mean, square = _moments(x, tuple(range(x.ndim - 1)))
            inverse = _inverse_deviation(mean, square)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                keep = self.momentum
                variance = jnp.maximum(square - mean * mean, 0.0)
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_variance.value = keep * running_variance.value + (1 - keep) * variance
        else:
            mean = running_mean.value
            inverse = jax.lax.rsqrt(running_variance.value + EPSILON)
        factor = scale * inverse
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def renormalised(x: Float[Array, "B ... C"], axes: tuple[int, ...]) -> Float[Array, "B ... C"]:
    """`x` as it is, with the gradient that normalisation by its own batch would have.

    In evaluation mode a layer of batch normalisation takes its statistics for constants. But they
    follow the batch: what shifts or spreads all of its values is undone some steps later. Gradients
    that go there drive the weights of a deep network along without end, so none are left.

    Source: batch renormalisation (Ioffe 2017, https://arxiv.org/abs/1702.03275), which trains with
    the values of running statistics and gradients through the batch.

    Args:
      x: what the layer gets.
      axes: over which it takes means and variances.
    """
    del axes
    return x


@renormalised.defjvp
def _renormalised_change(
    axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """What is left of a change once the batch has its mean and variance back."""
    (x,), (change,) = primals, tangents
    mean = functools.partial(jnp.mean, axis=axes, keepdims=True)
    wide, moved = x.astype(jnp.float32), change.astype(jnp.float32)
    centred = wide - mean(wide)
    normal = centred * jax.lax.rsqrt(mean(centred * centred) + EPSILON)
    return x, (moved - mean(moved) - normal * mean(moved * normal)).astype(change.dtype)


class NoNorm(nn.Module):
    """The identity, where a network is built without normalisation."""

    @nn.compact
    def __call__(self, x: Float[Array, "B ... C"], train: bool) -> Float[Array, "B ... C"]:
        """Returns `x`."""
        del train
        return x


def norm(
    kind: str,
    dtype: DTypeLike,
    name: str | None = None,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> nn.Module:
    """The normalisation layer called `kind`: "layer", "group", "batch" or "none".

    "layer" is group normalisation with one group: on [B, C] it is the usual layer
    normalisation, on images it normalises each sample over all positions and channels.
    """
    if kind == "none":
        return NoNorm(name=name)
    if kind == "batch":
        return BatchNorm(dtype=dtype, name=name, scale_init=scale_init)
    groups = 1 if kind == "layer" else 0
    return GroupNorm(groups=groups, dtype=dtype, name=name, scale_init=scale_init)


def has_bias_before(kind: str) -> bool:
    """Whether a layer in front of this normalisation has use for a bias.

    Batch normalisation takes out again what is added to all samples. The gradient of such a bias is
    rounding noise, which Adam turns into steps as long as any other's.
    """
    return kind != "batch"
