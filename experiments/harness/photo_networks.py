# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Small networks for photographs [B, H, W, 3], as a user would write them with Flax."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

import mhd_jax

Images = Float[jax.Array, "B H W 3"]
Patches = Float[jax.Array, "B P 32"]
Embedding = Float[jax.Array, "B D"]


class Dropout(nn.Module):
    """Two convolutions and a dense layer, with dropout and without normalisation."""

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Embedding:
        """Embeddings of images, with dropout in training."""
        for features in (16, 32):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2)(x))
        x = nn.Dropout(0.25, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(64)(x)))


class Pooled(nn.Module):
    """Three convolutions with group normalisation, and the mean over positions."""

    @nn.compact
    def __call__(self, x: Images) -> Embedding:
        """Embeddings of images."""
        for features in (16, 32, 64):
            x = nn.relu(nn.GroupNorm(8)(nn.Conv(features, (3, 3), strides=2)(x)))
        return x.mean(axis=(1, 2))


def _patches(x: Images) -> Patches:
    """Four by four pixels each, projected; called within a network."""
    return nn.Conv(32, (4, 4), strides=4)(x).reshape(len(x), -1, 32)


def _per_patch(x: Patches) -> Patches:
    """What a dense layer each of mixers and transformers adds to every patch."""
    added: Patches = nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
    return added


class Mixer(nn.Module):
    """Two blocks that mix patches with a dense network, then features with another."""

    @nn.compact
    def __call__(self, x: Images) -> Embedding:
        """Embeddings of images."""
        x = _patches(x)
        for _ in range(2):
            across = nn.LayerNorm()(x).swapaxes(1, 2)
            x += nn.Dense(x.shape[1])(nn.gelu(nn.Dense(32)(across))).swapaxes(1, 2)
            x += _per_patch(x)
        return nn.LayerNorm()(x).mean(axis=1)


class Transformer(nn.Module):
    """Two blocks of attention with dropout; what a class token has gathered is the embedding."""

    @nn.compact
    def __call__(self, x: Images, train: bool) -> Embedding:
        """Embeddings of images, with dropout in training."""
        x = _patches(x)
        token = self.param("class_token", nn.initializers.normal(0.02), (1, 1, 32))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x += self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(2):
            attention = nn.MultiHeadDotProductAttention(
                num_heads=4, dropout_rate=0.1, deterministic=not train
            )
            x += attention(nn.LayerNorm()(x))
            x += _per_patch(x)
        return nn.LayerNorm()(x)[:, 0]


NETWORKS = {"dropout": Dropout, "pooled": Pooled, "mixer": Mixer, "transformer": Transformer}
"""By name; `model.name` has "photo_" before."""

for _name, _network in NETWORKS.items():
    mhd_jax.register("model.name", f"photo_{_name}", _network)
