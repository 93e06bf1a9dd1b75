# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Randomness as a function of (seed, purpose, step, client): nothing random is ever stored.

The same four words always give the same numbers, so a resumed run needs only the step, and two
purposes never share a stream however their numbers are used. A purpose always comes with the same
number of ids: on the host, no id and the one id 0 are the same stream.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Int, UInt32, UInt64


def stream(seed: int | jax.Array, purpose: str, *ids: int | jax.Array) -> jax.Array:
    """A typed JAX key for `purpose`, folded with each of `ids` (step, client, ...) in turn."""
    return fold(jax.random.key(seed), purpose, *ids)


def fold(key: jax.Array, purpose: str, *ids: int | jax.Array) -> jax.Array:
    """Folds the name of a purpose, then each of `ids`, into a typed key."""
    key = jax.random.fold_in(key, zlib.crc32(purpose.encode()))
    for index in ids:
        key = jax.random.fold_in(key, index)
    return key


def each(key: jax.Array, positions: jax.Array) -> jax.Array:
    """One key per position (a sample's place in a whole batch, a client's index), [n].

    The same position gets the same key however devices share the positions.

    >>> keys = each(jax.random.key(0), jax.numpy.arange(4))
    >>> bool((keys[2:] == each(jax.random.key(0), jax.numpy.arange(2, 4))).all())
    True
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """The host's counterpart of `stream`: a NumPy generator for (seed, purpose, ids).

    >>> int(generator(0, "partition").integers(100)) == int(generator(0, "partition").integers(100))
    True
    """
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, zlib.crc32(purpose.encode()), *ids]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def generators(
    seed: int, purpose: str, *ids: Int[np.ndarray, " n"]
) -> Iterator[np.random.Generator]:
    """`generator(seed, purpose, *(id[i] for id in ids))` for every i, an eighth of the time each.

    One generator is set anew n times, so each is to be used before the next is asked for.
    """
    philox = np.random.Philox(0)
    made, state = np.random.Generator(philox), philox.state
    state["buffer_pos"], state["has_uint32"] = 4, 0  # nothing drawn yet
    state["state"]["counter"][:] = 0
    for key in _philox_keys(seed, purpose, *ids):
        state["state"]["key"] = key
        philox.state = state
        yield made


def _philox_keys(seed: int, purpose: str, *ids: Int[np.ndarray, " n"]) -> UInt64[np.ndarray, "n 2"]:
    """The keys that `generator` gives Philox, many at once: `SeedSequence`, whose algorithm is
    fixed by NumPy's stream policy, over arrays.

    Source: https://numpy.org/doc/stable/reference/random/bit_generators/generated/numpy.random.SeedSequence.html,
    after M. O'Neill, https://www.pcg-random.org/posts/developing-a-seed_seq-alternative.html.
    """
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, zlib.crc32(purpose.encode()), *ids]
    entropy = np.broadcast_arrays(*(np.asarray(word, np.uint32) for word in words))
    none = np.zeros_like(entropy[0])
    constant = _Multiplier(0x43B0D7E5, 0x931E8875)
    pool = [constant.hash(entropy[i] if i < len(entropy) else none) for i in range(4)]
    for source in range(4):
        for target in (place for place in range(4) if place != source):
            pool[target] = _mixed(pool[target], constant.hash(pool[source]))
    for word in entropy[4:]:
        for target in range(4):
            pool[target] = _mixed(pool[target], constant.hash(word))
    constant = _Multiplier(0x8B51F9DD, 0x58F38DED)
    halves = [constant.hash(word).astype(np.uint64) for word in pool]
    low, high = np.stack(halves[::2], axis=-1), np.stack(halves[1::2], axis=-1)
    return low | high << np.uint64(32)


class _Multiplier:
    """The running constant of `SeedSequence`'s hash."""

    def __init__(self, start: int, factor: int) -> None:
        self._value, self._factor = start, factor

    def hash(self, words: UInt32[np.ndarray, "*n"]) -> UInt32[np.ndarray, "*n"]:
        """Hashes words and moves the constant on."""
        words = np.bitwise_xor(words, np.uint32(self._value))
        self._value = self._value * self._factor & 0xFFFFFFFF
        words = np.multiply(words, np.uint32(self._value))
        return np.bitwise_xor(words, np.right_shift(words, np.uint32(16)))


def _mixed(x: UInt32[np.ndarray, "*n"], y: UInt32[np.ndarray, "*n"]) -> UInt32[np.ndarray, "*n"]:
    out: np.ndarray = np.uint32(0xCA01F9DD) * x - np.uint32(0x4973F715) * y
    return np.bitwise_xor(out, np.right_shift(out, np.uint32(16)))
