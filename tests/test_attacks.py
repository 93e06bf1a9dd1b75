# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Lies: what each publishes, that nothing else changes, and that NaN stays with who has it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax
from mhd_jax import attacks, audit, train
from mhd_jax.attacks import ATTACKS, CERTAIN, Attack, Attackers
from mhd_jax.config import update
from mhd_jax.errors import ConfigError
from tests import small

K, B, H, C = 5, 400, 2, 4
LIARS = (1, 3)
OURS = [name for name in ATTACKS if not name.endswith("_example") and name != "none"]


def as_attack(name: str) -> Attack:
    piece = ATTACKS.get(name)
    return piece if isinstance(piece, Attack) else Attack(predictions=piece)


def honest() -> np.ndarray:
    logits = 2 * np.random.default_rng(0).normal(size=(K, B, H, C))
    return np.asarray(jax.nn.log_softmax(logits), np.float32)


def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(B, 3, 3, 1)).astype(np.float32)


def told(name: str, step: int = 0, start: int = 0) -> np.ndarray:
    """What readers get of all clients, two of whom lie."""
    liars = Attackers(as_attack(name), LIARS, start)
    return np.asarray(
        liars.on_predictions(jnp.asarray(honest()), K, jnp.asarray(images()),
                             jax.random.key(step), step)
    )  # fmt: skip


# --- What each says -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_only_liars_lie_and_only_once_they_have_started(name: str) -> None:
    others = [client for client in range(K) if client not in LIARS]
    lies = told(name, step=3, start=3)
    np.testing.assert_array_equal(lies[others], honest()[others])
    assert (lies[list(LIARS)] != honest()[list(LIARS)]).any()
    np.testing.assert_array_equal(told(name, step=2, start=3), honest())


@pytest.mark.parametrize("name", [name for name in OURS if name not in ("nan", "inf")])
def test_a_lie_is_a_distribution(name: str) -> None:
    np.testing.assert_allclose(np.exp(told(name)).sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["random_class", "coordinated"])
def test_a_random_class_is_a_function_of_the_image_and_names_all_classes_alike(name: str) -> None:
    first, again = told(name, step=0), told(name, step=1)
    np.testing.assert_array_equal(first, again)
    named = first[list(LIARS)].argmax(axis=-1)
    np.testing.assert_allclose(np.exp(first[list(LIARS)].max(axis=-1)), CERTAIN, rtol=1e-5)
    assert (named[..., 0] == named[..., 1]).all()  # in all heads
    for liar in named[..., 0]:
        assert np.bincount(liar, minlength=C).min() > B / C / 2
    together = (named[0] == named[1]).mean()
    assert together == 1 if name == "coordinated" else abs(together - 1 / C) < 0.1


def test_the_same_image_elsewhere_in_the_batch_has_the_same_class() -> None:
    salt, order = np.arange(2), np.random.default_rng(2).permutation(B)
    there = attacks.image_hash(jnp.asarray(images()), salt)
    here = attacks.image_hash(jnp.asarray(images()[order]), salt)
    np.testing.assert_array_equal(here, np.asarray(there)[:, order])


def test_a_constant_is_certain_of_class_0() -> None:
    np.testing.assert_allclose(np.exp(told("constant")[LIARS[0], :, :, 0]), CERTAIN, rtol=1e-5)


def test_a_rare_class_is_named_on_few_images_and_is_the_one_named_least() -> None:
    lies, true = told("rare_class")[1], honest()[1]
    changed = (lies != true).any(axis=(1, 2))
    assert 0.02 < changed.mean() < 0.12
    for head in range(H):
        least = np.exp(true[:, head]).mean(axis=0).argmin()
        assert (lies[changed, head].argmax(axis=-1) == least).all()


def test_shifted_means_one_class_and_says_the_next() -> None:
    lies, true = told("shifted")[1], honest()[1]
    np.testing.assert_array_equal(lies[..., 1:], true[..., :-1])
    np.testing.assert_array_equal(lies[..., 0], true[..., -1])


def test_swapped_exchanges_the_two_classes_named_most() -> None:
    lies, true = told("swapped")[1], honest()[1]
    for head in range(H):
        first, second = np.exp(true[:, head]).mean(axis=0).argsort()[::-1][:2]
        order = np.arange(C)
        order[[first, second]] = second, first
        np.testing.assert_array_equal(lies[:, head], true[:, head][:, order])


def test_a_flipped_sign_turns_the_least_likely_class_into_the_likeliest() -> None:
    lies, true = told("sign_flipped"), honest()
    np.testing.assert_array_equal(lies[1].argmax(axis=-1), true[1].argmin(axis=-1))
    expected = np.exp(-true[1]) / np.exp(-true[1]).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(lies[1]), expected, rtol=1e-5)


def test_a_copy_is_what_the_next_honest_client_says_version_by_version() -> None:
    np.testing.assert_array_equal(told("copy")[list(LIARS)], honest()[[2, 4]])
    liars = Attackers(as_attack("copy"), (1, 2))
    values = jnp.arange(2 * K, dtype=jnp.float32)[:, None]
    rows = np.repeat(np.arange(K), 2)
    found = liars.on_vectors(values, rows, jax.random.key(0), 0)[:, 0]
    np.testing.assert_array_equal(found, [0, 1, 6, 7, 6, 7, 6, 7, 8, 9])


def test_vectors_are_flipped_or_drowned_in_noise() -> None:
    values = jnp.asarray(np.random.default_rng(0).normal(size=(K, 2000)), jnp.float32)
    flipped = Attackers(as_attack("sign_flipped"), (4,)).on_vectors(
        values, np.arange(K), jax.random.key(0), 0
    )
    np.testing.assert_array_equal(flipped[4], -values[4])
    noise = Attackers(as_attack("noise"), (4,)).on_vectors(
        values, np.arange(K), jax.random.key(0), 0
    )
    assert abs(float(noise[4].std()) - 1) < 0.1
    assert abs(np.corrcoef(noise[4], values[4])[0, 1]) < 0.1


# --- Whole steps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mhd", "fedavg"])
def test_nan_reaches_nobody_else_and_is_reported_by_number(method: str) -> None:
    experiment = small.build(
        method=method, attack__name="nan", attack__clients=(2,), average__every=1,
        isolated_baseline=False,
    )  # fmt: skip
    state, metrics = small.run(experiment)
    for leaf in small.clients(experiment, state):
        assert np.isfinite(leaf).all()
    assert all(np.isfinite(values).all() for values in metrics.values())
    reported = metrics["unreadable" if method == "mhd" else "unreadable_parameters"]
    np.testing.assert_array_equal(reported[:, 0], np.tile([0, 0, 1, 0], (len(reported), 1)))


def test_a_lie_about_vectors_leaves_predictions_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def about_embeddings(honest: jax.Array, view: attacks.View) -> jax.Array:
        return -honest

    pieces = {**ATTACKS._pieces, "vectors_only": Attack(vectors=about_embeddings)}
    monkeypatch.setattr(ATTACKS, "_pieces", pieces)
    common: dict[str, Any] = {
        "distill__confidence": "energy", "distill__nu_emb": 0.0, "distill__rule": "most_confident",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="on what mhd sends"):
        small.build(**common, attack__name="vectors_only", attack__clients=(1,))
    common["distill__nu_emb"] = 1e-9  # embeddings are published and hardly count
    honest, _ = small.run(small.build(**common))
    experiment = small.build(**common, attack__name="vectors_only", attack__clients=(1,))
    lied, _ = small.run(experiment)
    for theirs, ours in zip(
        small.clients(experiment, honest), small.clients(experiment, lied), strict=True
    ):
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def everything(honest: jax.Array, view: attacks.View) -> jax.Array:
    """The mean of all lies there are, so that one program holds every attack."""
    field = "predictions" if view.images is not None else "vectors"
    lies = [getattr(as_attack(name), field) for name in OURS]
    return jnp.stack([lie(honest, view) for lie in lies if lie is not None]).mean(axis=0)


@pytest.fixture
def all_at_once(monkeypatch: pytest.MonkeyPatch) -> str:
    pieces = {**ATTACKS._pieces, "everything": Attack(everything, everything)}
    monkeypatch.setattr(ATTACKS, "_pieces", pieces)
    return "everything"


def test_no_attack_changes_what_leaves_a_client(all_at_once: str) -> None:
    common: dict[str, Any] = {
        "parallel__client_devices": 4, "train__steps_per_call": 1, "train__steps": 1,
        "isolated_baseline": False,
    }  # fmt: skip
    without = small.build(**common)
    experiment = small.build(**common, attack__name=all_at_once, attack__clients=(1,))
    found, expected = audit.audit(experiment), audit.audit(without)
    assert found.clean and found.verdict == expected.verdict
    assert set(map(str, found.findings)) == set(map(str, expected.findings))
    assert experiment.ledger.sent(10) == without.ledger.sent(10)


def test_an_attack_that_is_off_is_not_in_the_program() -> None:
    def lowered(**changes: Any) -> str:
        experiment = small.build(isolated_baseline=False, **changes)
        return experiment.step.lower(*audit.abstract_arguments(experiment)).as_text()

    assert lowered() == lowered(attack__clients=(1, 2), attack__start=3)


@pytest.mark.parametrize("about", ["predictions", "vectors"])
def test_a_lie_that_raises_is_told_by_its_name(about: str) -> None:
    liars = Attackers(Attack(**{about: lambda honest, view: 1 / 0}), LIARS, name="mine")
    key = jax.random.key(0)
    with pytest.raises(ConfigError, match="attack.name = 'mine': .*ZeroDivisionError"):
        if about == "vectors":
            liars.on_vectors(jnp.zeros((3, 2)), np.arange(3), key, jnp.asarray(0))
        else:
            liars.on_predictions(jnp.zeros((4, 2, 1, 3)), 4, jnp.zeros(2), key, 0)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, r"\(4, 8, 8\), not \(4, 8, 7\)"),
        ({"exchange__cache": 4, "exchange__embedding_width": 3}, r"\(4, 2, 3\), not \(4, 2, 2\)"),
        ({"method": "fedavg"}, r"\(4, 1, 10\), not \(4, 1, 9\)"),
    ],
)
def test_a_lie_about_vectors_is_tried_on_what_travels(
    changes: dict[str, Any], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = Attack(vectors=lambda honest, view: honest[..., 1:])
    monkeypatch.setitem(ATTACKS._pieces, "shorter", shorter)
    with pytest.raises(ConfigError, match=f"attack.name = 'shorter': .* {shape}"):
        small.build(attack__name="shorter", attack__clients=(1,), **changes)


def test_what_is_read_back_leaves_out_liars(tmp_path):
    config = small.config(attack__name="noise", attack__clients=(1,), train__log_every=6)
    train.train_and_evaluate(config, tmp_path)
    run = mhd_jax.Run.load(tmp_path)
    last = [line for line in run.records if "loss" in line][-1]
    told = [last["loss"][client] for client in (0, 2, 3)]
    history = run.history
    found = history[-1]["loss"] if isinstance(history, list) else history["loss"].iloc[-1]
    assert found == pytest.approx(np.mean(told))
    assert len(last["teaching_share"]) == 4 and (tmp_path / "report.html").exists()


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack.name": "constnat"}, "did you mean 'constant'"),
        ({"attack.clients": ()}, r"attack.clients = \(\): expected different clients from 0 to 3"),
        ({"attack.clients": (4,)}, "from 0 to 3"),
        ({"attack.clients": (1, 1)}, "different clients"),
        ({"attack.clients": (0, 1, 2, 3)}, "fewer than all"),
        ({"attack.start": -1}, "attack.start = -1: expected 0 or more"),
        (
            {"method": "fedavg"},
            "an attack on what fedavg sends: sign_flipped, noise, copy, nan, inf",
        ),
        ({"method": "isolated"}, "as clients send nothing under isolated"),
    ],
)
def test_bad_attacks_are_refused(changes: dict[str, Any], message: str) -> None:
    config = small.config(attack__name="constant", attack__clients=(3,))
    update(config, changes)
    with pytest.raises(ConfigError, match=message):
        small.experiment_lib.build(config)
