# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Classifiers on the embedding. This is the module to extend: a head is a small Linen module.

A head has the fields `num_classes` and `num_heads` and returns the logits of all heads at once:

>>> import flax.linen as nn
>>> @HEADS.register("cosine_example")
... class CosineHead(nn.Module):
...     num_classes: int
...     num_heads: int
...
...     @nn.compact
...     def __call__(self, embedding, train):
...         shape = (embedding.shape[-1], self.num_heads, self.num_classes)
...         kernel = self.param("kernel", per_head(nn.initializers.lecun_normal()), shape)
...         kernel = kernel / jnp.linalg.norm(kernel, axis=0)
...         embedding = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
...         return 10 * jnp.einsum("bd,dhc->bhc", embedding, kernel)
>>> embedding = jnp.ones((2, 8))
>>> head = HEADS.get("cosine_example")(num_classes=3, num_heads=5)
>>> head.init_with_output(jax.random.key(0), embedding, train=False)[0].shape
(2, 5, 3)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mhd_jax.registry import Registry

HEADS: Registry[Callable[..., nn.Module]] = Registry("heads.name")

Initializer = Callable[..., Array]


def per_head(initializer: Initializer) -> Initializer:
    """Initial values [D, H, C] in which head h depends on the key and on h, not on H.

    A model without auxiliary heads then starts from the same main head as one with many.

    Args:
      initializer: initial values of one head, `(key, shape [D, C], dtype) -> [D, C]`.
    """

    def initialize(
        key: jax.Array, shape: tuple[int, int, int], dtype: jnp.dtype = jnp.float32
    ) -> Float[Array, "D H C"]:
        features, num_heads, num_classes = shape
        heads = [
            initializer(jax.random.fold_in(key, head), (features, num_classes), dtype)
            for head in range(num_heads)
        ]
        return jnp.stack(heads, axis=1)

    return initialize


def starts_alike(many: nn.Module, one: nn.Module, width: int) -> bool:
    """Whether the main head has the same initial values with auxiliary heads and without.

    Args:
      many: all heads.
      one: the main head alone, of the same class.
      width: D.
    """
    embedding = jnp.asarray(np.random.default_rng(0).normal(size=(2, width)), jnp.float32)

    def main(head: nn.Module) -> Float[np.ndarray, "B C"]:
        key = jax.random.key(0)
        logits, _ = head.init_with_output({"params": key, "dropout": key}, embedding, train=False)
        return np.asarray(logits)[:, 0]

    return bool(np.allclose(main(many), main(one), rtol=1e-3, atol=1e-4))


@HEADS.register("linear")
class LinearHeads(nn.Module):
    """All heads as one matrix product: kernel [D, H, C], bias [H, C].

    Attributes:
      num_classes: C.
      num_heads: H, the main head included.
      head_axes: axis of each parameter along which heads lie and stay apart; private gradients
        get noise on the main head's part alone (`mhd_jax.privacy.reached`).
    """

    num_classes: int
    num_heads: int
    head_axes: ClassVar[Mapping[str, int]] = {"kernel": 1, "bias": 0}

    @nn.compact
    def __call__(self, embedding: Float[Array, "B D"], train: bool) -> Float[Array, "B H C"]:
        """Logits of every head; the same in training and evaluation."""
        del train
        shape = (embedding.shape[-1], self.num_heads, self.num_classes)
        kernel = self.param("kernel", per_head(nn.initializers.lecun_normal()), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        flat = embedding @ kernel.reshape(shape[0], -1) + bias.reshape(-1)
        return flat.reshape(-1, *shape[1:])
