# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Small networks for series [B, T, F] and for ids [B, T], as a user would write them with Flax."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

import mhd_jax
from experiments.harness.sequences import VOCABULARY

Steps = Float[jax.Array, "B T D"]
Samples = Shaped[jax.Array, "B T ..."]
Embedding = Float[jax.Array, "B D"]


def _steps(x: Samples, width: int) -> Steps:
    """Vectors of ids, learned; series as they are."""
    return nn.Embed(VOCABULARY, width)(x) if jnp.issubdtype(x.dtype, jnp.integer) else x


class Convolutions(nn.Module):
    """Two convolutions along time, and the largest of every feature."""

    @nn.compact
    def __call__(self, x: Samples) -> Embedding:
        """Embeddings of samples."""
        x = _steps(x, 24)
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3,))(x))
        return x.max(axis=1)


class Recurrent(nn.Module):
    """The last state of gated recurrent units."""

    @nn.compact
    def __call__(self, x: Samples) -> Embedding:
        """Embeddings of samples."""
        states: Any = nn.RNN(nn.GRUCell(48))(_steps(x, 24))
        return states[:, -1]


class Transformer(nn.Module):
    """Two blocks of attention, with dropout."""

    @nn.compact
    def __call__(self, x: Samples, train: bool) -> Embedding:
        """Embeddings of samples, with dropout in training."""
        x = nn.Dense(32)(_steps(x, 32))
        x += self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(2):
            attention = nn.MultiHeadDotProductAttention(
                num_heads=4, dropout_rate=0.1, deterministic=not train
            )
            x += attention(nn.LayerNorm()(x))
            x += nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.LayerNorm()(x).mean(axis=1)


NETWORKS = {"cnn": Convolutions, "gru": Recurrent, "transformer": Transformer}
"""What tables call them; `model.name` has "sequence_" before."""

for _name, _network in NETWORKS.items():
    mhd_jax.register("model.name", f"sequence_{_name}", _network)
