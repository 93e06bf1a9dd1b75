# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Records of finished cells: made from the summaries of runs, written and read."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments.harness.presets import ROOT, Preset
from experiments.harness.study import Cell, PerClass, Record, Results, Study
from mhd_jax.runtime.workdir import to_json

_DIGITS = 4  # of the accuracies in a record


# --- From the summaries of runs -------------------------------------------------------------------


def results(
    runs: Sequence[Mapping[str, Any]], isolated: Sequence[Mapping[str, Any]], per_class: bool
) -> Results:
    """The results of a cell from the summaries of its runs and of the isolated baseline's.

    Raises:
      ValueError: clients and their isolated baseline have different data.
    """
    seeds, baselines = _by_seed(runs), _by_seed(isolated)
    hashes = [one["partition_hash"] for one in seeds]
    if hashes != [one["partition_hash"] for one in baselines]:
        raise ValueError("the isolated baseline was trained on other data than its cell")
    first = runs[0]
    clients = len(seeds[0]["label_histogram"])
    return Results(
        seeds=[one["seed"] for one in seeds],
        partition_hash=hashes,
        shared_accuracy=_rounded(r["shared_accuracy"] for r in seeds),
        private_accuracy=_rounded(r["private_accuracy"] for r in seeds),
        isolated_shared_accuracy=_rounded(r["shared_accuracy"] for r in baselines),
        isolated_private_accuracy=_rounded(r["private_accuracy"] for r in baselines),
        bytes_per_client_and_step=first["bytes_sent"] / (clients * first["steps"]),
        bytes_per_step={n: float(np.mean(values)) for n, values in first["bytes_per_step"].items()},
        per_class=_per_class(seeds) if per_class else None,
    )


def _per_class(seeds: Sequence[Mapping[str, Any]]) -> PerClass:
    return PerClass(
        class_accuracy=_rounded((r["class_accuracy"] for r in seeds), 3),
        primary_labels=np.array([r["primary_labels"] for r in seeds], bool),
        adjacency=np.array([r["adjacency"] for r in seeds], bool),
    )


def _by_seed(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of runs of one seed each the run itself, of others what they hold of every seed."""
    return [
        one
        for run in runs
        for one in (run.get("replicas") or [{**run, "seed": run["config"]["seed"]}])
    ]


def _rounded(arrays: Iterable[Any], digits: int = _DIGITS) -> np.ndarray:
    return np.round(np.array([np.asarray(array, float) for array in arrays]), digits)


def record(
    chosen: Preset,
    study: Study,
    cell: Cell,
    config: ml_collections.ConfigDict,
    runs: Sequence[Mapping[str, Any]],
    found: Results | str,
    wall_seconds: float,
    jobs: int = 1,
) -> Record:
    """The record of a cell.

    Args:
      chosen: the preset.
      study: that the cell is of.
      cell: that was run.
      config: of its first run.
      runs: their summaries, none where one of them diverged.
      found: the results, or how a run diverged.
      wall_seconds: spent on the runs.
      jobs: runs that were made at once.
    """
    first: Mapping[str, Any] = runs[0] if runs else {}
    speeds = [run["steps_per_second"] for run in runs if run["steps_per_second"]]
    return Record(
        study=study.name,
        cell=cell.name,
        label=cell.label,
        group=cell.group,
        column=cell.column,
        preset=chosen.name,
        command=command(study.name, chosen.name),
        changes=dict(cell.changes),
        config=json.loads(to_json(config)),
        revision=revision(),
        versions=first.get("versions", {}),
        device=first.get("device", ""),
        hardware=hardware(max(1, cores() // jobs)),
        num_params=first.get("num_params", []),
        seconds_per_step=round(float(np.mean([1 / s for s in speeds])), 5) if speeds else None,
        compile_seconds=round(sum(run["compile_seconds"] for run in runs), 1),
        wall_seconds=round(wall_seconds, 1),
        found=None if isinstance(found, str) else found,
        diverged=found if isinstance(found, str) else "",
    )


def command(study: str, preset_name: str) -> str:
    """What to type to get this table."""
    return f"python -m experiments.{study} --preset={preset_name} --workdir=runs/{preset_name}"


# --- Where and with what --------------------------------------------------------------------------


@functools.cache
def revision() -> str:
    """The commit of the code, with `+` where files of it were changed since."""

    def git(*arguments: str) -> str:
        asked = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    code = ("mhd_jax", "configs", "experiments/*.py")  # the star spans folders
    try:
        changed = git("status", "--porcelain", "--", *code)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware(count: int | None = None) -> str:
    """Processor and number of cores: `count`, or all that this process may use."""
    count = count or cores()
    return f"{count} core{'s' if count != 1 else ''} of {_processor()}"


@functools.cache
def _processor() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return name


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- Files ----------------------------------------------------------------------------------------


def read(paths: Iterable[Path]) -> Iterator[Record]:
    """The records in those of the files that exist."""
    return (Record.from_json(json.loads(path.read_text())) for path in paths if path.exists())


def to_compact_json(value: Mapping[str, Any]) -> str:
    """Indented, but with every list of numbers on one line: small, and readable in a diff."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: re.sub(r"\s+", "", found[0]), text) + "\n"


def write(path: Path, text: str) -> None:
    """All or nothing, so that a file that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
