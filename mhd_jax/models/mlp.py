# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Dense embedding networks for small images."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mhd_jax.models.classifier import EmbeddingFactory, ModelSettings
from mhd_jax.models.norm import has_bias_before, norm


class MLP(nn.Module):
    """Hidden layers with normalisation and ReLU, then a linear, signed, normalised embedding.

    Normalising the embedding fixes the length of what the heads see, and with it the curvature
    that many distillation losses add up to; a ReLU there makes the same training diverge.

    Attributes:
      width: features of each hidden layer; the embedding has half as many.
      depth: number of hidden layers.
      norm: normalisation, "layer", "group", "batch" or "none".
      dtype: type of activations and arithmetic.
    """

    width: int = 128
    depth: int = 1
    norm: str = "layer"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], train: bool) -> Float[Array, "B D"]:
        """Embeddings of images of any shape."""
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        bias = has_bias_before(self.norm)
        for _ in range(self.depth):
            x = nn.Dense(self.width, use_bias=bias, dtype=self.dtype)(x)
            x = nn.relu(norm(self.norm, self.dtype)(x, train))
        x = nn.Dense(max(1, self.width // 2), use_bias=bias, dtype=self.dtype)(x)
        return norm(self.norm, self.dtype)(x, train)


def mlp(settings: ModelSettings, width: int, depth: int) -> nn.Module:
    """An `MLP`, with `width` and `depth` unless the settings say otherwise."""
    return MLP(
        width=settings.width or width,
        depth=settings.depth or depth,
        norm=settings.norm_or("layer"),
        dtype=settings.compute_dtype,
    )


NETWORKS: dict[str, EmbeddingFactory] = {
    "mlp": functools.partial(mlp, width=128, depth=1),
    "mlp_small": functools.partial(mlp, width=64, depth=1),
    "mlp_large": functools.partial(mlp, width=256, depth=2),
}
