# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What predictions on public images tell, and when something is said of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mhd_jax import distill, health

K, B, H, C = 4, 30, 3, 5


def log_probs(seed: int = 0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (K, B, H, C))
    return np.asarray(jax.nn.log_softmax(logits), np.float64)


def test_entropy_is_that_of_the_mean_prediction():
    mean = np.exp(log_probs()).mean(axis=1)
    expected = -(mean * np.log(mean)).sum(axis=-1)
    found = health.prediction_entropy(jnp.asarray(log_probs(), jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_largest_share_of_a_class_and_agreement_by_counting():
    said = log_probs().argmax(axis=-1)
    share = np.array([[np.bincount(said[k, :, h]).max() / B for h in range(H)] for k in range(K)])
    np.testing.assert_allclose(health.top_class_share(jnp.asarray(log_probs())), share, rtol=1e-6)
    agree = [
        np.mean([said[i, b, h] == said[j, b, h] for b in range(B) for i in range(K)
                 for j in range(K) if i != j])
        for h in range(H)
    ]  # fmt: skip
    np.testing.assert_allclose(health.agreement(jnp.asarray(log_probs())), agree, rtol=1e-5)


def test_a_place_that_nobody_takes_agrees_with_nobody():
    said = jnp.asarray(log_probs())
    twice = jnp.concatenate([said, said[:1]])  # what stands in an empty place is a copy
    found = health.agreement(twice, jnp.arange(K + 1) < K)
    np.testing.assert_allclose(found, health.agreement(said), rtol=1e-6)
    np.testing.assert_array_equal(health.agreement(said, jnp.arange(K) < 1), 1)


def test_a_client_does_not_agree_with_an_earlier_state_of_itself():
    """Two versions of each of two clients."""
    said = log_probs().argmax(axis=-1)
    agree = [
        np.mean([said[i, b, h] == said[j, b, h] for b in range(B) for i in (0, 1) for j in (2, 3)])
        for h in range(H)
    ]
    found = health.agreement(jnp.asarray(log_probs()), versions=2)
    np.testing.assert_allclose(found, agree, rtol=1e-5)
    one = health.agreement(jnp.asarray(log_probs()), jnp.arange(K) < 2, versions=2)
    np.testing.assert_array_equal(one, 1)


def test_shares_of_the_lessons_add_up_to_one_for_whoever_learns():
    published = jnp.asarray(log_probs(), jnp.float32)
    allowed = np.array([[False, True, True, False], [True, False, False, False], [False] * 4])
    candidates = distill.chain_candidates(published, jnp.asarray(allowed))
    keys = jax.random.split(jax.random.key(0), (3, B))
    ids = jnp.arange(3)
    for rule in ("most_confident", "mean"):
        choice = distill.choose(candidates, keys, rule=rule, confidence="max_prob")
        shares = health.taught_shares(choice, candidates, K, ids)
        np.testing.assert_allclose(shares.sum(axis=1), [1, 1, 0], atol=1e-6)
        assert not np.asarray(shares)[~allowed].any()
    np.testing.assert_allclose(shares[0], [0, 0.5, 0.5, 0], atol=1e-6)


def test_ones_own_present_state_counts_as_oneself():
    """Two students in front of two versions of each of four clients."""
    published = jnp.zeros((2 + 4 * 2, B, H, C))
    candidates = distill.chain_candidates(published, jnp.ones((2, 10), bool))
    choice = jnp.zeros((2, B, H - 1), jnp.int32).at[1].set(2 + 3 * 2 + 1)  # itself; client 3
    shares = health.taught_shares(choice, candidates, 4, jnp.array([1, 2]), in_front=2)
    np.testing.assert_allclose(shares, [[0, 1, 0, 0], [0, 0, 0, 1]])  # column 0 is student 1


def test_accuracy_of_teachers_leaves_out_what_nobody_teaches():
    scores = jax.nn.one_hot(jnp.array([[[0], [1], [1], [2]]]), C)
    taught = jnp.array([[[True], [True], [False], [True]]])
    found = health.teacher_accuracy(distill.Target(scores, taught), jnp.array([0, 1, 0, 0]))
    np.testing.assert_allclose(found, [[2 / 3]])


def test_who_is_ignored_is_counted_by_client_whatever_its_versions():
    """Two versions of each of 3 clients; student 0 in front of them hears one of client 1's."""
    allowed = jnp.array([[True, False, False, True, True, True, True]])
    heard = allowed.at[0, jnp.array([3, 5, 6])].set(False)
    peers = distill.Candidates(jnp.zeros((7, 1, 1, 2)), allowed, 1)
    found = health.ignored(peers, peers.replace(allowed=heard), 3, jnp.array([0]), in_front=1)
    np.testing.assert_array_equal(found, [[np.nan, 0, 1]])  # nobody reads itself
    alone = peers.replace(allowed=jnp.zeros((1, 7), bool))
    assert np.isnan(health.ignored(alone, alone, 3, jnp.array([0]), in_front=1)).all()


# --- What is said ---------------------------------------------------------------------------------

EVERYONE = ~np.eye(K, dtype=bool)
FAIR = np.full((K, K), 1 / K)


def look(watch, step=10, top=0.3, shares=FAIR, reads=EVERYONE, ignored_by=(0.0,) * K):
    return watch.look(
        step, top_share=np.full((K, H), top), shares=shares, reads=reads,
        ignored_by=np.array(ignored_by),
    )  # fmt: skip


def test_nothing_is_said_of_a_healthy_run():
    watch = health.Watch(patience=5)
    private = np.full(K, 0.9)
    assert look(watch) == [] == watch.compare(10, private, private + 0.02)


def test_a_collapse_is_told_once_and_not_before_the_patience_is_over():
    watch = health.Watch(patience=5)
    assert look(watch, step=4, top=1.0) == []
    (line,) = look(watch, step=5, top=1.0)
    assert line.startswith("step 5: auxiliary head 1 of clients 0, 1, 2 and 3 gives one class")
    assert "distill.fade_in" in line and look(watch, step=6, top=1.0) == []


def test_heads_that_nobody_teaches_are_not_judged():
    assert look(health.Watch(), top=1.0, reads=np.zeros((K, K), bool)) == []


def test_a_client_that_teaches_everything_is_named_unless_the_graph_makes_it():
    shares = np.zeros((K, K))
    shares[:, 2] = 1
    (line,) = look(health.Watch(), shares=shares)
    assert "client 2 gives 100% of all lessons" in line and "distill.rule" in line
    star = np.zeros((K, K), bool)
    star[:, 2] = True
    assert look(health.Watch(), shares=shares, reads=star) == []


def test_clients_that_nobody_hears_are_told_once_by_number():
    watch = health.Watch()
    (line,) = look(watch, ignored_by=[0.3, 0.75, 0.0, 1.0])
    assert "do not hear clients 1 and 3" in line and "distill.screening" in line
    assert look(watch, ignored_by=[0.3, 0.75, 0.0, 1.0]) == []


def test_naming_one_class_is_no_collapse_where_nearly_all_samples_are_of_it():
    assert look(health.Watch(largest=0.9), top=0.97) == []
    assert look(health.Watch(largest=0.9), top=0.98) != []
    assert look(health.Watch(largest=0.5), top=0.96) != []


def test_clients_that_do_not_hear_each_other_at_all_are_no_liars():
    (line,) = look(health.Watch(), ignored_by=[0.6, 0.75, 0.9, 1.0])
    assert "most clients do not hear each other" in line and "It is a lie" not in line


def test_last_heads_below_their_baseline_are_told():
    watch, honest = health.Watch(), np.array([True, True, True, False])
    shared, baseline = np.array([0.4, 0.5, 0.45, 0.0]), np.full(K, 0.455)
    assert watch.at_end(9, shared, baseline, honest) == []
    (line,) = watch.at_end(9, shared, baseline + 0.055, honest)
    assert "0.06 below" in line and "data.public_fraction" in line


def test_main_heads_behind_their_baseline_are_told_with_the_worst_client():
    watch = health.Watch()
    private, baseline = np.array([0.9, 0.7, 0.8, 0.8]), np.full(K, 0.9)
    (line,) = watch.compare(7, private, baseline)
    assert "0.10 behind" in line and "client 1 most, 0.70 against 0.90" in line
    assert watch.compare(8, private, baseline) == []
    honest = np.array([False, True, True, True])
    private[0] = 0.0
    (line,) = health.Watch().compare(7, private, baseline, honest)
    assert "0.13 behind" in line and "client 1 most, 0.70 against 0.90" in line


def test_whose_messages_are_dropped_is_told_once_by_number():
    watch = health.Watch(patience=100)
    assert watch.unreadable(1, np.zeros(0)) == [] == watch.unreadable(1, np.zeros(K))
    (line,) = watch.unreadable(2, np.array([0, 0, 0.5, 0]))
    assert line.startswith("step 2: messages of client 2 are not finite") and "50%" in line
    assert watch.unreadable(3, np.array([0, 0, 1.0, 0])) == []
