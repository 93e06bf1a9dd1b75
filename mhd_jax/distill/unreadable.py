# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Published messages that cannot be read, and what stands in their place."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

NORMALISED = 0.1
"""How far log sum_c p_c of a published prediction may lie from 0: encodings round."""


def readable(scores: Float[Array, "N B h C"], *, logits: bool = False) -> Bool[Array, " N"]:
    """Whose predictions can be read: finite and, where they are log-probabilities, of sum 1.

    A message with one value that is neither is dropped as a whole, in this step: whoever sends it
    teaches nobody and enters no mean, so that NaN stays with the client that has it.

    Args:
      scores: published log-probabilities, or logits.
      logits: which of the two.
    """
    finite = jnp.isfinite(scores).all(axis=(1, 2, 3))
    if logits:
        return finite
    total = jnp.log(jnp.exp(scores).sum(axis=-1))  # what overflows is not normalised either
    return finite & (jnp.abs(total) < NORMALISED).all(axis=(1, 2))


def blank(values: Float[Array, "N ..."], readable: Bool[Array, " N"], fill: float) -> Array:
    """Values of readable publishers; `fill` in place of what the others sent."""
    return jnp.where(readable.reshape(-1, *[1] * (values.ndim - 1)), values, fill)
