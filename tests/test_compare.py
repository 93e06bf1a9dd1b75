# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Records of a sweep beside the committed ones."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from experiments.harness import compare
from experiments.harness.presets import RESULTS
from experiments.harness.records import read, to_compact_json, write
from experiments.harness.study import Record

CELL = Path("digits", "topology", "cycle.json")


@pytest.fixture
def kept() -> Record:
    (record,) = read([RESULTS / CELL])
    return record


def _changed(record: Record, **changes: object) -> Record:
    assert record.found is not None
    return dataclasses.replace(record, found=dataclasses.replace(record.found, **changes))


def test_a_sweep_is_compared_with_what_is_committed(tmp_path: Path, kept: Record) -> None:
    (tmp_path / CELL).parent.mkdir(parents=True)
    shutil.copy(RESULTS / CELL, tmp_path / CELL)
    shutil.copy(RESULTS / CELL, (tmp_path / CELL).with_name("a row of one's own.json"))
    (found,) = compare.differences(tmp_path)
    assert found.equal and found.name == "digits/topology/cycle" and found.mean == 0
    assert compare.describe([found]).endswith("1 of 1 equal the committed records")


def test_one_number_that_differs_is_found(tmp_path: Path, kept: Record) -> None:
    assert kept.found is not None
    accuracy = kept.found.shared_accuracy.copy()
    accuracy[0, 0, -1] += 0.25
    write(tmp_path / CELL, to_compact_json(_changed(kept, shared_accuracy=accuracy).to_json()))
    (found,) = compare.differences(tmp_path)
    assert found.largest == pytest.approx(0.25) and not found.equal
    seeds, clients, _ = accuracy.shape
    assert found.mean == pytest.approx(0.25 / seeds / clients)
    assert "0 of 1 equal" in compare.describe([found])


def test_other_data_and_other_seeds_are_not_compared(kept: Record) -> None:
    assert kept.found is not None
    fewer = _changed(kept, shared_accuracy=kept.found.shared_accuracy[:1])
    other = _changed(kept, partition_hash=["x"] * len(kept.found.seeds))
    for made in (fewer, other, dataclasses.replace(kept, found=None, diverged="nan")):
        found = compare.difference(made, kept)
        assert found.largest is None and not found.equal
        assert "other clients, seeds or heads" in compare.describe([found])
