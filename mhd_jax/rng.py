# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Randomness as a function of (seed, purpose, step, client): nothing random is ever stored.

The same four words always give the same numbers, so a resumed run needs only the step, and two
purposes never share a stream however their numbers are used. A purpose always comes with the same
number of ids: on the host, no id and the one id 0 are the same stream.
"""

from __future__ import annotations

import zlib

import jax
import numpy as np


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
