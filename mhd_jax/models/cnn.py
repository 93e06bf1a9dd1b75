# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A plain convolutional embedding network."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mhd_jax.models.classifier import EmbeddingFactory, ModelSettings
from mhd_jax.models.conv import Conv
from mhd_jax.models.norm import has_bias_before, norm


class CNN(nn.Module):
    """3x3 convolutions, the features doubling and the image halving with each, then a mean.

    Attributes:
      width: features of the first convolution.
      depth: number of convolutions.
      norm: normalisation, "layer", "group", "batch" or "none".
      dtype: type of activations and arithmetic.
      conv: lowering of stacked convolutions.
    """

    width: int = 32
    depth: int = 3
    norm: str = "group"
    dtype: DTypeLike = jnp.float32
    conv: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
        """Embeddings, signed: a linear, normalised map of the mean over positions."""
        x = x.astype(self.dtype)
        for layer in range(self.depth):
            features, stride = self.width * 2**layer, 1 if layer == 0 else 2
            x = Conv(features, stride=stride, dtype=self.dtype, lowering=self.conv)(x)
            x = nn.relu(norm(self.norm, self.dtype)(x, train))
        bias = has_bias_before(self.norm)
        x = nn.Dense(x.shape[-1], use_bias=bias, dtype=self.dtype)(x.mean((1, 2)))
        return norm(self.norm, self.dtype)(x, train)


def cnn(settings: ModelSettings) -> nn.Module:
    """A `CNN` as the settings say."""
    return CNN(
        width=settings.width or 32,
        depth=settings.depth or 3,
        norm=settings.norm_or("group"),
        dtype=settings.compute_dtype,
        conv=settings.conv_lowering,
    )


NETWORKS: dict[str, EmbeddingFactory] = {"cnn": cnn}
