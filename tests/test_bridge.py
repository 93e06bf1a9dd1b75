# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Networks of NNX and of Linen, with dropout and batch statistics, alone and side by side."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import mhd_jax
from mhd_jax import api, models, parallel, train
from mhd_jax import experiment as experiment_lib
from mhd_jax.api.pieces import use
from mhd_jax.data import sources
from mhd_jax.errors import ConfigError
from mhd_jax.models import ModelSettings, bridge
from mhd_jax.participation import Roster
from mhd_jax.step.parts import network_keys
from tests import small

F = 5


class Nnx(nnx.Module):
    """As people write them: sizes given, no `train`.

    In front of batch normalisation a bias has no gradient but rounding, which AdamW scales.
    """

    def __init__(self, features: int = F, *, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(features, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dropout(self.norm(self.dense(x)))


class Instance(Nnx):
    """Under a name of its own: what is given to a run is registered, and stays for other tests."""


class Linen(nn.Module):
    """The same in Linen."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(8, use_bias=False)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


class Told(nnx.Module):
    """Takes `train`, draws from a stream of its own, and has a width from the settings."""

    def __init__(self, features: int, width: int = 8, *, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(features, width, rngs=rngs)
        self.noise = rngs.noise.fork()

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = self.dense(x)
        return x + jax.random.normal(self.noise(), x.shape) if train else x


class Counting(nnx.Module):
    """Has a variable of a kind that a client's state does not keep."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(F, 8, rngs=rngs)
        self.count = nnx.Cache(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.count[...] += 1
        return self.dense(x)


def source() -> sources.Source:
    def table(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return np.random.default_rng(seed).normal(size=(rows, F)), np.arange(rows) % 3

    silos = {name: table(20, seed) for seed, name in enumerate("abcd")}
    return mhd_jax.from_clients(silos, public=table(30, 7)[0], test=table(12, 8), name="four")


MIXED: dict[str, Any] = {
    "data__name": "four", "partition__name": "by_key",
    "clients__models": (("Nnx", 2), ("Linen", 2)),
    "train__steps": 4, "train__log_every": 2, "train__eval_every": 4, "train__checkpoint_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def pieces(pieces: None) -> None:
    mhd_jax.register("model.name", "Nnx", Nnx)
    mhd_jax.register("model.name", "Linen", Linen)
    api.pieces.use(small.config(), {"source": source()})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pieces: None) -> mhd_jax.Run:
    """NNX and Linen in one run."""
    workdir = tmp_path_factory.mktemp("mixed") / "run"
    train.train_and_evaluate(small.config(**MIXED), workdir, with_report=False)
    return mhd_jax.Run.load(workdir)


def states(run: mhd_jax.Run) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(run._restored.state)]


def test_one_device_and_four_train_the_same(run: mhd_jax.Run, tmp_path: Path) -> None:
    config = small.config(**MIXED, parallel__client_devices=4)  # rows of padding too
    train.train_and_evaluate(config, tmp_path / "run", with_report=False)
    for ours, theirs in zip(states(mhd_jax.Run.load(tmp_path / "run")), states(run), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_run_gone_on_with_gives_the_same_bits(
    run: mhd_jax.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = train.Passage._advance

    def until_2(self: train.Passage, call: train.Stepper, step: int) -> int:
        if step == 2:
            raise KeyboardInterrupt
        return advance(self, call, step)

    monkeypatch.setattr(train.Passage, "_advance", until_2)
    config = small.config(**MIXED)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, tmp_path / "run", with_report=False)
    monkeypatch.undo()
    train.train_and_evaluate(config, tmp_path / "run", with_report=False)
    for ours, theirs in zip(states(mhd_jax.Run.load(tmp_path / "run")), states(run), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_batch_statistics_of_both_kinds_are_trained(run: mhd_jax.Run) -> None:
    for client, norm in ((0, "norm"), (2, "BatchNorm_0")):
        stats = run.clients[client].params["batch_stats"]["network"][norm]
        assert (stats["mean"] != 0).all() and (stats["var"] != 1).all()


def test_predictions_are_without_dropout_and_like_the_exported_clients(
    run: mhd_jax.Run, tmp_path: Path
) -> None:
    samples = np.random.default_rng(3).normal(size=(9, F))
    found = run.predict(samples)
    np.testing.assert_array_equal(found, run.predict(samples))
    client = mhd_jax.load_client(run.export("b", tmp_path / "b"))  # an NNX one
    np.testing.assert_allclose(client.predict(samples), found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("network", [Nnx, Linen])
def test_dropout_draws_anew_for_every_step_and_client_and_alike_for_the_baseline(
    network: Any,
) -> None:
    model = models.build({"name": network}, num_classes=3, num_heads=2)
    x, key = jnp.ones((4, F)), jax.random.key(0)
    variables = model.init(bridge.keys(key), x, train=False)

    def zeros(key: jax.Array) -> np.ndarray:
        (_, embedding), _ = model.apply(
            variables, x + jnp.arange(4)[:, None], train=True, rngs=bridge.keys(key),
            mutable=["batch_stats"],
        )  # fmt: skip
        return np.asarray(embedding == 0)

    first, second = zeros(jax.random.key(1)), zeros(jax.random.key(2))
    assert 0 < first.sum() < first.size and (first != second).any()
    np.testing.assert_array_equal(first, zeros(jax.random.key(1)))


def test_keys_differ_by_client_and_step_but_not_by_device() -> None:
    def drawn(devices: int, now: int) -> np.ndarray:
        layout = parallel.make_layout([4], client_devices=devices)
        parts: Any = SimpleNamespace(layout=layout, roster=Roster(layout, layout), models=[None])
        inputs: Any = SimpleNamespace(seated=jnp.zeros(0, jnp.int32))
        find = parallel.on_mesh(
            lambda: jax.random.key_data(
                network_keys(parts, inputs, jnp.uint32(0), jnp.int32(now))[0]
            ),
            layout, in_specs=(), out_specs=P("clients"),
        )  # fmt: skip
        return np.asarray(jax.jit(find)())

    one = drawn(1, 3)
    np.testing.assert_array_equal(one, drawn(4, 3))
    assert len({tuple(key) for key in [*one.tolist(), *drawn(1, 4).tolist()]}) == 8


def test_initial_parameters_differ_by_client() -> None:
    model = models.build({"name": Nnx}, num_classes=3, num_heads=2)
    first, second = (
        model.init(bridge.keys(jax.random.key(client)), jnp.ones((1, F)), train=False)["params"]
        for client in range(2)
    )
    assert (first["network"]["dense"]["kernel"] != second["network"]["dense"]["kernel"]).all()


@pytest.mark.parametrize(
    "piece",
    [
        functools.partial(Told, F),
        lambda settings: functools.partial(Told, F, settings.width or 8),
    ],
    ids=["partial", "factory"],
)
def test_a_network_with_arguments_that_takes_train(piece: Any) -> None:
    found = models.embedding_network("told", piece, ModelSettings(width=8))
    x = jnp.ones((2, F))
    variables = found.init(bridge.keys(jax.random.key(0)), x, train=False)
    quiet = found.apply(variables, x, train=False)
    rngs = bridge.keys(jax.random.key(1))
    noisy, _ = found.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])
    assert quiet.shape == (2, 8) and (noisy != quiet).all()


def test_fit_names_a_class_and_a_partial() -> None:
    for piece, name in ((Nnx, "Nnx"), (functools.partial(Told, F), "Told"), (Linen(), "Linen")):
        config = small.config()
        api.pieces.use(config, {"model": piece})
        assert config.model.name == name


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        (Told, "'Told': expected an NNX module class that takes rngs alone"),
        (Instance(rngs=nnx.Rngs(0)), "'Instance': expected the class of an NNX module"),
        (
            functools.partial(nnx.Linear, 3, 4),
            r"'Linear': expected a network for samples of shape .5,",
        ),
        (Counting, "'Counting': expected a network whose variables .* not cache too"),
        (
            functools.partial(nnx.LinearGeneral, F, (2, 4)),
            r"'LinearGeneral': expected embeddings of",
        ),
    ],
)
def test_what_does_not_fit_is_named(piece: Any, said: str) -> None:
    config = small.config(data__name="four", partition__name="by_key")
    with pytest.raises(ConfigError, match=f"model.name = {said}"):
        api.pieces.use(config, {"model": piece})
        experiment_lib.build(config)


class Untold(nn.Module):
    """A Linen network that does not care whether it is trained."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(nn.Dense(8)(x))


@pytest.mark.parametrize(
    "piece",
    [
        Untold(), nn.Dense(8), nn.Sequential([nn.Dense(6), nn.relu]),
        functools.partial(nn.Dense, 8), functools.partial(nn.Dense, features=8),
    ],
)  # fmt: skip
def test_a_linen_network_need_not_take_train(piece: nn.Module) -> None:
    model = models.build({"name": piece}, num_classes=3, num_heads=2)
    x = jnp.ones((4, F))
    variables = model.init(bridge.keys(jax.random.key(0)), x, train=False)
    logits, _ = model.apply(variables, x, train=True)
    assert logits.shape == (4, 2, 3)


class Series(nn.Module):
    """Convolves along one axis: its kernels have three axes, as those of attention do."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(4, (3,))(x.reshape(len(x), 8, -1)).mean(axis=1)


@pytest.mark.parametrize(
    ("model", "convolves"), [("mlp", False), ("cnn", True), ("vit", False), (Series, True)]
)
def test_convolutions_are_found_along_any_number_of_axes(model: Any, convolves: bool) -> None:
    config = small.config(model__width=8)
    use(config, {"model": model})
    assert experiment_lib.build(config).parts.convolutional == convolves


class LinenConvolutions(nn.Module):
    """Of every kind that people put into a small network."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(nn.remat(nn.Conv)(4, (2, 2), strides=2, padding="VALID", use_bias=False)(x))
        x = nn.Conv(4, (3,), padding="CIRCULAR")(x.reshape(len(x), -1, 4))
        return nn.Dense(8)(x.reshape(len(x), -1))


class NnxConvolutions(nnx.Module):
    """Likewise in NNX, inside another module."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        second = nnx.Conv(4, 4, (2, 2), strides=2, padding="VALID", rngs=rngs)
        self.layers = nnx.Sequential(first, nnx.relu, second)
        self.last = nnx.Linear(64, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.layers(x).reshape(len(x), -1))


@pytest.mark.parametrize("network", [LinenConvolutions, NnxConvolutions])
def test_convolutions_from_elsewhere_are_lowered_like_ours(network: Any) -> None:
    x = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 1))

    def made(lowering: str) -> tuple[Any, str, Any]:
        model = models.build({"name": network}, 3, 2, conv_lowering=lowering)
        init = lambda key: model.init(bridge.keys(key), x[0], train=True)  # noqa: E731
        variables = jax.vmap(init)(jax.random.split(jax.random.key(1), 3))

        def loss(params: Any, x: jax.Array) -> jax.Array:
            logits, _ = model.apply({**rest, "params": params}, x, train=True)
            return jnp.sin(logits).sum()

        params = variables.pop("params")
        rest = jax.tree.map(lambda leaf: leaf[0], variables)
        gradient = jax.vmap(jax.grad(loss))
        return variables, str(jax.make_jaxpr(gradient)(params, x)), gradient(params, x)

    (before, plain, expected), (after, lowered, found) = made("grouped"), made("unrolled")
    assert "feature_group_count=3" in plain and "feature_group_count=3" not in lowered
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert jax.tree.structure(before) == jax.tree.structure(after)


class Deterministic(nnx.Module):
    """Its dropout does as `__call__` says, and nothing says anything else to that."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.dense, self.dropout = nnx.Linear(F, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        return self.dropout(self.dense(x), deterministic=deterministic)


class Undecided(Deterministic):
    """None leaves it to the layer."""

    def __call__(self, x: jax.Array, deterministic: bool | None = None) -> jax.Array:
        return super().__call__(x, deterministic)  # type: ignore[arg-type]


def test_a_flag_of_another_name_is_noticed_in_nnx() -> None:
    assert bridge.misnamed_flag(bridge.network(Deterministic)) == "deterministic"
    told = functools.partial(Told, F)
    assert not any(map(bridge.misnamed_flag, map(bridge.network, (Nnx, told, Undecided))))
