# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A client's network: an embedding network with several classifiers on top of it."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mhd_jax.errors import ConfigError, of_piece, suggest
from mhd_jax.models.bridge import call, label

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NORMS = ("default", "layer", "group", "batch", "none")
STEMS = ("default", "cifar", "imagenet")
CONVS = ("auto", "grouped", "unrolled", "looped")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What an embedding network is built from; 0 or "default" is the network's own choice.

    Attributes:
      width: features of the first hidden layer.
      depth: number of hidden layers (dense networks) or of stages (plain CNN).
      norm: normalisation, one of "default", "layer", "group", "batch", "none".
      dtype: "float32" or "bfloat16", the type of the computation; parameters are float32.
      stem: first layers of a ResNet, "default", "cifar" (3x3) or "imagenet" (7x7/2 and a pool).
      signed_embedding: leave the last ReLU out, so that embeddings have both signs.
      remat: residual networks keep only their blocks' inputs for the backward pass.
      conv_lowering: lowering of stacked convolutions, see `mhd_jax.models.conv`.
    """

    width: int = 0
    depth: int = 0
    norm: str = "default"
    dtype: str = "float32"
    stem: str = "default"
    signed_embedding: bool = True
    remat: bool = False
    conv_lowering: str = "auto"

    def __post_init__(self) -> None:
        for field in ("width", "depth"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"model.{field}", value, "an integer >= 0 (0 = the default)")
        choices = {"model.norm": NORMS, "model.dtype": tuple(DTYPES), "model.stem": STEMS}
        for setting, known in (choices | {"parallel.conv_lowering": CONVS}).items():
            value = getattr(self, setting.split(".")[1])
            if value not in known:
                raise ConfigError(setting, value, suggest(str(value), known))

    def norm_or(self, default: str) -> str:
        """The chosen normalisation, or the network's own `default`."""
        return default if self.norm == "default" else self.norm

    @property
    def compute_dtype(self) -> DTypeLike:
        """The type of activations and of the arithmetic."""
        return DTYPES[self.dtype]


class EmbeddingFactory(Protocol):
    """An embedding network by name: settings in, a Linen module out.

    The module's `__call__(x [B, ...], train: bool)` returns embeddings [B, D], D its own choice.
    """

    def __call__(self, settings: ModelSettings) -> nn.Module:
        """The network for these settings."""
        ...


class MultiHeadClassifier(nn.Module):
    """An embedding network with a main head (index 0) and auxiliary heads on its embedding.

    The two parts are parameters `network` and `head`. Linen derives the initial values of
    each from its own path, so neither depends on what the other is.

    Attributes:
      network: `__call__(x [B, ...], train) -> embedding [B, D]`.
      head: `__call__(embedding [B, D], train) -> logits [B, H, C]`.
      num_classes: C.
      num_heads: H, the main head included.
      conv_lowering: of convolutions that the network does not lower itself.
    """

    network: nn.Module
    head: nn.Module
    num_classes: int
    num_heads: int
    conv_lowering: str = "auto"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B ..."], *, train: bool, renormalise: bool = False
    ) -> tuple[Float[Array, "B H C"], Float[Array, "B D"]]:
        """Logits of every head and the embedding they share, both float32.

        Args:
          x: samples.
          train: whether dropout and statistics of the batch are those of training.
          renormalise: whether gradients pass through batch normalisation as in training, see
            `mhd_jax.models.norm.renormalised`.

        Raises:
          ConfigError: the network or the head returns another shape than its contract says.
        """
        accepted = f"a network for samples of shape {x.shape[1:]} and type {x.dtype}"
        with of_piece("model.name", label(self.network), accepted):
            made = call(
                self.network, x, train=train, conv_lowering=self.conv_lowering,
                renormalise=renormalise,
            )  # fmt: skip
            embedding = jnp.asarray(made)
        if embedding.ndim != 2 or embedding.shape[0] != x.shape[0] or not embedding.shape[1]:
            accepted = f"embeddings of shape [B, D] with B = {x.shape[0]}, not {embedding.shape}"
            raise ConfigError("model.name", label(self.network), accepted)
        _check_type("model.name", label(self.network), "embeddings", embedding)
        embedding = embedding.astype(jnp.float32)
        expected = (x.shape[0], self.num_heads, self.num_classes)
        accepted = f"a head of embeddings {embedding.shape}, called with train as well"
        with of_piece("heads.name", type(self.head).__name__, accepted):
            logits = jnp.asarray(call(self.head, embedding, train=train, renormalise=renormalise))
        if logits.shape != expected:
            raise ConfigError(
                "heads.name",
                type(self.head).__name__,
                f"logits of shape [B, H, C] = {expected}, not {logits.shape}",
            )
        _check_type("heads.name", type(self.head).__name__, "logits", logits)
        return logits.astype(jnp.float32), embedding


def _check_type(setting: str, piece: str, what: str, made: Array) -> None:
    """Raises `ConfigError` unless numbers have gradients."""
    if not jnp.issubdtype(made.dtype, jnp.floating):
        raise ConfigError(setting, piece, f"{what} in floating point, not {made.dtype}")
