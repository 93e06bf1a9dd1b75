# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What TensorBoard is given."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from mhd_jax.runtime import tensorboard


def test_heads_are_named_and_clients_averaged():
    values = {"step": 3, "loss": [1.0, 2.0], "head_losses": np.array([[1.0, 3.0], [2.0, 5.0]])}
    assert tensorboard.scalars(values) == {
        "step": 3.0, "loss": 1.5, "head_losses/head_0": 1.5, "head_losses/head_1": 4.0,
    }  # fmt: skip


def test_what_has_no_axis_of_clients_is_by_rank_or_of_the_first_seed():
    values = {"teacher_agreement": [0.25, 0.75], "last_head_accuracy": np.array([0.5, 0.9])}
    assert tensorboard.scalars(values) == {
        "teacher_agreement/head_0": 0.25, "teacher_agreement/head_1": 0.75,
        "last_head_accuracy": 0.5,
    }  # fmt: skip


def test_without_the_extra_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tensorboard.TensorBoard(tmp_path).write(1, {"loss": [1.0]})
    assert list(tmp_path.iterdir()) == []


def test_with_the_extra_events_are_written(tmp_path):
    pytest.importorskip("tensorflow")
    tensorboard.TensorBoard(tmp_path).write(1, {"loss": [1.0]})
    assert list(tmp_path.glob("events.out.tfevents.*"))
