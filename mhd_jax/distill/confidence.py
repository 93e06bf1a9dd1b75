# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Confidence: how sure a prediction is."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.registry import Registry


class Confidence(Protocol):
    """A confidence measure: one number per prediction, larger is surer."""

    def __call__(self, log_probs: Float[Array, "*shape C"]) -> Float[Array, "*shape"]:
        """Log-probabilities [..., C] to confidences [...]."""
        ...


CONFIDENCES: Registry[Confidence] = Registry("distill.confidence")


@CONFIDENCES.register("max_prob")
def max_prob(log_probs: Float[Array, "*shape C"]) -> Float[Array, "*shape"]:
    """Probability of the most likely class, max_c p_c.

    >>> import jax.numpy as jnp
    >>> float(max_prob(jnp.log(jnp.array([0.5, 0.25, 0.25]))))
    0.5
    """
    # Of the probabilities that targets are gathered from: a gather does not vectorise its own.
    return jnp.max(jnp.exp(log_probs), axis=-1)


@CONFIDENCES.register("neg_entropy")
def neg_entropy(log_probs: Float[Array, "*shape C"]) -> Float[Array, "*shape"]:
    """Negative Shannon entropy in nats, sum_c p_c log p_c."""
    return -jnp.sum(jax.scipy.special.entr(jnp.exp(log_probs)), axis=-1)


@CONFIDENCES.register("margin")
def margin(log_probs: Float[Array, "*shape C"]) -> Float[Array, "*shape"]:
    """Largest minus second largest probability (the largest itself when C = 1)."""
    largest = jnp.exp(jax.lax.top_k(log_probs, min(2, log_probs.shape[-1]))[0])
    return largest[..., 0] - (largest[..., 1] if largest.shape[-1] > 1 else 0.0)


ENERGY = "energy"
"""The confidence that needs more than log-probabilities: see `standardized_energy`."""


def standardized_energy(
    logits: Float[Array, "*K B H C"], mean: BatchMean | None = None
) -> Float[Array, "*K B H"]:
    """How far a sample's log-sum-exp lies above its head's average, in standard deviations.

    e = log sum_c exp(logit_c), the negative energy; z = (e - mean_B e) / std_B e for every client
    and head. Log-probabilities have lost e, so a client publishes z beside them: one number more
    per sample and head. Raw energies of different clients do not compare, z does. Source of the
    score: W. Liu et al., 2020, https://arxiv.org/abs/2010.03759; standardising it is ours.

    Args:
      logits: of every head.
      mean: mean over the whole public batch (axis -2), see `BatchMean`.
    """
    mean = mean or batch_mean
    energy = jax.nn.logsumexp(logits, axis=-1)
    centred = energy - mean(energy)
    return centred * jax.lax.rsqrt(mean(centred**2) + 1e-12)


class BatchMean(Protocol):
    """Mean over the samples of a public batch, which several devices may share."""

    def __call__(self, values: Float[Array, "*K B H"]) -> Float[Array, "*K 1 H"]:
        """The mean over the axis before the last, which is kept with size 1."""
        ...


def batch_mean(values: Float[Array, "*K B H"]) -> Float[Array, "*K 1 H"]:
    """The mean over a batch that is all here."""
    return values.mean(axis=-2, keepdims=True)


def confidence_of(name: str, log_probs: Float[Array, "K B H C"]) -> Float[Array, "K B H"]:
    """The named confidence of every prediction; `ConfigError` for another shape or type."""
    confidence = CONFIDENCES.get(name)
    with of_piece("distill.confidence", name, "a function of log-probabilities [K, B, H, C]"):
        value = jnp.asarray(confidence(log_probs))
    if value.shape != log_probs.shape[:-1]:
        accepted = f"confidences of shape [K, B, H] = {log_probs.shape[:-1]}, not {value.shape}"
        raise ConfigError("distill.confidence", name, accepted)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        accepted = f"confidences of floating point, not {value.dtype}"
        raise ConfigError("distill.confidence", name, accepted)
    return value
