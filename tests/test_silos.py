# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Clients as they are: their arrays or folders, their names, their own test samples, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import logging
from PIL import Image

import mhd_jax
from mhd_jax import api, federation, record, train
from mhd_jax import experiment as experiment_lib
from mhd_jax.data import sources
from mhd_jax.errors import ConfigError, WorkdirError
from mhd_jax.reporting import charts, report, terminal
from mhd_jax.reporting.graph_drawing import communication_graph
from tests import small

NAMES = ("north", "south", "university hospital")
C, F = 3, 5


def table(rows: int, seed: int, classes: int = C) -> tuple[np.ndarray, np.ndarray]:
    """A table [rows, F] whose first columns say the class; units far from 1."""
    labels = np.arange(rows) % classes
    noise = np.random.default_rng(seed).normal(size=(rows, F))
    noise[:, :C] += 4 * np.eye(C)[labels]
    return (1000 + 50 * noise).astype(np.float64), labels


def silos(**changes: Any) -> sources.Source:
    """Three clients of different sizes, with test samples of their own."""
    given: dict[str, Any] = {
        "clients": {name: table(20 + 4 * i, seed=i) for i, name in enumerate(NAMES)},
        "public": table(30, seed=7)[0],
        "test": table(21, seed=8),
        "client_test": {name: table(6 + i, seed=20 + i) for i, name in enumerate(NAMES)},
        "class_names": ("a", "b", "c"),
        "name": "hospitals",
    }
    given |= changes
    return mhd_jax.from_clients(given.pop("clients"), **given)


@pytest.fixture(scope="module")
def run(pieces: None) -> mhd_jax.Run:
    """Three clients with names and test samples of their own."""
    return mhd_jax.fit(small.config(isolated_baseline=True), source=silos())


def test_a_run_keeps_its_own_data_whatever_is_registered_later(
    run: mhd_jax.Run, tmp_path: Path
) -> None:
    rows = table(8, seed=3)[0]
    before = run.predict(rows)
    scaled = {name: (table(20 + 4 * i, seed=i)[0] / 1000, table(20 + 4 * i, seed=i)[1])
              for i, name in enumerate(NAMES)}  # fmt: skip
    other = silos(clients=scaled, public=table(30, seed=7)[0] / 1000)
    api.pieces.use(small.config(), {"source": other})  # what a later `fit` does
    again = mhd_jax.Run(run.workdir, run.config, run._data[0])
    np.testing.assert_array_equal(again.predict(rows), before)
    np.testing.assert_allclose(run.predict(rows.astype(np.int64)), before, atol=0.3)
    with pytest.raises(WorkdirError, match="other data of the same name, hospitals"):
        mhd_jax.Run.load(run.workdir, source=other).predict(rows)
    api.pieces.use(small.config(), {"source": silos()})


def test_a_run_that_divided_the_clients_anew_is_read_back_as_it_was(tmp_path: Path) -> None:
    settings = {"partition__name": "iid", "clients__num": 5}
    (tmp_path / "config.json").write_text(small.config(**settings).to_json())
    for given in ({"source": silos()}, {"source": silos(), "partition": None}):
        found = mhd_jax.Run.load(tmp_path, **given).config
        assert (found.partition.name, found.clients.num) == ("iid", 5)
        assert found.data.name == "hospitals"


def test_a_run_of_some_classes_keeps_only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_report", lambda *_: None)  # nobody looks at it
    run = mhd_jax.fit(small.config(data__num_classes=2), source=silos())
    probabilities = run.predict(table(8, seed=3)[0])
    assert probabilities.shape[-1] == run.summary.num_classes == 2


def test_clients_of_the_data_in_place_of_those_asked_for_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = small.config(clients__num=5, partition__name="dirichlet")
    with caplog.at_level("WARNING", logger="absl"):
        api.pieces.use(config, {"source": silos()})
    assert (config.clients.num, config.partition.name) == (3, "by_key")
    assert "partition.name = dirichlet: taken as by_key" in caplog.text
    assert "clients.num = 5: taken as 3, as hospitals comes with its clients" in caplog.text
    caplog.clear()
    api.pieces.use(config, {"source": silos()})
    assert not caplog.text


def test_samples_that_are_dealt_out_anew_are_told(caplog: pytest.LogCaptureFixture) -> None:
    api.register("data.name", "hospitals", lambda *_: silos())
    for name, told in (("iid", True), ("by_key", False)):
        caplog.clear()
        config = small.config(clients__num=3, data__name="hospitals", partition__name=name)
        with caplog.at_level("WARNING", logger="absl"):
            federation.data_sets(config)
        said = "partition.name = iid: deals the samples out anew, although hospitals says whose"
        assert (said in caplog.text) == told


def test_settings_of_reading_mean_nothing_to_arrays(caplog: pytest.LogCaptureFixture) -> None:
    config = small.config(data__image_size=16, data__split="train[:20]", data__public_fraction=0.2)
    with caplog.at_level("WARNING", logger="absl"):
        api.pieces.use(config, {"source": silos()})
    for said in ("data.image_size = 16", "data.split = train[:20]", "data.public_fraction = 0.2"):
        assert f"{said}: has no effect on samples given as hospitals" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"public": table(30, seed=7)}, "public = '2 arrays': expected samples alone"),
        ({"test": table(21, seed=8)[0]}, "test = 'ndarray': expected a pair"),
    ],
)
def test_parts_of_another_kind_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        silos(**changes)


# --- Clients from arrays --------------------------------------------------------------------------


def test_every_client_keeps_its_own_rows() -> None:
    source = silos()
    config = small.config(clients__num=3, partition__name="by_key")
    experiment = experiment_lib.build(config, (source, source.public))
    fed = experiment.federations[0]
    for client, name in enumerate(NAMES):
        rows = source.train.images(fed.partition.indices[client])
        np.testing.assert_array_equal(rows, table(20 + 4 * client, seed=client)[0].astype("f4"))
        assert experiment.client_names[client] == name
    np.testing.assert_array_equal(
        fed.public.images(fed.public_indices), table(30, seed=7)[0].astype("f4")
    )
    np.testing.assert_allclose(fed.mean, table(30, seed=7)[0].mean(axis=0), rtol=1e-4)


def test_a_source_with_clients_sets_their_number_and_the_partition(run: mhd_jax.Run) -> None:
    assert (run.config.clients.num, run.config.partition.name) == (3, "by_key")
    assert run.config.data.name == "hospitals"


def test_names_are_in_the_summary_the_terminal_the_report_and_the_figures(
    run: mhd_jax.Run,
) -> None:
    summary = run.summary
    assert tuple(summary.client_names) == NAMES
    assert json.loads((run.workdir / "summary.json").read_text())["client_names"] == list(NAMES)
    assert [client.name for client in run.clients] == list(NAMES)
    assert "Client(north:" in repr(run.clients[0])
    assert "university hospital  main" in terminal.final_table(summary)
    page = (run.workdir / "report.html").read_text()
    assert all(f"<th>{name}</th>" in page for name in NAMES)
    assert [row["client"] for row in report.client_rows(summary)] == list(NAMES)
    axis = charts.label_distribution(summary).axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["north", "south", "university ho…"]
    assert tuple(summary.class_names) == ("a", "b", "c")
    assert [t.get_text() for t in axis.get_xticklabels()] == ["a", "b", "c"]
    assert {row["labels"] for row in report.client_rows(summary)} <= {"a", "b", "c", "none"}
    written = {text.get_text() for text in communication_graph(summary).axes[0].texts}
    assert {"north", "south", "university ho…"} <= written


def test_the_header_names_clients_with_their_sizes(
    run: mhd_jax.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    print(record.describe(run._restored.experiment))
    assert "north (20), south (24), university hospital (28)" in capsys.readouterr().out


def test_own_test_accuracy_is_measured_on_the_clients_own_samples(run: mhd_jax.Run) -> None:
    found = run.summary.own_test_accuracy
    assert found is not None and found.shape == (3, 3)
    for client, _ in enumerate(NAMES):
        samples, labels = table(6 + client, seed=20 + client)
        predicted = run.predict(samples)[client].argmax(axis=-1)
        expected = (predicted == labels[:, None]).mean(axis=0)
        np.testing.assert_allclose(found[client], expected, atol=1e-6)
    baseline = run.summary.isolated_baseline
    assert baseline is not None and baseline.own_test_accuracy is not None
    assert baseline.own_test_accuracy.shape == (3, 1)
    line = run.records[-1]
    assert np.shape(line["own_test_accuracy"]) == (3, 3)
    assert "own test accuracy (measured)" in (run.workdir / "report.html").read_text()


def test_without_own_test_samples_there_is_no_such_accuracy() -> None:
    source = silos(client_test=None)
    assert source.silos is not None and source.silos.test is None


def test_another_number_of_clients_is_refused() -> None:
    source = silos()
    config = small.config(partition__name="by_key")
    with pytest.raises(ConfigError, match=r"clients.num = 4: expected 3, the number of clients"):
        experiment_lib.build(config, (source, source.public))


def test_a_key_per_sample_makes_clients() -> None:
    samples, labels = table(12, seed=0)
    writer = ["b", "a", "c"] * 4
    source = mhd_jax.from_arrays("writers", (samples, labels), (samples, labels), clients=writer)
    config = small.config(clients__num=3, partition__name="by_key", data__public_fraction=0.25)
    fed = experiment_lib.build(config, (source, None)).federations[0]
    assert source.silos is not None and source.silos.names == ("a", "b", "c")
    for client, name in enumerate("abc"):
        owned = fed.partition.indices[client]
        assert {writer[i] for i in owned} == {name} and not set(owned) & set(fed.public_indices)
    assert len(fed.public_indices) == 3


def test_keys_of_another_length_are_refused() -> None:
    pair = table(12, seed=0)
    with pytest.raises(ConfigError, match="a client for each of 12 training samples, not 2"):
        mhd_jax.from_arrays("writers", pair, pair, clients=["a", "b"])


def test_by_key_needs_a_data_set_with_clients() -> None:
    with pytest.raises(ConfigError, match="as data.name does not say whose a sample is"):
        small.build(partition__name="by_key")


def test_the_first_classes_alone_keep_their_clients() -> None:
    source = sources.first_classes(silos(), 2)
    assert source.silos is not None and source.silos.test is not None
    assert np.bincount(source.silos.owner).tolist() == [14, 16, 19]
    assert len(source.silos.test) == len(source.silos.test_owner) == 4 + 5 + 6
    assert set(source.silos.test.labels) == {0, 1}


def test_a_client_without_samples_of_the_first_classes_is_named() -> None:
    samples, labels = table(8, seed=1)
    clients = {"north": table(20, seed=0), "south": (samples, np.full_like(labels, 2))}
    source = sources.first_classes(silos(clients=clients, client_test=None), 2)
    config = small.config(clients__num=2, partition__name="by_key", data__num_classes=2)
    with pytest.raises(ConfigError) as error:
        experiment_lib.build(config, (source, source.public))
    assert str(error.value) == (
        "data.num_classes = 2: expected classes of which every client has samples, but no sample "
        "of 'south' is of the first 2"
    )


# --- Clients from folders -------------------------------------------------------------------------


def draw(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sites with 2 and 3 images of each class, a public pool and a test set."""
    counts = {"clients/west": 2, "clients/east": 3, "client_test/west": 1, "client_test/east": 1}
    for where, count in counts.items():
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                draw(tmp_path / where / name / f"{i}.png", seed=100 * label + i)
    for i in range(4):
        draw(tmp_path / "public" / f"{i}.png", seed=i)
        draw(tmp_path / "test" / ("cat", "dog")[i % 2] / f"{i}.png", seed=i)
    return tmp_path


def folder_config(folder: Path, **changes: Any) -> Any:
    settings = {
        "data__name": "folder", "data__dir": str(folder), "partition__name": "by_key",
        "clients__num": 2,
    }  # fmt: skip
    return small.config(**settings, **changes)


def test_folders_of_clients(folder: Path) -> None:
    experiment = experiment_lib.build(folder_config(folder))
    fed = experiment.federations[0]
    assert experiment.client_names == ("east", "west")
    assert fed.partition.histogram(fed.source.train.labels, 2).tolist() == [[3, 3], [2, 2]]
    assert len(fed.public_indices) == 4 and len(fed.source.test) == 4
    assert fed.source.silos is not None and fed.source.silos.test is not None
    assert sorted(fed.source.silos.test_owner) == [0, 0, 1, 1]
    assert fed.source.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "clients/west/bird").mkdir(), "a client with images of class 'bird'"),
        (lambda root: [f.unlink() for f in (root / "test/dog").glob("*")],
         "test images of class 'dog'"),
        (lambda root: draw(root / "clients/alone/cat/0.png", 0),
         "clients = 'alone': expected at least 2 images, not 1"),
        (lambda root: [f.unlink() for f in (root / "public").glob("*")],
         "a directory with PNG or JPEG images in it"),
        (lambda root: [f.unlink() for f in (root / "client_test/east").rglob("*.png")],
         "images of every client and of nobody else: east, west"),
    ],
)  # fmt: skip
def test_what_is_missing_in_folders_is_named(
    folder: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ConfigError) as error:
        experiment_lib.build(folder_config(folder))
    assert message in str(error.value)


def test_without_a_public_folder_a_fraction_is_public(folder: Path) -> None:
    for file in (folder / "public").glob("*"):
        file.unlink()
    (folder / "public").rmdir()
    fed = experiment_lib.build(folder_config(folder, data__public_fraction=0.2)).federations[0]
    assert fed.public is fed.source.train and len(fed.public_indices) == 2


# --- Bad input ------------------------------------------------------------------------------------


def with_client(pair: tuple[Any, Any], name: str = "south") -> dict[str, Any]:
    return {"clients": {"north": table(20, seed=0), name: pair}, "client_test": None}


def spoiled(value: float) -> tuple[np.ndarray, np.ndarray]:
    samples, labels = table(40, seed=1)
    samples[[3, 17], [0, 2]] = value
    return samples, labels


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a class that no client has": (
        {"clients": {"north": table(20, 0, classes=2), "south": table(20, 1, classes=2)},
         "client_test": None},
        "clients = ['north', 'south']: expected a client with samples of class 'c' (label 2); "
        "none has any",
    ),
    "a client with one sample": (
        with_client(table(1, seed=1)), "clients = 'south': expected at least 2 samples, not 1",
    ),
    "labels outside the classes": (
        with_client((table(8, seed=1)[0], np.array([0, 1, 2, 7, 0, 1, 2, 0]))),
        "clients = 'south': expected labels from 0 to 2, as there are 3 classes, but row 3 has 7",
    ),
    "labels that are no integers": (
        with_client((table(8, seed=1)[0], np.linspace(0, 1, 8))),
        "clients = 'south': expected labels that are integers, not float64",
    ),
    "labels of another length": (
        with_client((table(8, seed=1)[0], np.arange(7) % 3)),
        "clients = 'south': expected labels of shape [N] = (8,), one a sample, not (7,)",
    ),
    "NaN": (
        with_client(spoiled(np.nan)),
        "clients = 'south': expected finite numbers, but 2 of 40 rows have NaN or inf (rows 3, 17)",
    ),
    "inf": (
        with_client(spoiled(np.inf)),
        "clients = 'south': expected finite numbers, but 2 of 40 rows have NaN or inf (rows 3, 17)",
    ),
    "NaN in the public pool": (
        {"public": spoiled(np.nan)[0]},
        "public = (40, 5): expected finite numbers, but 2 of 40 rows have NaN or inf (rows 3, 17)",
    ),
    "another number of features": (
        with_client((table(8, seed=1)[0][:, :4], np.arange(8) % 3)),
        "clients = 'south': expected samples of shape (5,) as client 'north' has, not (4,)",
    ),
    "another type": (
        with_client((np.ones((8, F), np.int64), np.arange(8) % 3)),
        "clients = 'south': expected samples of type float32 as client 'north' has, not int32",
    ),
    "no numbers": (
        with_client((np.full((8, F), "x"), np.arange(8) % 3)),
        "clients = 'south': expected samples that are numbers, not <U1",
    ),
    "duplicate names": (
        {"clients": [("north", table(20, 0)), ("north", table(20, 1))], "client_test": None},
        "clients = 'north': expected a name of its own for every client, not the same for 2",
    ),
    "no clients": ({"clients": {}}, "clients = {}: expected at least one client, with a name"),
    "no pair": (
        with_client(table(8, 1)[0]),  # type: ignore[arg-type]
        "clients = 'south': expected a pair (samples, labels)",
    ),
    "a pair and more": (
        with_client((*table(8, 1), 1)),  # type: ignore[arg-type]
        "clients = 'south': expected a pair (samples, labels), not 3 in number",
    ),
    "one number for samples": (
        with_client((5, 3)),
        "clients = 'south': expected at least one sample, in an array of shape [N, F], [N, T], "
        "[N, T, F], [N, H, W] or [N, H, W, C], not ()",
    ),
    "test samples of a client without labels": (
        {"client_test": dict.fromkeys(NAMES, (table(6, 0)[0],))},
        "client_test = 'north': expected a pair (samples, labels), not 1 in number",
    ),
    "a test set without labels": (
        {"test": (table(21, 8)[0],)},
        "test = 'tuple': expected a pair (samples, labels), not 1 in number",
    ),
    "clients without names": (
        {"clients": [table(20, 0), table(20, 1)], "client_test": None},
        "clients = 'list': expected samples and labels of every client by its name, such as "
        "{'north': (x, y)}",
    ),
    "labels counted from 1": (
        {
            "clients": {"north": (table(20, 0)[0], table(20, 0)[1] + 1)},
            "client_test": None, "class_names": (),
        },
        "clients = ['north']: expected a client with samples of class '0' (label 0); none has any; "
        "are labels counted from 0?",
    ),
    "samples of unlike lengths": (
        with_client(([[1.0, 2.0], [3.0]], [0, 1])),
        "clients = 'south': expected an array of samples, all of one shape (ValueError: setting an "
        "array element with a sequence. The requested array has an inhomogeneous shape after 1 "
        "dimensions. The detected shape was (2,) + inhomogeneous part.)",
    ),
    "public samples of unlike lengths": (
        {"public": [[1.0, 2.0], [3.0]]},
        "public = 'list': expected an array of samples, all of one shape (ValueError: setting an "
        "array element with a sequence. The requested array has an inhomogeneous shape after 1 "
        "dimensions. The detected shape was (2,) + inhomogeneous part.)",
    ),
    "an empty public pool": (
        {"public": np.zeros((0, F))},
        "public = (0, 5): expected at least one sample, in an array of shape [N, F], [N, T], "
        "[N, T, F], [N, H, W] or [N, H, W, C], not (0, 5)",
    ),
    "a test set without a class": (
        {"test": table(20, 8, classes=2)},
        "test = '20 samples': expected a sample of every class, but class 'c' (label 2) has none",
    ),
    "a single class": (
        {
            "clients": {"north": table(20, 0, classes=1), "south": table(24, 1, classes=1)},
            "test": table(20, 8, classes=1), "client_test": None, "class_names": (),
        },
        "data.name = 'hospitals': expected at least 2 classes, not 1",
    ),
    "test samples of a stranger": (
        {"client_test": {"nord": table(6, 0)}},
        "client_test = ['nord']: expected test samples of every client and of nobody else: "
        "north, south, university hospital",
    ),
    "test samples without names": (
        {"client_test": [table(6, 0)] * 3},
        "client_test = 'list': expected a mapping from the name of every client to its samples "
        "and labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(case: str) -> None:
    changes, message = BAD[case]
    with pytest.raises(ConfigError) as error:
        silos(**changes)
    assert str(error.value) == message


def test_columns_with_names_have_one_order() -> None:
    pandas = pytest.importorskip("pandas")

    def frame(rows: int, columns: str) -> Any:
        samples, labels = table(rows, seed=rows)
        return pandas.DataFrame(samples, columns=list("abcde"))[list(columns)], labels

    given: dict[str, Any] = {
        "clients": {"north": frame(20, "abcde"), "south": frame(24, "abcde")},
        "client_test": {"north": table(6, 1), "south": frame(7, "abcde")},
        "public": frame(30, "abcde")[0], "test": frame(21, "abcde"),
    }  # fmt: skip
    assert silos(**given).image_shape == (F,)
    for change, named in (
        ({"clients": {"north": frame(20, "abcde"), "south": frame(24, "bacde")}}, "clients = 's"),
        ({"public": frame(30, "edcba")[0]}, "public = (30, 5)"),
        ({"test": frame(21, "abced")}, "test = "),
        ({"client_test": {"north": table(6, 1), "south": frame(7, "bacde")}}, "client_test = 's"),
    ):
        with pytest.raises(ConfigError) as caught:
            silos(**given | change)
        assert str(caught.value).startswith(named)
        assert "expected the columns a, b, c, d, e in this order" in str(caught.value)


def test_names_may_be_numbers() -> None:
    clients = {7: table(20, 0), 11: table(20, 1)}
    tests = {11: table(6, 2), 7: table(5, 3)}
    source = silos(clients=clients, client_test=tests)
    assert source.silos is not None and source.silos.names == ("7", "11")
    assert np.bincount(source.silos.test_owner).tolist() == [5, 6]
    with pytest.raises(ConfigError, match=r"client_test = \['11'\]: .* nobody else: 7, 11"):
        silos(clients=clients, client_test={11: table(6, 2)})


def test_public_rows_that_are_private_or_test_rows_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    public = np.concatenate([table(30, 7)[0], table(24, 1)[0][:4], table(21, 8)[0][:2]])
    logging.get_absl_logger().propagate = True
    with caplog.at_level("WARNING"):
        silos(public=public)
    assert "4 of 36 public rows are also private rows of client 'south'" in caplog.text
    assert "2 of 36 public rows are also test rows" in caplog.text
    assert "'north'" not in caplog.text


def test_a_network_whose_output_is_no_embedding_is_refused(pieces: None) -> None:
    import flax.linen as nn

    class Scalar(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            return nn.Dense(1)(x)[:, 0]

    with pytest.raises(ConfigError) as error:
        mhd_jax.fit(small.config(), source=silos(), model=Scalar)
    assert str(error.value) == (
        "model.name = 'Scalar': expected embeddings of shape [B, D] with B = 1, not (1,)"
    )
