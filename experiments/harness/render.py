# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Renders the tables and figures of the README and of docs/ from the committed results.

    python -m experiments.harness.render                        # after a change of results
    python -m experiments.harness.render --collect=runs/digits  # first takes a sweep's records
    python -m experiments.harness.render --check                # only says whether all is current

A place in a page looks like this, and everything between the two lines is replaced:

    <!-- results: digits/topology -->
    <!-- end of results -->

The names are a preset and a study, `benchmarks` and a benchmark, or `accelerator` and a device.
The same results may stand in several places.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import abstract, membership
from experiments.accelerator import __main__ as accelerator
from experiments.all import EVERY
from experiments.benchmarks import timing
from experiments.benchmarks.all import BENCHMARKS
from experiments.harness import records as records_lib
from experiments.harness import sweep, tables
from experiments.harness.presets import PRESETS, RESULTS, ROOT
from experiments.harness.study import Record, Study
from mhd_jax.errors import ConfigError, suggest

_BY_NAME = {study.name: study for study in EVERY}
_BEGIN = re.compile(r"<!-- results: (\w+/\w+) -->\n")
_PLACE = re.compile(r"(<!-- results: (\w+)/(\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def pages(root: Path = ROOT) -> list[Path]:
    """The Markdown files that may show results: README.md and all of docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def places(text: str) -> set[str]:
    """The results that a page shows, "preset/study" each."""
    return set(_BEGIN.findall(text))


def records(preset: str, study: Study) -> list[Record]:
    """The committed records of a study, in the order of its cells."""
    folder, cells = RESULTS / preset / study.name, study.cells(PRESETS[preset])
    return list(records_lib.read(folder / f"{cell.name}.json" for cell in cells))


def block(preset: str, name: str, page: Path) -> str:
    """What stands in a page for `preset/name`, `benchmarks/name` or `accelerator/name`.

    Args:
      preset: its name, "benchmarks" or "accelerator".
      name: of the study, benchmark or device.
      page: the file, to whose folder links to figures are relative.

    Raises:
      ConfigError: there is no such preset, study or benchmark.
    """
    known = {preset: ("benchmarks", *PRESETS), name: (*_BY_NAME, "abstract", "membership")}
    if preset == "accelerator":
        devices = sorted(folder.name for folder in (RESULTS / preset).iterdir())
        known = {name: tuple(devices)}
    elif preset == "benchmarks":
        known[name] = tuple(benchmark.name for benchmark in BENCHMARKS)
    for part, accepted in known.items():
        if part not in accepted:
            raise ConfigError(f"results in {page.name}", part, suggest(part, accepted))
    if preset == "accelerator":
        measured_on = RESULTS / preset / name
        done = [piece for piece in accelerator.NAMES if (measured_on / piece).exists()]
        return accelerator.summary(measured_on, done) + "\n"
    if preset == "benchmarks":
        (benchmark,) = (benchmark for benchmark in BENCHMARKS if benchmark.name == name)
        measured = timing.records(benchmark, RESULTS / preset)
        return benchmark.table(measured) if measured else "Not run yet.\n"
    if name == "abstract":
        return abstract.table(_everything(preset)) + "\n"
    if name == "membership":
        return membership.block(RESULTS / preset / name)
    study = _BY_NAME[name]
    found = records(preset, study)
    if not found:
        return "Not run yet.\n"
    figure = Path(os.path.relpath(RESULTS / preset / name / "figure.png", page.parent))
    return f"{tables.markdown(study, found)}\n![{study.title}]({figure.as_posix()})\n"


def _everything(preset: str) -> dict[str, Record]:
    return {
        f"{study.name}/{record.cell}": record
        for study in EVERY
        for record in records(preset, study)
    }


def render(page: Path, text: str | None = None) -> str:
    """The page with every place filled.

    Args:
      page: the file.
      text: stands in for what is in it.

    Raises:
      ConfigError: a place for results that do not exist, or one without its end.
    """
    text = page.read_text(encoding="utf-8") if text is None else text
    if len(_BEGIN.findall(text)) != len(_PLACE.findall(text)):
        accepted = "each to be followed by <!-- end of results -->"
        raise ConfigError(f"results in {page.name}", sorted(places(text)), accepted)
    return _PLACE.sub(lambda place: place[1] + block(place[2], place[3], page) + place[4], text)


def collect(workdir: Path) -> None:
    """Takes over the records of a sweep that are new or differ."""
    for preset in PRESETS:
        for study in EVERY:
            for cell in study.cells(PRESETS[preset]) if (workdir / preset).exists() else ():
                made = workdir / preset / study.name / f"{cell.name}.json"
                if made.exists():
                    kept = RESULTS / preset / study.name / made.name
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_text(made.read_text())


def write_up() -> None:
    """Tables and figures beside the committed records."""
    for preset in PRESETS:
        for study in EVERY:
            if (RESULTS / preset / study.name).exists():
                found = records(preset, study)
                sweep.write_up(study, found, RESULTS / preset / study.name)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Renders all pages from the committed results.")
    parser.add_argument("--collect", type=Path, help="workdir of a sweep to take records from")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if not current")
    options = parser.parse_args(argv)
    try:
        if options.collect:
            collect(options.collect)
        if not options.check:
            write_up()
        made = {page: render(page) for page in pages()}
    except ConfigError as error:
        sys.exit(f"ConfigError: {error}")
    stale = [page for page, text in made.items() if text != page.read_text(encoding="utf-8")]
    if options.check and stale:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        sys.exit(f"differ from the results: {names}; python -m experiments.harness.render")
    for page in stale:
        page.write_text(made[page], encoding="utf-8")


if __name__ == "__main__":
    main()
