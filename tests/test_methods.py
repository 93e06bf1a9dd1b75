# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Methods as values: when things happen, and what one step of each does to the parameters."""

from __future__ import annotations

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax import distill, methods, models
from mhd_jax import experiment as experiment_lib
from mhd_jax.api.pieces import register
from mhd_jax.data import sources
from mhd_jax.errors import ConfigError
from mhd_jax.exchange import readers
from tests import reference, small


def test_unknown_methods_suggest_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'fedavg'"):
        small.build(method="fedavgg")


def test_without_weights_there_is_no_distillation():
    config = small.config(distill__nu_aux=0.0, distill__nu_emb=0.0)
    assert methods.build(config).distillation is None


@pytest.mark.parametrize("method", ["codistillation", "fedmd"])
def test_nobody_who_has_nothing_to_send_is_unreadable(method):
    _, metrics = small.run(small.build(method=method, distill__nu_main=0.0))
    assert not np.any(metrics["unreadable"])


def test_distillation_fades_in():
    weights = methods.EveryStep(warmup_steps=3)(np.arange(6))
    np.testing.assert_allclose(weights[:, 0], 1)
    np.testing.assert_allclose(weights[:, 1], [0.25, 0.5, 0.75, 1, 1, 1])


def test_rounds_alternate_private_and_public_steps():
    rounds = methods.Rounds(private_steps=3, public_steps=2)
    steps = np.arange(10)
    assert rounds(steps)[:, 1].tolist() == [0, 0, 0, 1, 1] * 2
    assert rounds(steps).sum(axis=1).tolist() == [1] * 10
    assert np.flatnonzero(rounds.scoring(steps)).tolist() == [2, 7]


def test_averages_come_every_so_many_steps():
    steps = np.arange(12)
    assert np.flatnonzero(methods.Averaging("uniform", 4).due(steps)).tolist() == [3, 7, 11]
    later = methods.Averaging("uniform", 5, after=3)
    assert np.flatnonzero(later.due(steps)).tolist() == [2, 7]
    late = methods.Averaging("uniform", 3, after=7)
    assert np.flatnonzero(late.due(steps)).tolist() == [6, 9]


def _params(experiment, state):
    return [np.asarray(x)[0].astype(np.float64) for x in small.clients(experiment, state)]


@pytest.mark.parametrize(
    ("method", "graph"),
    [
        ("fedavg", "complete"),
        pytest.param("gossip", "cycle", marks=pytest.mark.slow),  # all weights alike
        ("gossip", "star"),
    ],
)
def test_an_average_mixes_the_local_steps(method, graph):
    """Steps 1 to 3 with an average after the third = three isolated steps, then the matrix."""
    changes = {"graph__name": graph, "train__steps": 3, "train__eval_every": 3}
    mixed = small.build(method=method, average__every=3, **changes)
    local = small.build(method=method, average__every=100, **changes)
    adjacency = local.topologies[0].at(0)
    matrix = (
        reference.uniform_matrix(4)
        if method == "fedavg"
        else reference.metropolis_matrix(adjacency)
    )
    state, _ = small.run(local)
    found, _ = small.run(mixed)
    expected = [reference.mix(x, matrix) for x in _params(local, state)]
    for ours, theirs in zip(_params(mixed, found), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_averaging_starts_from_common_parameters():
    state = small.build(method="fedavg").init_state()
    for leaf in jax.tree.leaves(state.clients[0].params):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:, :1], leaf.shape))


def test_averaging_needs_one_architecture():
    with pytest.raises(ConfigError, match="one architecture"):
        small.build(method="fedavg", clients__models=(("mlp_small", 2), ("mlp_large", 2)))


def test_supervised_is_one_client_with_everything():
    experiment = small.build(method="supervised")
    assert experiment.layout.groups == (1,)
    ((images, _),) = experiment.feed.data["private"]
    assert images.shape[2] == experiment.federations[0].partition.sizes.sum()
    found = experiment.evaluator.evaluate(experiment.init_state())
    assert found.shared.shape == found.private.shape == (1, 4, 1)


def test_federated_average_leaves_all_clients_equal():
    experiment = small.build(method="fedavg", average__every=3)
    state, _ = small.run(experiment)
    for leaf in jax.tree.leaves(state.clients[0].params):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:, :1], leaf.shape))


def _public_logits(experiment, state, step):
    images = small.public_batch(experiment, step)
    model, params = experiment.parts.models[0], state.clients[0].params["model"]
    return np.stack(
        [
            model.apply(
                {"params": jax.tree.map(lambda x, c=c: x[0, c], params)}, images, train=False
            )[0][:, 0]
            for c in range(4)
        ]
    )


@pytest.mark.parametrize("loss", ["mae", pytest.param("mse", marks=pytest.mark.slow), "kl"])
def test_fedmd_fits_the_mean_of_logits_as_they_were_when_scored(loss):
    """Private step 0, scoring, public steps 1 and 2: both aim at the consensus of step 0's end."""
    changes = {
        "method": "fedmd", "distill__loss": loss, "rounds__private_steps": 1,
        "rounds__public_steps": 2, "isolated_baseline": False, "train__log_every": 1,
    }  # fmt: skip
    experiment = small.build(**changes)
    assert experiment.parts.steps_per_call == 1
    (_, _, scored), (_, first, moved), (_, second, _) = small.walk(experiment, 3)
    everyone = ~np.eye(4, dtype=bool)
    for step, state, metrics in [(1, scored, first), (2, moved, second)]:
        consensus = reference.fedmd_consensus(_public_logits(experiment, scored, step), everyone)
        logits = _public_logits(experiment, state, step)
        expected = [reference.fedmd_loss(logits[c], consensus[c], loss) for c in range(4)]
        np.testing.assert_allclose(metrics["head_losses"][0, 0, :, 0], expected, rtol=1e-4)
        np.testing.assert_allclose(metrics["loss"][0, 0], expected, rtol=1e-4)


def test_codistillation_aims_at_the_mean_of_the_peers():
    experiment = small.build(method="codistillation", graph__name="chain", train__log_every=1)
    state = experiment.init_state()
    log_probs = reference.log_softmax(_public_logits(experiment, state, 0))
    adjacency = experiment.topologies[0].at(0)
    expected = reference.codistillation_loss(
        log_probs[:, :, None], log_probs[:, :, None], adjacency
    )
    _, metrics = small.run(experiment)
    np.testing.assert_allclose(metrics["head_losses"][0, 0, :, 0], np.ravel(expected), rtol=1e-5)


def test_feddf_distils_the_ensemble_into_the_average():
    """After the private part: parameters are the average, the target is the ensemble before it."""
    changes = {
        "rounds__private_steps": 2, "rounds__public_steps": 2, "isolated_baseline": False,
        "train__log_every": 1, "optimizer__name": "sgd", "optimizer__warmup_steps": 0,
        "optimizer__learning_rate": 0.5,
    }  # fmt: skip
    experiment = small.build(method="feddf", **changes)
    local, _ = small.run(small.build(method="fedavg", average__every=99, **changes), calls=2)
    _, (_, _, averaged), (_, metrics, _) = small.walk(experiment, 3)
    for ours, theirs in zip(_params(experiment, averaged), _params(experiment, local), strict=True):
        np.testing.assert_allclose(ours, np.broadcast_to(theirs.mean(0), ours.shape), atol=1e-6)
    local = jax.tree.map(np.asarray, local)
    consensus = _public_logits(experiment, local, 2).mean(axis=0)
    logits = _public_logits(experiment, averaged, 2)
    expected = [reference.fedmd_loss(logits[c], consensus, "kl") for c in range(4)]
    np.testing.assert_allclose(metrics["head_losses"][0, 0, :, 0], expected, rtol=1e-3)


# --- Distilling in some steps only ----------------------------------------------------------------


def test_every_nth_step_distils_with_the_weight_it_has_anyway():
    config = small.config(exchange__every=3, distill__fade_in=0.5, train__steps=10)
    weights = methods.build(config).when(np.arange(10))
    always = methods.build(small.config(distill__fade_in=0.5, train__steps=10)).when(np.arange(10))
    assert weights.dtype == np.float32 and (weights[:, 0] == 1).all()
    np.testing.assert_array_equal(weights[::3, 1], always[::3, 1])
    assert np.flatnonzero(weights[:, 1]).tolist() == [0, 3, 6, 9]
    np.testing.assert_array_equal(methods.build(config).when(np.arange(4, 10)), weights[4:])


def test_steps_between_learn_from_private_data_alone():
    """Their objective is the private loss, and no moving average of predictions moves."""
    experiment = small.build(exchange__every=2, train__log_every=1, isolated_baseline=False)
    for step, (before, metrics, after) in enumerate(small.walk(experiment, 4)):
        distils = step % 2 == 0
        moved = not np.array_equal(before.marginals, after.marginals)
        assert moved == distils == bool(metrics["head_losses"].any())
        assert np.array_equal(metrics["loss"], metrics["private_loss"]) != distils


@pytest.mark.parametrize("method", ["fedmd", "feddf"])
def test_rounds_say_themselves_when_they_distil(method):
    with pytest.raises(ConfigError, match=rf"exchange\.every = 2: expected 1: {method} distils"):
        small.build(method=method, exchange__every=2)


# --- Mistakes that implementations of such methods are known to make ------------------------------


@pytest.mark.parametrize("method", ["mhd", "fedmd", "feddf", "codistillation"])
def test_public_batches_are_drawn_anew(method):
    experiment = small.build(method=method, isolated_baseline=False)
    steps = 60  # several passages through 130 public images, and several rounds
    drawn = experiment.schedule.host_inputs(0, steps).public[:, 0]
    batches = {tuple(batch) for batch in drawn}
    assert len(batches) == steps and len(np.unique(drawn)) == 130


def test_predictions_are_probabilities_before_they_are_compared():
    """The loss is least where the student agrees with its teacher, wherever logits lie."""
    logits = jax.random.normal(jax.random.key(0), (2, 5, 2, 4))
    below = ~jnp.eye(2, dtype=bool)
    log_probs = jax.nn.log_softmax(logits + 7.0)
    teachers = distill.select_teachers(log_probs, below)

    def loss(student):
        return distill.prediction_loss(jax.nn.log_softmax(student), log_probs, teachers).sum()

    student = logits.at[:, :, 1].set(logits[::-1, :, 0])  # of two clients each has one teacher
    np.testing.assert_allclose(jax.grad(loss)(student)[:, :, 1:], 0.0, atol=1e-6)


class Attentive(nn.Module):
    """Refuses public batches (of 4) in training mode and private ones (of 8) in evaluation mode."""

    @nn.compact
    def __call__(self, x, train):
        assert len(x) == 1 or train == (len(x) == 8), (len(x), train)
        return nn.Dense(4)(x.reshape(len(x), -1))


@pytest.mark.parametrize("method", ["mhd", "fedmd", "codistillation", "feddf"])
def test_teachers_are_in_evaluation_mode(method, monkeypatch):
    monkeypatch.setitem(models.MODELS._pieces, "attentive", lambda settings: Attentive())
    changes = {"model__name": "attentive", "data__public_batch_size": 4, "isolated_baseline": False}
    experiment = small.build(method=method, **changes)
    arguments = list(small.arguments(experiment, experiment.init_state(abstract=True)))
    assert experiment.step.lower(*arguments)


def test_private_labels_reach_nobody_but_the_private_loss():
    """With other private labels the first step has the same teachers, hence the same losses."""
    experiment = small.build(train__log_every=1, isolated_baseline=False)

    def first(change):
        state, data, *rest = small.arguments(experiment)
        private = tuple((images, change(labels)) for images, labels in data["private"])
        return experiment.step(state, {**data, "private": private}, *rest)[1]

    ours, theirs = first(lambda labels: labels), first(lambda labels: labels * 0)
    for name in ("embedding_loss", "head_losses"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert not np.allclose(ours["private_loss"], theirs["private_loss"])


def test_test_data_stay_out_of_training():
    def final(test):
        source = dataclasses.replace(sources.source(small.config().data), test=test)
        made = experiment_lib.build(small.config(isolated_baseline=False), (source, None))
        return small.clients(made, small.run(made)[0])

    noise = np.random.default_rng(0).random((50, 8, 8, 1)).astype(np.float32)
    other = sources.ArraySplit(noise, np.arange(50) % 10)
    usual = sources.source(small.config().data).test
    for ours, theirs in zip(final(usual), final(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("method", ["fedmd", "feddf"])
def test_a_client_alone_does_not_learn_from_itself(method):
    """It would otherwise be held to what it knew at the start of the round."""
    experiment = small.build(
        method=method, clients__num=1, rounds__private_steps=1, rounds__public_steps=2,
        optimizer__momentum=0.9, train__steps_per_call=3,
    )  # fmt: skip
    _, metrics = small.run(experiment)
    assert (np.asarray(metrics["head_losses"]) == 0).all()
    assert not experiment.readers[0](0, 3).reads.count.any()


def test_who_is_alone_in_a_step_reads_nobody():
    reader = small.build(method="fedmd", clients__active=0.5).readers[0]
    count = reader(0, 6).reads.count
    assert count.max() == 2
    alone = readers._all_of(np.array([False, True, False]))
    assert not alone.any() and readers._all_of(np.ones(2, bool)).all()


def test_an_error_in_the_weights_of_ones_own_method_names_it(monkeypatch, pieces):
    weights = np.ones((3, 2))
    made = methods.Method(methods.Distillation(), when=lambda steps: weights[steps])
    register("method", "short", lambda config: made)
    monkeypatch.setattr(methods, "LONGEST_PERIOD", 3)  # what is tried at once
    built = methods.build(small.config(method="short"))
    with pytest.raises(ConfigError, match="method = 'short': expected .*IndexError"):
        built.weights(np.arange(3, 6))


@pytest.mark.parametrize("method", ["fedmd", "feddf"])
def test_a_pass_that_does_not_count_is_not_run(method, monkeypatch):
    """Two private steps, then one on public images: each with its own forward passes only."""
    passes = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            jax.debug.callback(lambda _, train=train: passes.append(train), x.sum())
            return nn.Dense(4)(x.reshape(len(x), -1))

    monkeypatch.setitem(models.MODELS._pieces, "counted", lambda settings: Counted())
    experiment = small.build(
        method=method, model__name="counted", rounds__private_steps=2, rounds__public_steps=1,
        isolated_baseline=False, train__steps_per_call=1,
    )  # fmt: skip
    seen = []
    for _ in small.walk(experiment, 4):
        jax.effects_barrier()
        seen.append(set(passes))
        passes.clear()
    assert seen[1:] == [{True}, {False}, {True}]  # the first also makes the initial parameters


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (methods.Method(distillation="foo"), "distillation is a Distillation or None, not 'foo'"),
        (methods.Method(averaging="foo"), "averaging is a Averaging or None, not 'foo'"),
        (methods.Method(when=lambda steps: 3), r"`when` gives weights .*not of shape \(\)"),
        (methods.Method(when=lambda: 3), r"`when` gives weights .*TypeError"),
        (methods.Method(when=lambda steps: [[1], [1, 2], []]), "`when` gives .*ValueError"),
        (methods.Method(when=lambda steps: [[1, 1]] * 3), r"shape \(3, 2\) for 6 steps"),
        (
            methods.Method(when=lambda steps: np.stack([steps, 0.5 - steps], axis=1)),
            r"`when` gives weights .*, of 0 or more, not \[1.0, -0.5\] in step 1",
        ),
        (methods.Method(snapshot_rounds=True), "`when` is Rounds, as it has snapshot_rounds"),
        (
            methods.Method(
                methods.Distillation(include_self=True), when=methods.Rounds(2, 1),
                snapshot_rounds=True,
            ),
            "without include_self, as one's own snapshot is read anyway",
        ),
        (
            methods.Method(methods.Distillation(), pooled=True),
            "is pooled or exchanges something: one model has no peers",
        ),
    ],
)  # fmt: skip
def test_a_method_of_other_parts_is_refused(made, said, monkeypatch):
    monkeypatch.setattr(
        methods.METHODS, "_pieces", {**methods.METHODS._pieces, "mine": lambda _: made}
    )
    with pytest.raises(ConfigError, match=f"method = 'mine': expected a Method .*{said}"):
        methods.build(small.config(method="mine"))


def test_weights_may_be_nested_lists(monkeypatch):
    def mine(config):
        return methods.Method(methods.Distillation(), when=lambda steps: [[1, 0.5] for _ in steps])

    monkeypatch.setitem(methods.METHODS._pieces, "mine", mine)
    for every in (1, 2):
        built = small.build(method="mine", exchange__every=every, isolated_baseline=False)
        weights = built.schedule.host_exchange(0, 2).weights
        assert weights.dtype == np.float32
        assert weights.tolist() == [[1, 0.5], [1, 0.5 if every == 1 else 0]]
        assert built.parts.method.distils(np.arange(2)).tolist() == [True, every == 1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: methods.Distillation(wiring="chian"),
            "Distillation.wiring = 'chian': expected one of chain, main; did you mean 'chain'",
        ),
        (
            lambda: methods.Distillation(nu_pred=-1.0),
            "Distillation.nu_pred = -1.0: expected a number, 0 or more",
        ),
        (
            lambda: methods.Distillation(temperature=0.0),
            "Distillation.temperature = 0.0: expected a number, above 0",
        ),
        (
            lambda: methods.Distillation(loss="mae", temperature=2.0),
            "Distillation.temperature = 2.0: expected 1, as the loss mae mixes logits",
        ),
        (
            lambda: methods.Distillation(alignment=float("nan")),
            "Distillation.alignment = nan: expected a number, 0 or more",
        ),
        (
            lambda: methods.Distillation(peers=1.5),
            "Distillation.peers = 1.5: expected a whole number, 0 or more",
        ),
        (
            lambda: methods.Averaging("unifrom", 5),
            "Averaging.matrix = 'unifrom': expected one of uniform, graph; did you mean 'uniform'",
        ),
        (
            lambda: methods.Averaging("uniform", 0),
            "Averaging.every = 0: expected a whole number, at least 1",
        ),
        (
            lambda: methods.Rounds(0, 5),
            "Rounds.private_steps = 0: expected a whole number, at least 1",
        ),
    ],
)
def test_a_choice_that_cannot_be_is_refused_as_it_is_made(make, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        make()
