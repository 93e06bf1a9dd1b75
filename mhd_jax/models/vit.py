# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A small vision transformer: pre-normalisation, fixed positions, the mean over patches.

There is no convolution in it, so that stacked clients are batched matrix products all through.

Source: A. Dosovitskiy et al., 2021, https://arxiv.org/abs/2010.11929, and L. Beyer et al., 2022,
https://arxiv.org/abs/2205.01580, for positions and mean.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mhd_jax.errors import ConfigError
from mhd_jax.models.classifier import EmbeddingFactory, ModelSettings

PATCH, HEADS = 4, 4  # pixels along a side, attention heads
WIDTH, DEPTH = 64, 3


def positions(count: int, width: int) -> Float[np.ndarray, "N D"]:
    """Sines and cosines of N positions.

    >>> positions(4, 6).shape
    (4, 6)
    """
    frequency = 100.0 ** -np.linspace(0, 1, width // 2)
    angle = np.arange(count)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


class Block(nn.Module):
    """Attention and a dense layer of 4 times the width, each around a shortcut.

    Attributes:
      width: D.
      dtype: of the arithmetic.
      heads: of attention.
    """

    width: int
    dtype: DTypeLike
    heads: int = HEADS

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """The block's output."""
        y = nn.LayerNorm(dtype=self.dtype, epsilon=1e-5, name="norm1")(x)
        y = nn.Dense(3 * self.width, dtype=self.dtype, name="qkv")(y)
        q, k, v = jnp.split(y.reshape(*y.shape[:2], 3 * self.heads, -1), 3, axis=2)
        y = nn.dot_product_attention(q, k, v, force_fp32_for_softmax=True).reshape(x.shape)
        x = x + nn.Dense(self.width, dtype=self.dtype, name="project")(y)
        y = nn.LayerNorm(dtype=self.dtype, epsilon=1e-5, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * self.width, dtype=self.dtype, name="dense1")(y))
        return x + nn.Dense(self.width, dtype=self.dtype, name="dense2")(y)


class ViT(nn.Module):
    """A vision transformer without its classifier.

    Attributes:
      width: D.
      depth: number of blocks.
      dtype: of the arithmetic.
      patch: pixels of a patch's side.
      heads: of attention.
    """

    width: int
    depth: int
    dtype: DTypeLike
    patch: int = PATCH
    heads: int = HEADS

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
        """Embeddings of images.

        Raises:
          ConfigError: no images, or sides that patches do not fill.
        """
        del train
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            accepted = f"images [H, W, C] whose sides are multiples of {self.patch} pixels"
            raise ConfigError("model.name", "vit", f"{accepted}, not samples of {x.shape[1:]}")
        batch, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        x = x.reshape(batch, rows, self.patch, columns, self.patch, channels).swapaxes(2, 3)
        x = x.reshape(batch, rows * columns, -1).astype(self.dtype)
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(x)
        x = x + positions(rows * columns, self.width).astype(self.dtype)
        for index in range(self.depth):
            x = Block(self.width, self.dtype, self.heads, name=f"block{index}")(x)
        x = nn.LayerNorm(dtype=self.dtype, epsilon=1e-5, name="norm")(x)
        return x.mean(1, dtype=jnp.float32)


def vit(settings: ModelSettings) -> nn.Module:
    """A `ViT` as the settings say.

    Raises:
      ConfigError: a width that attention heads cannot share, or another normalisation.
    """
    if settings.width % (2 * HEADS):
        raise ConfigError("model.width", settings.width, f"a multiple of {2 * HEADS} for a vit")
    if settings.norm_or("layer") != "layer":
        raise ConfigError("model.norm", settings.norm, "layer, the one that a vit has")
    return ViT(settings.width or WIDTH, settings.depth or DEPTH, settings.compute_dtype)


NETWORKS: dict[str, EmbeddingFactory] = {"vit": vit}
