# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The probe beside training: what it reports, that it leaves no trace, and its warnings."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from experiments.harness.candidates import FORMER
from mhd_jax import experiment as experiment_lib
from mhd_jax import train
from mhd_jax.config import default_config, update
from mhd_jax.data import sources
from mhd_jax.evaluator import Evaluation
from mhd_jax.monitor import Monitor
from tests import reference, small


def looked(step=3, **changes):
    """What is seen of the initial state: which one it is does not matter here."""
    experiment = small.build(**changes)
    state = experiment.init_state()
    return experiment, state, *Monitor(experiment).look(state, step)


@pytest.fixture(scope="module")
def plain():
    return looked()


def test_every_client_and_rank_is_reported(plain):
    _, _, values, lines = plain
    shapes = {name: np.shape(value) for name, value in values.items()}
    assert shapes == {
        "prediction_entropy": (4, 3), "top_class_share": (4, 3), "teacher_agreement": (2,),
        "teaching_share": (4,), "ignored_by": (4,), "teacher_accuracy": (4, 2),
    }  # fmt: skip
    assert values["teaching_share"].sum() == pytest.approx(1, abs=1e-5)
    assert lines == []


def test_entropy_is_that_of_what_the_heads_say_of_the_public_set(plain):
    experiment, state, values, _ = plain
    fed = experiment.federations[0]
    images = (fed.public.images(fed.public_indices) - np.float32(fed.mean)) / np.float32(fed.std)
    model, params = experiment.parts.models[0], state.clients[0].params["model"]
    for client in range(4):
        variables = {"params": jax.tree.map(lambda x, c=client: x[0, c], params)}
        logits = model.apply(variables, images, train=False)[0]
        mean = np.exp(reference.log_softmax(logits)).mean(axis=0)
        expected = -(mean * np.log(mean)).sum(axis=-1)
        np.testing.assert_allclose(values["prediction_entropy"][client], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel__client_devices": 3},
        {"exchange__mode": "stale", "exchange__pool_size": 2, "exchange__refresh_steps": 1},
        {"method": "fedmd", "rounds__private_steps": 1, "rounds__public_steps": 1},
        {"distill__rule": "mean_log_prob"},
        {"num_seeds": 2},
    ],
    ids=["devices", "stale", "fedmd", "a rule that mixes", "seeds"],
)
def test_every_way_of_teaching_can_be_looked_at(changes, plain):
    _, _, values, _ = looked(**changes)
    heads = 1 if "method" in changes else 3
    assert np.shape(values["prediction_entropy"]) == (4, heads)
    assert all(np.isfinite(value).all() for value in values.values())
    if "parallel__client_devices" in changes:
        for name, value in plain[2].items():
            np.testing.assert_allclose(values[name], value, atol=1e-4, err_msg=name)


def test_devices_that_share_a_batch_look_at_all_of_it():
    """Screening tests how far more samples go together: counting them twice would change it."""
    liar = {"attack__name": "random_class", "attack__clients": (2,), "distill__rule": "random"}
    _, _, alone, _ = looked(**liar)
    _, _, shared, _ = looked(**liar, parallel__client_devices=1, parallel__data_devices=2)
    for name, value in alone.items():
        np.testing.assert_allclose(shared[name], value, atol=1e-4, err_msg=name)


def test_a_liar_with_one_reader_is_ignored_by_all_of_its_readers():
    """The liar hears itself, and is no reader of itself."""
    experiment = small.build(
        graph__name="cycle", attack__name="random_class", attack__clients=(2,), clients__num=4,
    )  # fmt: skip
    state, _ = small.run(experiment)
    found, _ = Monitor(experiment).look(state, 6)
    assert found["ignored_by"][2] == 1
    assert set(found["ignored_by"].tolist()) <= {0, 1}


def test_frozen_clients_take_no_lessons():
    """Two that never learn and two that do, all of whom could read all others."""
    experiment = small.build(clients__models=(("mlp_small", 2), ("mlp", 2)), model__width=0)
    experiment.config.clients.frozen = 2
    parts = dataclasses.replace(experiment.parts, frozen=1)
    graphs = [topology.without_readers(2) for topology in experiment.topologies]
    experiment = dataclasses.replace(experiment, parts=parts, topologies=graphs)
    monitor, given = Monitor(experiment), {}
    monitor.watch.look = lambda step, **kept: given.update(kept) or []
    found, _ = monitor.look(experiment.init_state(), 3)
    np.testing.assert_array_equal(given["shares"].sum(axis=1) > 0, [False, False, True, True])
    np.testing.assert_array_equal(given["reads"].any(axis=1), [False, False, True, True])
    assert np.isnan(found["teacher_accuracy"][:2]).all()
    assert np.isfinite(found["teacher_accuracy"][2:]).all()
    assert found["teaching_share"].sum() == pytest.approx(1, abs=1e-5)


def test_public_labels_reach_the_report_and_no_parameter(plain):
    """Other labels of the public set: another accuracy of teachers, the same bits of parameters."""
    experiment, initial, values, _ = plain
    expected, _ = small.run(experiment)
    source = sources.source(small.config().data)
    public = experiment_lib.build(small.config()).federations[0].public_indices
    labels = source.train.labels.copy()
    labels[public] = (labels[public] + 1) % 10
    train = sources.ArraySplit(sources.load_all(source.train), labels)
    made = experiment_lib.build(small.config(), (dataclasses.replace(source, train=train), None))
    state, _ = small.run(made)
    found, _ = Monitor(made).look(initial, 3)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.allclose(found["teacher_accuracy"], values["teacher_accuracy"])


def test_public_images_of_another_data_set_have_no_labels_to_look_at():
    _, _, values, _ = looked(data__public_name="photos")
    assert "teacher_accuracy" not in values


def test_isolated_clients_have_nothing_to_look_at():
    assert looked(method="isolated")[2:] == ({}, [])


def test_heads_are_compared_with_the_baseline_of_those_who_learn_and_do_not_lie():
    """Last heads at the last step alone; frozen clients and liars do not count."""
    experiment = small.build(
        attack__name="noise", attack__clients=(1,), train__steps=6, isolated_baseline=True
    )
    high, low = np.full((1, 4, 3), 0.9), np.full((1, 4, 3), 0.9)
    low[:, 2:, -1], low[:, 1] = 0.1, 0.0
    alone = (np.full((1, 4, 1), 0.5), np.full((1, 4, 1), 0.9))
    correct = np.zeros((1, 4, 3, 10))
    found = Evaluation(correct, low, high, alone, {}, None, None)
    assert Monitor(experiment).compare(5, found) == []
    (line,) = Monitor(experiment).compare(6, found)
    assert "last heads end 0.13 below" in line  # of clients 0, 2 and 3
    experiment.config.clients.frozen = 1
    (line,) = Monitor(experiment).compare(6, found)
    assert "last heads end 0.40 below" in line
    behind = Evaluation(correct, high, 0 * high, alone, {}, None, None)
    assert "(client 1 most" not in Monitor(experiment).compare(5, behind)[0]


@pytest.mark.parametrize(("settings", "collapses"), [(FORMER, True), ({}, False)])
def test_a_planted_collapse_is_told_and_a_healthy_run_is_left_alone(
    settings, collapses, tmp_path, capsys
):
    """A hundred steps of the quickstart: under the defaults of 0.1 all heads give one class."""
    config = default_config()
    steps = {"train.steps": 100, "train.log_every": 50, "train.eval_every": 100,
             "train.checkpoint_every": 100}  # fmt: skip
    update(config, {**settings, **steps, "parallel.client_devices": 1})
    config.isolated_baseline = not collapses
    train.train_and_evaluate(config, tmp_path, with_report=False)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    if collapses:
        assert any("has collapsed" in line and "distill.fade_in" in line for line in warnings)
        assert len(warnings) == len(set(warnings)) <= 3  # once per kind
    else:
        assert warnings == []
