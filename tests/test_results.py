# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The committed results are complete, and the tables of the README and of docs/ are theirs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from experiments.all import EVERY
from experiments.benchmarks.all import BENCHMARKS
from experiments.harness import render, runs, tables
from experiments.harness.presets import PRESETS
from experiments.harness.study import Record
from mhd_jax import methods
from mhd_jax.config import default_config, flatten, from_json

BY_NAME = {study.name: study for study in EVERY}
# Other measurements have folders of their own beside those of the studies.
FILES = sorted(f for f in render.RESULTS.glob("*/*/*.json") if f.parent.name in BY_NAME)
FOLDERS = sorted({file.parent for file in FILES})
PROVENANCE = (
    "study", "cell", "label", "preset", "command", "config", "revision", "versions", "device",
    "hardware", "num_params", "seconds_per_step", "wall_seconds", "results",
)  # fmt: skip


def _name(path: Path) -> str:
    return str(path.relative_to(render.RESULTS))


def test_there_are_results() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=_name)
def test_says_where_it_comes_from(file: Path) -> None:
    record = json.loads(file.read_text())
    assert [name for name in PROVENANCE if not record.get(name)] == []
    assert re.fullmatch("[0-9a-f]{12}", record["revision"]), "made from uncommitted code"
    assert {"python", "jax", "flax", "optax", "numpy"} <= record["versions"].keys()
    assert [record["preset"], record["study"], record["cell"]] == [*file.parts[-3:-1], file.stem]
    assert file.stat().st_size < 100_000 + 100 * record["config"]["clients"]["num"]


def _counted(config: ml_collections.ConfigDict) -> dict[str, str]:
    """The settings on which a run depends, where a default of today may stand for a value."""
    method = methods.build(config)
    draws = method.distillation is not None and method.distillation.peers
    free = {"seed", "num_seeds", "isolated_baseline", *([] if draws else ["graph.peers_per_step"])}
    found = {name: str(value) for name, value in flatten(config).items() if name not in free}
    settings = {name: value for name, value in found.items() if not name.startswith("distill.")}
    return {**settings, "method": repr(method)}


@pytest.mark.parametrize("folder", FOLDERS, ids=_name)
def test_was_measured_with_the_settings_that_its_cell_has_today(folder: Path) -> None:
    """Of settings younger than a record nothing is known: they count as today's defaults."""
    preset = PRESETS[folder.parent.name]
    for cell in BY_NAME[folder.name].cells(preset):
        file = folder / f"{cell.name}.json"
        if file.exists():
            record = Record.from_json(json.loads(file.read_text()))
            then, now = from_json(json.dumps(record.config)), runs.cell_configs(preset, cell)[0]
            assert record.label == cell.label, file
            assert _counted(then) == _counted(now), file


@pytest.mark.parametrize("file", FILES, ids=_name)
def test_arrays_are_complete(file: Path) -> None:
    record = json.loads(file.read_text())
    assert Record.from_json(record).to_json() == record
    found, config = record["results"], record["config"]
    assert flatten(config).keys() <= flatten(default_config()).keys()
    shape = np.shape(found["shared_accuracy"])
    assert shape[:2] == (len(found["seeds"]), config["clients"]["num"])
    assert np.shape(found["private_accuracy"]) == shape
    for kind in ("shared", "private"):
        values = np.array(found[f"isolated_{kind}_accuracy"])
        assert values.shape == (*shape[:2], 1)
        assert ((values >= 0) & (values <= 1)).all()
    assert len(set(found["partition_hash"])) == len(found["seeds"])


@pytest.mark.parametrize("folder", FOLDERS, ids=_name)
def test_tables_are_those_of_the_records(folder: Path) -> None:
    study = BY_NAME[folder.name]
    records = render.records(folder.parent.name, study)
    known = {record.cell for record in records}
    assert known == {file.stem for file in folder.glob("*.json")}, "a record that no table shows"
    assert (folder / "table.md").read_text() == tables.markdown(study, records)
    assert (folder / "table.csv").read_text() == tables.csv_text(records)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


BENCHMARK_FILES = sorted((render.RESULTS / "benchmarks").glob("*/*.json"))


@pytest.mark.parametrize("file", BENCHMARK_FILES, ids=_name)
def test_a_benchmark_says_where_it_comes_from(file: Path) -> None:
    record = json.loads(file.read_text())
    assert [record["benchmark"], record["case"]] == [file.parent.name, file.stem]
    assert re.fullmatch("[0-9a-f]{12}", record["revision"]), "made from uncommitted code"
    assert {"python", "jax", "numpy"} <= record["versions"].keys()
    assert record["hardware"] and record["command"] and not record["effort"]["quick"]


def shown() -> set[str]:
    return set.union(*(render.places(page.read_text()) for page in render.pages()))


def test_every_benchmark_is_shown() -> None:
    names = {f"benchmarks/{benchmark.name}" for benchmark in BENCHMARKS}
    assert {place for place in shown() if place.startswith("benchmarks/")} == names
    kept = {file.relative_to(render.RESULTS).parts[1:] for file in BENCHMARK_FILES}
    known = {(b.name, f"{case.name}.json") for b in BENCHMARKS for case in b.cases(False)}
    assert kept <= known, "a record that no table shows"


def test_every_study_with_records_is_shown() -> None:
    assert {_name(folder) for folder in FOLDERS} <= shown()


@pytest.mark.parametrize("page", render.pages(), ids=lambda page: page.name)
def test_pages_are_rendered_from_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert render.render(page) == text, "python -m experiments.harness.render"
