# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The test set is counted once, whatever the chunks and devices."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

import mhd_jax
from mhd_jax import evaluate, evaluator
from mhd_jax import experiment as experiment_lib
from mhd_jax.data import sources
from mhd_jax.models.classifier import MultiHeadClassifier
from tests import reference, small


@pytest.mark.parametrize("chunk", [500, pytest.param(64, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize("devices", [(1, 1), (2, 2)])
def test_each_test_sample_counts_once(chunk, devices, monkeypatch):
    monkeypatch.setattr(evaluator, "TEST_CHUNK", chunk)
    experiment = small.build(
        parallel__client_devices=devices[0], parallel__data_devices=devices[1],
        isolated_baseline=True,
    )  # fmt: skip
    state = experiment.init_state()
    dispatched = mock.Mock(wraps=evaluate.InFlight())
    monkeypatch.setattr(evaluate, "InFlight", lambda: dispatched)
    found = experiment.evaluator.evaluate(state)
    assert dispatched.add.call_count == 2 * -(-500 // (chunk + chunk % devices[1]))
    source = experiment.federations[0].source
    images = (source.test.images(np.arange(len(source.test))) - np.float32(source.mean)) / (
        np.float32(source.std)
    )
    logits = [
        experiment.parts.models[0].apply(
            {"params": jax.tree.map(lambda x, c=client: x[0, c], state.clients[0].params["model"])},
            images,
            train=False,
        )[0]
        for client in range(4)
    ]
    expected, count = reference.count_correct(np.stack(logits), source.test.labels)
    np.testing.assert_array_equal(found.correct[0], expected)
    assert found.baseline is not None
    np.testing.assert_array_equal(found.baseline[0], found.shared[..., :1])
    np.testing.assert_array_equal(experiment.evaluator.count, count)


# --- Clients' own test samples --------------------------------------------------------------------

OWN = (6, 9, 0, 31)  # test samples of each client


def _table(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(rows) % 3
    samples = np.random.default_rng(seed).normal(size=(rows, 5)) + 2 * np.eye(5)[labels]
    return samples.astype(np.float32), labels


def _silos() -> sources.Source:
    made = mhd_jax.from_clients(
        {str(client): _table(20, client) for client in range(4)},
        public=_table(30, 7)[0], test=_table(5, 8), name="uneven",
        client_test={str(client): _table(1, 9) for client in range(4)},
    )  # fmt: skip
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(4), OWN))
    test = sources.arrays.ArraySplit(*_table(len(owner), 10))
    return dataclasses.replace(
        made, silos=dataclasses.replace(made.silos, test=test, test_owner=owner)
    )


def _own(source: sources.Source, **changes: Any) -> experiment_lib.Experiment:
    settings = {"data__name": source.name, "partition__name": "by_key", **changes}
    return experiment_lib.build(small.config(**settings), (source, source.public))


def _own_accuracy(experiment: experiment_lib.Experiment, state: Any) -> np.ndarray:
    """[R, K, H], client after client; NaN without samples."""
    silos, layout = experiment.federations[0].source.silos, experiment.layout
    heads = experiment.parts.models[0].num_heads
    out = np.full((len(experiment.federations), len(OWN), heads), np.nan)
    for client in np.flatnonzero(OWN):
        who = client if layout.num_clients > 1 else 0
        group = int(np.searchsorted(layout.offsets, who, "right")) - 1
        mine = np.flatnonzero(silos.test_owner == client)
        for seed, fed in enumerate(experiment.federations):
            images = (silos.test.images(mine) - np.float32(fed.mean)) / np.float32(fed.std)
            row = who - layout.offsets[group]
            variables = jax.tree.map(
                lambda x, at=(seed, row): np.asarray(x)[at], state.clients[group].snapshot
            )
            apply = jax.jit(experiment.parts.models[group].apply, static_argnames="train")
            logits, _ = apply(variables, images, train=False)
            hits = np.argmax(logits, axis=-1) == silos.test.labels[mine][:, None]
            out[seed, client] = hits.mean(axis=0)
    return out


@pytest.mark.parametrize(
    ("changes", "chunk"),
    [
        ({"isolated_baseline": True}, 500),
        ({"num_seeds": 2}, 7),
        ({"clients__models": (("mlp_small", 3), ("mlp_large", 1))}, 500),
        ({"parallel__client_devices": 2, "parallel__data_devices": 2}, 7),
        ({"parallel__client_devices": 3}, 500),
        ({"clients__active": 3, "clients__offload": "host"}, 7),
        ({"method": "supervised"}, 7),
    ],
    ids=str,
)
def test_clients_are_measured_on_their_own_samples(changes, chunk, monkeypatch):
    monkeypatch.setattr(evaluator, "TEST_CHUNK", chunk)
    experiment = _own(_silos(), **changes)
    state = experiment.init_state()
    for _ in range(2):  # the second time of samples that have stayed on the devices
        found = experiment.evaluator.evaluate(state)
        np.testing.assert_allclose(found.own, _own_accuracy(experiment, state), atol=1e-6)
        if found.own_baseline is not None:
            np.testing.assert_array_equal(found.own_baseline, found.own[..., :1])


def test_no_client_predicts_the_own_samples_of_others(monkeypatch):
    seen, apply = [], MultiHeadClassifier.apply

    def recorded(self, variables, images, **kwargs):
        seen.append(len(images))
        return apply(self, variables, images, **kwargs)

    experiment = _own(_silos())
    state = experiment.init_state()
    monkeypatch.setattr(MultiHeadClassifier, "apply", recorded)
    experiment.evaluator.evaluate(state)
    assert max(seen) == max(OWN)
