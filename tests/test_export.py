# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A client taken home: it predicts like the run, without the run and without its data set."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jax import export as jax_export

import mhd_jax
from mhd_jax import api, train
from mhd_jax.errors import ConfigError, WorkdirError
from tests import small

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("north", "south", "east")


def table(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return 100 * np.random.default_rng(seed).normal(size=(rows, 5)), np.arange(rows) % 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mhd_jax.Run]:
    """Three clients with batch statistics, read back from their directory."""
    before = {kind: dict(registry._pieces) for kind, registry in api.PIECES.items()}
    source = mhd_jax.from_clients(
        {name: table(20, seed) for seed, name in enumerate(NAMES)},
        public=table(20, 7)[0], test=table(9, 8), class_names=("a", "b", "c"), name="far_away",
    )  # fmt: skip
    source = dataclasses.replace(source, columns=tuple("vwxyz"))  # as frames bring them
    config = small.config(model__norm="batch", train__steps=3, isolated_baseline=False)
    api.pieces.use(config, {"source": source})
    workdir = tmp_path_factory.mktemp("run") / "run"
    train.train_and_evaluate(config, workdir, with_report=False)
    yield mhd_jax.Run.load(workdir, source=source)
    for kind, registry in api.PIECES.items():
        registry._pieces = before[kind]


@pytest.fixture(scope="module")
def folder(run: mhd_jax.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(run.export("east", tmp_path_factory.mktemp("home") / "east"))


@pytest.mark.parametrize("rows", [1, 70])
def test_an_exported_client_predicts_like_the_run(
    run: mhd_jax.Run, folder: Path, rows: int
) -> None:
    samples = table(rows, seed=30)[0]
    found = mhd_jax.load_client(folder).predict(samples)
    assert found.shape == (rows, 3, 3)
    np.testing.assert_allclose(found, run.predict(samples)[2], rtol=0, atol=1e-6)


def test_it_needs_neither_the_run_nor_the_data_set(
    run: mhd_jax.Run, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "client")
    samples = table(5, seed=31)[0]
    np.save(tmp_path / "samples.npy", samples)
    code = (
        "import mhd_jax, numpy as np\n"
        "client = mhd_jax.load_client('client')\n"
        "np.save('found.npy', client.predict(np.load('samples.npy')))\n"
        "print(client)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "PATH": "",
            "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ExportedClient(east: 3 heads, 3 classes)" in done.stdout
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, run.predict(samples)[2], rtol=0, atol=1e-6)


def test_the_folder_says_what_it_is_and_runs_on_every_platform(folder: Path) -> None:
    about = json.loads((folder / "client.json").read_text())
    assert (about["name"], about["class_names"]) == ("east", ["a", "b", "c"])
    assert (about["shape"], about["dtype"]) == ([5], "float32")
    assert about["config"]["clients"]["num"] == 3 and about["heads"] == ["main", "aux 1", "aux 2"]
    function = jax_export.deserialize(bytearray((folder / "predict.jax").read_bytes()))
    assert set(function.platforms) == {"cpu", "cuda", "tpu"}


def test_columns_are_those_of_the_data_set(run: mhd_jax.Run, folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table(4, seed=32)[0], columns=list("vwxyz"))
    client = mhd_jax.load_client(folder)
    np.testing.assert_array_equal(client.predict(frame), client.predict(frame.to_numpy()))
    assert run.predict(frame).shape == (3, 4, 3, 3)
    for predict in (client.predict, run.predict):
        with pytest.raises(ConfigError, match="= 'DataFrame': .* v, w, x, y, z in this order"):
            predict(frame[list("wvxyz")])


def test_truths_are_numbers(run: mhd_jax.Run, folder: Path) -> None:
    truths = table(4, seed=33)[0] > 0
    for predict in (mhd_jax.load_client(folder).predict, run.predict):
        np.testing.assert_array_equal(predict(truths), predict(truths.astype(np.float32)))


def test_what_does_not_fit_is_refused(run: mhd_jax.Run, folder: Path, tmp_path: Path) -> None:
    client = mhd_jax.load_client(folder)
    assert client.predict(np.zeros((0, 5))).shape == (0, 3, 3)
    with pytest.raises(ConfigError, match=r"shape \(2, 4\)': expected \[N, 5\]"):
        client.predict(np.zeros((2, 4)))
    with pytest.raises(ConfigError, match="expected numbers of type float32"):
        client.predict(np.zeros((2, 5), complex))
    with pytest.raises(ConfigError, match="client = 'esat': .*did you mean 'east'"):
        run.export("esat", tmp_path / "new")
    with pytest.raises(ConfigError, match="client = 3: expected an index below 3"):
        run.export(3, tmp_path / "new")
    for client in (None, 1.5, True, -1):
        with pytest.raises(ConfigError, match=f"client = {client}: expected an index below 3"):
            run.export(client, tmp_path / "new")  # type: ignore[arg-type]
    for replica in (7, -1, 0.0, False, None):
        with pytest.raises(ConfigError, match=f"replica = {replica}: expected 0 to 0"):
            run.export(0, tmp_path / "new", replica=replica)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    with pytest.raises(WorkdirError, match="is not empty"):
        run.export(0, folder)
    with pytest.raises(WorkdirError, match="there is no exported client"):
        mhd_jax.load_client(tmp_path)
    (tmp_path / "client.json").write_text('{"version": 2}')
    with pytest.raises(WorkdirError, match="expected version 1"):
        mhd_jax.load_client(tmp_path)
    whole = (folder / "client.json").read_text()
    for broken in (whole[: len(whole) // 2], "", "[1]", '{"version": 1}'):
        (tmp_path / "client.json").write_text(broken)
        with pytest.raises(WorkdirError, match=r"client\.json: cannot be read \("):
            mhd_jax.load_client(tmp_path)


def test_a_copy_that_was_cut_off_is_told_by_its_file(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    whole = (copy / "predict.jax").read_bytes()
    (copy / "predict.jax").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorkdirError, match=r"predict\.jax: cannot be read \("):
        mhd_jax.load_client(copy)
    (copy / "predict.jax").write_bytes(whole)
    shutil.rmtree(copy / "parameters")
    with pytest.raises(WorkdirError, match="parameters: cannot be read"):
        mhd_jax.load_client(copy)
