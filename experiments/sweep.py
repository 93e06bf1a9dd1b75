# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Runs the cells of a table one after another, each once, and writes down what came out.

A study is a list of cells; a cell is a name and the settings in which it differs from the preset.
Every cell is a run of `mhd_jax.train.train_and_evaluate` for all its seeds. Beside it stands its
yardstick, the same clients in isolation (same data, same initial parameters), which cells share:
runs are filed under their settings, so what two cells or two studies have in common is run once.

    <workdir>/runs/<key>/             a run: checkpoints, metrics.jsonl, summary.json
    <workdir>/<preset>/<study>/       <cell>.json, table.md, table.csv, figure.png

A killed sweep goes on where it stopped: finished cells are left as they are, and the run that was
under way goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from experiments import plots, tables
from experiments.presets import ROOT, Preset, preset
from mhd_jax.config import flatten
from mhd_jax.errors import ConfigError, DivergedError, WorkdirError
from mhd_jax.runtime.workdir import FREE_SETTINGS, to_json

Record = Mapping[str, Any]

# What a client that exchanges nothing does not depend on.
_ONLY_FOR_EXCHANGE = ("graph.*", "exchange.*", "distill.*", "average.*", "rounds.*", "heads.aux")
_DIGITS = 4  # of the accuracies in a record


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a table.

    Attributes:
      name: of the record's file.
      label: what the table calls it.
      changes: settings by dotted name.
      group: rows of a group stand together and carry its name.
      per_class: keep the accuracy on every class, which the hop picture needs.
    """

    name: str
    label: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: str = ""
    per_class: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """One table and figure.

    Attributes:
      name: of the folder with its records.
      title: one line.
      cells: its rows at a preset.
      draw: its figure, from the records in the order of the cells.
      all_heads: the table has a column for every head rather than for the first and last.
      definitions: what is defined differently here than a reader may expect, a sentence each.
      extra: further lines below the table, from the records in the order of the cells.
    """

    name: str
    title: str
    cells: Callable[[Preset], list[Cell]]
    draw: Callable[[Sequence[Record]], Figure] = plots.dots
    all_heads: bool = False
    definitions: tuple[str, ...] = ()
    extra: Callable[[Sequence[Record]], str] | None = None


# --- Runs -----------------------------------------------------------------------------------------


def run_key(config: ml_collections.ConfigDict) -> str:
    """The name of the run with these settings; settings that change no result do not count."""
    flat = {
        name: value
        for name, value in flatten(config).items()
        if not any(fnmatch.fnmatchcase(name, free) for free in FREE_SETTINGS)
    }
    return hashlib.sha256(to_json(dict(sorted(flat.items()))).encode()).hexdigest()[:12]


def cell_configs(chosen: Preset, cell: Cell) -> list[ml_collections.ConfigDict]:
    """The runs of a cell, seed by seed or all seeds stacked."""
    return _seeded(chosen, {"isolated_baseline": False, **cell.changes})


def yardstick_configs(chosen: Preset, cell: Cell) -> list[ml_collections.ConfigDict]:
    """The runs of the same clients in isolation."""
    changes = {
        name: value
        for name, value in cell.changes.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _ONLY_FOR_EXCHANGE)
    }
    return _seeded(chosen, {**changes, "method": "isolated", "isolated_baseline": False})


def _seeded(chosen: Preset, changes: Mapping[str, Any]) -> list[ml_collections.ConfigDict]:
    first = range(0, chosen.seeds, chosen.replicas)
    return [chosen.base({**changes, "seed": seed}) for seed in first]


@dataclasses.dataclass
class Sweep:
    """The cells of some studies at a preset, and what is on disk of them."""

    chosen: Preset
    workdir: Path
    studies: Sequence[Study]
    pattern: str = "*"

    def cells(self) -> Iterator[tuple[Study, Cell]]:
        """The cells to run in the order in which they run: those whose name fits the pattern."""
        for study in self.studies:
            for cell in study.cells(self.chosen):
                if fnmatch.fnmatchcase(cell.name, self.pattern):
                    yield study, cell

    def record_path(self, study: Study, cell: Cell) -> Path:
        """Where the cell's record is, or will be."""
        return self.workdir / self.chosen.name / study.name / f"{cell.name}.json"

    def run(self) -> None:
        """Runs what is missing and keeps tables and figures up to date."""
        cells = list(self.cells())
        done = [self.record_path(*pair).exists() for pair in cells]
        print(f"{len(cells)} cells, {sum(done)} of them finished before", flush=True)
        for number, (study, cell) in enumerate(cells, 1):
            if not self.record_path(study, cell).exists():
                print(f"[{number}/{len(cells)}] {study.name}/{cell.name} · {self._outlook()}")
                self._run_cell(study, cell)
            if number == len(cells) or cells[number][0] is not study:
                self.write_up(study)

    def _run_cell(self, study: Study, cell: Cell) -> None:
        try:
            alone = [self._summary(config) for config in yardstick_configs(self.chosen, cell)]
            runs = [self._summary(config) for config in cell_configs(self.chosen, cell)]
            result = results(runs, alone, cell.per_class)
        except DivergedError as error:
            runs, result = [], {"diverged": str(error)}
        configs = cell_configs(self.chosen, cell)
        seconds = sum(self._seconds(config) for config in configs)
        made = {
            **_header(self.chosen, study, cell, configs[0]),
            **provenance(runs, seconds),
            "results": result,
        }
        path = self.record_path(study, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, tables.to_compact_json(made))
        self.write_up(study)

    def _summary(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """The summary of the run, which is run or gone on with if need be."""
        from mhd_jax import train  # after the command line is read, so that --help is quick

        folder = self._folder(config)
        if (folder / "summary.json").exists():
            return json.loads((folder / "summary.json").read_text())
        begin = time.monotonic()
        try:
            train.train_and_evaluate(config, folder, with_report=False)
        finally:
            if folder.exists():
                total = self._seconds(config) + time.monotonic() - begin
                _write(folder / "seconds.json", json.dumps(total))
        return json.loads((folder / "summary.json").read_text())

    def _folder(self, config: ml_collections.ConfigDict) -> Path:
        return self.workdir / "runs" / run_key(config)

    def _seconds(self, config: ml_collections.ConfigDict) -> float:
        """Wall seconds spent on a run so far; what a killed process spent is not counted."""
        file = self._folder(config) / "seconds.json"
        return float(json.loads(file.read_text())) if file.exists() else 0.0

    def write_up(self, study: Study) -> None:
        """Tables and figure of the cells that are finished."""
        found = [self.record_path(study, cell) for cell in study.cells(self.chosen)]
        records = [json.loads(path.read_text()) for path in found if path.exists()]
        if records:
            write_up(study, records, found[0].parent)

    # --- The outlook ---

    def runs(self) -> dict[str, tuple[str, ml_collections.ConfigDict]]:
        """All distinct runs by key, with the cell that first needs them."""
        needed: dict[str, tuple[str, ml_collections.ConfigDict]] = {}
        for study, cell in self.cells():
            both = yardstick_configs(self.chosen, cell) + cell_configs(self.chosen, cell)
            for config in both:
                needed.setdefault(run_key(config), (f"{study.name}/{cell.name}", config))
        return needed

    def _outlook(self) -> str:
        """How many runs are done, and how long the rest will take if they take as long."""
        configs = [config for _, config in self.runs().values()]
        spent = [self._seconds(config) for config in configs if self._finished(config)]
        text = f"{len(spent)} of {len(configs)} runs done"
        if spent:
            left = (len(configs) - len(spent)) * sum(spent) / len(spent)
            text += f", ETA {_duration(left)}"
        return text

    def _finished(self, config: ml_collections.ConfigDict) -> bool:
        return (self._folder(config) / "summary.json").exists()

    def plan(self) -> str:
        """All runs with what each needs, without running anything."""
        lines = [f"{'run':<14}{'clients':>8}{'seeds':>6}{'steps':>9}  {'state':<9}for"]
        for key, (cell, config) in self.runs().items():
            state = "finished" if self._finished(config) else "to do"
            numbers = f"{config.clients.num:>8}{config.num_seeds:>6}{config.train.steps:>9,}"
            lines.append(f"{key:<14}{numbers}  {state:<9}{cell} ({config.method})")
        steps = sum(config.train.steps for _, config in self.runs().values())
        return "\n".join([*lines, f"{len(lines) - 1} runs, {steps:,} steps"])


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _write(path: Path, text: str) -> None:
    """All or nothing, so that a file that exists is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def write_up(study: Study, records: Sequence[Record], folder: Path) -> None:
    """Writes table.md, table.csv and figure.png beside the records."""
    _write(folder / "table.md", tables.markdown(study, records))
    _write(folder / "table.csv", tables.csv_text(records))
    finished = [record for record in records if "diverged" not in record["results"]]
    if finished:
        plots.save(study.draw(finished), folder / "figure.png")


# --- Records --------------------------------------------------------------------------------------


def results(
    runs: Sequence[Mapping[str, Any]], alone: Sequence[Mapping[str, Any]], per_class: bool
) -> dict[str, Any]:
    """The arrays of a record, by replica, client and head, from the summaries of its runs.

    Raises:
      ValueError: clients and their yardstick have different data.
    """
    replicas, yardsticks = _replicas(runs), _replicas(alone)
    hashes = [replica["partition_hash"] for replica in replicas]
    if hashes != [replica["partition_hash"] for replica in yardsticks]:
        raise ValueError("the yardstick was trained on other data than its cell")
    first = runs[0]
    clients = len(replicas[0]["label_histogram"])
    kept = {
        "seeds": [replica["seed"] for replica in replicas],
        "partition_hash": hashes,
        "shared_accuracy": _rounded(r["shared_accuracy"] for r in replicas),
        "private_accuracy": _rounded(r["private_accuracy"] for r in replicas),
        "control_shared_accuracy": _rounded(r["shared_accuracy"] for r in yardsticks),
        "control_private_accuracy": _rounded(r["private_accuracy"] for r in yardsticks),
        "bytes_per_client_and_step": first["bytes_sent"] / (clients * first["steps"]),
        "bytes_per_step": {
            name: float(np.mean(values)) for name, values in first["bytes_per_step"].items()
        },
    }
    if per_class:
        kept["class_accuracy"] = _rounded((r["class_accuracy"] for r in replicas), 3)
        kept["primary_labels"] = [np.array(r["primary_labels"], int).tolist() for r in replicas]
        kept["adjacency"] = [np.array(r["adjacency"], int).tolist() for r in replicas]
    return kept


def _replicas(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [replica for run in runs for replica in (run.get("replicas") or [_alone(run)])]


def _alone(run: Mapping[str, Any]) -> dict[str, Any]:
    return {**run, "seed": run["config"]["seed"]}


def _rounded(arrays: Iterator[Any], digits: int = _DIGITS) -> list[Any]:
    return [np.round(np.asarray(array, float), digits).tolist() for array in arrays]


def _header(
    chosen: Preset, study: Study, cell: Cell, config: ml_collections.ConfigDict
) -> dict[str, Any]:
    return {
        "study": study.name,
        "cell": cell.name,
        "label": cell.label,
        "group": cell.group,
        "preset": chosen.name,
        "command": command(study.name, chosen.name),
        "changes": dict(cell.changes),
        "config": json.loads(to_json(config)),
    }


def command(study: str, preset_name: str) -> str:
    """What to type to get this table."""
    return f"python -m experiments.{study} --preset={preset_name} --workdir=runs/{preset_name}"


def provenance(runs: Sequence[Mapping[str, Any]], wall_seconds: float) -> dict[str, Any]:
    """Where, when and with what the runs were made."""
    first: Mapping[str, Any] = runs[0] if runs else {}
    speeds = [run["steps_per_second"] for run in runs if run["steps_per_second"]]
    return {
        "revision": revision(),
        "versions": first.get("versions", {}),
        "device": first.get("device", ""),
        "hardware": hardware(),
        "num_params": first.get("num_params", []),
        "seconds_per_step": round(float(np.mean([1 / s for s in speeds])), 5) if speeds else None,
        "compile_seconds": round(sum(run["compile_seconds"] for run in runs), 1),
        "wall_seconds": round(wall_seconds, 1),
    }


@functools.cache
def revision() -> str:
    """The commit of the code, with `+` where files of it were changed since."""

    def git(*arguments: str) -> str:
        asked = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "mhd_jax", "configs", "experiments/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@functools.cache
def hardware() -> str:
    """Processor and number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{cores()} core{'s' if cores() != 1 else ''} of {name}"


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- Command line ---------------------------------------------------------------------------------


def main(*studies: Study, argv: Sequence[str] | None = None) -> None:
    """Runs `studies` as the command line says; errors a user can mend end in one line."""
    options = _parse(argv)
    os.chdir(ROOT)  # settings that name a file of the repository are relative to it
    from mhd_jax import train

    try:
        sweep = Sweep(preset(options.preset), options.workdir, studies, options.cells)
        if options.list:
            print("\n".join(f"{study.name}/{cell.name}" for study, cell in sweep.cells()))
        elif options.plan:
            print(sweep.plan())
        else:
            _use_compilation_cache(options.workdir)
            sweep.run()
    except (ConfigError, WorkdirError, train.Interrupted) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(143 if isinstance(error, train.Interrupted) else 1)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs the missing cells of a table.")
    parser.add_argument("--preset", default="digits", help="dataset and scale")
    parser.add_argument("--workdir", default="runs/sweep", type=lambda path: Path(path).resolve())
    parser.add_argument("--cells", default="*", help="only those whose name fits this pattern")
    parser.add_argument("--list", action="store_true", help="name the cells and stop")
    parser.add_argument("--plan", action="store_true", help="list the runs they need and stop")
    return parser.parse_args(argv)


def _use_compilation_cache(workdir: Path) -> None:
    """Cells of equal shapes share their compiled programs, also after a restart."""
    import jax

    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(workdir / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
