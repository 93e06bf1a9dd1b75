# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Teacher selection, the two distillation losses and the two accuracies, against the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhd_jax import distill, evaluate
from mhd_jax.errors import ConfigError
from tests import reference

CASES = json.loads((Path(__file__).parent / "cases.json").read_text())
MEASURES = ["max_prob", "neg_entropy", "margin"]
# (K, B, H, C), few of them because each is compiled once per measure: one client, one head, one
# sample of two classes, and a plain one.
SHAPES = [(1, 3, 3, 4), (4, 3, 1, 3), (3, 1, 2, 2), (5, 3, 4, 4)]
WIDTH = 5

select_teachers = jax.jit(distill.select_teachers, static_argnames="confidence")
prediction_loss = jax.jit(distill.prediction_loss)
embedding_loss = jax.jit(distill.embedding_loss)


class System(NamedTuple):
    """What K clients publish, and who reads whom."""

    log_probs: Any  # float32 [K, B, H, C]
    embeddings: Any  # float32 [K, B, D]
    adjacency: Any  # bool [K, K]
    below: Any  # bool [K, K]
    same: Any  # bool [K, K] or None
    measure: str

    def select(self, **changes: Any) -> distill.Teachers:
        """Teachers of all clients as students, by the code under test."""
        system = self._replace(**changes)
        return select_teachers(
            system.log_probs, system.below, system.same, confidence=system.measure
        )


def adjacency_of(rng: np.random.Generator, num_clients: int, density: float) -> np.ndarray:
    adjacency = rng.random((num_clients, num_clients)) < density
    np.fill_diagonal(adjacency, False)
    if num_clients > 1:
        adjacency[rng.integers(num_clients)] = False  # there is always one without peers
    return adjacency


def random_log_probs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    scale = rng.choice([0.1, 1.0, 5.0])
    return reference.log_softmax(scale * rng.normal(size=shape)).astype(np.float32)


def tied_log_probs(rng: np.random.Generator, shape: tuple[int, ...], measure: str) -> np.ndarray:
    """Predictions of only three degrees of confidence, so that nearly every choice is a tie."""
    steepness = rng.choice([0.3, 1.0, 2.5], size=shape[:-1])
    logits = steepness[..., None] * np.arange(shape[-1])
    log_probs = reference.log_softmax(logits).astype(np.float32)
    if measure == "neg_entropy":  # a sum: reordered, it is the same only up to rounding
        return log_probs
    return rng.permuted(log_probs, axis=-1)


@st.composite
def systems(draw: st.DrawFn, tied: bool = False) -> System:
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    measure = draw(st.sampled_from(MEASURES))
    log_probs = tied_log_probs(rng, shape, measure) if tied else random_log_probs(rng, shape)
    adjacency = adjacency_of(rng, shape[0], draw(st.sampled_from([0.3, 0.7, 1.0])))
    below, same = reference.wiring(
        adjacency, include_self=draw(st.booleans()), same_rank=draw(st.booleans())
    )
    embeddings = rng.normal(size=(*shape[:2], WIDTH)).astype(np.float32)
    return System(log_probs, embeddings, adjacency, below, same, measure)


def five_clients(seed: int = 0, same_rank: bool = True) -> System:
    """A dense system for the tests that need no variety: all but client 4 have peers."""
    rng = np.random.default_rng(seed)
    adjacency = ~np.eye(5, dtype=bool)
    adjacency[4] = False
    below, same = reference.wiring(adjacency, True, same_rank)
    log_probs = random_log_probs(rng, (5, 3, 4, 4))
    embeddings = rng.normal(size=(5, 3, WIDTH)).astype(np.float32)
    return System(log_probs, embeddings, adjacency, below, same, "max_prob")


def indices(teachers: distill.Teachers) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(teachers.client), np.asarray(teachers.head)


def assert_same_teachers(actual: distill.Teachers, expected: distill.Teachers) -> None:
    np.testing.assert_array_equal(actual.client, expected.client)
    np.testing.assert_array_equal(actual.head, expected.head)


def allowed_teachers(system: System, student: int, rank: int) -> list[tuple[int, int]]:
    same = None if system.same is None else system.same[student]
    return reference.candidates(system.below[student], same, rank)


# --- The cases of the contract -------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_agrees_with_the_contract_cases(case: dict[str, Any]) -> None:
    log_probs = jax.nn.log_softmax(jnp.array(case["logits"]))
    below, peers = np.array(case["below"], bool), np.array(case["adjacency"], bool)
    same = None if case["same"] is None else np.array(case["same"], bool)
    embeddings = jnp.array(case["embeddings"])
    teachers = select_teachers(log_probs, below, same, confidence=case["confidence"])
    assert teachers.client.dtype == teachers.head.dtype == jnp.int32
    np.testing.assert_array_equal(teachers.client, case["teacher_client"])
    np.testing.assert_array_equal(teachers.head, case["teacher_head"])
    loss = prediction_loss(log_probs, log_probs, teachers)
    np.testing.assert_allclose(loss, case["prediction_loss"], rtol=0, atol=1e-5)
    loss = embedding_loss(embeddings, embeddings, peers)
    np.testing.assert_allclose(loss, case["embedding_loss"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_oracle_agrees_with_the_contract_cases(case: dict[str, Any]) -> None:
    log_probs = reference.log_softmax(np.array(case["logits"]))
    below, peers = np.array(case["below"], bool), np.array(case["adjacency"], bool)
    same = None if case["same"] is None else np.array(case["same"], bool)
    embeddings = np.array(case["embeddings"])
    client, head = reference.select_teachers(log_probs, below, same, case["confidence"])
    np.testing.assert_array_equal(client, case["teacher_client"])
    np.testing.assert_array_equal(head, case["teacher_head"])
    loss = reference.prediction_loss(log_probs, log_probs, client, head)
    np.testing.assert_allclose(loss, case["prediction_loss"], rtol=0, atol=1e-12)
    loss = reference.embedding_loss(embeddings, embeddings, peers)
    np.testing.assert_allclose(loss, case["embedding_loss"], rtol=0, atol=1e-12)
    wirings = [reference.wiring(peers, own, same is not None)[0] for own in (False, True)]
    assert any(np.array_equal(below, wiring) for wiring in wirings)


# --- Random systems against the oracle -----------------------------------------------------------


@settings(max_examples=60)
@given(systems())
def test_teachers_are_the_most_confident_candidates(system: System) -> None:
    client, head = indices(system.select())
    expected = reference.select_teachers(
        system.log_probs, system.below, system.same, system.measure
    )
    for i, b, r in np.ndindex(client.shape):
        allowed = allowed_teachers(system, i, r + 1)
        if not allowed:
            assert client[i, b, r] == head[i, b, r] == reference.NOBODY
            continue
        chosen = (int(client[i, b, r]), int(head[i, b, r]))
        assert chosen in allowed
        best = (expected[0][i, b, r], expected[1][i, b, r])
        if chosen != best:  # only rounding may decide otherwise than double precision does
            surest, chosen_one = (
                reference.confidence(system.log_probs[j, b, h], system.measure)
                for j, h in (best, chosen)
            )
            assert surest - chosen_one < 2e-6


@settings(max_examples=60)
@given(systems(tied=True))
def test_ties_go_to_the_lower_rank_then_to_the_lowest_client(system: System) -> None:
    client, head = indices(system.select())
    expected = reference.select_teachers(
        system.log_probs, system.below, system.same, system.measure
    )
    np.testing.assert_array_equal(client, expected[0])
    np.testing.assert_array_equal(head, expected[1])


@settings(max_examples=60)
@given(systems())
def test_losses_equal_the_oracle(system: System) -> None:
    teachers = system.select()
    loss = prediction_loss(system.log_probs, system.log_probs, teachers)
    expected = reference.prediction_loss(system.log_probs, system.log_probs, *indices(teachers))
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    loss = embedding_loss(system.embeddings, system.embeddings, system.adjacency)
    expected = reference.embedding_loss(system.embeddings, system.embeddings, system.adjacency)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(systems())
def test_a_client_without_peers_has_no_teacher_and_no_loss(system: System) -> None:
    teachers = system.select()
    prediction = prediction_loss(system.log_probs, system.log_probs, teachers)
    embedding = embedding_loss(system.embeddings, system.embeddings, system.adjacency)
    alone = ~system.adjacency.any(axis=1)
    assert alone.any()
    assert (indices(teachers)[0][alone] == reference.NOBODY).all()
    assert (indices(teachers)[1][alone] == reference.NOBODY).all()
    np.testing.assert_array_equal(np.asarray(prediction)[alone], 0.0)
    np.testing.assert_array_equal(np.asarray(embedding)[alone], 0.0)


# --- Students are rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [*MEASURES, "random"])
def test_a_slice_of_students_learns_what_all_of_them_learn(measure: str) -> None:
    system = five_clients()
    keys = jax.random.split(jax.random.key(0), 5)
    rows = slice(1, 3)

    def losses(rows: slice) -> tuple[distill.Teachers, jax.Array, jax.Array]:
        same = None if system.same is None else system.same[rows]
        teachers = select_teachers(
            system.log_probs, system.below[rows], same, confidence=measure, key=keys[rows]
        )
        prediction = prediction_loss(system.log_probs[rows], system.log_probs, teachers)
        embedding = embedding_loss(
            system.embeddings[rows], system.embeddings, system.adjacency[rows]
        )
        return teachers, prediction, embedding

    everyone, some = losses(slice(None)), losses(rows)
    assert_same_teachers(some[0], jax.tree.map(lambda leaf: leaf[rows], everyone[0]))
    np.testing.assert_allclose(some[1], everyone[1][rows], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(some[2], everyone[2][rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("measure", [*MEASURES, "random"])
def test_selection_is_the_same_compiled_or_not(measure: str) -> None:
    system = five_clients()
    arrays = jax.tree.map(jnp.asarray, (system.log_probs, system.below, system.same))
    key = jax.random.key(0)
    plain = distill.select_teachers(*arrays, confidence=measure, key=key)
    assert_same_teachers(select_teachers(*arrays, confidence=measure, key=key), plain)


def test_losses_are_the_same_compiled_or_not() -> None:
    system, teachers = five_clients(), five_clients().select()
    log_probs, embeddings = jnp.asarray(system.log_probs), jnp.asarray(system.embeddings)
    peers = jnp.asarray(system.adjacency)
    np.testing.assert_allclose(
        prediction_loss(log_probs, log_probs, teachers),
        distill.prediction_loss(log_probs, log_probs, teachers),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        embedding_loss(embeddings, embeddings, peers),
        distill.embedding_loss(embeddings, embeddings, peers),
        rtol=1e-6,
    )


def losses_and_gradients(system: System, log_probs: Any, embeddings: Any) -> dict[str, Any]:
    """Both losses per client and their gradients, `log_probs` and `embeddings` being published."""

    def total(student: Any, published: Any) -> tuple[jax.Array, Any]:
        teachers = distill.select_teachers(
            published[0], system.below, system.same, confidence=system.measure
        )
        prediction = distill.prediction_loss(student[0], published[0], teachers)
        embedding = distill.embedding_loss(student[1], published[1], system.adjacency)
        return prediction.sum() + embedding.sum(), (prediction, embedding)

    students = (system.log_probs, system.embeddings)
    call = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, (prediction, embedding)), gradient = call(students, (log_probs, embeddings))
    return {
        "prediction loss": np.asarray(prediction),
        "prediction gradient": np.asarray(gradient[0]),
        "embedding loss": np.asarray(embedding),
        "embedding gradient": np.asarray(gradient[1]),
    }


def cut_off(system: System, silent: int, students: list[int]) -> None:
    """Nobody among `students` reads client `silent` any more."""
    for mask in (system.below, system.same, system.adjacency):
        if mask is not None:
            mask[students, silent] = False


@pytest.mark.parametrize("measure", MEASURES)
def test_nobody_hears_a_client_that_is_not_in_the_row(measure: str) -> None:
    system, other = five_clients()._replace(measure=measure), five_clients(seed=1)
    cut_off(system, silent=0, students=[1, 2])
    log_probs, embeddings = system.log_probs.copy(), system.embeddings.copy()
    log_probs[0], embeddings[0] = other.log_probs[0], other.embeddings[0]
    before = losses_and_gradients(system, system.log_probs, system.embeddings)
    after = losses_and_gradients(system, log_probs, embeddings)
    for name in before:
        np.testing.assert_array_equal(before[name][[1, 2, 4]], after[name][[1, 2, 4]], name)
    assert before["embedding loss"][3] != after["embedding loss"][3]


@pytest.mark.parametrize(
    "name", ["prediction loss", "prediction gradient", "embedding loss", "embedding gradient"]
)
def test_a_diverged_client_is_read_by_nobody(name: str) -> None:
    system, alone = five_clients(), five_clients()
    log_probs, embeddings = system.log_probs.copy(), system.embeddings.copy()
    log_probs[0], embeddings[0] = np.nan, np.nan
    found = losses_and_gradients(system, log_probs, embeddings)[name][1:]
    cut_off(alone, silent=0, students=[1, 2, 3, 4])
    expected = losses_and_gradients(alone, alone.log_probs, alone.embeddings)[name][1:]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# --- Gradients -----------------------------------------------------------------------------------


def test_the_student_is_pulled_towards_its_teacher_and_the_teacher_not_at_all() -> None:
    system = five_clients()
    teachers = system.select()
    client, head = indices(teachers)

    def loss(student: jax.Array, published: jax.Array) -> jax.Array:
        return distill.prediction_loss(student, published, teachers).sum()

    to_student, to_teacher = jax.jit(jax.grad(loss, (0, 1)))(system.log_probs, system.log_probs)
    np.testing.assert_array_equal(to_teacher, 0.0)
    expected = np.zeros_like(system.log_probs)
    for i, b, r in np.ndindex(client.shape):
        if client[i, b, r] >= 0:
            target = np.exp(system.log_probs[client[i, b, r], b, head[i, b, r]])
            expected[i, b, r + 1] = -target / client.shape[1]
    assert expected.any()
    np.testing.assert_allclose(to_student, expected, rtol=1e-5, atol=1e-7)


def test_embeddings_of_peers_get_no_gradient() -> None:
    system = five_clients()

    def loss(student: jax.Array, published: jax.Array) -> jax.Array:
        return distill.embedding_loss(student, published, system.adjacency).sum()

    to_student, to_teacher = jax.jit(jax.grad(loss, (0, 1)))(system.embeddings, system.embeddings)
    np.testing.assert_array_equal(to_teacher, 0.0)
    assert np.isfinite(to_student).all()
    np.testing.assert_array_equal(to_student[4], 0.0)  # the client without peers
    assert np.abs(to_student[:3]).max() > 1e-3


def test_prediction_loss_is_minimal_when_the_student_is_its_teacher() -> None:
    rng = np.random.default_rng(0)
    log_probs = jnp.asarray(random_log_probs(rng, (2, 3, 2, 4)))
    teachers = distill.Teachers(jnp.ones((1, 3, 1), int), jnp.zeros((1, 3, 1), int))

    @jax.jit
    def loss(logits: jax.Array) -> jax.Array:
        student = jnp.zeros((1, 3, 2, 4)).at[0, :, 1].set(jax.nn.log_softmax(logits))
        return distill.prediction_loss(student, log_probs, teachers).sum()

    value, gradient = jax.value_and_grad(loss)(log_probs[1, :, 0])
    entropy = -np.mean([reference.confidence(p, "neg_entropy") for p in log_probs[1, :, 0]])
    assert value == pytest.approx(entropy, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    for _ in range(20):
        assert loss(log_probs[1, :, 0] + rng.normal(size=(3, 4))) > value


def test_embedding_loss_is_zero_and_flat_when_all_embeddings_agree() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(3, WIDTH)).astype(np.float32)
    embeddings = np.stack([one, 2 * one])  # length does not matter, direction does
    peers = np.array([[False, True]])
    call = jax.jit(jax.value_and_grad(lambda *args: distill.embedding_loss(*args).sum()))
    value, gradient = call(embeddings[:1], embeddings, peers)
    assert value == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_embedding_loss_ignores_length(scale: float) -> None:
    system = five_clients()
    loss = embedding_loss(scale * system.embeddings, system.embeddings, system.adjacency)
    expected = embedding_loss(system.embeddings, system.embeddings, system.adjacency)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_embeddings_of_length_zero_are_finite() -> None:
    system = five_clients()
    system.embeddings[0] = 0.0  # as a student
    system.embeddings[1, 0] = 0.0  # as a peer of client 0
    call = jax.jit(jax.value_and_grad(lambda *args: distill.embedding_loss(*args).sum()))
    loss, gradient = call(system.embeddings, system.embeddings, system.adjacency)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    expected = reference.embedding_loss(system.embeddings, system.embeddings, system.adjacency)
    assert loss == pytest.approx(expected.sum(), rel=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_prediction_without_any_doubt_is_a_legal_teacher(measure: str) -> None:
    certain = np.log([[0.0, 1.0, 0.0]], where=[False, True, False], out=np.full((1, 3), -np.inf))
    unsure = np.log([[0.4, 0.3, 0.3]])
    log_probs = np.stack([unsure, unsure, certain])[:, None].repeat(2, axis=2).astype(np.float32)
    below = np.array([[False, True, True]])
    teachers = select_teachers(log_probs, below, confidence=measure)
    assert (int(teachers.client[0, 0, 0]), int(teachers.head[0, 0, 0])) == (2, 0)
    loss = prediction_loss(log_probs[:1], log_probs, teachers)
    assert float(loss[0, 0]) == pytest.approx(-np.log(0.3), rel=1e-6)


# --- The random teacher --------------------------------------------------------------------------


def choices(below: Any, same: Any = None, seed: int = 0, num_samples: int = 4000) -> np.ndarray:
    """Random teachers as 10 * client + head, -1 for nobody: [k, num_samples, 2]."""
    log_probs = np.full((5, num_samples, 3, 2), np.log(0.5), np.float32)
    below, same = np.array(below, bool), None if same is None else np.array(same, bool)
    teachers = select_teachers(
        log_probs, below, same, confidence="random", key=jax.random.key(seed)
    )
    client, head = indices(teachers)
    assert ((client >= 0) == (head >= 0)).all()
    return np.where(client >= 0, 10 * client + head, -1)


def assert_share(hits: np.ndarray, probability: float) -> None:
    """The share of hits is within five standard deviations of `probability`."""
    deviation = np.sqrt(probability * (1 - probability) / hits.size)
    assert abs(hits.mean() - probability) < 5 * deviation


def test_random_teachers_are_permitted_and_equally_frequent() -> None:
    below = [[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]]
    chosen = choices(below)
    for i, row in enumerate(below):
        for rank in (1, 2):
            allowed = [10 * j + rank - 1 for j in range(5) if row[j]] or [-1]
            assert set(chosen[i, :, rank - 1]) == set(allowed)
            for candidate in allowed:
                if len(allowed) > 1:
                    assert_share(chosen[i, :, rank - 1] == candidate, 1 / len(allowed))


def test_random_teachers_of_the_same_rank_are_as_frequent_as_those_below() -> None:
    chosen = choices([[1, 1, 1, 0, 0]], [[0, 1, 0, 0, 1]])
    for rank in (1, 2):
        allowed = [rank - 1, 10 + rank - 1, 20 + rank - 1, 10 + rank, 40 + rank]
        assert set(chosen[0, :, rank - 1]) == set(allowed)
        for candidate in allowed:
            assert_share(chosen[0, :, rank - 1] == candidate, 1 / 5)


def test_random_teachers_are_drawn_anew_for_every_key_student_rank_and_sample() -> None:
    everyone = np.ones((2, 5), bool)
    chosen = choices(everyone) // 10
    np.testing.assert_array_equal(chosen, choices(everyone) // 10)
    assert_share(chosen == choices(everyone, seed=1) // 10, 1 / 5)
    assert_share(chosen[0] == chosen[1], 1 / 5)
    assert_share(chosen[:, :, 0] == chosen[:, :, 1], 1 / 5)
    assert_share(chosen[:, 1:] == chosen[:, :-1], 1 / 5)


def test_bad_confidence_is_refused() -> None:
    system = five_clients()
    with pytest.raises(ValueError, match="max_prob"):
        system.select(measure="max_porb")
    with pytest.raises(ValueError, match="key"):
        system.select(measure="random")


# --- Other teacher rules, losses and methods ----------------------------------------------------


def head_losses(
    student: Any, candidates: distill.Candidates, seed: int = 0, **options: Any
) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), student.shape[:2])
    call = jax.jit(distill.head_losses, static_argnames=tuple(options))
    return np.asarray(call(student, candidates, keys, **options))


@pytest.mark.parametrize("same_rank", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(
    "rule",
    [
        "most_confident", "mean", "entropy_weighted", "entropy_power", "class_thresholds",
        "mean_log_prob", "label_share",
    ],
)  # fmt: skip
def test_teacher_rules_equal_the_oracle(rule: str, temperature: float, same_rank: bool) -> None:
    system = five_clients(same_rank=same_rank)
    rows = slice(2, 5)  # students are a slice, and the last one has no peers
    same = None if system.same is None else system.same[rows]
    shares = np.random.default_rng(1).dirichlet(np.ones(4), 5).astype(np.float32)
    candidates = distill.chain_candidates(jnp.asarray(system.log_probs), system.below[rows], same)
    actual = head_losses(
        system.log_probs[rows, :, 1:],
        candidates.replace(label_shares=jnp.asarray(shares)),
        rule=rule,
        temperature=temperature,
    )
    expected = reference.rule_loss(
        system.log_probs[rows],
        system.log_probs,
        system.below[rows],
        same,
        rule=rule,
        temperature=temperature,
        shares=shares,
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(actual[-1], 0.0)


def test_a_candidate_below_its_thresholds_does_not_teach() -> None:
    """One sample that each head is less sure of than of the others: nobody passes there."""
    sure, unsure = np.log([0.9, 0.05, 0.05]), np.log([0.4, 0.3, 0.3])
    log_probs = np.stack([sure, sure, sure, unsure])[None, :, None].repeat(2, axis=0)
    candidates = distill.Candidates(jnp.asarray(log_probs, jnp.float32), ~np.eye(2, dtype=bool), 1)
    keys = jax.random.split(jax.random.key(0), (2, 4))
    choice = distill.choose(candidates, keys, rule="class_thresholds", confidence="max_prob")
    np.testing.assert_array_equal(choice[0, :, 0], [1, 1, 1, -1])


def test_label_shares_that_nobody_publishes_are_refused() -> None:
    with pytest.raises(ConfigError, match="distill.rule = 'label_share'.*publish_label_shares"):
        distill.check_pieces(
            rule="label_share", confidence="max_prob", loss="cross_entropy", num_classes=4
        )


# --- Alignment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("frequencies", [None, (0.1, 0.2, 0.3, 0.4)])
def test_alignment_equals_the_oracle(strength: float, frequencies: Any) -> None:
    log_probs = random_log_probs(np.random.default_rng(3), (3, 6, 2, 4))
    marginal = distill.mean_prediction(jnp.asarray(log_probs))
    actual = distill.align(
        jnp.asarray(log_probs), marginal, strength, frequencies=frequencies or ()
    )
    expected = reference.align(log_probs, strength, frequencies)
    np.testing.assert_allclose(np.exp(actual), np.exp(expected), atol=1e-5)
    if strength == 0.0:
        np.testing.assert_allclose(actual, log_probs, atol=1e-5)


def test_aligned_logits_are_aligned_log_probabilities_up_to_a_constant() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, 4)), jnp.float32)
    marginal = distill.mean_prediction(logits, logits=True)
    aligned = distill.align(logits, marginal, 1.0, logits=True)
    expected = reference.align(reference.log_softmax(logits), 1.0)
    np.testing.assert_allclose(jax.nn.log_softmax(aligned), expected, atol=1e-5)


def test_alignment_leaves_the_mean_of_logits_where_it_is() -> None:
    """Clients that learn logits from each other would otherwise move them on in every round."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, 4)), jnp.float32)
    marginal = distill.mean_prediction(logits, logits=True)
    aligned = distill.align(logits, marginal, 1.0, frequencies=(1, 2, 3, 4), logits=True)
    np.testing.assert_allclose(aligned.mean(axis=-1), logits.mean(axis=-1), atol=1e-6)


def test_class_frequencies_count_by_their_shares() -> None:
    log_probs = jnp.asarray(random_log_probs(np.random.default_rng(3), (2, 5, 1, 3)))
    marginal = distill.mean_prediction(log_probs)
    expected = distill.align(log_probs, marginal, 1.0, frequencies=(0.0, 0.5, 0.5))
    for scale in (1e-6, 1e3):
        frequencies = (0.0, 0.5 * scale, 0.5 * scale)
        aligned = distill.align(log_probs, marginal, 1.0, frequencies=frequencies)
        np.testing.assert_allclose(np.exp(aligned), np.exp(expected), atol=1e-6)


def test_a_constant_prediction_has_no_lift() -> None:
    """A client that says one class of every image is, aligned, sure of nothing."""
    honest = random_log_probs(np.random.default_rng(0), (2, 8, 2, 4))
    liar = np.broadcast_to(np.log([0.997, 0.001, 0.001, 0.001]), (1, 8, 2, 4))
    log_probs = jnp.asarray(np.concatenate([honest, liar]), jnp.float32)
    aligned = distill.align(log_probs, distill.mean_prediction(log_probs), 1.0)
    np.testing.assert_allclose(np.exp(aligned[2]), 0.25, atol=1e-5)
    everyone = ~np.eye(3, dtype=bool)
    before = distill.select_teachers(log_probs, everyone).client[:2]
    after = distill.select_teachers(aligned, everyone).client[:2]
    assert (before == 2).mean() > 0.5 > (after == 2).mean()


def test_standardized_energy_equals_the_oracle() -> None:
    logits = np.random.default_rng(0).normal(2.0, 3.0, (3, 7, 2, 5))
    actual = distill.standardized_energy(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(actual, reference.standardized_energy(logits), atol=1e-4)


def test_energy_is_the_confidence_where_it_is_published() -> None:
    log_probs = random_log_probs(np.random.default_rng(0), (3, 6, 2, 4))
    energy = np.random.default_rng(1).normal(size=(3, 6, 2)).astype(np.float32)
    allowed = ~np.eye(3, dtype=bool)
    candidates = distill.chain_candidates(jnp.asarray(log_probs), allowed)
    keys = jax.random.split(jax.random.key(0), (3, 6))
    chosen = distill.choose(
        candidates.replace(energy=energy), keys, rule="most_confident", confidence="energy"
    )
    masked = np.where(allowed[:, :, None], energy[None, :, :, 0], -np.inf)
    np.testing.assert_array_equal(chosen[..., 0], masked.argmax(axis=1))
    with pytest.raises(ConfigError, match="distill.confidence = 'energy'"):
        distill.choose(candidates, keys, rule="most_confident", confidence="energy")


@pytest.mark.parametrize("measure", MEASURES)
def test_the_default_rule_is_the_contract(measure: str) -> None:
    system = five_clients()._replace(measure=measure)
    candidates = distill.chain_candidates(system.log_probs, system.below, system.same)
    actual = head_losses(system.log_probs[:, :, 1:], candidates, confidence=measure)
    expected = prediction_loss(system.log_probs, system.log_probs, system.select())
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_the_random_rule_averages_to_the_mean_rule() -> None:
    system = five_clients()
    rng = np.random.default_rng(0)
    log_probs = random_log_probs(rng, (5, 2000, 2, 3))
    log_probs[:] = log_probs[:, :1]  # every sample alike, so that samples are repetitions
    candidates = distill.chain_candidates(jnp.asarray(log_probs), system.below, system.same)
    student = log_probs[:, :, 1:]
    drawn = head_losses(student, candidates, rule="random")
    mean = head_losses(student, candidates, rule="mean")
    np.testing.assert_allclose(drawn, mean, rtol=0.1)
    assert (drawn[:4] != head_losses(student, candidates, seed=1, rule="random")[:4]).all()


def test_codistillation_equals_the_oracle() -> None:
    system = five_clients()
    main = jnp.asarray(system.log_probs[:, :, :1])
    candidates = distill.Candidates(main, jnp.asarray(system.adjacency), ranks=1)
    actual = head_losses(main, candidates, rule="mean")
    expected = reference.codistillation_loss(system.log_probs, system.log_probs, system.adjacency)
    np.testing.assert_allclose(actual[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mae", "mse", "kl"])
def test_fedmd_equals_the_oracle(kind: str) -> None:
    system = five_clients()
    logits = np.random.default_rng(0).normal(size=(5, 3, 1, 4), scale=3).astype(np.float32)
    voices = jnp.asarray(system.adjacency | np.eye(5, dtype=bool))
    candidates = distill.Candidates(jnp.asarray(logits), voices, ranks=1)
    actual = head_losses(logits, candidates, rule="mean", loss=kind)
    consensus = reference.fedmd_consensus(logits[:, :, 0], system.adjacency)
    expected = [reference.fedmd_loss(logits[i, :, 0], consensus[i], kind) for i in range(5)]
    np.testing.assert_allclose(actual[:, 0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(consensus[0], logits[:, :, 0].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("kind", ["cross_entropy", "mae", "mse", "kl"])
def test_no_rule_sends_a_gradient_to_its_teachers(kind: str) -> None:
    system = five_clients()
    keys = jax.random.split(jax.random.key(0), (5, 3))

    @jax.jit
    def gradient(student: jax.Array, published: jax.Array) -> tuple[jax.Array, jax.Array]:
        def total(student: jax.Array, published: jax.Array) -> jax.Array:
            candidates = distill.chain_candidates(published, system.below, system.same)
            losses = distill.head_losses(
                student[:, :, 1:], candidates, keys, rule="entropy_weighted", loss=kind
            )
            return losses.sum()

        return jax.grad(total, (0, 1))(student, published)

    to_student, to_teacher = gradient(system.log_probs, system.log_probs)
    np.testing.assert_array_equal(to_teacher, 0.0)
    assert np.isfinite(to_student).all() and np.asarray(to_student[:4, :, 1:]).any()


# --- The two accuracies --------------------------------------------------------------------------


def test_shared_and_private_accuracy_equal_the_oracle() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), [3, 5, 0, 2])  # nobody tests class 2
    log_probs = random_log_probs(rng, (3, len(labels), 2, 4))
    correct, count = reference.count_correct(log_probs, labels)
    histogram = np.array([[9, 1, 0, 0], [0, 0, 7, 3], [2, 2, 2, 2]])
    shared, private = evaluate.shared_and_private(correct, count, histogram)
    expected = reference.shared_and_private(correct, count, histogram)
    np.testing.assert_allclose(shared, expected[0], atol=1e-6)
    np.testing.assert_allclose(private, expected[1], atol=1e-6)


def test_shared_accuracy_weighs_classes_and_private_accuracy_weighs_samples() -> None:
    correct, count = np.array([[[30, 0, 5]]]), np.array([30, 10, 10])
    shared, private = evaluate.shared_and_private(correct, count, np.array([[8, 1, 1]]))
    assert float(shared[0, 0]) == pytest.approx((1 + 0 + 0.5) / 3)
    assert float(private[0, 0]) == pytest.approx(0.8 + 0.05)


# --- Memory --------------------------------------------------------------------------------------

Loss = Callable[..., jax.Array]


def temporary_over_published(
    measure: str, same_rank: bool, *, predict: Loss | None = None, embed: Loss | None = None
) -> float:
    """Temporary memory of selection, losses and gradients at K = 64, in published bytes."""
    predict, embed = predict or distill.prediction_loss, embed or distill.embedding_loss
    clients, samples, heads, classes, width = 64, 64, 5, 100, 64
    log_probs = jax.ShapeDtypeStruct((clients, samples, heads, classes), jnp.float32)
    embeddings = jax.ShapeDtypeStruct((clients, samples, width), jnp.float32)
    mask = jax.ShapeDtypeStruct((clients, clients), jnp.bool_)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def total(student: Any, published: Any, masks: Any, key: jax.Array) -> jax.Array:
        below, same, peers = masks
        teachers = distill.select_teachers(
            published[0], below, same if same_rank else None, confidence=measure, key=key
        )
        prediction = predict(student[0], published[0], teachers)
        return prediction.sum() + embed(student[1], published[1], peers).sum()

    pair = (log_probs, embeddings)
    step = jax.jit(jax.value_and_grad(total)).lower(pair, pair, (mask,) * 3, key).compile()
    published_bytes = 4 * (log_probs.size + embeddings.size)
    memory = step.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes / published_bytes


@pytest.mark.parametrize(
    ("measure", "same_rank"),
    [("max_prob", False), *((name, True) for name in MEASURES + ["random"])],
)
def test_memory_stays_within_twice_the_published_arrays(measure: str, same_rank: bool) -> None:
    assert temporary_over_published(measure, same_rank) <= 2.0


def test_memory_of_the_default_rule_is_that_of_the_contract() -> None:
    def predict(student: jax.Array, log_probs: jax.Array, teachers: distill.Teachers) -> jax.Array:
        del teachers  # so that the compiler drops their selection
        candidates = distill.chain_candidates(log_probs, jnp.ones((64, 64), bool))
        keys = jax.random.split(jax.random.key(0), student.shape[:2])
        return distill.head_losses(student[:, :, 1:], candidates, keys)

    assert temporary_over_published("max_prob", False, predict=predict) <= 2.0


def all_pairs_prediction_loss(
    student: jax.Array, log_probs: jax.Array, teachers: distill.Teachers
) -> jax.Array:
    """The chain's loss by masking [k, K, B, H, C], just what the memory test must notice."""
    clients = jnp.arange(len(log_probs))[:, None, None]
    is_teacher = (teachers.client[:, None] == clients)[..., None]
    target = jnp.where(is_teacher, jnp.exp(log_probs)[:, :, :-1], 0.0).sum(axis=1)
    return -(jax.lax.stop_gradient(target) * student[:, :, 1:]).sum(axis=-1).mean(axis=1)


def all_pairs_embedding_loss(
    student: jax.Array, embeddings: jax.Array, peers: jax.Array
) -> jax.Array:
    """The same loss by way of all differences [k, K, B, D]."""

    def unit(vectors: jax.Array) -> jax.Array:
        return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)

    difference = unit(student)[:, None] - jax.lax.stop_gradient(unit(embeddings))
    distance = jnp.sum(difference**2, axis=-1).mean(axis=-1)
    return (peers * distance).sum(axis=1) / jnp.maximum(peers.sum(axis=1), 1)


def test_memory_of_all_pairs_would_be_noticed() -> None:
    system = five_clients(same_rank=False)
    teachers = system.select()
    np.testing.assert_allclose(  # the wasteful losses are right, only wasteful
        all_pairs_prediction_loss(system.log_probs, system.log_probs, teachers),
        prediction_loss(system.log_probs, system.log_probs, teachers),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        all_pairs_embedding_loss(system.embeddings, system.embeddings, system.adjacency),
        embedding_loss(system.embeddings, system.embeddings, system.adjacency),
        rtol=1e-5,
    )
    assert temporary_over_published("max_prob", False, predict=all_pairs_prediction_loss) > 2.0
    assert temporary_over_published("max_prob", False, embed=all_pairs_embedding_loss) > 2.0


# --- Rules of one's own ---------------------------------------------------------------------------


def nobody(given: distill.Candidates, certainty: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.full((2, *certainty.shape), jnp.nan)


def the_last_of_many(given: distill.Candidates, certainty: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.full((2, *certainty.shape[1:]), 999)


def everybody_in_full(
    given: distill.Candidates, certainty: jax.Array, keys: jax.Array
) -> jax.Array:
    return jnp.ones((2, *certainty.shape))


def always_the_first(given: distill.Candidates, certainty: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.zeros((2, *certainty.shape[1:]), int)


def everybody_equally(
    given: distill.Candidates, certainty: jax.Array, keys: jax.Array
) -> jax.Array:
    return jnp.full((2, *certainty.shape), 1 / len(certainty))


def teaches_the_lonely(
    given: distill.Candidates, certainty: jax.Array, keys: jax.Array
) -> distill.rules.Target:
    scores = given.published[:2, :, :4]
    return distill.rules.Target(scores, jnp.ones(scores.shape[:3], bool))


def nobody_where_unsure(
    given: distill.Candidates, certainty: jax.Array, keys: jax.Array
) -> jax.Array:
    surest = distill.rules.most_confident_rule(given, certainty, keys)
    return jnp.where(certainty.max(axis=0) > 0.5, surest, -1)


def nobody_at_all(given: distill.Candidates, certainty: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.zeros((2, *certainty.shape))


@pytest.mark.parametrize("rule", [nobody_where_unsure, nobody_at_all])
def test_a_rule_of_ones_own_may_choose_nobody(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill.RULES, "_pieces", {**distill.RULES._pieces, "mine": rule})
    distill.check_pieces(rule="mine", confidence="max_prob", loss="cross_entropy", num_classes=5)


def forgets_to_return(given: distill.Candidates, certainty: jax.Array, keys: jax.Array) -> None:
    return None


def looks(given: distill.Candidates, certainty: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.zeros((2, *certainty.shape[1:]), int) if certainty[0, 0, 0] > 0 else keys


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (nobody, "weights of the candidates that add up to 1, or 0 for none, not nan"),
        (the_last_of_many, "indices of candidates, 0 to 2, or -1 for none, not 999"),
        (always_the_first, "candidates that `candidates.allowed` permits, or -1 for none"),
        (everybody_in_full, "add up to 1, or 0 for none, not 3"),
        (everybody_equally, "weights of 0 where `candidates.allowed` is False"),
        (teaches_the_lonely, "`taught` False for a client without peers"),
        (forgets_to_return, "a rule .candidates, confidence .N, B, m., keys .k, B.. .*None"),
        (looks, "a rule .* .TracerBoolConversionError"),
    ],
)
def test_a_rule_of_ones_own_is_tried_on_numbers(
    rule: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill.RULES, "_pieces", {**distill.RULES._pieces, "mine": rule})
    with pytest.raises(ConfigError, match=rf"^distill\.rule = 'mine': expected .*{said}"):
        distill.check_pieces(
            rule="mine", confidence="max_prob", loss="cross_entropy", num_classes=5
        )


def test_a_confidence_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {**distill.CONFIDENCES._pieces, "mine": lambda log_probs: log_probs[..., 0] * jnp.nan}
    monkeypatch.setattr(distill.CONFIDENCES, "_pieces", mine)
    with pytest.raises(ConfigError, match=r"distill\.confidence = 'mine': expected numbers, not"):
        distill.check_pieces(
            rule="most_confident", confidence="mine", loss="cross_entropy", num_classes=5
        )
