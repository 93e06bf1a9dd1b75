# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every cell runs once, cells share what they have in common, a killed sweep goes on."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from experiments.harness import records, sweep, workers
from experiments.harness.study import Cell, Study
from experiments.harness.sweep import Sweep
from mhd_jax import train
from mhd_jax.errors import ConfigError, DivergedError, Interrupted, WorkdirError
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
        (workdir / "summary.json").write_text(to_json(summary(config).to_json()))

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


def test_a_record_of_fewer_seeds_is_made_anew(runs: list[str], tmp_path: Path) -> None:
    runs.extend(["", ""])
    Sweep(TINY, tmp_path, [STUDY], "fed*").run()
    more = dataclasses.replace(TINY, seeds=TINY.seeds + 1)
    Sweep(more, tmp_path, [STUDY], "fed*").run()
    record = json.loads((tmp_path / "tiny" / "example" / "fedavg.json").read_text())
    assert record["results"]["seeds"] == list(range(TINY.seeds + 1))


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


SIGNALS = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)


@pytest.fixture
def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """What a sweep that ends with this status complains of."""
    monkeypatch.setattr(sweep, "_use_compilation_cache", lambda workdir: None)

    def run(status: int, *flags: str) -> str:
        with pytest.raises(SystemExit, match=f"^{status}$"):
            sweep.main(SHORT, argv=["--preset=smoke", f"--workdir={tmp_path}", *flags])
        return capsys.readouterr().err

    return run


@SIGNALS
def test_a_sweep_that_is_stopped_ends_as_its_run_does(
    number: signal.Signals,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[..., str],
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted(f"{number.name}: saved step 3", 128 + number)

    monkeypatch.setattr(train, "train_and_evaluate", stop)
    assert f"Interrupted: {number.name}: saved step 3" in said(status)


@SIGNALS
def test_several_runs_at_once_are_told_to_stop(
    number: signal.Signals,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[..., str],
) -> None:
    told, before = [], signal.getsignal(number)

    def make(self: workers.Workers, wanted: workers.Wanted) -> Iterator[Any]:
        signal.raise_signal(number)
        yield from ()

    monkeypatch.setattr(workers.Workers, "make", make)
    monkeypatch.setattr(workers.Workers, "close", lambda self: told.append(number))
    expected = f"Interrupted: {number.name}: the runs under way have saved their state; the same"
    assert expected in said(status, "--jobs=2")
    assert told == [number] and signal.getsignal(number) == before


def test_ctrl_c_between_two_runs_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]
) -> None:
    monkeypatch.setattr(Sweep, "run", mock.Mock(side_effect=KeyboardInterrupt))
    assert said(130).startswith("KeyboardInterrupt: stopped; what is finished stays")


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
    with pytest.raises(SystemExit):
        sweep.main(STUDY, argv=["--preset=smoke", "--list", "--cells=example/cycle"])
    said = capsys.readouterr().err
    assert "ConfigError: cells = 'example/cycle'" in said and "did you mean 'cycle'?" in said


@pytest.mark.parametrize("text", ["{", "{}", '{"results": {}, "renamed": 1}', "[]"])
def test_a_record_that_cannot_be_read_ends_in_one_line(
    text: str, tmp_path: Path, said: Callable[..., str]
) -> None:
    record = tmp_path / "smoke" / "short" / "fedavg.json"
    record.parent.mkdir(parents=True)
    record.write_text(text)
    (line,) = said(1).splitlines()
    assert line.startswith(f"WorkdirError: {record}: cannot be read (")
    assert record.read_text() == text


def test_a_record_that_cannot_be_written_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("a file in place of a folder")
    with pytest.raises(WorkdirError, match="mhd.json: cannot be written: "):
        records.write(tmp_path / "full" / "mhd.json", "{}")


SHORT = Study("short", "One cell", lambda chosen: [Cell("fedavg", "", {"method": "fedavg"})])


@pytest.mark.slow  # `.ci/run` tries all studies with two jobs
def test_several_jobs_leave_the_same_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two real runs, one after another in this process and both at once in others."""
    found = []
    for jobs in (1, 2):
        Sweep(TINY.quick(), tmp_path / str(jobs), [SHORT], jobs=jobs, quiet=True).run()
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2 and lines[1].startswith("[1/1] short/fedavg: last head 0.")
        found.append(json.loads((tmp_path / f"{jobs}/tiny/short/fedavg.json").read_text()))
    for name in ("results", "config", "num_params", "versions"):
        assert found[0][name] == found[1][name]
    Sweep(TINY.quick(), tmp_path / "2", [SHORT], jobs=2).run()
    assert capsys.readouterr().out == "1 of 1 cells finished before · 2 of 2 runs done\n"
    other = Study("short", "", lambda chosen: [Cell("fedavg", "", {"average.every": 4})])
    before = Sweep(TINY.quick(), tmp_path / "2", [other])
    assert not before._finished(before.tasks[0])  # the same name with other settings


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


def test_a_trial_leaves_out_cells_that_differ_in_numbers_alone(tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {
        "skew_10": {"partition.skew": 10.0}, "skew_100": {"partition.skew": 100.0},
        "none": {"partition.skew": 0.0}, "three_heads": {"heads.aux": 3}, "one": {"heads.aux": 1},
        "cycle": {"graph.name": "cycle"}, "few": {"clients.num": 2},
    }  # fmt: skip
    study = Study("s", "", lambda chosen: [Cell(name, "", new) for name, new in changes.items()])
    assert sweep.repeats(Sweep(TINY.quick(), tmp_path, [study]).tasks) == {
        "s/skew_100", "s/three_heads"
    }  # fmt: skip
