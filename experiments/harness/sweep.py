# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Makes the runs that the cells of a table need, each once, and writes down what came out.

A study is a list of cells; a cell is a name and the settings in which it differs from the preset.
Every cell is a run of `mhd_jax.train.train_and_evaluate` for all its seeds. Beside it stands its
isolated baseline: the same clients, data and initial parameters without peers. Runs are filed under
their settings, so that cells share them, isolated baselines above all.

    <workdir>/runs/<key>/             a run: checkpoints, metrics.jsonl, summary.json
    <workdir>/<preset>/<study>/       <cell>.json, table.md, table.csv, figure.png
    <workdir>/logs/                   what the runs print where several are made at once

The same command goes on with a sweep that was stopped: finished cells are left as they are, and a
run that was under way goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import functools
import io
import math
import os
import signal
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ml_collections

from experiments.harness import plots, records, runs, tables, workers
from experiments.harness.compiling import compile_quickly
from experiments.harness.presets import ROOT, Preset, preset
from experiments.harness.runs import cell_configs, isolated_configs, run_key
from experiments.harness.study import Cell, Record, Results, Study
from mhd_jax import command
from mhd_jax.config import flatten
from mhd_jax.data import sources
from mhd_jax.errors import ConfigError, DivergedError, Interrupted, suggest
from mhd_jax.runtime.workdir import to_json

Ended = tuple[str, DivergedError | None]  # a run's key, and how it diverged if it did


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A cell with the runs it needs.

    Attributes:
      study: that it belongs to.
      cell: as the study has it.
      configs: its own runs.
      isolated: the runs of its isolated baseline.
    """

    study: Study
    cell: Cell
    configs: list[ml_collections.ConfigDict]
    isolated: list[ml_collections.ConfigDict]

    @property
    def name(self) -> str:
        """Of study and cell."""
        return f"{self.study.name}/{self.cell.name}"

    @functools.cached_property
    def runs(self) -> dict[str, ml_collections.ConfigDict]:
        """All runs by key, the isolated ones first."""
        return {run_key(config): config for config in (*self.isolated, *self.configs)}


@dataclasses.dataclass
class Sweep:
    """The cells of some studies at a preset, and what is on disk of them.

    Attributes:
      chosen: the preset.
      workdir: for runs and records.
      studies: whose cells to run.
      pattern: of the names of the cells to run.
      jobs: runs to make at once.
      left_out: cells not to run, "study/cell" each.
      quiet: without the output of the runs themselves.
    """

    chosen: Preset
    workdir: Path
    studies: Sequence[Study]
    pattern: str = "*"
    jobs: int = 1
    left_out: frozenset[str] = frozenset()
    quiet: bool = False

    @functools.cached_property
    def tasks(self) -> list[Task]:
        """What to run, in this order: the cells whose name fits the pattern."""
        found = []
        for study in self.studies:
            for cell in study.cells(self.chosen):
                if fnmatch.fnmatchcase(cell.name, self.pattern):
                    configs = cell_configs(self.chosen, cell)
                    found.append(Task(study, cell, configs, isolated_configs(self.chosen, cell)))
        return [task for task in found if task.name not in self.left_out]

    @property
    def made(self) -> runs.Runs:
        """The runs there are."""
        return runs.Runs(self.workdir / "runs")

    def record_path(self, study: Study, cell: Cell) -> Path:
        """Where the cell's record is, or will be."""
        return self.workdir / self.chosen.name / study.name / f"{cell.name}.json"

    def run(self) -> None:
        """Runs what is missing and keeps tables and figures up to date."""
        left = [task for task in self.tasks if not self._finished(task)]
        total, before = len(self.tasks), len(self.tasks) - len(left)
        print(f"{before} of {total} cells finished before · {self.outlook()}", flush=True)
        ended: dict[str, DivergedError | None] = {}
        with contextlib.closing(self._make_runs(left)) as runs_made:
            for key, error in runs_made:
                ended[key] = error
                for task in [task for task in left if task.runs.keys() <= ended.keys()]:
                    left.remove(task)
                    said = tables.in_short(self._finish(task, ended))
                    place = f"[{total - len(left)}/{total}]"
                    print(f"{place} {task.name}: {said} · {self.outlook()}", flush=True)
        for study in self.studies:
            self.write_up(study)

    def _finished(self, task: Task) -> bool:
        """Whether the cell has a record, of the settings and seeds that it has today."""
        wanted = records.config_json(task.configs[0])
        seeds = [each.seed + at for each in task.configs for at in range(each.num_seeds)]
        for record in records.read([self.record_path(task.study, task.cell)]):
            found = record.found  # of a run that diverged there are no results
            if record.config == wanted and (found is None or list(found.seeds) == seeds):
                return True
        return False

    def _make_runs(self, tasks: Sequence[Task]) -> Generator[Ended, None, None]:
        """Makes what these cells need; says of each run when it has ended."""
        needed = {key: config for task in tasks for key, config in task.runs.items()}
        for key in [key for key, config in needed.items() if self.made.finished(config)]:
            del needed[key]
            yield key, None
        wanted = {key: (config, self.made.path(config)) for key, config in needed.items()}
        yield from self._one_by_one(wanted) if self.jobs == 1 else self._at_once(wanted)

    def _one_by_one(self, wanted: workers.Wanted) -> Generator[Ended, None, None]:
        for key, (config, folder) in wanted.items():
            diverged: DivergedError | None = None
            with _silence() if self.quiet else contextlib.nullcontext():
                try:
                    runs.make(config, folder)
                except DivergedError as error:
                    diverged = error
            yield key, diverged

    def _at_once(self, wanted: workers.Wanted) -> Generator[Ended, None, None]:
        pool = workers.Workers(self.jobs, self.workdir / "logs", _worker_settings(self.workdir))
        with contextlib.closing(pool), _interrupted_by_signals():
            yield from pool.make(wanted)

    def _finish(self, task: Task, ended: Mapping[str, DivergedError | None]) -> Record:
        """Writes the record of a cell whose runs have ended."""
        said = [error for key in task.runs if (error := ended[key])]
        summaries = [] if said else [self.made.summary(config) for config in task.configs]
        found: Results | str
        if said:
            found = str(said[0])
        else:
            isolated = [self.made.summary(config) for config in task.isolated]
            found = records.results(summaries, isolated, task.cell.per_class)
        seconds = sum(self.made.seconds(config) for config in task.configs)
        made = records.record(
            self.chosen, task.study, task.cell, task.configs[0], summaries, found, seconds,
            self.jobs,
        )  # fmt: skip
        text = records.to_compact_json(made.to_json())
        records.write(self.record_path(task.study, task.cell), text)
        self.write_up(task.study)
        return made

    def write_up(self, study: Study) -> None:
        """Tables and figure of the cells that are finished."""
        paths = [self.record_path(study, cell) for cell in study.cells(self.chosen)]
        write_up(study, list(records.read(paths)), self.workdir / self.chosen.name / study.name)

    # --- The outlook ---

    def needed(self) -> dict[str, tuple[str, ml_collections.ConfigDict]]:
        """All distinct runs by key, with the cell that first needs them."""
        found: dict[str, tuple[str, ml_collections.ConfigDict]] = {}
        for task in self.tasks:
            for key, config in task.runs.items():
                found.setdefault(key, (task.name, config))
        return found

    def outlook(self) -> str:
        """How many runs are done, and how long the rest will take if they take as long."""
        configs = [config for _, config in self.needed().values()]
        spent = [self.made.seconds(config) for config in configs if self.made.finished(config)]
        text = f"{len(spent)} of {len(configs)} runs done"
        left = len(configs) - len(spent)
        if spent and left:
            text += f", ETA {_duration(left * sum(spent) / len(spent) / self.jobs)}"
        return text

    def list_runs(self) -> str:
        """All runs with what each needs, without running anything."""
        lines = [f"{'run':<14}{'clients':>8}{'seeds':>6}{'steps':>9}  {'state':<9}for"]
        for key, (cell, config) in self.needed().items():
            state = "finished" if self.made.finished(config) else "to do"
            numbers = f"{config.clients.num:>8}{config.num_seeds:>6}{config.train.steps:>9,}"
            lines.append(f"{key:<14}{numbers}  {state:<9}{cell} ({config.method})")
        steps = sum(config.train.steps for _, config in self.needed().values())
        return "\n".join([*lines, f"{len(lines) - 1} runs, {steps:,} steps"])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def write_up(study: Study, found: Sequence[Record], folder: Path) -> None:
    """Writes table.md, table.csv and figure.png beside the records, if there are any."""
    if not found:
        return
    records.write(folder / "table.md", tables.markdown(study, found))
    records.write(folder / "table.csv", tables.csv_text(found))
    finished = [record for record in found if record.found]
    if finished:
        plots.save((study.draw or plots.dots)(finished), folder / "figure.png")


# --- Command line ---------------------------------------------------------------------------------


def main(*studies: Study, argv: Sequence[str] | None = None) -> None:
    """Runs `studies` as the command line says; errors a user can mend end in one line."""
    options = _parse(argv)
    os.chdir(ROOT)  # settings that name a file of the repository are relative to it
    # Between steps a run listens itself; here a signal came between two runs, or twice.
    stopped = "stopped; what is finished stays, and the same command goes on"
    with command.told_in_one_line(stopped, workers.WorkerError):
        if options.jobs < 1:
            raise ConfigError("jobs", options.jobs, "at least 1")
        sweep = Sweep(preset(options.preset), options.workdir, studies, options.cells, options.jobs)
        _check_pattern(sweep)
        if options.list:
            print("\n".join(task.name for task in sweep.tasks))
        elif options.runs:
            print(sweep.list_runs())
        elif options.quick:
            try_out(sweep)
        else:
            _use_compilation_cache(options.workdir)
            sweep.run()


def _check_pattern(sweep: Sweep) -> None:
    """Raises `ConfigError` if the studies have cells, and the pattern fits none of them."""
    names = {cell.name: None for study in sweep.studies for cell in study.cells(sweep.chosen)}
    if names and not sweep.tasks:
        raise ConfigError(
            "cells", sweep.pattern, f"a pattern that fits {suggest(sweep.pattern, names)}"
        )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs the missing cells of a table.")
    parser.add_argument("--preset", default="digits", help="dataset and scale")
    parser.add_argument("--workdir", default="runs/sweep", type=lambda path: Path(path).resolve())
    parser.add_argument("--cells", default="*", help="only those whose name fits this pattern")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, on a share of the cores")
    parser.add_argument("--list", action="store_true", help="name the cells and stop")
    parser.add_argument("--runs", action="store_true", help="list the runs they need and stop")
    parser.add_argument(
        "--quick", action="store_true",
        help="a few steps of every kind of cell in a folder that is removed; figures mean nothing",
    )  # fmt: skip
    return parser.parse_args(argv)


def try_out(sweep: Sweep) -> None:
    """Runs cells in a tiny size and removes what they leave; says which data are not there.

    Of cells of a study that differ in the size of numbers alone the first is run.

    Raises:
      ConfigError: a setting of a cell cannot work, or there are data for none of them.
    """
    compile_quickly()
    sweep = dataclasses.replace(sweep, chosen=sweep.chosen.quick())
    missing = {t.name: error for t in sweep.tasks if (error := _missing_data(t.configs[0]))}
    for name, error in missing.items():
        print(f"{name} is left out: {error}")
        if len(missing) == len(sweep.tasks):
            raise error
    alike = repeats([t for t in sweep.tasks if t.name not in missing])
    print(f"{len(alike)} cells differ from others of their study in numbers alone and are left out")
    with tempfile.TemporaryDirectory() as folder:
        _use_compilation_cache(Path(folder))
        names = alike | missing.keys()
        dataclasses.replace(sweep, workdir=Path(folder), left_out=names, quiet=True).run()


def repeats(tasks: Sequence[Task]) -> frozenset[str]:
    """The cells that run the code of an earlier one of their study, with other numbers."""
    seen: set[tuple[str, str]] = set()
    found = []
    for task in tasks:
        kinds = {name: _kind(name, value) for name, value in flatten(task.configs[0]).items()}
        key = task.study.name, to_json(kinds)
        if key in seen:
            found.append(task.name)
        seen.add(key)
    return frozenset(found)


def _kind(name: str, value: Any) -> Any:
    """What of a setting decides which code runs: of most numbers, whether they are 0 or 1."""
    if name == "clients.num" or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return "a number" if value and math.isfinite(value) else value
    return "a count" if isinstance(value, int) and value > 1 else value


def _missing_data(config: ml_collections.ConfigDict) -> ConfigError | None:
    """Why the data of a run cannot be had on this machine, if so."""
    try:
        source = sources.source(config.data)
        if config.data.public_name:
            sources.public_split(config.data, source.image_shape, source.train.dtype)
    except ConfigError as error:
        if error.setting in ("data.name", "data.dir", "data.public_name", "data.public_dir"):
            return error
        raise
    return None


def _use_compilation_cache(workdir: Path) -> None:
    """Cells of equal shapes share their compiled programs, also after a restart."""
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(workdir / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _worker_settings(workdir: Path) -> dict[str, str]:
    """The same for the processes of a sweep, which also share the memory of an accelerator."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(workdir / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    return {name: value for name, value in settings.items() if name not in os.environ}


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Where others make the runs, a signal to stop is an error here, and they are told in turn."""

    def stop(number: int, _: Any) -> NoReturn:
        said = f"{signal.Signals(number).name}: the runs under way have saved their state"
        raise Interrupted(f"{said}; the same command goes on", 128 + number)

    with command.handled_by(stop, signal.SIGTERM, signal.SIGINT):
        yield
