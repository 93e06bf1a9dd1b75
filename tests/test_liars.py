# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The study of liars: what is a loss, of whom, and how far it travels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments import liars
from experiments.harness.study import Record
from tests.invented import record


def told(label: str, liar: int | None, per_client: list[float], group: str = "complete") -> Record:
    """Three clients whose accuracy is the same in both heads."""
    made = record("cell", [0.5, 0.5])
    values = np.broadcast_to(np.array(per_client)[None, :, None], (2, 3, 2))
    found = dataclasses.replace(made.results, shared_accuracy=values)
    config = {**made.config, "attack": {"clients": [] if liar is None else [liar]}}
    return dataclasses.replace(made, label=label, group=group, config=config, found=found)


HONEST = told("default: nobody lies", None, [0.9, 0.8, 0.1])


def test_a_loss_is_that_of_the_same_honest_clients() -> None:
    lied = told("default: constant × 1", 2, [0.7, 0.7, 0.9])
    np.testing.assert_allclose(liars.loss(lied, HONEST, "shared"), [[0.2, 0.1]] * 2)
    assert lied.accuracy("shared").shape == (2, 2, 2) and lied.isolated("shared").shape == (2, 2)
    table = liars.losses([HONEST, lied])
    assert "| complete | constant × 1 | +0.150 ± 0.000 / +0.000 |" in table


def test_without_the_run_without_lies_there_is_no_loss() -> None:
    lied = told("paper: constant × 1", 2, [0.7, 0.7, 0.9])
    assert "| complete | constant × 1 |  |  |" in liars.losses([HONEST, lied])


def test_hops_are_counted_from_the_liar() -> None:
    """On the directed cycle of three, client 0 reads the liar 2 and client 1 reads client 0."""
    lied = told("default: constant × 1", 2, [0.5, 0.7, 0.9], "directed cycle")
    honest = dataclasses.replace(HONEST, group="directed cycle")
    table = liars.travels(lied, honest)
    assert table.shape == (2, 2)
    np.testing.assert_allclose(table, [[0.4, 0.1]] * 2)
    assert len(liars.draw([honest, lied]).axes) == 2


@pytest.mark.parametrize("trial", [liars.Trial("default", "nan", 2), liars.Trial("FedAvg, krum")])
def test_liars_are_the_last_clients(trial: liars.Trial) -> None:
    cell = trial.cell({"train.steps": 7})
    assert cell.changes["train.steps"] == 7
    assert cell.changes.get("attack.clients", ()) == ((6, 7) if trial.attack else ())
