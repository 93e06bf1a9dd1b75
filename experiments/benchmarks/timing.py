# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Contenders timed in turn within one run, and the record of it.

A machine's speed drifts by more than what is compared here. So contenders alternate: in every
round each does its work once, in rotating order, and what counts is the ratio within a round.
Tables show the median of these ratios with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import records as records_lib
from experiments.harness import tables

Record = Mapping[str, Any]

# Contenders whose versions are kept, where they are installed, by distribution.
PACKAGES = {"torch": "PyTorch", "fedjax": "fedjax", "pfl": "pfl-research"}


# --- Timing ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
      rounds: measurements of every contender.
      seconds: the least that one measurement lasts.
      quick: tiny sizes, to see that everything works; the figures mean nothing.
    """

    rounds: int = 7
    seconds: float = 0.5
    quick: bool = False


QUICK = Effort(rounds=2, seconds=0.01, quick=True)


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
      name: its key in records.
      run: does as many units of work (steps, say) as it is told and returns when they are done.
      compile_seconds: what compilation took beforehand; None where nothing is compiled.
      unit: `run` is told multiples of this.
    """

    name: str
    run: Callable[[int], object]
    compile_seconds: float | None = None
    unit: int = 1


def alternate(contenders: Sequence[Contender], effort: Effort) -> dict[str, Any]:
    """Times all contenders in turn.

    Returns:
      By contender `seconds` per unit of work, one number per round; `count` of units in each
      measurement; `compile_seconds`.
    """
    counts = {contender.name: _calibrate(contender, effort.seconds) for contender in contenders}
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(effort.rounds):
        first = number % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            count = counts[contender.name]
            seconds[contender.name].append(_timed(contender, count) / count)
    return {
        contender.name: {
            "seconds": seconds[contender.name],
            "count": counts[contender.name],
            "compile_seconds": contender.compile_seconds,
        }
        for contender in contenders
    }


def _timed(contender: Contender, count: int) -> float:
    begin = time.perf_counter()
    contender.run(count)
    return time.perf_counter() - begin


def _calibrate(contender: Contender, seconds: float) -> int:
    """Units of work that take at least about `seconds`; also warms everything up."""
    count = contender.unit
    contender.run(count)
    while (took := _timed(contender, count)) < seconds / 4:
        count *= 2
    return contender.unit * max(1, math.ceil(count * seconds / took / contender.unit))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0}
    """
    array = np.asarray(values, float)
    return {"median": float(np.median(array)), "min": float(array.min()), "max": float(array.max())}


def speedup(measured: Mapping[str, Any], ours: str, other: str) -> dict[str, float]:
    """How many times as fast as `other` `ours` is: the spread of the ratio over rounds."""
    pairs = zip(measured[ours]["seconds"], measured[other]["seconds"], strict=True)
    return spread([theirs / mine for mine, theirs in pairs])


def milliseconds(measured: Mapping[str, Any], name: str) -> float:
    """Median milliseconds per unit of work."""
    return 1e3 * float(np.median(measured[name]["seconds"]))


def rounds(records: Sequence[Record]) -> str:
    """How many rounds the medians of a table are over.

    >>> rounds([{"effort": {"rounds": 5}}, {"effort": {"rounds": 3}}])
    '3 to 5 rounds'
    """
    found = sorted({record["effort"]["rounds"] for record in records})
    return f"{' to '.join(map(str, dict.fromkeys((found[0], found[-1]))))} rounds"


def busy(records: Sequence[Record]) -> str:
    """A sentence where other programs ran besides, from the averages of a minute; else nothing.

    >>> busy([{"load": [6.2, 5.0, 4.0], "hardware": "2 cores of a processor"}])
    ' Other programs ran beside some of them (load up to 6), so ratios say more than milliseconds.'
    >>> busy([{"load": [2.1, 5.0, 4.0], "hardware": "2 cores of a processor"}])
    ''
    """
    loaded = [one["load"][0] for one in records if one["load"][0] > _cores(one) + 0.5]
    if not loaded:
        return ""
    return (
        f" Other programs ran beside some of them (load up to {max(loaded):.0f}), so ratios say "
        "more than milliseconds."
    )


def _cores(record: Record) -> int:
    return int(record["hardware"].split()[0])


def factor(found: Mapping[str, float]) -> str:
    """A spread of ratios as tables show it.

    >>> factor({"median": 4.21, "min": 3.9, "max": 12.34})
    '4.2× (3.9–12.3)'
    """
    return f"{found['median']:.1f}× ({found['min']:.1f}–{found['max']:.1f})"


def markdown(
    header: Sequence[str],
    lines: Sequence[Sequence[str]],
    said: str,
    records: Sequence[Record],
    packages: Sequence[str] = (),
) -> str:
    """A table, if it has lines, and below it what to know about it.

    Args:
      header: of the columns.
      lines: of the table.
      said: what was measured, a sentence or two.
      records: from which the machine, the versions and the command are taken.
      packages: other people's whose versions matter.
    """
    first = records[0]
    versions = (f"{PACKAGES[name]} {first['versions'][name]}" for name in packages)
    made = f"{', '.join([first['hardware'], *versions])}. `{first['command']}`"
    table = [tables.grid(header, lines)] if lines else []
    return "\n\n".join([*table, f"{said} {made}"]) + "\n"


# --- Benchmarks -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """One row, or a few, of a benchmark's table.

    Attributes:
      name: of the record's file.
      run: measures; what it returns is the record's `results`.
      needs: packages that have to be installed; without them the case is left out, in words.
    """

    name: str
    run: Callable[[Effort], Mapping[str, Any]]
    needs: tuple[str, ...] = ()


def one_case(
    name: str, run: Callable[[Effort], Mapping[str, Any]]
) -> Callable[[bool], Sequence[Case]]:
    """The cases of a benchmark that has only one."""
    return lambda quick: [Case(name, run)]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One table.

    Attributes:
      name: of the module and of the folder with its records.
      title: one line.
      cases: its rows, in order; tiny ones where asked for quick ones.
      table: Markdown from the records of the cases there are, in order.
    """

    name: str
    title: str
    cases: Callable[[bool], Sequence[Case]]
    table: Callable[[Sequence[Record]], str]

    @property
    def command(self) -> str:
        """What to type to measure it again."""
        return f"python -m experiments.benchmarks.{self.name} --out=experiments/results/benchmarks"


def missing(case: Case) -> list[str]:
    """What a case needs and is not installed."""

    def absent(package: str) -> bool:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return True
        return False

    return [package for package in case.needs if absent(package)]


def run_case(benchmark: Benchmark, case: Case, effort: Effort) -> dict[str, Any]:
    """The record of one case: what was measured, and where, when and with what."""
    begin = time.monotonic()
    results = case.run(effort)
    return {
        "benchmark": benchmark.name,
        "case": case.name,
        "command": benchmark.command,
        "effort": dataclasses.asdict(effort),
        **provenance(),
        "wall_seconds": round(time.monotonic() - begin, 1),
        "results": results,
    }


def provenance() -> dict[str, Any]:
    """Where and with what something was measured, packages to compare with included."""
    found = records_lib.provenance()
    for name in PACKAGES:
        try:
            found["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "load": [round(load, 2) for load in os.getloadavg()]}


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> None:
    """Runs the cases of a benchmark and prints its table; with --out also keeps the records."""
    options = _parse(benchmark, argv)
    effort = QUICK if options.quick else Effort(options.rounds, options.seconds)
    records = []
    for case in benchmark.cases(effort.quick):
        if not fnmatch.fnmatchcase(case.name, options.cases):
            continue
        if absent := missing(case):
            print(f"{benchmark.name}/{case.name}: left out, needs {', '.join(absent)}", flush=True)
            continue
        records.append(run_case(benchmark, case, effort))
        print(f"{benchmark.name}/{case.name}: {records[-1]['wall_seconds']} s", flush=True)
        if options.out:
            _keep(options.out / benchmark.name / f"{case.name}.json", records[-1])
    if records:
        print(benchmark.table(records))


def _parse(benchmark: Benchmark, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=benchmark.title)
    parser.add_argument("--quick", action="store_true", help="tiny sizes; figures mean nothing")
    parser.add_argument("--rounds", type=int, default=Effort.rounds, help="of all contenders")
    parser.add_argument("--seconds", type=float, default=Effort.seconds, help="per measurement")
    parser.add_argument("--cases", default="*", help="pattern of the cases to run")
    parser.add_argument("--out", type=Path, help="folder to keep records in")
    return parser.parse_args(argv)


def _keep(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(records_lib.to_compact_json(rounded(record)))


def rounded(tree: Any, digits: int = 5) -> Any:
    """The same with floating-point numbers cut to some significant digits."""
    if isinstance(tree, float):
        return float(f"{tree:.{digits}g}")
    if isinstance(tree, Mapping):
        return {key: rounded(value, digits) for key, value in tree.items()}
    return [rounded(value, digits) for value in tree] if isinstance(tree, list | tuple) else tree


def records(benchmark: Benchmark, folder: Path) -> list[Record]:
    """The committed records of a benchmark, in the order of its cases."""
    files = [folder / benchmark.name / f"{case.name}.json" for case in benchmark.cases(False)]
    return [json.loads(file.read_text()) for file in files if file.exists()]
