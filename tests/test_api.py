# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The Python API: what a notebook sees of a run, and runs read back from their directory."""

from __future__ import annotations

import functools
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import mhd_jax
from mhd_jax import api, evaluator, train
from mhd_jax import experiment as experiment_lib
from mhd_jax.data.sources import Source
from mhd_jax.errors import ConfigError, WorkdirError
from tests import small

ROOT = Path(__file__).resolve().parent.parent
K, H, C = 4, 3, 10


class ScaledHead(nn.Module):
    """A head of the test's own."""

    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        logits = nn.Dense(self.num_heads * self.num_classes)(embedding)
        return 2 * logits.reshape(-1, self.num_heads, self.num_classes)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).random((7, 8, 8, 1), np.float32)


RING = np.roll(np.eye(K, dtype=bool), 1, axis=1)


@pytest.fixture(scope="module")
def run(pieces: None) -> mhd_jax.Run:
    """Two cohorts, a head and a graph of one's own, a metric, in a temporary directory."""
    config = small.config(clients__models=(("mlp", 3), ("mlp_small", 1)))
    return mhd_jax.fit(config, head=ScaledHead, graph=RING, metric="worst_class")


def test_import_is_cheap() -> None:
    code = "import mhd_jax, sys; assert 'jax' not in sys.modules; print(dir(mhd_jax))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'fit'" in done.stdout and "'Run'" in done.stdout


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        mhd_jax.fitt  # noqa: B018


def test_the_summary_is_the_file(run: mhd_jax.Run) -> None:
    assert run.summary == json.loads((run.workdir / "summary.json").read_text())
    assert np.shape(run.summary["shared_accuracy"]) == (K, H)
    assert np.shape(run.summary["metrics"]["worst_class"]) == (K, H)
    assert run.summary["adjacency"].tolist() == RING.tolist()
    assert run.head_names == ["main", "aux 1", "aux 2"]
    assert "shared accuracy" in repr(run)


def test_history_has_one_row_per_step(run: mhd_jax.Run) -> None:
    history = run.history
    assert history["step"].tolist() == [0, 3, 6]
    last = history.iloc[-1]
    expected = np.mean(run.summary["shared_accuracy"], axis=0)
    for head in range(H):
        np.testing.assert_allclose(last[f"shared_accuracy/head_{head}"], expected[head])
    assert np.isnan(history["loss"][0]) and history["loss"][1] > 0
    assert last["metrics/worst_class/head_0"] >= 0


def test_history_is_a_list_without_pandas(
    run: mhd_jax.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert [row["step"] for row in run.history] == [0, 3, 6]


def test_predictions_are_those_of_the_trained_clients(run: mhd_jax.Run) -> None:
    source = run._restored.experiment.federations[0].source
    test = source.test.images(np.arange(len(source.test)))
    probabilities = run.predict(test)
    assert probabilities.shape == (K, len(test), H, C)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-5)
    hits = probabilities.argmax(axis=-1) == source.test.labels[None, :, None]
    by_class = [hits[:, source.test.labels == label].mean(axis=1) for label in range(C)]
    np.testing.assert_allclose(np.mean(by_class, axis=0), run.summary["shared_accuracy"])


def test_many_clients_predict_few_samples_at_a_time(
    run: mhd_jax.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored, seen = run._restored, []
    images = restored.experiment.federations[0].source.test.images(np.arange(7))
    expected = run.predict(images)

    def counted(forward: Any, variables: Any, samples: Any, replica: int) -> Any:
        seen.append((len(samples), len(jax.tree.leaves(variables)[0])))
        return forward(variables, samples, replica)

    each = [functools.partial(counted, forward) for forward in restored._predict]
    monkeypatch.setattr(restored, "_predict", each)
    monkeypatch.setattr(evaluator, "MOST_PASSES", 3)
    np.testing.assert_allclose(run.predict(images), expected, atol=1e-6)
    assert max(samples * clients for samples, clients in seen) <= 3


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros((0, 8, 8, 1), np.uint8), "at least 1"),
        (np.zeros((2, 8, 8, 1), np.int64), "pixels of type uint8, or floating point in 0..1"),
        (np.full((2, 8, 8, 1), np.nan), "finite numbers"),
        (np.full((2, 8, 8, 1), 200.0), "images in 0..1, not 200..200"),
    ],
)
def test_samples_that_cannot_be_predicted(run: mhd_jax.Run, samples: np.ndarray, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run.predict(samples)


def test_pixels_stand_for_images_in_floating_point(run: mhd_jax.Run) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    scaled = run.predict(pixels.astype(np.float32) / 255)
    np.testing.assert_allclose(run.predict(pixels), scaled, atol=1e-6)
    with pytest.raises(ConfigError, match="replica = 1: expected 0 to 0"):
        run.predict(pixels, replica=1)


def test_images_of_another_shape_are_refused(run: mhd_jax.Run) -> None:
    with pytest.raises(ConfigError, match=r"shape \(8, 8, 1\)': expected \[N, 8, 8, 1\]"):
        run.predict(np.zeros((8, 8, 1)))


def test_clients(run: mhd_jax.Run, images: np.ndarray) -> None:
    assert len(run.clients) == K
    for client in run.clients:
        i = client.index
        assert client.peers == np.flatnonzero(RING[i]).tolist()
        assert client.labels == np.flatnonzero(run.summary["primary_labels"][i]).tolist()
        assert client.samples.tolist() == run.summary["label_histogram"][i].tolist()
        assert client.shared_accuracy.tolist() == run.summary["shared_accuracy"][i].tolist()
        assert client.private_accuracy.tolist() == run.summary["private_accuracy"][i].tolist()
        logits, _ = client.model.apply(client.params, jnp.asarray(images), train=False)
        np.testing.assert_allclose(jax.nn.softmax(logits), client.predict(images), atol=1e-5)
    assert "Client(3: labels" in repr(run.clients[3])
    widths = [
        client.params["params"]["network"]["Dense_0"]["kernel"].shape for client in run.clients
    ]
    assert widths[0] == widths[2] == widths[3] == (64, 16)


def test_every_plot_is_a_figure_that_notebooks_show(run: mhd_jax.Run) -> None:
    plots = [name for name in dir(run) if name.startswith("plot_")]
    assert len(plots) == 7
    for name in plots:
        figure = getattr(run, name)()
        assert figure.axes
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_run_is_restored_from_its_directory_alone(run: mhd_jax.Run, images: np.ndarray) -> None:
    again = mhd_jax.Run.load(run.workdir)
    assert again.summary == run.summary
    assert again.config.to_dict() == run.config.to_dict()
    np.testing.assert_array_equal(again.predict(images), run.predict(images))


def test_reading_a_run_writes_nothing(run: mhd_jax.Run, images: np.ndarray) -> None:
    """So a run may lie where one may only read."""
    folder = Path(run.workdir)

    def touched() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}

    before = touched()
    again = mhd_jax.Run.load(run.workdir)
    assert len(again.history) and again.summary.steps and again.predict(images).shape
    assert before == touched()


def test_a_home_directory_is_found(run: mhd_jax.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.workdir.parent))
    assert mhd_jax.Run.load(f"~/{run.workdir.name}").workdir == run.workdir


def test_a_new_process_needs_the_object_again(run: mhd_jax.Run) -> None:
    registry = api.PIECES["head"]
    before = dict(registry._pieces)
    del registry._pieces["ScaledHead"]
    try:
        lost = mhd_jax.Run.load(run.workdir)
        assert lost.summary == run.summary
        with pytest.raises(
            ConfigError, match="'ScaledHead': .* passed to Run.load again, this one as 'head'"
        ):
            lost.clients[0].params  # noqa: B018
        found = mhd_jax.Run.load(run.workdir, head=ScaledHead)
        assert found.clients[0].params["params"]["head"]
    finally:
        registry._pieces = before


def test_a_run_keeps_its_pieces_whatever_stands_under_their_names_later(
    run: mhd_jax.Run, images: np.ndarray
) -> None:
    class Other(ScaledHead):
        @nn.compact
        def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
            return -super().__call__(embedding, train)

    heads = api.PIECES["head"]
    kept, expected = mhd_jax.Run.load(run.workdir), run.predict(images)
    try:
        mhd_jax.register("heads.name", "ScaledHead", Other)
        np.testing.assert_array_equal(kept.predict(images), expected)
        assert heads.get("ScaledHead") is Other
        assert np.abs(mhd_jax.Run.load(run.workdir).predict(images) - expected).max() > 0.1
    finally:
        heads.register("ScaledHead")(ScaledHead)


def test_the_same_fit_again_does_nothing(run: mhd_jax.Run, capsys: pytest.CaptureFixture) -> None:
    mhd_jax.fit(run.config, run.workdir)
    assert "this run is finished" in capsys.readouterr().out


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkdirError, match="has no config.json"):
        mhd_jax.Run.load(tmp_path)


def test_a_config_that_is_cut_off_is_no_run(run: mhd_jax.Run, tmp_path: Path) -> None:
    whole = (run.workdir / "config.json").read_text()
    for broken in (whole[: len(whole) // 2], "", "[1]"):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(WorkdirError, match=r"config\.json: cannot be read \("):
            mhd_jax.Run.load(tmp_path)


def test_an_unknown_piece_is_refused(run: mhd_jax.Run) -> None:
    with pytest.raises(TypeError, match="did you mean 'head'"):
        mhd_jax.Run.load(run.workdir, heads=ScaledHead)


@pytest.mark.parametrize(
    ("settings", "pieces", "said"),
    [
        (
            {"clients.models": (("mlp", 5), ("mlp_small", 3))},
            {"model": "cnn"},
            "model = 'cnn': expected one of those that clients.models names, mlp, mlp_small",
        ),
        (
            {"graph.sequence": ("cycle", "star"), "graph.every": 5},
            {"graph": "complete"},
            "graph = 'complete': expected one of those that graph.sequence names, cycle, star",
        ),
    ],
)
def test_a_piece_that_nobody_would_use_is_refused(
    settings: dict[str, Any], pieces: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        mhd_jax.fit(settings, **pieces)


def test_a_config_has_all_settings_and_no_others() -> None:
    part = ml_collections.ConfigDict({"train": {"steps": 4}})
    with pytest.raises(
        ConfigError, match="ConfigDict without attack.clients, .*: expected all settin"
    ):
        mhd_jax.fit(part)
    mistyped = ml_collections.ConfigDict(small.config().to_dict())
    mistyped.train.stepz = 4
    with pytest.raises(ConfigError, match="train.stepz = 4: .* did you mean train.steps"):
        mhd_jax.fit(mistyped)


@pytest.mark.parametrize("name", ["", 3])
def test_a_piece_without_a_name_is_not_registered(name: Any) -> None:
    with pytest.raises(ConfigError, match=f"name = {name!r}: expected what heads.name calls"):
        mhd_jax.register("heads.name", name, ScaledHead)


def test_a_temporary_directory_ends_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_nothing(config: Any, workdir: str) -> None:
        Path(workdir, "seen").write_text("")

    monkeypatch.setattr(train, "train_and_evaluate", write_nothing)
    run = mhd_jax.fit({"seed": 3})
    path = Path(run.workdir)
    assert run.config.seed == 3 and (path / "seen").exists()
    del run
    gc.collect()
    assert not path.exists()


def test_fit_leaves_the_callers_config_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "train_and_evaluate", lambda config, workdir: None)
    config = small.config()
    before = config.to_dict()
    made = mhd_jax.fit(config, graph="cycle", method="isolated").config
    assert (made.graph.name, made.method) == ("cycle", "isolated")
    assert config.to_dict() == before


def test_a_mistyped_setting_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean train.steps"):
        mhd_jax.fit({"train.step": 3})


@pytest.mark.usefixtures("pieces")
def test_pieces_of_this_package_keep_their_names() -> None:
    with pytest.raises(ConfigError, match="a name that no piece of mhd_jax has"):
        mhd_jax.register("heads.name", "linear", ScaledHead)
    with pytest.raises(ConfigError, match="setting = 'head.name': expected one of heads.name"):
        mhd_jax.register("head.name", "mine", ScaledHead)
    mhd_jax.register("heads.name", "mine", ScaledHead)
    mhd_jax.register("heads.name", "mine", type("Newer", (ScaledHead,), {}))  # a cell run again
    with pytest.raises(ConfigError, match="'random_resized_crop': .* no augmentation of the host"):
        mhd_jax.register("data.augment", "random_resized_crop", lambda key, x: x)


@pytest.mark.usefixtures("pieces")
def test_an_augmentation_of_ones_own_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "train_and_evaluate", lambda config, workdir: None)

    def half(key: jax.Array, x: jax.Array) -> jax.Array:
        return x / 2

    assert mhd_jax.register("data.augment", "mine", half) is half
    named = mhd_jax.fit(small.config(), augment="mine")
    given = mhd_jax.fit(small.config(), augment=half)
    assert [run.config.data.augment for run in (named, given)] == ["mine", "half"]
    keys, images = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 8, 8, 1))
    for run in (named, given):
        feed = experiment_lib.build(run.config).feed
        seen = feed._preparation.train(images, keys, jnp.array([[0.0], [1.0]]))
        np.testing.assert_array_equal(seen, images / 2)


@pytest.mark.usefixtures("pieces")
def test_a_metric_of_ones_own_stands_beside_those_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "train_and_evaluate", lambda config, workdir: None)

    def best(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> np.ndarray:
        return correct.max(axis=-1)

    for metric in (best, (best, "worst_class")):
        run = mhd_jax.fit(small.config(metrics=("worst_class",)), metric=metric)
        assert run.config.metrics == ("worst_class", "best")


@pytest.mark.usefixtures("pieces")
def test_other_data_of_the_same_name_are_no_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_report", lambda *_: None)  # nobody looks at it

    def source(shift: int) -> Source:
        array = (np.arange(720, dtype=np.uint8).reshape(90, 8) + shift, np.arange(90) % 3)
        return mhd_jax.from_arrays("mine", array, array)

    settings = small.config(clients__num=2, train__steps=2, train__log_every=2, heads__aux=1)
    run = mhd_jax.fit(settings, tmp_path / "run", source=source(0))
    before = run.summary.shared_accuracy
    np.testing.assert_array_equal(
        mhd_jax.fit(settings, tmp_path / "run", source=source(0)).summary.shared_accuracy, before
    )
    clients = {"a": (np.eye(6), np.arange(6) % 2), "b": (np.eye(6), np.arange(6) % 2)}
    silos = mhd_jax.from_clients(clients, public=np.eye(6), test=clients["a"], name="silos")
    for _again in range(2):
        mhd_jax.fit(settings, tmp_path / "silos", source=silos)
    for finished in (True, False):
        with pytest.raises(WorkdirError, match="other data of the same name, mine"):
            mhd_jax.fit(settings, tmp_path / "run", source=source(3))
        if finished:
            (tmp_path / "run" / "summary.json").unlink()


@pytest.mark.usefixtures("pieces")
def test_a_cell_run_twice_may_bring_other_data_and_another_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "train_and_evaluate", lambda config, workdir: None)

    class Flat(nn.Module):
        width: int = 5

        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            return nn.Dense(self.width)(x.reshape(len(x), -1))

    for size in (4, 6):
        array = (np.arange(90 * size**2, dtype=np.uint8).reshape(90, size, size), np.arange(90) % 3)
        mine = mhd_jax.from_arrays("mine", array, array)
        run = mhd_jax.fit(small.config(), source=mine, model=Flat(size))
        experiment = experiment_lib.build(run.config)
        assert experiment.image_shape == (size, size, 1)
        assert experiment.parts.models[0].network.width == size
    with pytest.raises(ConfigError, match="a name that no piece of mhd_jax has"):
        mhd_jax.fit(small.config(), source=mhd_jax.from_arrays("digits", array, array))


@pytest.mark.usefixtures("pieces")
def test_objects_become_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "train_and_evaluate", lambda config, workdir: None)

    def by_step(step: int) -> np.ndarray:
        return RING if step % 2 else RING.T

    class Flat(nn.Module):
        width: int = 5

        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            return nn.Dense(self.width)(x.reshape(len(x), -1))

    array = (np.arange(90 * 16, dtype=np.uint8).reshape(90, 4, 4), np.arange(90) % 3)
    mine = mhd_jax.from_arrays("three", array, array)
    run = mhd_jax.fit(small.config(), graph=by_step, model=Flat(7), source=mine)
    assert (run.config.graph.name, run.config.model.name) == ("by_step", "Flat")
    assert run.config.data.name == "three"
    experiment = experiment_lib.build(run.config)
    assert experiment.image_shape == (4, 4, 1)
    assert experiment.parts.models[0].network.width == 7
    reads = experiment.topologies[0].reads(0, 2)
    np.testing.assert_array_equal(reads, [RING.T, RING])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"config": "digits"}, "config = 'digits': expected a ConfigDict, or settings"),
        ({"config": [1]}, "config = .1.: expected a ConfigDict, or settings"),
        ({"workdir": 3}, "workdir = 3: expected a path"),
        (
            {"init_from": "/no/where"},
            "model.init_from = '/no/where': expected a run, an exported client",
        ),
    ],
)
def test_arguments_of_another_kind_are_refused(
    arguments: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=said):
        mhd_jax.fit(**arguments)
    assert not capfd.readouterr().err


def test_a_feature_on_a_tiny_scale_is_brought_to_the_usual_one() -> None:
    draw, labels = np.random.default_rng(0), np.arange(60) % 3
    tiny = draw.normal(size=(60, 5)) * [1, 1e-8, 1, 1, 1]
    source = mhd_jax.from_arrays("tiny", (tiny, labels), (tiny[:30], labels[:30]))
    experiment = experiment_lib.build(
        small.config(clients__num=2, data__public_batch_size=4), (source, None)
    )
    assert 0.5e-8 < experiment.federations[0].std[1] < 2e-8
