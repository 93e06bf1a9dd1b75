# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The form in which predictions and embeddings travel."""

from __future__ import annotations

import functools
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from mhd_jax import rng
from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.exchange import contract
from mhd_jax.methods import Method
from mhd_jax.registry import Registry, is_ours


class Encoding(Protocol):
    """Turns scores into the arrays that travel and back.

    Scores are log-probabilities, or logits where a method mixes those. Any axes may stand before C;
    the first is that of clients, whose messages travel apart.
    """

    @property
    def embedding_type(self) -> jnp.dtype:
        """The type in which embeddings travel, and parameters where these are averaged."""
        ...

    def encode(self, scores: Float[Array, "*shape C"]) -> tuple[Array, ...]:
        """The arrays that travel, a row of each for every client."""
        ...

    def decode(self, message: tuple[Array, ...], classes: int) -> Float[Array, "*shape C"]:
        """Scores of all C classes again, float32 and finite; probabilities add up to 1."""
        ...


class AllClasses:
    """All C numbers in one floating-point type.

    Two-byte floats travel as the integers of their bits: compilers may widen bfloat16
    collectives, and then more bytes would move than were promised.
    """

    def __init__(self, dtype: jnp.dtype) -> None:
        self.embedding_type = dtype

    def encode(self, scores: Float[Array, "*shape C"]) -> tuple[Array, ...]:
        """Rounds to the type."""
        return (to_wire(scores, self.embedding_type),)

    def decode(self, message: tuple[Array, ...], classes: int) -> Float[Array, "*shape C"]:
        """Widens to float32."""
        del classes
        return from_wire(message[0], self.embedding_type)


class TopK:
    """The k largest log-probabilities and their classes; the rest of the mass is spread evenly."""

    embedding_type = jnp.float32

    def __init__(self, k: int) -> None:
        self.k = k

    def encode(self, scores: Float[Array, "*shape C"]) -> tuple[Array, ...]:
        """Values float32 [..., k] and class indices [..., k] in the smallest unsigned type."""
        values, classes = jax.lax.top_k(scores, self.k)
        small = scores.shape[-1] <= 256
        return values, classes.astype(jnp.uint8 if small else jnp.uint16)

    def decode(self, message: tuple[Array, ...], classes: int) -> Float[Array, "*shape C"]:
        """Log-probabilities of all classes; the left-out ones share what is missing to 1."""
        values, index = message
        chosen = jax.nn.one_hot(index, classes, dtype=values.dtype)
        left = jnp.maximum(1.0 - jnp.exp(values).sum(axis=-1), 1e-12)
        share = jnp.log(left / max(classes - self.k, 1))[..., None]
        known = jnp.einsum("...kc,...k->...c", chosen, values)
        return jnp.where(chosen.sum(axis=-2) > 0, known, share)


class Levels:
    """Log-probabilities in 8 or 4 bits, tails kept, with a scale of its own for every prediction.

    What travels of class c is d = max log p - log p_c, how far it lies below the likeliest class:
    the square root of d as one of 2^bits evenly spaced levels from 0 to the prediction's largest
    root, which travels as a float16. Levels are thus dense near the top and sparse in the tails.
    With s the distance of two levels, the d' that arrives satisfies

        |d' - d| <= s sqrt(d) + s^2

    and the likeliest class stays the likeliest: level 0 is its alone. Decoding normalises. Two
    4-bit numbers share a byte; embeddings travel as bfloat16.
    """

    embedding_type = jnp.bfloat16

    def __init__(self, bits: Literal[4, 8]) -> None:
        self.bits = bits

    def encode(self, scores: Float[Array, "*shape C"]) -> tuple[Array, ...]:
        """Levels uint8, [..., C] or [..., ceil(C / 2)], and the bits of the scales [...]."""
        roots = jnp.sqrt(scores.max(axis=-1, keepdims=True) - scores)
        scale = to_wire(roots.max(axis=-1), jnp.float16)
        levels = jnp.round(roots / jnp.maximum(self._spacing(scale), 1e-12))
        small = jnp.clip(levels, roots > 0, 2**self.bits - 1).astype(jnp.uint8)
        return (_pack(small) if self.bits == 4 else small), scale

    def decode(self, message: tuple[Array, ...], classes: int) -> Float[Array, "*shape C"]:
        """Log-probabilities of all classes; NaN where the scale is not finite."""
        levels, scale = message
        if self.bits == 4:
            levels = _unpack(levels, classes)
        return jax.nn.log_softmax(-jnp.square(levels * self._spacing(scale)))

    def _spacing(self, scale: Array) -> Float[Array, "*shape 1"]:
        """s, the distance of two levels."""
        return from_wire(scale, jnp.float16)[..., None] / (2**self.bits - 1)


def _pack(levels: Array) -> Array:
    """Two 4-bit numbers a byte, the first in the lower half: [..., C] to [..., ceil(C / 2)]."""
    ends = [(0, 0)] * (levels.ndim - 1) + [(0, levels.shape[-1] % 2)]
    even = jnp.pad(levels, ends)
    return even[..., ::2] | even[..., 1::2] << 4


def _unpack(packed: Array, classes: int) -> Array:
    """The inverse of `_pack`."""
    halves = jnp.stack([packed & 15, packed >> 4], axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)[..., :classes]


ENCODINGS: Registry = Registry("exchange.encoding")
ENCODINGS.register("float32")(lambda config: AllClasses(jnp.float32))
ENCODINGS.register("bfloat16")(lambda config: AllClasses(jnp.bfloat16))
ENCODINGS.register("top_k")(lambda config: TopK(config.exchange.top_k))
ENCODINGS.register("int8")(lambda config: Levels(8))
ENCODINGS.register("int4")(lambda config: Levels(4))


def to_wire(x: Array, dtype: jnp.dtype) -> Array:
    """Casts; two-byte floats become the unsigned integers of their bits."""
    x = x.astype(dtype)
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def from_wire(x: Array, dtype: jnp.dtype) -> Array:
    """The inverse of `to_wire`, as float32."""
    if x.dtype == jnp.uint16:
        x = jax.lax.bitcast_convert_type(x, dtype)
    return x.astype(jnp.float32)


def make_encoding(config: ml_collections.ConfigDict, method: Method, num_classes: int) -> Encoding:
    """The encoding of `config.exchange.encoding`.

    Raises:
      ConfigError: unknown name, top_k outside 1..C, an encoding of log-probabilities for a
        method that mixes raw logits (which cannot be rebuilt from them), or one of one's own that
        breaks its contract.
    """
    name = config.exchange.encoding
    factory, chosen = ENCODINGS.get(name), method.distillation
    with of_piece("exchange.encoding", name, "a function from the config to an Encoding"):
        encoding = factory(config)
    if isinstance(encoding, TopK) and not 1 <= encoding.k <= num_classes:
        raise ConfigError("exchange.top_k", encoding.k, f"between 1 and {num_classes} classes")
    if isinstance(encoding, TopK | Levels) and chosen and chosen.mixes_logits:
        accepted = f"float32 or bfloat16: {config.method} mixes logits"
        raise ConfigError("exchange.encoding", name, accepted)
    contract.check_shapes(encoding, name, num_classes)
    if chosen and chosen.nu_pred and not is_ours(factory):
        contract.check_numbers(encoding, name, num_classes, logits=chosen.mixes_logits)
    return encoding


@functools.lru_cache
def projection(width: int, kept: int) -> Float[np.ndarray, "D w"]:
    """A random matrix with orthonormal columns, the same in every run and for every client.

    Multiplied by it, embeddings of D numbers travel as w. Angles survive on average: the cosine of
    two embeddings moves by about (1 - cos^2) / sqrt(w), by nothing where w = D. Source: W. Johnson
    and J. Lindenstrauss, 1984, https://doi.org/10.1090/conm/026/737400.

    Args:
      width: D.
      kept: w, at most D.
    """
    draw = rng.generator(0, "embedding projection", width, kept)
    basis, _ = np.linalg.qr(draw.normal(size=(width, kept)))
    return basis.astype(np.float32)
