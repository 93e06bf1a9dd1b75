# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every cell runs once, cells share what they have in common, a killed sweep goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.harness import sweep
from experiments.harness.study import Cell
from experiments.harness.sweep import Sweep, cell_configs, run_key, yardstick_configs
from mhd_jax import train
from mhd_jax.errors import DivergedError
from mhd_jax.workdir import to_json
from tests import small
from tests.invented import STUDY, TINY, summary


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for training; the methods of the runs, in order."""
    made: list[str] = []

    def fake(config: Any, workdir: Path, with_report: bool) -> None:
        assert not with_report
        if len(made) == 2 and config.method == "mhd":
            made.append("killed")
            raise KeyboardInterrupt
        made.append(config.method)
        workdir.mkdir(parents=True)
        (workdir / "summary.json").write_text(to_json(summary(config)))

    monkeypatch.setattr(train, "train_and_evaluate", fake)
    return made


def test_a_killed_sweep_goes_on_and_nothing_runs_twice(runs: list[str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Sweep(TINY, tmp_path, [STUDY]).run()
    folder = tmp_path / "tiny" / "example"
    assert [file.name for file in folder.glob("*.json")] == ["mhd.json"]
    Sweep(TINY, tmp_path, [STUDY]).run()
    assert runs == ["isolated", "mhd", "killed", "mhd", "fedavg"]  # one yardstick for all
    before = (folder / "mhd.json").read_text()
    Sweep(TINY, tmp_path, [STUDY]).run()
    assert len(runs) == 5 and (folder / "mhd.json").read_text() == before
    names = {file.name for file in folder.iterdir()}
    assert names >= {"mhd.json", "cycle.json", "table.md", "table.csv", "figure.png"}
    assert "finished" in Sweep(TINY, tmp_path, [STUDY]).plan()


def test_only_the_cells_asked_for(runs: list[str], tmp_path: Path) -> None:
    runs.extend(["", ""])
    Sweep(TINY, tmp_path, [STUDY], "fed*").run()
    assert runs[2:] == ["isolated", "fedavg"]
    assert [file.name for file in (tmp_path / "tiny" / "example").glob("*.json")] == ["fedavg.json"]


def test_divergence_is_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise DivergedError("the loss of client 3 is nan at step 7")

    monkeypatch.setattr(train, "train_and_evaluate", diverge)
    Sweep(TINY, tmp_path, [STUDY]).run()
    record = json.loads((tmp_path / "tiny" / "example" / "mhd.json").read_text())
    assert "client 3" in record["results"]["diverged"]
    assert "diverged" in (tmp_path / "tiny" / "example" / "table.md").read_text()


def test_a_run_is_named_by_what_changes_its_results() -> None:
    key = run_key(TINY.base())
    assert run_key(TINY.base({"train.log_every": 7, "data.feed": "resident"})) == key
    assert run_key(TINY.base({"seed": 1})) != key
    assert run_key(TINY.base({"graph.drop": 0.5})) != key


def test_cells_that_differ_in_exchange_alone_share_their_yardstick() -> None:
    def key(**changes: Any) -> str:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        (config,) = yardstick_configs(TINY, Cell("", "", named))
        return run_key(config)

    assert key() == key(graph__name="cycle", distill__nu_aux=1.0, heads__aux=1, method="fedmd")
    assert key() != key(partition__skew=0.0)
    assert key() != key(model__width=32)


def test_isolated_clients_are_the_control_of_the_run_up_to_rounding() -> None:
    """Why a yardstick may stand in for the control group of every run that shares it."""
    together, alone = small.build(heads__aux=1), small.build(method="isolated", control=False)
    state, lonely = (small.run(made, calls=2)[0] for made in (together, alone))
    for control, client in zip(
        jax.tree.leaves(state.control[0].params), jax.tree.leaves(lonely.clients[0].params),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(control, client, rtol=1e-5, atol=1e-8)


def test_seeds_one_by_one_or_stacked() -> None:
    cell = Cell("", "")
    (stacked,) = cell_configs(TINY, cell)
    assert (stacked.seed, stacked.replicas, stacked.control) == (0, 2, False)
    single = cell_configs(dataclasses.replace(TINY, replicas=1), cell)
    assert [(config.seed, config.replicas) for config in single] == [(0, 1), (1, 1)]


def test_command_line_lists_and_tells_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.main(STUDY, argv=["--preset=smoke", "--list"])
    assert capsys.readouterr().out.split() == ["example/mhd", "example/cycle", "example/fedavg"]
    sweep.main(STUDY, argv=["--preset=smoke", "--plan", f"--workdir={tmp_path}"])
    assert "4 runs, 80 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep.main(STUDY, argv=["--preset=digit"])
    assert "ConfigError: preset = 'digit'" in capsys.readouterr().err
