# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The long checks in small sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.checks import deliveries, devices, kill_loop, label_inference
from mhd_jax import train
from mhd_jax.config import default_config, update


def test_devices_share_the_work_and_change_no_parameter() -> None:
    alone, expected = devices.measure(clients=2, devices=1, steps=3)
    shared, found = devices.measure(clients=2, devices=2, steps=3)
    assert alone["mesh"] == [1, 1] and shared["mesh"] == [2, 1]
    assert shared["megaflops"] < 0.6 * alone["megaflops"]
    assert shared["only_predictions_leave"] and shared["received_bytes"] > 0
    assert all(np.abs(a - b).max() < 1e-5 for a, b in zip(found, expected, strict=True))
    assert all(leaf.shape[:2] == (1, 2) for leaf in found)


def test_less_arrives_on_a_cycle_and_trains_the_same() -> None:
    row = deliveries.measure(deliveries.GRAPHS["directed cycle"], clients=8, devices=4, steps=3)
    assert row["messages"] == row["permutations"] == 1 and row["only_predictions_leave"]
    assert 6 * row["received_bytes"] == pytest.approx(row["all_received_bytes"], rel=0.1)
    assert row["difference"] < 1e-5


def test_skewed_labels_are_guessed_from_predictions() -> None:
    found = label_inference.measure(skew=100.0, steps=100, seeds=1)
    assert found["steps"] == [50, 100] and np.shape(found["distance_by_seed"]) == (1, 2)
    for measured in ("distance", "divergence"):
        assert max(found[measured]) < found[f"{measured}_uniform_guess"]
        assert found["over_time"][measured][0] == found[measured][0]
    assert found["top_labels_found"][-1] > found["top_labels_by_chance"]


def test_other_bits_are_a_difference() -> None:
    ours, theirs = [np.float32([0.0, 1.0])], [np.float32([-0.0, 1.5])]
    assert kill_loop.difference(ours, ours) == 0
    assert kill_loop.difference(ours, theirs) == 0.5


def test_the_kill_loop_reads_the_last_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(kill_loop.SETTINGS, "train.steps", 2)
    config = default_config()
    update(config, kill_loop.SETTINGS)
    train.train_and_evaluate(config, tmp_path / "run", with_report=False)
    state = kill_loop.last_state(tmp_path / "run")
    assert any(leaf.shape[:2] == (1, 4) and leaf.size > 4 for leaf in state)
