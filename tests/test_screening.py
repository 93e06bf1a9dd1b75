# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Screening: the statistic, whom it lets through, and that lies made without looking stay out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax import distill, methods
from mhd_jax import experiment as experiment_lib
from mhd_jax.config import default_config, update
from mhd_jax.data import batches
from mhd_jax.distill import Candidates
from mhd_jax.distill.screening import WIDEST, overlap
from mhd_jax.errors import ConfigError
from mhd_jax.step.publishing import public_forward
from tests import reference, small

SAME = lambda x: x  # noqa: E731


def say(seed: int, clients: int, heads: int = 2, samples: int = 64, classes: int = 6) -> np.ndarray:
    """Log-probabilities of clients that look at the same images, each in its own way."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(samples, 4))
    looks = rng.normal(size=(clients, heads, 4, classes)) + 0.7 * rng.normal(size=(4, classes))
    return reference.log_softmax(np.einsum("bd,khdc->kbhc", images, looks)).astype(np.float32)


def blind(seed: int, heads: int = 2, samples: int = 64, classes: int = 6) -> np.ndarray:
    """Somebody who is certain of a random class of every image."""
    named = np.random.default_rng(seed).integers(classes, size=samples)
    said = np.where(np.arange(classes) == named[:, None], 0.99, 0.01 / (classes - 1))
    return np.log(said)[:, None].repeat(heads, axis=1).astype(np.float32)


def candidates(published: np.ndarray, own: np.ndarray, **more: Any) -> Candidates:
    allowed = np.ones((len(own), len(published)), bool)
    ranks = published.shape[2]
    own = jnp.asarray(own)
    return Candidates(jnp.asarray(published), jnp.asarray(allowed), ranks, own=own, **more)


def relate(mine: np.ndarray, theirs: np.ndarray) -> float:
    first, second = (distill.views(jnp.asarray(x), SAME) for x in (mine, theirs))
    found = overlap(first.values, second.values, SAME)
    return float(distill.relation(found, first.concentration, second.concentration, len(mine)))


# --- The statistic --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_relation_equals_the_oracle(seed: int) -> None:
    first, second = say(seed, 2)[:, :, 0]
    for mine, theirs in ((first, second), (first, first), (first, blind(seed)[:, 0])):
        assert relate(mine, theirs) == pytest.approx(reference.relation(mine, theirs), abs=2e-3)


def test_chance_alone_is_close_to_standard_normal() -> None:
    """Of shuffled images, and the threshold is exceeded about once in a hundred."""
    mine, theirs = say(0, 2)[:, :, 0]
    rng = np.random.default_rng(1)
    found = [relate(mine, theirs[rng.permutation(len(theirs))]) for _ in range(200)]
    assert abs(np.mean(found)) < 0.25
    assert np.std(found) == pytest.approx(1, abs=0.25)
    assert np.mean(np.array(found) > methods.SCREENING) < 0.03
    assert relate(mine, theirs) > 5


def test_many_classes_are_compared_through_a_projection() -> None:
    classes = 4 * WIDEST
    mine, theirs = say(0, 2, classes=classes)[:, :, 0]
    assert distill.views(jnp.asarray(mine), SAME).values.shape == (64, WIDEST)
    assert relate(mine, theirs) > 5
    assert relate(mine, blind(0, classes=classes)[:, 0]) < methods.SCREENING


# --- Whom a client hears --------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "threshold"), [(0, 0.5), (1, 3.0), (2, 4.0)])
def test_heard_equals_the_oracle(seed: int, threshold: float) -> None:
    published = np.concatenate([say(seed, 4, samples=24), blind(seed, samples=24)[None]])
    published[3, :, 1] = blind(seed + 10, samples=24)[:, 1]  # honest in its main head alone
    found = distill.heard(candidates(published, published[:3]), threshold)
    np.testing.assert_array_equal(found, reference.heard(published[:3], published, threshold))


def test_who_lies_without_looking_is_not_heard_in_any_number() -> None:
    published = np.stack([*say(0, 3), *[blind(0)] * 5])
    found = np.asarray(distill.heard(candidates(published, published[:3]), methods.SCREENING))
    assert found[:, :3].all() and not found[:, 3:].any()


def test_who_is_honest_in_the_main_head_alone_is_not_heard() -> None:
    published = say(0, 3)
    published[1, :, 1] = blind(0)[:, 1]
    found = np.asarray(distill.heard(candidates(published, published), methods.SCREENING))
    np.testing.assert_array_equal(found, np.tile([True, False, True], (3, 1)))


def test_who_always_says_the_same_is_not_heard_and_who_sees_nothing_hears_everybody() -> None:
    published = say(0, 3)
    published[2] = published[2, :1]
    found = np.asarray(distill.heard(candidates(published, published), methods.SCREENING))
    np.testing.assert_array_equal(found, [[1, 1, 0], [1, 1, 0], [1, 1, 1]])


def test_few_images_tell_nothing() -> None:
    published = np.stack([*say(0, 2, samples=8), blind(0, samples=8)])
    assert distill.heard(candidates(published, published), methods.SCREENING).all()


@pytest.mark.parametrize("distinct", [32, 40, 48, 56])
def test_images_that_a_batch_holds_more_than_once_count_once(distinct: int) -> None:
    """Otherwise a lie that is fixed for each image seems related to what anybody says of it."""
    heard: list[np.ndarray] = []
    for seed in range(20):
        walk = batches.batch_indices(seed, "public", 0, distinct, 64, 3, 4)[0]
        said = np.stack([*say(seed, 2, samples=distinct), blind(seed, samples=distinct)])[:, walk]
        often = batches.repeats(distinct, 64)
        heard.append(distill.heard(candidates(said, said[:2]), methods.SCREENING, repeats=often))
    honest, lying = np.mean(heard, axis=0)[:, :2], np.mean(heard, axis=0)[:, 2]
    assert honest.min() > 0.9
    assert lying.max() < 0.1


def test_lists_hear_whom_pairs_hear() -> None:
    published = np.stack([*say(0, 5), blind(0)])
    rows = np.array([[1, 3, 5], [0, 2, -1], [0, 4, 5], [1, 2, -1], [0, 1, 5], [0, 1, -1]])
    listed = candidates(published, published, rows=jnp.asarray(rows))
    listed = listed.replace(allowed=jnp.asarray(rows >= 0))
    along = np.asarray(distill.heard(listed, methods.SCREENING))
    pairs = np.asarray(distill.heard(candidates(published, published), methods.SCREENING))
    for student, peers in enumerate(rows):
        known = peers >= 0
        np.testing.assert_array_equal(along[student, known], pairs[student, peers[known]])
    left = distill.screened(listed, jnp.asarray(along)).allowed
    assert not left[np.asarray(rows) == 5].any() and left[0, 0]


def test_both_ranks_of_a_peer_are_screened() -> None:
    published = np.stack([*say(0, 2, heads=3), blind(0, heads=3)])
    both = candidates(published, published).replace(allowed=jnp.ones((3, 6), bool), ranks=2)
    left = distill.screened(both, distill.heard(both, methods.SCREENING)).allowed
    np.testing.assert_array_equal(left[0], [1, 1, 0, 1, 1, 0])


# --- In a run -------------------------------------------------------------------------------------


def test_on_digits_liars_together_are_heard_by_nobody_and_honest_clients_by_all() -> None:
    """At the first step, when nobody has learned anything: networks that see are related anyway."""
    config = default_config()
    update(config, {"attack.name": "coordinated", "attack.clients": (5, 6, 7),
                    "isolated_baseline": False})  # fmt: skip
    experiment = experiment_lib.build(config)
    parts, fed = experiment.parts, experiment.federations[0]
    images = fed.public.images(fed.public_indices[: config.data.public_batch_size])
    images = jnp.asarray((images - np.float32(fed.mean)) / np.float32(fed.std))
    clients = jax.tree.map(lambda x: x[0], experiment.init_state().clients)[0].snapshot
    honest = public_forward(parts, parts.models[0], clients, images).scores[:, :, :4]
    assert parts.attackers is not None
    told = parts.attackers.on_predictions(honest, 8, images, jax.random.key(0), jnp.int32(0))
    hears = distill.heard(candidates(np.asarray(told), np.asarray(honest)), methods.SCREENING)
    assert not hears[:5, 5:].any()
    assert hears[:5, :5].mean() > 0.95


# --- Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, methods.SCREENING),
        ({"distill__alignment": 0.0}, 0.0),  # the paper's method hears everybody
        ({"distill__alignment": 0.0, "distill__screening": 3.0}, 3.0),
        ({"distill__screening": 0.0}, 0.0),
        ({"method": "codistillation"}, 0.0),
        ({"method": "fedmd", "distill__screening": 3.0}, 3.0),
    ],
)
def test_the_methods_own_screening(changes: dict[str, Any], expected: float) -> None:
    made = methods.build(small.config(**changes)).distillation
    assert made is not None and made.screening == expected


def test_a_negative_threshold_is_refused() -> None:
    with pytest.raises(ConfigError, match="distill.screening = -2.0: expected 0 or more, or -1"):
        small.build(distill__screening=-2.0)
