# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Rules that liars cannot steer, against loops in NumPy, and what no rule may ever read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax import distill
from mhd_jax.distill import RULES, Candidates, reputations

K, N, B, M, C = 2, 6, 8, 2, 4
ALLOWED = np.array([[False, True, True, True, True, True], [True, False, True, True, False, True]])


def log_probs(seed: int, *shape: int) -> np.ndarray:
    logits = 3 * np.random.default_rng(seed).normal(size=shape)
    return np.asarray(jax.nn.log_softmax(logits), np.float32)


SCORES, OWN = log_probs(0, N, B, M, C), log_probs(1, K, B, M, C)
KEYS = jax.random.split(jax.random.key(0), (K, B))


def candidates(scores: np.ndarray = SCORES, **fields: Any) -> Candidates:
    made = Candidates(jnp.asarray(scores), jnp.asarray(ALLOWED), M, own=jnp.asarray(OWN))
    return made.replace(label_shares=jnp.full((N, C), 1 / C), **fields)


def choose(rule: str, made: Candidates, confidence: str = "max_prob") -> distill.Target:
    """Targets: with the choice of a rule, everything that students see."""

    def targets(made: Candidates) -> distill.Target:
        choice = distill.choose(made, KEYS, rule=rule, confidence=confidence)
        return distill.targets(made, choice, jnp.exp)

    return jax.tree.map(np.asarray, jax.jit(targets)(made))


# --- Against loops --------------------------------------------------------------------------------


def surest(score: np.ndarray) -> np.ndarray:
    """What the candidate of the largest score [k, N, B, m] says; -inf where it may not."""
    score = np.where(ALLOWED[:, :, None, None], score, -np.inf)
    best = score.argmax(axis=1)
    out = np.exp(SCORES)[best, np.arange(B)[None, :, None], np.arange(M)]
    return np.where((score.max(axis=1) > -np.inf)[..., None], out, np.nan)


def same(found: distill.Target, expected: np.ndarray) -> None:
    taught = ~np.isnan(expected).any(axis=-1)
    np.testing.assert_array_equal(found.taught, taught)
    np.testing.assert_allclose(found.scores[taught], expected[taught], rtol=1e-4, atol=1e-6)


def test_capped_by_counting() -> None:
    confidence = np.exp(SCORES).max(axis=-1)
    score = np.full((K, N, B, M), -np.inf)
    for i in range(K):
        most = 2 * B / ALLOWED[i].sum()
        for j in range(N):
            for r in range(M):
                for place, b in enumerate(np.argsort(-confidence[j, :, r])):
                    if place < most:
                        score[i, j, b, r] = confidence[j, b, r]
    same(choose("capped", candidates()), surest(score))


def test_nobody_teaches_more_than_the_cap_however_sure_it_is() -> None:
    scores = SCORES.copy()
    scores[3] = np.log([0.97, 0.01, 0.01, 0.01])
    index = distill.choose(candidates(scores), KEYS, rule="capped", confidence="max_prob")
    taught = (np.asarray(index) == 3).sum(axis=1)
    assert (taught[0] <= 4).all() and (taught[1] <= 4).all() and (taught == 4).any()


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_median_and_trimmed_mean_by_sorting(rule: str) -> None:
    expected = np.zeros((K, B, M, C))
    for i in range(K):
        probs = np.exp(SCORES[ALLOWED[i]])
        if rule == "median":
            mixed = np.median(probs, axis=0)
        else:
            cut = int(0.25 * len(probs))
            mixed = np.sort(probs, axis=0)[cut : len(probs) - cut].mean(axis=0)
        expected[i] = mixed / mixed.sum(axis=-1, keepdims=True)
    same(choose(rule, candidates()), expected)


def test_agreement_by_hand() -> None:
    overlap = np.sqrt(np.exp(OWN)[:, None] * np.exp(SCORES)[None]).sum(axis=-1)
    same(choose("agreement", candidates()), surest(np.exp(SCORES).max(axis=-1) * overlap))
    entropy = (np.exp(SCORES) * SCORES).sum(axis=-1)  # below 0, so that it is moved up first
    lowest = np.where(ALLOWED[:, :, None, None], entropy, 0.0).min(axis=1, keepdims=True)
    same(choose("agreement", candidates(), "neg_entropy"), surest((entropy - lowest) * overlap))


def reputation() -> np.ndarray:
    found = np.ones((K, N))
    for i in range(K):
        own = np.exp(OWN[i, :, 0])
        checked = np.argsort(-own.max(axis=-1))[: B // 4]
        for j in range(N):
            losses = [
                (C * np.exp(SCORES[j, b, h]).max() - 1) / (C - 1)
                * (1 - own[b, SCORES[j, b, h].argmax()])
                for b in checked
                for h in range(M)
            ]  # fmt: skip
            found[i, j] -= np.mean(losses)
    return found


def test_reputation_by_counting() -> None:
    found = jax.jit(reputations)(candidates())
    np.testing.assert_allclose(found, reputation(), rtol=1e-4)
    score = reputation()[:, :, None, None] * np.exp(SCORES).max(axis=-1)
    same(choose("reputation", candidates()), surest(score))
    entropy = (np.exp(SCORES) * SCORES).sum(axis=-1)  # below 0, so that it is moved up first
    lowest = np.where(ALLOWED[:, :, None, None], entropy, 0.0).min(axis=1, keepdims=True)
    score = reputation()[:, :, None, None] * (entropy - lowest)
    same(choose("reputation", candidates(), "neg_entropy"), surest(score))


def test_a_certain_liar_loses_its_name_and_a_modest_client_keeps_it() -> None:
    scores = SCORES.copy()
    wrong = (OWN[0, :, 0].argmax(axis=-1) + 1) % C
    scores[4] = np.log(np.where(np.eye(C)[wrong] > 0, 0.97, 0.01))[:, None]
    scores[5] = np.log(1 / C)
    found = reputations(candidates(scores))[0]
    assert found[5] > 0.99 and found[4] < 0.35 and found[4] == found.min()


# --- What cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [name for name in RULES if not name.endswith("_example") and name != "random"]
)
@pytest.mark.parametrize("form", ["mask", "lists", "all but"])
def test_no_rule_reads_a_message_that_cannot_be_read(rule: str, form: str) -> None:
    """Whatever stands there, the result is that of a system without this client."""
    bad = 3
    scores = SCORES.copy()
    scores[bad] = np.log([0.97, 0.01, 0.01, 0.01])  # tempting
    readable = np.arange(N) != bad
    plain = ALLOWED & readable
    expected = choose(rule, candidates().replace(allowed=jnp.asarray(plain)))
    fields: dict[str, Any] = {"readable": jnp.asarray(readable), "allowed": jnp.asarray(plain)}
    if form == "lists":
        rows = np.array([[1, 2, 3, 4, 5], [0, 2, 3, 5, -1]])
        fields |= {"rows": jnp.asarray(rows), "allowed": jnp.asarray((rows >= 0) & (rows != bad))}
    if form == "all but":
        fields["unread"] = jnp.asarray([[0, -1], [1, 4]])
    found = choose(rule, candidates(scores, **fields))
    np.testing.assert_array_equal(found.taught, expected.taught)
    taught = expected.taught
    np.testing.assert_allclose(found.scores[taught], expected.scores[taught], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", ["capped", "agreement", "reputation"])
def test_a_candidate_of_no_known_confidence_does_not_teach(rule: str) -> None:
    made = candidates()
    sure = jnp.exp(made.by_rank(made.published)).max(axis=-1).at[0].set(jnp.nan)
    chosen = np.asarray(distill.RULES.get(rule)(made, sure, KEYS))
    assert (chosen != 0).all() and (chosen >= 0).any()


def test_messages_that_are_not_finite_or_no_probabilities_are_found() -> None:
    scores = np.stack([SCORES[0]] * 5)
    scores[1, 2, 0, 1], scores[2, 0, 1, 0], scores[3] = np.nan, np.inf, scores[3] + 1
    found = distill.readable(jnp.asarray(scores))
    np.testing.assert_array_equal(found, [True, False, False, False, True])
    as_logits = distill.readable(jnp.asarray(scores), logits=True)
    np.testing.assert_array_equal(as_logits, [True, False, False, True, True])
