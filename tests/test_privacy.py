# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""DP-SGD: clipping, noise and Poisson batches as the accountant assumes them, and the claim."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from mhd_jax import audit, methods, models, rng, train
from mhd_jax import privacy as privacy_lib
from mhd_jax.data import batches
from mhd_jax.errors import ConfigError
from mhd_jax.inputs import Batch
from mhd_jax.privacy import Privacy
from mhd_jax.step.private import private_gradients, sample_gradients
from tests import small

PRIVATE = {"privacy__noise_multiplier": 1.0, "privacy__clip_norm": 0.7}
CLAIM = {**PRIVATE, "privacy__delta": 1e-3}


@pytest.fixture(scope="module")
def learners():
    """An experiment, the clients of its initial state, and a batch of every client."""
    experiment = small.build()
    fed, rows = experiment.federations[0], experiment.layout.num_clients
    group = jax.tree.map(lambda x: x[0], experiment.init_state().clients[0])
    images = np.stack([fed.source.train.images(own[:5]) for own in fed.partition.indices])
    labels = np.stack([fed.source.train.labels[own[:5]] for own in fed.partition.indices])
    images = (images - np.float32(fed.mean)) / np.float32(fed.std)
    assert images.shape[:2] == (rows, 5)
    return experiment, group, jnp.asarray(images), jnp.asarray(labels)


def _loop(experiment, group, images, labels):
    """Losses and gradients of every sample, one after another, [k][B]."""
    model = experiment.parts.models[0]

    def loss(params, image, label):
        logits, _ = model.apply({"params": params}, image[None], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits[0, 0], label)

    value = jax.jit(jax.value_and_grad(loss))
    own = [jax.tree.map(lambda x, c=c: x[c], group.params["model"]) for c in range(len(images))]
    return [
        [value(params, x, y) for x, y in zip(xs, ys, strict=True)]
        for params, xs, ys in zip(own, images, labels, strict=True)
    ]


def test_norms_of_samples_equal_a_loop(learners):
    experiment, group, images, labels = learners
    losses, norms = jax.jit(lambda *x: sample_gradients(experiment.parts.models[0], *x))(
        group, images, labels, jax.random.split(jax.random.key(0), len(images))
    )
    found = _loop(experiment, group, images, labels)
    expected = [[float(optax.tree.norm(g)) for _, g in row] for row in found]
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    np.testing.assert_allclose(losses, [[float(v) for v, _ in row] for row in found], rtol=1e-5)
    assert np.ptp(norms) > 0.1  # so that clipping one does not clip all alike


def test_a_gradient_is_the_sum_of_clipped_ones_over_the_expected_batch(learners):
    """Samples that count 0 are not in it; the divisor is what is expected, not what came."""
    experiment, group, images, labels = learners
    found = _loop(experiment, group, images, labels)
    norms = np.array([[float(optax.tree.norm(g)) for _, g in row] for row in found])
    clip, expected = float(np.median(norms)), 4
    present = np.array([[1, 1, 1, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    parts = dataclasses.replace(experiment.parts, privacy=Privacy(0.0, clip, expected))
    batch = Batch((images,), (labels,), jnp.zeros(0), (present * 5 / expected,))
    keys = (jax.random.split(jax.random.key(0), len(images)),)
    made = jax.jit(
        lambda group: private_gradients(
            parts, parts.models, (group,), batch, jnp.float32(1), keys, keys
        )
    )(group)
    scale = present * np.minimum(1, clip / norms) / expected
    for client, row in enumerate(found):
        total = jax.tree.map(
            lambda *x, s=scale[client]: sum(a * b for a, b in zip(s, x, strict=True)),
            *(gradient for _, gradient in row),
        )
        jax.tree.map(
            lambda a, b, c=client: np.testing.assert_allclose(a[c], b, rtol=1e-4, atol=1e-6),
            made.grads[0]["model"], total,
        )  # fmt: skip
        losses = sum(p * float(v) for p, (v, _) in zip(present[client], row, strict=True))
        np.testing.assert_allclose(made.losses[0][client], losses / expected, rtol=1e-5)


@pytest.mark.parametrize("privacy", [None, Privacy(0.0, 1.0, 4)])
def test_accelerators_round_neither_norms_nor_clipped_gradients(learners, privacy):
    """Matrix products of what is protected are in full precision, those of the rest are not."""
    experiment, group, images, labels = learners
    parts = dataclasses.replace(experiment.parts, privacy=privacy)
    weights = () if privacy is None else (jnp.ones(labels.shape),)
    batch = Batch((images,), (labels,), jnp.zeros(0), weights)
    keys = (jax.random.split(jax.random.key(0), len(images)),)
    traced = jax.make_jaxpr(
        lambda group: private_gradients(
            parts, parts.models, (group,), batch, jnp.float32(1), keys, keys
        )
    )(group)
    found = list(_precisions(traced.jaxpr))
    assert len(found) > 5
    assert {precision is not None for precision in found} == {privacy is not None}


def _precisions(traced):
    """Of all matrix products of a program, and of those that it calls."""
    for equation in traced.eqns:
        if equation.primitive is jax.lax.dot_general_p:
            yield equation.params["precision"]
        for called in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _precisions(called)


def test_noise_has_its_variance_and_spares_what_private_data_cannot_reach(learners):
    experiment, group, *_ = learners
    privacy, model = Privacy(2.0, 0.5, 8), experiment.parts.models[0]
    zeros = jax.tree.map(jnp.zeros_like, group.params)
    keys = lambda step: rng.each(rng.stream(3, "privacy noise", step), jnp.arange(4))  # noqa: E731
    draw = jax.jit(lambda step: privacy_lib.protect(privacy, model, zeros, keys(step), 1.0))
    drawn = [draw(step)["model"] for step in range(20)]
    network = np.concatenate(
        [
            np.concatenate([x.reshape(4, -1) for x in jax.tree.leaves(d["network"])], 1)
            for d in drawn
        ]
    )
    heads = [np.asarray(d["head"]["kernel"]) for d in drawn]
    main = np.concatenate([x[:, :, 0].reshape(-1) for x in heads])
    for values in (network, main):
        assert values.std() == pytest.approx(2.0 * 0.5 / 8, rel=0.02)
        assert stats.kstest(values.ravel() / (2.0 * 0.5 / 8), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(network)[np.triu_indices(80, 1)]).max() < 0.2  # steps and clients
    assert all((x[:, :, 1:] == 0).all() and (d["head"]["bias"][:, 1:] == 0).all()
               for x, d in zip(heads, drawn, strict=True))  # fmt: skip


def test_a_head_that_says_nothing_gets_noise_everywhere(learners):
    experiment, group, *_ = learners
    model = experiment.parts.models[0]
    silent = model.clone(head=object.__new__(type("Silent", (), {})))
    masks = privacy_lib.reached(silent, group.params["model"])
    assert all((mask == 1).all() for mask in jax.tree.leaves(masks))


def test_private_gradients_of_other_heads_are_zero(learners):
    """What `reached` leaves out has no gradient for any sample, so it needs no noise."""
    experiment, group, images, labels = learners
    masks = privacy_lib.reached(experiment.parts.models[0], group.params["model"])
    for _, gradient in _loop(experiment, group, images, labels)[0]:
        jax.tree.map(
            lambda g, m: np.testing.assert_array_equal(np.where(m[0] == 0, g, 0), 0),
            gradient,
            masks,
        )


# --- Whole steps ----------------------------------------------------------------------------------


def test_without_noise_and_clipping_not_a_bit_changes(learners):
    """With the batch held fixed, operation by operation: a compiler may order sums otherwise."""
    experiment, group, images, labels = learners
    assert small.build(privacy__clip_norm=math.inf).parts.privacy is None  # the same program
    batch, keys = (
        Batch((images,), (labels,), jnp.zeros(0)),
        jax.random.split(jax.random.key(0), len(images)),
    )
    found = {}
    for name, privacy in {
        "plain": None, "same": Privacy(0.0, math.inf, 5), "clipped": Privacy(0.0, 0.1, 5)
    }.items():  # fmt: skip
        parts = dataclasses.replace(experiment.parts, privacy=privacy)
        made = private_gradients(
            parts, parts.models, (group,), batch, jnp.float32(1), (keys,), (keys,)
        )
        found[name] = jax.tree.leaves(made.grads)
        np.testing.assert_allclose(made.losses[0], found.setdefault("loss", made.losses[0]))
    for a, b in zip(found["plain"], found["same"], strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(found["plain"], found["clipped"], strict=True))


@pytest.fixture(scope="module")
def private():
    """Three steps with noise on two devices a client, and the same on one."""
    made = {}
    for devices in (1, 2):
        experiment = small.build(
            parallel__data_devices=devices, isolated_baseline=devices == 1, **PRIVATE
        )
        made[devices] = experiment, *small.run(experiment)
    return made


def test_devices_that_share_a_client_draw_its_noise_once(private):
    (one, state, metrics), (two, other, again) = private[1], private[2]
    for a, b in zip(small.clients(one, state), small.clients(two, other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(metrics["private_loss"], again["private_loss"], rtol=1e-4)


def test_noise_differs_between_clients_and_from_the_baseline(private):
    experiment, state, _ = private[1]
    kernels = np.asarray(state.clients[0].params["model"]["network"]["Dense_0"]["kernel"])[0]
    baseline = np.asarray(state.baseline[0].params["model"]["network"]["Dense_0"]["kernel"])[0]
    start = experiment.init_state().clients[0].params["model"]["network"]["Dense_0"]["kernel"]
    moved, alone = (x - np.asarray(start)[0] for x in (kernels, baseline))
    pairs = np.corrcoef([*moved.reshape(4, -1), *alone.reshape(4, -1)])
    assert np.abs(pairs[np.triu_indices(8, 1)]).max() < 0.6  # the same noise would make it 1


def test_the_audit_sees_the_same_exchange():
    found = audit.audit(
        small.build(parallel__client_devices=4, train__steps_per_call=1, train__steps=1,
                    **PRIVATE)
    )  # fmt: skip
    across = {f.carries for f in found.findings if f.axis == audit.CLIENTS}
    assert found.clean and across == {audit.PREDICTIONS, audit.EMBEDDINGS}


# --- Poisson batches ------------------------------------------------------------------------------


def test_poisson_batches_by_their_distribution():
    sizes, steps = np.array([50, 300]), 4000
    places = batches.poisson_places(sizes, 16, steps)
    drawn = batches.poisson(7, sizes, 16, places, 0, steps)
    for client, size in enumerate(sizes):
        rows, rate = drawn[:, client], 16 / size
        counts = (rows >= 0).sum(axis=1)
        assert all(
            len(set(row[row >= 0])) == count for row, count in zip(rows, counts, strict=True)
        )
        assert rows.max() < size
        expected = stats.binom.pmf(np.arange(places + 1), size, rate)
        low, high = stats.binom.ppf([0.01, 0.99], size, rate).astype(int)
        edges = np.r_[0, np.arange(low, high + 1), places + 1]
        seen = np.histogram(counts, edges)[0]
        wanted = np.add.reduceat(expected, edges[:-1]) * steps
        assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3
        hits = np.bincount(rows[rows >= 0], minlength=size)  # of every sample
        assert stats.kstest((hits - steps * rate) / math.sqrt(steps * rate * (1 - rate)),
                            "norm").pvalue > 1e-3  # fmt: skip
        together = ((rows == 0).any(1) & (rows == 1).any(1)).sum()  # samples 0 and 1 independent
        assert abs(together - steps * rate**2) < 4 * math.sqrt(steps * rate**2)
        assert np.abs(np.corrcoef(counts[:-1], counts[1:])[0, 1]) < 0.06


def test_poisson_batches_are_a_function_of_the_step():
    sizes = np.array([40, 90])
    whole = batches.poisson(1, sizes, 8, 30, 0, 6)
    np.testing.assert_array_equal(batches.poisson(1, sizes, 8, 30, 4, 6), whole[4:])
    np.testing.assert_array_equal(batches.poisson(1, sizes[:1], 8, 30, 0, 6), whole[:, :1])


def test_places_suffice_and_what_does_not_fit_stops_the_run():
    sizes = np.array([5600] * 4)
    places = batches.poisson_places(sizes, 32, 2000)
    assert 8000 * stats.binom.sf(places, 5600, 32 / 5600) <= batches.OVERFLOW
    assert 8000 * stats.binom.sf(places - 1, 5600, 32 / 5600) > batches.OVERFLOW
    assert batches.poisson_places(np.array([32]), 32, 10) == 32  # everybody, always
    with pytest.raises(RuntimeError, match="samples of client 0 for 5 places"):
        batches.poisson(0, sizes, 32, 5, 0, 3)


# --- The claim ------------------------------------------------------------------------------------

accountant = functools.partial(
    pytest.importorskip, "dp_accounting", reason="the extra [privacy] is not installed"
)


def test_epsilon_equals_the_accountant_called_by_hand():
    dp = accountant()
    event = dp.SelfComposedDpEvent(
        dp.PoissonSampledDpEvent(32 / 5600, dp.GaussianDpEvent(1.0)), 2000
    )
    tight, rdp = dp.pld.PLDAccountant(), dp.rdp.RdpAccountant()
    for made in (tight, rdp):
        made.compose(event)
    found = privacy_lib.epsilon(1.0, 32 / 5600, 2000, 1e-5)
    assert tight.get_epsilon(1e-5) <= found < tight.get_epsilon(1e-5) + 0.01
    assert found < rdp.get_epsilon(1e-5)
    assert found == pytest.approx(1.4, abs=0.01)


def test_only_steps_that_read_private_samples_count():
    config = small.config(method="fedmd", rounds__private_steps=3, rounds__public_steps=2)
    assert privacy_lib.private_steps(methods.build(config), 12) == 8
    assert privacy_lib.private_steps(methods.build(small.config()), 12) == 12


def test_epsilon_is_in_the_summary_the_report_and_on_the_terminal(tmp_path, capsys):
    accountant()
    # The program of `private`.
    config = small.config(parallel__data_devices=1, isolated_baseline=True, **CLAIM)
    summary = train.train_and_evaluate(config, tmp_path)
    sizes = summary.label_histogram.sum(axis=1)
    expected = [privacy_lib.epsilon(1.0, 8 / n, 6, 1e-3) for n in sizes.tolist()]
    np.testing.assert_allclose(summary.epsilon, expected)
    said = capsys.readouterr().out
    low, high = min(expected), max(expected)
    assert f"epsilon {low:.2f} to {high:.2f} at delta 0.001" in said
    assert "what a client publishes" in said
    report = (tmp_path / "report.html").read_text()
    assert f"<td>{high:.2f}</td>" in report and "differentially private" in report


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"privacy__delta": 1e-5}, "privacy.noise_multiplier"),
        ({"privacy__delta": 1.0}, "privacy.delta"),
        ({"privacy__noise_multiplier": -1.0}, "privacy.noise_multiplier"),
        ({"privacy__noise_multiplier": 1.0}, "privacy.clip_norm"),
        ({"privacy__noise_multiplier": 1.0, "privacy__clip_norm": math.inf}, "privacy.clip_norm"),
        ({**PRIVATE, "model__norm": "batch"}, "model.norm"),
        ({**PRIVATE, "data__feed": "streaming"}, "data.feed"),
        ({**PRIVATE, "data__batch_size": 2000}, "data.batch_size"),
    ],
)
def test_what_cannot_be_is_refused(changes, setting):
    with pytest.raises(ConfigError) as caught:
        small.build(**changes)
    assert caught.value.setting == setting


class Dropping(nn.Module):
    """A network whose training is a matter of chance."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x.reshape(len(x), -1))
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_networks_with_dropout_are_refused(monkeypatch):
    monkeypatch.setitem(models.MODELS._pieces, "dropping", lambda settings: Dropping())
    small.build(model__name="dropping")
    with pytest.raises(ConfigError, match="without dropout"):
        small.build(model__name="dropping", **PRIVATE)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"distill__publish_label_shares": True}, "distill.publish_label_shares"),
        ({"distill__rule": "peeking"}, "distill.rule"),
        ({"model__dtype": "bfloat16"}, "model.dtype"),
    ],
)
def test_what_makes_a_claim_void_is_refused(changes, setting, monkeypatch):
    accountant()
    peeking = lambda *given: privacy_lib.distill.RULES.get("mean")(*given)  # noqa: E731
    peeking.reads_private_data = True
    monkeypatch.setitem(privacy_lib.distill.RULES._pieces, "peeking", peeking)
    small.build(**PRIVATE, **changes)  # without a claim it may be
    with pytest.raises(ConfigError) as caught:
        small.build(**CLAIM, **changes)
    assert caught.value.setting == setting


def test_a_public_set_of_the_clients_own_samples_has_to_be_said():
    accountant()
    config, sizes = small.config(**CLAIM), [np.array([300])]
    check = functools.partial(privacy_lib.check, sizes=sizes, batch_statistics=False, draws=False)
    check(config, own_public=False)
    with pytest.raises(ConfigError, match="data.public_name.*privacy.public_from_clients"):
        check(config, own_public=True)
    check(small.config(**CLAIM, privacy__public_from_clients=True), own_public=True)


def test_the_private_data_as_the_public_set_have_to_be_said(caplog):
    accountant()
    same = {"data__public_name": "digits", **CLAIM}
    with pytest.raises(ConfigError, match="data.public_name = 'digits'.*public_from_clients"):
        small.build(**same)
    with pytest.raises(ConfigError, match="data.public_name = 'digits'.*public_from_clients"):
        small.build(**same, data__public_dir="/anywhere")
    small.build(**same, privacy__public_from_clients=True)
    small.build(**CLAIM, data__public_name="photos")


def test_delta_above_one_over_n_is_warned_of(caplog):
    accountant()
    with caplog.at_level(logging.WARNING):
        small.build(**PRIVATE, privacy__delta=0.1)
    assert "privacy.delta = 0.1 is not below 1/" in caplog.text


def test_weights_to_start_from_are_said_not_to_be_covered(caplog):
    accountant()
    config, method = small.config(**CLAIM, clients__frozen=1), methods.build(small.config())
    config.model.init_from = "weights"
    with caplog.at_level(logging.WARNING):
        privacy_lib.check(
            config, [np.array([300])], batch_statistics=False, draws=False, own_public=False
        )
    assert "the weights in model.init_from" in caplog.text
    found = privacy_lib.epsilons(config, method, np.array([300, 300]))
    assert found is not None and np.isnan(found).tolist() == [True, False]
    assert "epsilon" in privacy_lib.describe(privacy_lib.build(config), 1e-3, found)


def test_without_the_extra_a_claim_says_what_to_install(monkeypatch):
    monkeypatch.setattr(privacy_lib.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"privacy.delta.*pip install \"mhd-jax\[privacy\]\""):
        small.build(**CLAIM)
    small.build(**PRIVATE)  # noise without a claim needs no accountant


def test_stacked_seeds_and_groups_of_clients_trace():
    experiment = small.build(
        num_seeds=2, clients__models=(("mlp", 3), ("mlp_small", 1)), model__width=0, **PRIVATE
    )
    _, metrics = jax.eval_shape(experiment.step, *small.arguments(experiment))
    assert [x.shape[1:] for x in metrics["private_loss"]] == [(2, 3), (2, 1)]
