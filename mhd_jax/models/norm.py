# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Normalisation layers; all statistics are float32 whatever the type of the activations."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-5


class GroupNorm(nn.Module):
    """Group normalisation over everything but the batch (Wu and He 2018, arXiv 1803.08494).

    Attributes:
      groups: wanted number of groups; the greatest common divisor with the channels is used.
        1 is layer normalisation.
      dtype: type of the result.
    """

    groups: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B ... C"], train: bool) -> Float[Array, "B ... C"]:
        """Normalises each sample by itself; the same in training and evaluation."""
        del train
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        groups = math.gcd(self.groups, channels)
        grouped = x.astype(jnp.float32).reshape(x.shape[0], -1, groups, channels // groups)
        mean = grouped.mean((1, 3), keepdims=True)
        variance = (grouped * grouped).mean((1, 3), keepdims=True) - mean * mean
        inverse = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + EPSILON)
        normal = ((grouped - mean) * inverse).reshape(x.shape)
        return (normal * scale + bias).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation with running statistics in the collection `batch_stats`.

    In training the batch's own statistics normalise, and the running ones are updated if the
    caller made the collection mutable; in evaluation the running ones normalise.

    Attributes:
      momentum: how much of the running statistics a step keeps.
      dtype: type of the result.
    """

    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B ... C"], train: bool) -> Float[Array, "B ... C"]:
        """Normalises each channel over the batch (training) or by the running statistics."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_variance = self.variable("batch_stats", "var", jnp.ones, shape)
        if train:
            wide = x.astype(jnp.float32)
            axes = tuple(range(x.ndim - 1))
            mean = wide.mean(axes)
            variance = jnp.maximum((wide * wide).mean(axes) - mean * mean, 0.0)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_variance.value = keep * running_variance.value + (1 - keep) * variance
        else:
            mean, variance = running_mean.value, running_variance.value
        factor = scale * jax.lax.rsqrt(variance + EPSILON)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


class NoNorm(nn.Module):
    """The identity, where a network is built without normalisation."""

    @nn.compact
    def __call__(self, x: Float[Array, "B ... C"], train: bool) -> Float[Array, "B ... C"]:
        """Returns `x`."""
        del train
        return x


def norm(kind: str, dtype: Any, name: str | None = None) -> nn.Module:
    """The normalisation layer called `kind`: "layer", "group", "batch" or "none".

    "layer" is group normalisation with one group: on [B, C] it is the usual layer
    normalisation, on images it normalises each sample over all positions and channels.
    """
    if kind == "batch":
        return BatchNorm(dtype=dtype, name=name)
    if kind == "none":
        return NoNorm(name=name)
    return GroupNorm(groups=1 if kind == "layer" else 32, dtype=dtype, name=name)
