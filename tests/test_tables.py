# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Tables say what the records hold."""

from __future__ import annotations

import dataclasses

from experiments.harness import tables
from tests.invented import STUDY, record


def test_a_row_a_cell_with_the_gain_over_isolation() -> None:
    table = tables.markdown(STUDY, [record("mhd", [0.3, 0.75]), record("fedavg", [0.5])])
    lines = table.splitlines()
    assert lines[2].startswith("| mhd | 0.300 ± 0.000 | 0.750 ± 0.000 | 0.750 | 0.400 ± 0.000 |")
    assert "| +0.350 ± 0.000 |" in lines[2] and "| +0.100 ± 0.000 |" in lines[3]
    assert lines[3].startswith("| fedavg | 0.500 ± 0.000 | – |")


def test_divergence_is_a_result() -> None:
    diverged = dataclasses.replace(record("mhd", [0.3]), found=None, diverged="nan")
    table = tables.markdown(STUDY, [diverged, record("fedavg", [0.5])])
    assert "| mhd | diverged |" in table and "| fedavg | 0.500 ± 0.000 |" in table


def test_a_line_of_csv_for_every_head() -> None:
    text = tables.csv_text([record("mhd", [0.3, 0.75]), record("fedavg", [0.5])])
    assert text.count("\n") == 1 + 3 + 2


def test_columns_stand_side_by_side() -> None:
    """Three rows of two columns: one cell is not finished, one has diverged."""
    cells = [("a", "old", [0.3, 0.5]), ("a", "new", [0.3, 0.75]), ("b", "old", [0.4, 0.6]),
             ("c", "old", [0.4]), ("c", "new", [0.4])]  # fmt: skip
    records = [
        dataclasses.replace(record("x", shared), label=label, group="g", column=column)
        for label, column, shared in cells
    ]
    records[-1] = dataclasses.replace(records[-1], found=None, diverged="nan")
    lines = tables.markdown(STUDY, records).splitlines()
    assert lines[0] == (
        "| group | setting | old: β_sh last head | gain | β_priv gain "
        "| new: β_sh last head | gain | β_priv gain |"
    )
    old, new = "0.500 ± 0.000 | +0.100 ± 0.000", "0.750 ± 0.000 | +0.350 ± 0.000"
    assert lines[2] == f"| g | a | {old} | +0.000 ± 0.000 | {new} | +0.000 ± 0.000 |"
    assert lines[3] == "| g | b | 0.600 ± 0.000 | +0.200 ± 0.000 | +0.000 ± 0.000 |  |  |  |"
    assert lines[4].endswith("| diverged |  |  |")


def test_columns_of_a_few_rows_have_a_table_of_their_own() -> None:
    cells = [("a", "old", [0.3, 0.5]), ("a", "tried", [0.3, 0.75]), ("b", "old", [0.4, 0.6]),
             ("c", "old", [0.4, 0.5])]  # fmt: skip
    records = [
        dataclasses.replace(record("x", shared), label=label, group="g", column=column)
        for label, column, shared in cells
    ]
    lines = tables.markdown(STUDY, records).splitlines()
    assert lines[0] == "| group | setting | old: β_sh last head | gain | β_priv gain |"
    assert lines[6] == "| gain / β_priv gain | g, a |"
    assert lines[8] == "| tried | +0.350 ± 0.000 / +0.000 ± 0.000 |"
