# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Pieces of work, their cases, and the records that let a later command go on.

<out>/<piece>/<case>.json    one file a case, complete or not there
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import timing

Record = Mapping[str, Any]
Records = Mapping[str, Record]
"""Records of a piece by case."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What a case works with.

    Attributes:
      out: folder of all records.
      quick: tiny sizes, to see that everything works; the figures mean nothing.
      seconds: what is left of the piece's time.
    """

    out: Path
    quick: bool
    seconds: float

    @property
    def effort(self) -> timing.Effort:
        """How long to measure."""
        return timing.QUICK if self.quick else timing.Effort(rounds=5, seconds=0.5)


@dataclasses.dataclass(frozen=True)
class Case:
    """The smallest thing that is done, or not done.

    Attributes:
      name: of its record's file.
      run: does it; what it returns is the record's `results`.
      needs: packages that have to be installed; without them the case is left out, in words.
    """

    name: str
    run: Callable[[Context], Mapping[str, Any]]
    needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """Cases that belong together and share one process.

    Attributes:
      name: of the folder with its records.
      title: one line.
      cases: in order of worth, for a context.
      rows: lines of the summary table, (what, result), from the records there are.
      environment: variables that its process needs before JAX is imported.
    """

    name: str
    title: str
    cases: Callable[[Context], Sequence[Case]]
    rows: Callable[[Records], list[tuple[str, str]]]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def path(out: Path, piece: str, case: str) -> Path:
    """Where the record of a case is, or will be."""
    return out / piece / f"{case}.json"


def read(out: Path, piece: str) -> dict[str, Record]:
    """All records of a piece."""
    found = sorted((out / piece).glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in found}


def done(context: Context, piece: str, case: str) -> bool:
    """Whether a case has a record of success, in this size; what failed is tried again."""
    file = path(context.out, piece, case)
    if not file.exists():
        return False
    record = json.loads(file.read_text())
    return "failed" not in record and bool(record.get("quick")) == context.quick


def write(out: Path, piece: str, case: str, record: Record) -> None:
    """Writes a record, all or nothing."""
    file = path(out, piece, case)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{case}.{os.getpid()}")
    temporary.write_text(json.dumps(timing.rounded(record), indent=1) + "\n")
    temporary.replace(file)


def marker(out: Path, piece: str) -> Path:
    """The file that names the case under way; it outlives a process that is killed."""
    return out / piece / "under_way.txt"


def run_cases(piece: Piece, context: Context, skip: Sequence[str]) -> None:
    """Does the cases of a piece that are not done until its time is over.

    A case that raises leaves a record of what it raised, and the next one is done.
    """
    end = time.monotonic() + context.seconds
    for case in piece.cases(context):
        left = end - time.monotonic()
        if case.name in skip or done(context, piece.name, case.name):
            continue
        if left <= 0:
            print(f"{piece.name}/{case.name}: no time left; the same command goes on", flush=True)
            return
        if absent := timing.missing(timing.Case(case.name, dict, case.needs)):  # type: ignore[arg-type]
            print(f"{piece.name}/{case.name}: left out, needs {', '.join(absent)}", flush=True)
            continue
        under_way = marker(context.out, piece.name)
        under_way.parent.mkdir(parents=True, exist_ok=True)
        under_way.write_text(case.name)
        record = run_case(piece.name, case, dataclasses.replace(context, seconds=left))
        write(context.out, piece.name, case.name, record)
        under_way.unlink(missing_ok=True)  # another process may be at the same piece
        said = record.get("failed", "done")
        print(f"{piece.name}/{case.name}: {said} in {record['wall_seconds']} s", flush=True)


def run_case(piece: str, case: Case, context: Context) -> Record:
    """The record of a case: what was measured, where and with what, or what it raised."""
    begin = time.monotonic()
    try:
        outcome: dict[str, Any] = {"results": case.run(context)}
    except Exception as error:  # whatever it is: the other cases are worth having
        traceback.print_exc()
        outcome = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return {
        "piece": piece,
        "case": case.name,
        "quick": context.quick,
        **timing.provenance(),
        "wall_seconds": round(time.monotonic() - begin, 1),
        **outcome,
    }
