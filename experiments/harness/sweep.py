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
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from experiments.harness import plots, records, tables
from experiments.harness.presets import ROOT, Preset, preset
from experiments.harness.study import Cell, Record, Results, Study
from mhd_jax.config import flatten
from mhd_jax.errors import ConfigError, DivergedError, WorkdirError
from mhd_jax.workdir import FREE_SETTINGS, to_json

# What a client that exchanges nothing does not depend on.
_ONLY_FOR_EXCHANGE = ("graph.*", "exchange.*", "distill.*", "average.*", "rounds.*", "heads.aux")


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
    return _seeded(chosen, {"control": False, **cell.changes})


def yardstick_configs(chosen: Preset, cell: Cell) -> list[ml_collections.ConfigDict]:
    """The runs of the same clients in isolation."""
    changes = {
        name: value
        for name, value in cell.changes.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in _ONLY_FOR_EXCHANGE)
    }
    return _seeded(chosen, {**changes, "method": "isolated", "control": False})


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
        found: Results | str
        try:
            alone = [self._summary(config) for config in yardstick_configs(self.chosen, cell)]
            runs = [self._summary(config) for config in cell_configs(self.chosen, cell)]
            found = records.results(runs, alone, cell.per_class)
        except DivergedError as error:
            runs, found = [], str(error)
        configs = cell_configs(self.chosen, cell)
        seconds = sum(self._seconds(config) for config in configs)
        made = records.record(self.chosen, study, cell, configs[0], runs, found, seconds)
        text = records.to_compact_json(made.to_json())
        records.write(self.record_path(study, cell), text)
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
                records.write(folder / "seconds.json", json.dumps(total))
        return json.loads((folder / "summary.json").read_text())

    def _folder(self, config: ml_collections.ConfigDict) -> Path:
        return self.workdir / "runs" / run_key(config)

    def _seconds(self, config: ml_collections.ConfigDict) -> float:
        """Wall seconds spent on a run so far; what a killed process spent is not counted."""
        file = self._folder(config) / "seconds.json"
        return float(json.loads(file.read_text())) if file.exists() else 0.0

    def write_up(self, study: Study) -> None:
        """Tables and figure of the cells that are finished."""
        paths = [self.record_path(study, cell) for cell in study.cells(self.chosen)]
        write_up(study, list(records.read(paths)), self.workdir / self.chosen.name / study.name)

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
            numbers = f"{config.clients.num:>8}{config.replicas:>6}{config.train.steps:>9,}"
            lines.append(f"{key:<14}{numbers}  {state:<9}{cell} ({config.method})")
        steps = sum(config.train.steps for _, config in self.runs().values())
        return "\n".join([*lines, f"{len(lines) - 1} runs, {steps:,} steps"])


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
