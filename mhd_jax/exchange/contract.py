# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Checks an encoding against its contract before a run uses it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mhd_jax.distill import readable
from mhd_jax.errors import ConfigError, of_piece

SETTING = "exchange.encoding"

TRIED = (2, 3, 5)
"""K, B and H of what encodings are tried on."""

CERTAIN = 100.0
"""How far below its likeliest class a prediction that is almost certain puts the others."""


def check_shapes(encoding: Any, name: str, num_classes: int) -> None:
    """Encodes and decodes shapes alone.

    Args:
      encoding: what the factory of that name has made.
      name: in `ENCODINGS`.
      num_classes: C.

    Raises:
      ConfigError: a method that is missing or fails, an encode that returns no tuple or list of
        arrays, a decode whose scores are not what was encoded, or an embedding_type that is not of
        floating point or has more than 32 bits.
    """
    accepted = "an Encoding with encode, decode and embedding_type"
    with of_piece(SETTING, name, accepted):
        parts = ("encode", "decode", "embedding_type")
        missing = [part for part in parts if not hasattr(encoding, part)]
    if missing:
        found = f"not {type(encoding).__name__} without {' and '.join(missing)}"
        raise ConfigError(SETTING, name, f"{accepted}, {found}")
    scores = jax.ShapeDtypeStruct((*TRIED, num_classes), jnp.float32)
    called = f"with float32 scores [K, B, H, C] = {scores.shape}"
    with of_piece(SETTING, name, f"an Encoding with encode(scores), called {called}"):
        message = jax.eval_shape(encoding.encode, scores)
    _check_message(message, name)
    called = f"with the tuple that encode returns and {num_classes}"
    with of_piece(SETTING, name, f"an Encoding with decode(message, num_classes), called {called}"):
        found = jax.eval_shape(lambda sent: encoding.decode(sent, num_classes), tuple(message))
    if not _is_array(found) or found.shape != scores.shape or found.dtype != jnp.float32:
        accepted = f"float32 scores of shape [K, B, H, C] = {scores.shape} after encode and decode"
        raise ConfigError(SETTING, name, f"{accepted}, not {_described(found)}")
    accepted = "an embedding_type of floating point, of 32 bits at most"
    with of_piece(SETTING, name, accepted):
        embedding_type = jnp.dtype(encoding.embedding_type)
    if not jnp.issubdtype(embedding_type, jnp.floating) or embedding_type.itemsize > 4:
        given = "None" if encoding.embedding_type is None else embedding_type
        raise ConfigError(SETTING, name, f"{accepted}, not {given}")


def check_numbers(encoding: Any, name: str, num_classes: int, *, logits: bool) -> None:
    """Encodes and decodes numbers: one client is unsure, the other almost certain of class 0.

    Args:
      encoding: one that passes `check_shapes`.
      name: in `ENCODINGS`.
      num_classes: C.
      logits: whether logits travel, rather than log-probabilities.

    Raises:
      ConfigError: scores that nobody can read when they are decoded, see `distill.readable`.
    """
    scores = _tried_scores(num_classes, logits)
    with of_piece(SETTING, name, "an Encoding that encodes and decodes scores [K, B, H, C]"):
        found = np.asarray(encoding.decode(tuple(encoding.encode(scores)), num_classes))
    if not np.isfinite(found).all():
        what = f"logits up to {CERTAIN:g}" if logits else f"log-probabilities down to -{CERTAIN:g}"
        wrong = found[~np.isfinite(found)][0]
        accepted = f"finite scores after encode and decode, also of {what}, not {wrong:g}"
        raise ConfigError(SETTING, name, accepted)
    if not readable(jnp.asarray(found), logits=logits).all():
        totals = np.exp(found.astype(np.float64)).sum(axis=-1)
        worst = totals.flat[np.abs(np.log(np.maximum(totals, 1e-30))).argmax()]
        accepted = (
            "log-probabilities after encode and decode, whose exponentials add up to 1 over the "
            f"classes, not to {worst:.3g}"
        )
        raise ConfigError(SETTING, name, accepted)


def _tried_scores(num_classes: int, logits: bool) -> Float[Array, "K B H C"]:
    """Random scores of two clients; those of the second lie far apart."""
    drawn = jax.random.normal(jax.random.key(0), (*TRIED, num_classes))
    scores = drawn.at[1, ..., 0].add(CERTAIN)
    return scores if logits else jax.nn.log_softmax(scores)


def _check_message(message: Any, name: str) -> None:
    """Raises `ConfigError` where what encode returns cannot travel."""
    accepted = "an Encoding whose encode returns a tuple of arrays [K, ...], such as (scores,)"
    if not isinstance(message, tuple | list):
        found = "one array" if _is_array(message) else type(message).__name__
        raise ConfigError(SETTING, name, f"{accepted}, not {found}")
    for part in message:
        if not _is_array(part):
            raise ConfigError(SETTING, name, f"{accepted}, not one with {_described(part)}")
        if part.shape[:1] != TRIED[:1]:
            found = f"each with a row for each of the K = {TRIED[0]} clients, not {part.shape}"
            raise ConfigError(SETTING, name, f"{accepted}, {found}")


def _is_array(found: Any) -> bool:
    return hasattr(found, "shape") and hasattr(found, "dtype")


def _described(found: Any) -> str:
    """Type and shape of an array; the type of anything else."""
    return f"{found.dtype} of shape {found.shape}" if _is_array(found) else type(found).__name__
