# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Running statistics follow training, whatever momentum their layer has."""

from __future__ import annotations

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mhd_jax
from mhd_jax import models, record
from mhd_jax.models import bridge, shapes, statistics
from mhd_jax.models.classifier import MultiHeadClassifier
from mhd_jax.models.norm import norm
from mhd_jax.step import private
from tests import small

SAMPLE = (8, 8, 1)


class Normed(nn.Module):
    """A dense layer and its batch normalisation."""

    momentum: float = 0.99

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(16)(x.reshape(len(x), -1))
        return nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)


class NormedNnx(nnx.Module):
    """The same in NNX, which stops the gradients of its statistics."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(64, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.95, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.dense(x.reshape(len(x), -1)))


class Odd(nn.Module):
    """Keeps a count, something never changed, a square, and an average of its own making."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(16)(x.reshape(len(x), -1))
        count = self.variable("batch_stats", "count", lambda: jnp.zeros((), jnp.int32))
        self.variable("batch_stats", "never", lambda: jnp.zeros(3))
        square = self.variable("batch_stats", "square", lambda: jnp.ones(3))
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(16))
        if train:
            count.value += 1
            square.value = square.value**2
            mean.value = 0.98 * mean.value + 0.02 * x.mean(axis=0)
        return x - mean.value


@pytest.fixture(scope="module", autouse=True)
def pieces(pieces: None) -> None:
    """What is registered here is forgotten."""


@jax.custom_vjp
def _as_it_is(x: jax.Array) -> jax.Array:
    return x


_as_it_is.defvjp(lambda x: (x, None), lambda _, gradient: (gradient,))


class Renormed(nn.Module):
    """Is normalised by old statistics in training too, before what has no forward derivative."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(16)(x.reshape(len(x), -1))
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(16))
        x = _as_it_is(x - mean.value)
        if train:
            mean.value = 0.99 * mean.value + 0.01 * x.mean(axis=0)
        return x


def classifier(network: Any, **settings: Any) -> MultiHeadClassifier:
    return models.build({"name": network, **settings}, num_classes=10, num_heads=2)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (Normed(), {"BatchNorm_0": {"mean": 0.99, "var": 0.99}}),
        (Normed(0.9), {"BatchNorm_0": {"mean": 0.9, "var": 0.9}}),
        (NormedNnx, {"norm": {"mean": 0.95, "var": 0.95}}),
        (Renormed(), {"mean": 0.0}),
        (Odd(), {"count": 0.0, "never": 1.0, "square": 0.0, "mean": 0.98}),
    ],
)
def test_the_momentum_of_any_layer_is_found(network: Any, expected: dict[str, Any]) -> None:
    assert shapes.statistics_momentum(classifier(network), SAMPLE) == {"network": expected}


def test_it_is_that_of_the_numbers_a_network_computes() -> None:
    """Of two old values, new ones differ by the momentum."""
    model = classifier(Normed(0.97))
    x = np.random.default_rng(0).normal(size=(4, *SAMPLE)).astype(np.float32)
    variables = model.init(jax.random.key(0), x, train=False)

    def new(by: float) -> Any:
        stats = jax.tree.map(lambda leaf: leaf + by, variables["batch_stats"])
        given = {**variables, "batch_stats": stats}
        return model.apply(given, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    moved = jax.tree.map(lambda one, other: one - other, new(1.0), new(0.0))
    found = shapes.statistics_momentum(model, SAMPLE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), moved, jax.tree.map(
        lambda leaf, momentum: np.full(leaf.shape, momentum), moved, found
    ))  # fmt: skip


class Early(nn.Module):
    """Its features are the first axis but one, and its flag is given in the call."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(16)(x.reshape(len(x), 4, -1)).swapaxes(1, 2)
        x = nn.BatchNorm(axis=1)(x, use_running_average=not train)
        return x.mean(axis=2)


class OursNormed(nn.Module):
    """The same with the layer of the built-in networks."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(16)(x.reshape(len(x), -1))
        return norm("batch", jnp.float32)(x, train)


@pytest.mark.parametrize("network", [Normed(), NormedNnx, Early(), OursNormed()])
def test_gradients_of_public_samples_pass_through_batch_normalisation(network: Any) -> None:
    """What its statistics will undo has none; values are those of evaluation."""
    model = classifier(network)
    x = np.random.default_rng(0).normal(size=(8, *SAMPLE)).astype(np.float32)
    variables = model.init(bridge.keys(jax.random.key(0)), x, train=False)
    stats = variables["batch_stats"]

    def embed(params: Any, renormalise: bool) -> jax.Array:
        given = {"params": params, "batch_stats": stats}
        return model.apply(given, x, train=False, renormalise=renormalise)[1]

    def gradients(renormalise: bool) -> tuple[Any, Any]:
        loss = lambda params: jnp.sin(embed(params, renormalise)).sum()  # noqa: E731
        dense = jax.grad(loss)(variables["params"])["network"]
        return next(v for k, v in dense.items() if k.lower().startswith("dense"))

    np.testing.assert_array_equal(*[embed(variables["params"], asked) for asked in (True, False)])
    free, bound = gradients(False), gradients(True)
    assert np.abs(free["bias"]).max() > 0.01 and np.abs(free["kernel"]).max() > 0.01
    np.testing.assert_allclose(bound["bias"], 0, atol=1e-5)
    assert np.abs(bound["kernel"]).max() > 0.01


def test_distillation_does_not_move_what_batch_normalisation_undoes() -> None:
    """The bias in front of it: private batches do not, nor do lessons."""
    mhd_jax.register("model.name", "normed once", Normed(0.9))
    experiment = small.build(model__name="normed once", optimizer__name="sgd")
    before = [group.params for group in experiment.init_state().clients]
    state, _ = small.run(experiment)
    for old, new in zip(before, [group.params for group in state.clients], strict=True):
        old, new = (tree["model"]["network"]["Dense_0"] for tree in (old, new))
        np.testing.assert_allclose(new["bias"], old["bias"], atol=1e-6)
        assert np.abs(new["kernel"] - old["kernel"]).max() > 1e-4


class Input(nn.Module):
    """Normalises pixels, and remembers the last batch alone."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x.reshape(len(x), -1)
        return nn.Dense(8)(nn.BatchNorm(use_running_average=not train, momentum=0.0)(x))


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (0, {}),
        (1, {"exchange__every": 2}),  # a step without distillation
        (0, {"method": "fedavg", "average__every": 5}),
    ],
)
def test_batch_statistics_are_those_of_private_and_public_samples(
    step: int, changes: dict[str, Any]
) -> None:
    """Those of private samples alone in isolation, and where nothing is distilled."""
    mhd_jax.register("model.name", "input", Input())
    experiment = small.build(
        model__name="input", isolated_baseline=True, train__steps_per_call=1,
        data__public_batch_size=24, **changes,
    )  # fmt: skip
    *_, (_, _, after) = small.walk(experiment, step + 1)
    mean, private = (
        group[0].stats["network"]["BatchNorm_0"]["mean"][0]
        for group in (after.clients, after.baseline)
    )
    expected = private
    if "method" not in changes:
        public = small.public_batch(experiment, step).reshape(24, -1).mean(axis=0)
        expected = (8 * private + 24 * public) / 32
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    assert np.abs(private[0] - private[1]).max() > 0.1  # of clients that have other samples


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_half_of_the_private_loss_is_that_of_the_private_batch_alone(norm: str) -> None:
    model, draw = classifier("mlp_small", norm=norm), np.random.default_rng(0)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SAMPLE)), train=False)
    images, public = (draw.normal(size=(n, *SAMPLE)).astype(np.float32) for n in (6, 10))
    labels = draw.integers(10, size=6)

    def loss(batch: np.ndarray) -> np.ndarray:
        (logits, _), _ = model.apply(variables, batch, train=True, mutable=["batch_stats"])
        chances = np.asarray(jax.nn.log_softmax(logits[:6, 0]))
        return -chances[np.arange(6), labels]

    alone, together = loss(images), loss(np.concatenate([images, public]))
    assert (np.abs(alone - together).max() > 0.01) == (norm == "batch")
    found, _ = private._sample_losses(
        model, variables["params"], variables.get("batch_stats", {}), images, labels,
        jax.random.key(1), jnp.asarray(public),
    )  # fmt: skip
    np.testing.assert_allclose(found, (alone + together) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 3),
        ({"num_seeds": 2}, 3),
        ({"clients__models": (("mlp_small", 3), ("flat", 1))}, 2),
        ({"clients__models": (("flat", 3), ("mlp_small", 1))}, 1),
        ({"model__norm": "layer"}, 0),
        ({"method": "fedavg"}, 0),
    ],
)
def test_clients_whose_batches_hold_a_sample_several_times_are_told(
    changes: dict[str, Any], count: int, caplog: pytest.LogCaptureFixture
) -> None:
    mhd_jax.register("model.name", "flat", nn.Sequential([lambda x: x.reshape(len(x), -1)]))
    with caplog.at_level("WARNING", logger="absl"):
        small.build(**{"model__norm": "batch", "data__batch_size": 300} | changes)
    found = re.findall(r"(\d) of \d clients with batch norm.* data.batch_size = 300", caplog.text)
    assert found == ([str(count)] if count else [])


@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet8"])
@pytest.mark.parametrize("norm", ["batch", "default"])
def test_networks_of_ours_keep_up_by_themselves(network: str, norm: str) -> None:
    assert statistics.paces([classifier(network, norm=norm)], SAMPLE) == ()


def test_what_is_no_average_stays_as_its_network_makes_it() -> None:
    (paces,) = statistics.paces([classifier(Odd())], SAMPLE)
    found = {"network": {"count": 1.0, "never": 1.0, "square": 1.0, "mean": pytest.approx(5)}}
    assert paces == found
    old = {"count": jnp.int32(3), "never": jnp.ones(3), "square": jnp.ones(3), "mean": jnp.ones(2)}
    new = {**old, "count": jnp.int32(4), "square": jnp.zeros(3), "mean": jnp.full(2, 0.98)}
    kept = statistics.keep_up(old, new, paces["network"])
    assert kept["count"] == 4 and (kept["square"] == 0).all()
    np.testing.assert_allclose(kept["mean"], 0.9, atol=1e-6)


def test_a_slow_layer_trains_like_one_that_keeps_up() -> None:
    """Clients and their isolated baseline, beside networks without statistics."""
    ends = []
    for momentum in (0.99, 0.9):
        mhd_jax.register("model.name", f"normed {momentum}", Normed(momentum))
        experiment = small.build(
            clients__models=(("mlp_small", 2), (f"normed {momentum}", 2)), isolated_baseline=True,
            heads__aux=1, train__steps_per_call=1,
        )  # fmt: skip
        state, _ = small.run(experiment, calls=3)
        ends.append([group.stats for group in (*state.clients, *state.baseline)])
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), *ends)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(ends[1])) > 0.1


def test_it_is_told() -> None:
    mhd_jax.register("model.name", "slow", Normed())
    told = record.describe(small.build(model__name="slow"))
    line = "statistics running averages of batch normalisation keep 0.9 in a step, not 0.99"
    assert line in told
    assert "statistics" not in record.describe(small.build(model__norm="batch"))
