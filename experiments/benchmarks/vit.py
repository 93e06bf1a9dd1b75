# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A small vision transformer, for measuring: clients whose work is matrix products only.

Written as anyone would add a network of their own, see CONTRIBUTING.md; importing this module
registers it as "vit", and as `BASE` in the size that is usual for ImageNet. Pre-normalisation,
fixed positions, the mean over patches as embedding.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, and Beyer et al. 2022,
https://arxiv.org/abs/2205.01580, for positions and mean.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mhd_jax import models
from mhd_jax.models import ModelSettings

PATCH, HEADS = 4, 4
WIDTH, DEPTH = 192, 6
BASE = "vit_b16"  # the name of the larger one, of 86 million parameters


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
    dtype: Any
    heads: int = HEADS

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """The block's output."""
        y = nn.LayerNorm(dtype=self.dtype, epsilon=1e-5, name="norm1")(x)
        y = nn.Dense(3 * self.width, dtype=self.dtype, name="qkv")(y)
        q, k, v = jnp.split(y.reshape(*y.shape[:2], 3 * self.heads, -1), 3, axis=2)
        y = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
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
    dtype: Any
    patch: int = PATCH
    heads: int = HEADS

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
        """Embeddings."""
        del train
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
    """A `ViT` as the settings say."""
    width = settings.width or WIDTH
    return ViT(width, settings.depth or DEPTH, settings.compute_dtype)


def vit_b16(settings: ModelSettings) -> nn.Module:
    """The "base" size of the paper: 12 blocks of 768 in patches of 16 pixels."""
    return ViT(768, 12, settings.compute_dtype, patch=16, heads=12)


for _name, _made in (("vit", vit), (BASE, vit_b16)):
    if _name not in models.MODELS.names():
        models.MODELS.register(_name)(_made)
