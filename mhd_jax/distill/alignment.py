# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Alignment: what a teacher says of an image, against what it says of every image."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

MARGINAL_FLOOR = 1e-6


def mean_prediction(
    scores: Float[Array, "K B H C"], *, logits: bool = False
) -> Float[Array, "K H C"]:
    """p_bar, every published head's mean prediction over the public batch.

    Args:
      scores: published log-probabilities, or logits.
      logits: which of the two.
    """
    log_probs = jax.nn.log_softmax(scores) if logits else scores
    return jnp.exp(log_probs).mean(axis=1)


def align(
    scores: Float[Array, "K B H C"],
    marginal: Float[Array, "K H C"],
    strength: float,
    *,
    frequencies: Sequence[float] = (),
    logits: bool = False,
) -> Float[Array, "K B H C"]:
    """Divides every published prediction by its own head's mean prediction.

    p~(c|x) is proportional to p(c|x) (pi(c) / max(p_bar(c), 1e-6))^tau. A client that knows two
    classes says one of them of every image; divided by how often it says so, it is sure only where
    an image stands out. tau = 0 is the paper's method. Alignment is this project's addition;
    the idea is the distribution alignment of ReMixMatch (D. Berthelot et al., 2020,
    https://arxiv.org/abs/1911.09785), which aligns one model's guesses with a known marginal.

    Args:
      scores: published log-probabilities, or logits.
      marginal: p_bar, from `mean_prediction` or a moving average of it.
      strength: tau.
      frequencies: pi, the classes' frequencies in the public set, of any scale; () takes them as
        equal.
      logits: scores are logits, which stay unnormalised; their mean over classes stays as it is.

    >>> says_zero = jnp.log(jnp.array([[[0.9, 0.1]], [[0.6, 0.4]]]))[None]  # K = H = 1, B = 2
    >>> aligned = align(says_zero, mean_prediction(says_zero), 1.0)
    >>> [[round(float(p), 2) for p in row] for row in jnp.exp(aligned[0, :, 0])]
    [[0.75, 0.25], [0.33, 0.67]]
    """
    lift = jnp.log(jnp.maximum(marginal, MARGINAL_FLOOR))
    if len(frequencies):
        shares = np.asarray(frequencies, np.float64) / np.sum(frequencies, dtype=np.float64)
        lift = lift - jnp.log(jnp.maximum(jnp.asarray(shares, jnp.float32), MARGINAL_FLOOR))
    if not logits:
        return jax.nn.log_softmax(scores - strength * lift[:, None])
    # Centred: what all classes have in common would add up from round to round, as nothing else
    # holds the mean of the logits where it is.
    lift = lift - lift.mean(axis=-1, keepdims=True)
    return scores - strength * lift[:, None]
