# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Figures of records, and the hop picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from experiments import communication, topology
from experiments.harness import plots
from experiments.harness.study import PerClass
from tests.invented import record


def test_figures_of_the_same_records_have_the_same_bytes(tmp_path: Path) -> None:
    records = [record("a", [0.4, 0.8]), dataclasses.replace(record("b", [0.5]), group="g")]
    for name in ("one", "two"):
        plots.save(plots.dots(records), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_accuracy_over_bytes_is_drawn_as_far_as_all_seeds_came() -> None:
    """Two seeds, 20 steps of 100 bytes: levels in megabytes, then the end of the run."""
    some = record("some", [0.4, 0.8])
    assert some.found
    reached = {"0.5": [200.0, 600.0], "0.6": [600.0, 1000.0], "0.9": [None, 1200.0]}
    reaching = dataclasses.replace(some.found, bytes_to={"0.9": [1e6, 3e6], "0.95": [None, None]})
    far = dataclasses.replace(record("far", [0.9]), found=reaching)
    some = dataclasses.replace(some, found=dataclasses.replace(some.found, bytes_to=reached))
    axis = plots.over_bytes([record("none", [0.7]), some]).axes[0]
    ways = [line.get_xydata().tolist() for line in axis.lines if line.get_alpha() == 0.6]
    np.testing.assert_allclose(ways[0], [[2e-3, 0.7]])
    np.testing.assert_allclose(ways[1], [[4e-4, 0.5], [8e-4, 0.6], [2e-3, 0.8]])
    lines = communication.until([some, far]).splitlines()[2:]
    assert lines == ["| some | 0.0004 | 0.0008 | – |", "| far | – | – | 2 |"]


def test_the_hop_picture_is_a_table_too() -> None:
    """Two seeds on a ring; in the second every label is everybody's own: no hops at all."""
    kept = PerClass(
        class_accuracy=np.stack([np.full((3, 2, 3), 0.25), np.full((3, 2, 3), 0.75)]),
        primary_labels=np.stack([np.eye(3, dtype=bool), np.ones((3, 3), bool)]),
        adjacency=np.stack([np.roll(np.eye(3, dtype=bool), -1, axis=1)] * 2),
    )
    ring, other = record("ring", [0.4, 0.5], per_class=kept), record("other", [0.4])
    lines = topology.hop_picture([ring, other]).splitlines()
    assert lines[2] == "| ring: hops | 0 | 1 | 2 |"
    assert lines[4] == "| main | 0.500 ± 0.354 | 0.250 | 0.250 |"
    assert lines[6] == "| seeds with such a label | 2 | 1 | 1 |"
