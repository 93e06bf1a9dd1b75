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
