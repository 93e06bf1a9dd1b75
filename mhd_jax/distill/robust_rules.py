# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Teacher rules that one or a few lying clients cannot steer at will.

What cannot be read at all is dropped before any rule sees it (`distill.readable`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mhd_jax.distill.candidates import Candidates
from mhd_jax.distill.rules import RULES, Target, of_probabilities
from mhd_jax.edges import NOBODY
from mhd_jax.errors import ConfigError
from mhd_jax.registry import whole_batch

CAPACITY = 2.0
"""`capped`: how many times its fair share of the samples a candidate may teach."""

TRIM = 0.25
"""`trimmed_mean`: the share that is cut off at either end."""

CHECKED = 0.25
"""`reputation`: the share of the public batch on which a client trusts its own judgement."""


def _surest(score: Float[Array, "k N B m"], candidates: Candidates) -> Int[Array, "k B m"]:
    """The allowed candidate with the largest score, which may differ by student."""
    allowed = candidates.allowed[:, :, None, None] & ~jnp.isnan(score)
    masked = jnp.where(allowed, score, -jnp.inf)
    best = jnp.argmax(masked, axis=1).astype(jnp.int32)
    return jnp.where(masked.max(axis=1) > -jnp.inf, best, NOBODY)


def _from_zero(
    confidence: Float[Array, "N B m"], allowed: Bool[Array, "k N"]
) -> Float[Array, "k N B m"]:
    """Confidences that can be multiplied, moved up if the lowest of a sample is below 0.

    The lowest among those that a student may learn from: whom else its program knows of depends
    on the form in which the graph is written.
    """
    counted = allowed[:, :, None, None] & jnp.isfinite(confidence)
    lowest = jnp.where(counted, confidence, 0.0).min(axis=1, keepdims=True)
    return confidence - jnp.minimum(lowest, 0.0)


@RULES.register("capped")
@whole_batch
def capped_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Int[Array, "k B m"]:
    """The most confident, but of n candidates each may teach 2 / n of the samples at most.

    A candidate may teach on those samples of a batch on which it is surest; where none may, nobody
    teaches. Source: the expert capacity of W. Fedus et al., 2021, Switch Transformers,
    https://arxiv.org/abs/2101.03961, which bounds what one expert gets; by the candidate's own
    order, ours.
    """
    del keys
    place = jnp.argsort(jnp.argsort(-confidence, axis=1), axis=1)  # 0 for its surest sample
    offers = jnp.maximum(candidates.allowed.sum(axis=1), 1)[:, None, None, None]
    within = place[None] * offers < CAPACITY * confidence.shape[1]
    return _surest(jnp.where(within, confidence[None], -jnp.inf), candidates)


def _ordered_mean(
    candidates: Candidates, keep: Callable[[Int[Array, " N"], Array], Bool[Array, " N"]]
) -> Target:
    """Mean, class by class, over those places in the order of candidates that `keep` selects.

    Args:
      candidates: whose probabilities are sorted, class by class.
      keep: places 0..N - 1, of which the first n are taken, and n to the places kept.
    """
    probs = candidates.by_rank(jnp.exp(candidates.published))

    def one(allowed: Bool[Array, " N"]) -> Float[Array, "B m C"]:
        ordered = jnp.sort(jnp.where(allowed[:, None, None, None], probs, jnp.inf), axis=0)
        kept = keep(jnp.arange(len(probs)), allowed.sum())
        chosen = jnp.where(kept[:, None, None, None], ordered, 0.0)
        return chosen.sum(axis=0) / jnp.maximum(kept.sum(), 1)

    mixed = jax.lax.map(one, candidates.allowed)
    total = mixed.sum(axis=-1, keepdims=True)
    uniform = 1 / mixed.shape[-1]
    scores = jnp.where(total > 1e-12, mixed / jnp.maximum(total, 1e-12), uniform)
    taught = candidates.allowed.any(axis=1)[:, None, None]
    return Target(scores, jnp.broadcast_to(taught, scores.shape[:-1]))


def middle(place: Int[Array, " N"], count: Array) -> Bool[Array, " N"]:
    """The place in the middle of `count`, or both."""
    return (place >= (count - 1) // 2) & (place <= count // 2) & (place < count)


def inner(place: Int[Array, " N"], count: Array, trim: float) -> Bool[Array, " N"]:
    """All places but the first and last floor(trim * count)."""
    cut = jnp.floor(trim * count).astype(jnp.int32)
    return (place >= cut) & (place < count - cut)


@RULES.register("median")
@of_probabilities
def median_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Target:
    """The median of the candidates' probabilities, class by class, divided by its sum.

    Source: D. Yin et al., 2018, https://arxiv.org/abs/1803.01498, there of gradients.
    """
    del confidence, keys
    return _ordered_mean(candidates, middle)


@RULES.register("trimmed_mean")
@of_probabilities
def trimmed_mean_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Target:
    """The mean of probabilities without the largest and smallest quarter, divided by its sum.

    Source: D. Yin et al., 2018, https://arxiv.org/abs/1803.01498, there of gradients.
    """
    del confidence, keys
    return _ordered_mean(candidates, lambda place, count: inner(place, count, TRIM))


def _own(candidates: Candidates, rule: str) -> Float[Array, "k B H C"]:
    if candidates.own is None:
        raise ConfigError("distill.rule", rule, "candidates that say what students predict")
    return candidates.own


@RULES.register("agreement")
@of_probabilities
def agreement_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Int[Array, "k B m"]:
    """The candidate that is sure and says what one's own lower head says.

    Confidence times the overlap of both predictions, sum_c sqrt(p_j(c) p_i(c)), p_i the student's
    head one rank below the one that learns. Source of the idea, targets that agree with one's own
    prediction: S. Reed et al., 2014, https://arxiv.org/abs/1412.6596; the form is ours.
    """
    del keys
    own = jnp.exp(0.5 * _own(candidates, "agreement")[:, :, : candidates.ranks])
    theirs = jnp.exp(0.5 * candidates.by_rank(candidates.published))
    overlap = jnp.einsum("kbmc,nbmc->knbm", own, theirs)
    return _surest(_from_zero(confidence, candidates.allowed) * overlap, candidates)


def reputations(candidates: Candidates) -> Float[Array, "k K"]:
    """1 less how much each publisher contradicts a student where the student knows.

    A student knows best the quarter of a batch on which its own main head, which sees private
    labels alone, is surest. There a publisher loses as much as it is surer than a uniform guess
    of another class, in the mean over samples and published heads:

        r_ij = 1 - mean_b mean_h s_jh(b) (1 - p_i(c_jh(b) | b)),  s = (C max p - 1) / (C - 1)

    with c the class that is named. Being unsure costs nothing, so that an honest client with other
    classes keeps its reputation. Source of scoring others by one's own data: FLTrust, X. Cao et
    al., 2020, https://arxiv.org/abs/2012.13995; on predictions, ours.
    """
    own = jnp.exp(_own(candidates, "reputation")[:, :, 0])
    sure = own.max(axis=-1)
    known = max(1, round(CHECKED * sure.shape[1]))
    checked = (sure >= jax.lax.top_k(sure, known)[0][:, -1:]).astype(sure.dtype)
    probs = jnp.exp(candidates.published)
    classes = probs.shape[-1]
    excess = (classes * probs.max(axis=-1) - 1) / max(classes - 1, 1)
    named = jax.nn.one_hot(probs.argmax(axis=-1), classes)
    said = jnp.einsum("nbh,nbhc->nbc", jnp.clip(excess, 0, 1), named) / probs.shape[2]
    contradicted = jnp.einsum("kb,nbc,kbc->kn", checked, said, 1 - own)
    return 1 - contradicted / checked.sum(axis=1, keepdims=True)


@RULES.register("reputation")
@of_probabilities
@whole_batch
def reputation_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Int[Array, "k B m"]:
    """The candidate of largest confidence times reputation, which each student forms for itself."""
    del keys
    known = jnp.tile(reputations(candidates), (1, candidates.blocks))
    score = _from_zero(confidence, candidates.allowed) * known[:, :, None, None]
    return _surest(score, candidates)
