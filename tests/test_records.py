# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A record holds what the runs of its cell came to, and says where it comes from."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.harness import records
from experiments.harness.study import Cell, Record
from tests.invented import STUDY, TINY, summary


def made(cell: Cell) -> Record:
    run, isolated = (
        summary(TINY.base(changes)) for changes in (cell.changes, {"method": "isolated"})
    )
    found = records.results([run], [isolated], cell.per_class)
    return records.record(TINY, STUDY, cell, TINY.base(cell.changes), [run], found, 12.0)


def test_a_record_holds_what_came_out() -> None:
    mhd, cycle, _ = (made(cell) for cell in STUDY.cells(TINY))
    assert cycle.results.per_class is not None and mhd.results.per_class is None
    assert cycle.results.per_class.class_accuracy.shape == (2, 4, 5, 10)
    assert mhd.results.bytes_per_client_and_step == 1e4 / (4 * 20)
    assert mhd.config["graph"]["name"] == "complete" and mhd.seconds_per_step == 0.1
    np.testing.assert_array_equal(
        mhd.gain(), mhd.accuracy("shared")[..., -1] - mhd.isolated("shared")
    )


def test_a_record_is_the_same_when_read_again() -> None:
    for cell in STUDY.cells(TINY):
        written = made(cell).to_json()
        assert Record.from_json(json.loads(json.dumps(written))).to_json() == written


def test_a_diverged_record_has_no_results() -> None:
    (cell, *_), config = STUDY.cells(TINY), TINY.base()
    record = records.record(TINY, STUDY, cell, config, [], "the loss of client 3 is nan", 1.0)
    again = Record.from_json(record.to_json())
    assert again.found is None and again == record
    with pytest.raises(ValueError, match="example/mhd diverged: the loss of client 3 is nan"):
        _ = again.results


def test_other_data_than_the_isolated_baseline_is_refused() -> None:
    run = summary(TINY.base())
    other = summary(TINY.base({"seed": 7}))
    with pytest.raises(ValueError, match="other data"):
        records.results([run], [other], per_class=False)


def test_lists_of_numbers_stay_on_one_line() -> None:
    text = records.to_compact_json({"a": [[1, 2], [3, 4]], "b": {"c": ["x"]}})
    assert json.loads(text) == {"a": [[1, 2], [3, 4]], "b": {"c": ["x"]}}
    assert "[1,2]" in text
