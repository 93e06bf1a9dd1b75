# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every cell runs once, cells share what they have in common, a killed sweep goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.harness import sweep, workers
from experiments.harness.study import Cell, Study
from experiments.harness.sweep import Sweep
from mhd_jax import train
from mhd_jax.errors import ConfigError, DivergedError
from mhd_jax.runtime.workdir import to_json
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
    assert runs == ["isolated", "mhd", "killed", "mhd", "fedavg"]  # one isolated baseline for all
    before = (folder / "mhd.json").read_text()
    Sweep(TINY, tmp_path, [STUDY]).run()
    assert len(runs) == 5 and (folder / "mhd.json").read_text() == before
    names = {file.name for file in folder.iterdir()}
    assert names >= {"mhd.json", "cycle.json", "table.md", "table.csv", "figure.png"}
    assert "finished" in Sweep(TINY, tmp_path, [STUDY]).list_runs()


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


def test_command_line_lists_and_tells_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.main(STUDY, argv=["--preset=smoke", "--list"])
    assert capsys.readouterr().out.split() == ["example/mhd", "example/cycle", "example/fedavg"]
    sweep.main(STUDY, argv=["--preset=smoke", "--runs", f"--workdir={tmp_path}"])
    assert "4 runs, 80 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep.main(STUDY, argv=["--preset=digit"])
    assert "ConfigError: preset = 'digit'" in capsys.readouterr().err


PAIR = Study(
    "pair",
    "Two cells",
    lambda chosen: [
        Cell("gossip", "gossip", {"method": "gossip"}),
        Cell("fedavg", "FedAvg", {"method": "fedavg"}),
    ],
)


def test_several_jobs_leave_the_same_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three real runs, one after another in this process and two at once in others."""
    found = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        Sweep(TINY.quick(), folder, [PAIR], jobs=jobs).run()
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("[2/2] pair/")]
        found.append([json.loads(p.read_text()) for p in sorted(folder.glob("tiny/pair/*.json"))])
    assert len(found[0]) == 2
    for one, two in zip(*found, strict=True):
        for name in ("results", "config", "num_params", "versions"):
            assert one[name] == two[name]
    Sweep(TINY.quick(), tmp_path / "2", [PAIR], jobs=2).run()
    said = capsys.readouterr().out
    assert "2 cells, 2 of them finished before · 3 of 3 runs done" in said and "[" not in said


def test_a_setting_that_cannot_work_is_told_by_a_worker_as_here(tmp_path: Path) -> None:
    broken = Study("broken", "", lambda chosen: [Cell("a", "", {"graph.name": "cylce"})])
    with pytest.raises(ConfigError, match="graph.name = 'cylce': .*did you mean 'cycle'"):
        Sweep(TINY.quick(), tmp_path, [broken], jobs=2).run()


def test_cores_are_shared_out() -> None:
    everything = set.union(*workers.shares(1))
    for count in (1, 2, 3):
        parts = workers.shares(count)
        assert len(parts) == count and all(parts) and set.union(*parts) == everything
        assert sum(map(len, parts)) == max(len(everything), count)


def test_quick_leaves_nothing_and_says_which_data_are_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    study = Study("some", "Some", lambda chosen: [
        Cell("here", "here"),
        Cell("elsewhere", "elsewhere", config="configs/cifar10.py:smoke"),
    ])  # fmt: skip
    sweep.main(study, argv=["--quick", "--preset=smoke", f"--workdir={tmp_path / 'w'}"])
    said = capsys.readouterr()
    assert "some/elsewhere is left out: data." in said.out
    assert "[1/1] some/here: last head" in said.out and "step" not in said.err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        sweep.main(study, argv=["--quick", "--preset=smoke", "--cells=else*"])
    assert "ConfigError: data." in capsys.readouterr().err
