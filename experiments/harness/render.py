# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Renders the README's tables and figures from the committed results.

    python -m experiments.harness.render                        # after a change of results
    python -m experiments.harness.render --collect=runs/digits  # first takes a sweep's records
    python -m experiments.harness.render --check                # only says whether all is current

A place in the README looks like this, and everything between the two lines is replaced:

    <!-- results: digits/topology -->
    <!-- end of results -->
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import abstract
from experiments.all import STUDIES
from experiments.benchmarks import timing
from experiments.benchmarks.all import BENCHMARKS
from experiments.harness import records as records_lib
from experiments.harness import sweep, tables
from experiments.harness.presets import PRESETS, ROOT
from experiments.harness.study import Record, Study

RESULTS = ROOT / "experiments" / "results"
README = ROOT / "README.md"
_PLACE = re.compile(r"(<!-- results: (\w+)/(\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def records(preset: str, study: Study, folder: Path = RESULTS) -> list[Record]:
    """The committed records of a study, in the order of its cells."""
    files = [
        folder / preset / study.name / f"{cell.name}.json" for cell in study.cells(PRESETS[preset])
    ]
    return list(records_lib.read(files))


def block(preset: str, name: str) -> str:
    """What stands in the README for `preset/name`, or for `benchmarks/name`.

    Raises:
      KeyError: there is no such preset, study or benchmark.
    """
    if preset == "benchmarks":
        benchmark = {benchmark.name: benchmark for benchmark in BENCHMARKS}[name]
        measured = timing.records(benchmark, RESULTS / preset)
        return benchmark.table(measured) if measured else "Not run yet.\n"
    if name == "abstract":
        return abstract.table(_everything(preset)) + "\n"
    study = {study.name: study for study in STUDIES}[name]
    found = records(preset, study)
    if not found:
        return "Not run yet.\n"
    figure = f"experiments/results/{preset}/{name}/figure.png"
    return f"{tables.markdown(study, found)}\n![{study.title}]({figure})\n"


def _everything(preset: str) -> dict[str, Record]:
    return {
        f"{study.name}/{record.cell}": record
        for study in STUDIES
        for record in records(preset, study)
    }


def render(text: str) -> str:
    """`text` with every place filled."""
    return _PLACE.sub(lambda place: place[1] + block(place[2], place[3]) + place[4], text)


def collect(workdir: Path) -> None:
    """Takes over the records of a sweep that are new or differ."""
    for preset in PRESETS:
        for study in STUDIES:
            for cell in study.cells(PRESETS[preset]) if (workdir / preset).exists() else ():
                made = workdir / preset / study.name / f"{cell.name}.json"
                if made.exists():
                    kept = RESULTS / preset / study.name / made.name
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(made.read_text())


def write_up() -> None:
    """Tables and figures beside the committed records."""
    for preset in PRESETS:
        for study in STUDIES:
            if (RESULTS / preset / study.name).exists():
                found = records(preset, study)
                sweep.write_up(study, found, RESULTS / preset / study.name)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Renders the README from the committed results.")
    parser.add_argument("--collect", type=Path, help="workdir of a sweep to take records from")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if not current")
    options = parser.parse_args(argv)
    if options.check:
        current = render(README.read_text()) == README.read_text()
        sys.exit(None if current else "README.md differs: python -m experiments.harness.render")
    if options.collect:
        collect(options.collect)
    write_up()
    README.write_text(render(README.read_text()))


if __name__ == "__main__":
    main()
