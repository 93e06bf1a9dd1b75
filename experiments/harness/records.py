# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Records of finished cells: made from the summaries of runs, written and read."""

from __future__ import annotations

import contextlib
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
from mhd_jax.errors import WorkdirError, of_file
from mhd_jax.results import SeedResult, Summary
from mhd_jax.runtime.workdir import to_json, without_infinity

_DIGITS = 4  # of the accuracies in a record


# --- From the summaries of runs -------------------------------------------------------------------


def results(runs: Sequence[Summary], isolated: Sequence[Summary], per_class: bool) -> Results:
    """The results of a cell from the summaries of its runs and of the isolated baseline's.

    Raises:
      ValueError: clients and their isolated baseline have different data.
    """
    seeds, baselines = ([one for run in some for one in run.seeds] for some in (runs, isolated))
    hashes = [one.partition_hash for one in seeds]
    if hashes != [one.partition_hash for one in baselines]:
        raise ValueError("the isolated baseline was trained on other data than its cell")
    first = runs[0]
    clients = len(first.label_histogram)
    return Results(
        seeds=[one.seed for one in seeds],
        partition_hash=hashes,
        shared_accuracy=_rounded(one.shared_accuracy for one in seeds),
        private_accuracy=_rounded(one.private_accuracy for one in seeds),
        isolated_shared_accuracy=_rounded(one.shared_accuracy for one in baselines),
        isolated_private_accuracy=_rounded(one.private_accuracy for one in baselines),
        bytes_per_client_and_step=first.bytes_sent / (clients * first.steps),
        bytes_per_step={name: float(sent.mean()) for name, sent in first.bytes_per_step.items()},
        per_class=_per_class(seeds) if per_class else None,
        bytes_to={
            level: [_each(one.bytes_to[level], clients) for one in seeds]
            for level in seeds[0].bytes_to
        },
    )


def _each(sent: float | None, clients: int) -> float | None:
    return None if sent is None else sent / clients


def _per_class(seeds: Sequence[SeedResult]) -> PerClass:
    return PerClass(
        class_accuracy=_rounded((one.class_accuracy for one in seeds), 3),
        primary_labels=np.array([one.primary_labels for one in seeds]),
        adjacency=np.array([one.adjacency_union for one in seeds]),
    )


def _rounded(arrays: Iterable[np.ndarray], digits: int = _DIGITS) -> np.ndarray:
    return np.round(np.array(list(arrays)), digits)


def record(
    chosen: Preset,
    study: Study,
    cell: Cell,
    config: ml_collections.ConfigDict,
    runs: Sequence[Summary],
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
    first = runs[0] if runs else None
    speeds = [run.steps_per_second for run in runs if run.steps_per_second]
    return Record(
        study=study.name,
        cell=cell.name,
        label=cell.label,
        group=cell.group,
        column=cell.column,
        preset=chosen.name,
        command=command(study.name, chosen.name),
        changes=dict(cell.changes),
        config=config_json(config),
        revision=revision(),
        versions=first.versions if first else {},
        device=" and ".join(dict.fromkeys(run.device for run in runs)),
        hardware=hardware(max(1, cores() // jobs)),
        num_params=list(first.num_params) if first else [],
        seconds_per_step=round(float(np.mean([1 / s for s in speeds])), 5) if speeds else None,
        compile_seconds=round(sum(run.compile_seconds for run in runs), 1),
        wall_seconds=round(wall_seconds, 1),
        found=None if isinstance(found, str) else found,
        diverged=found if isinstance(found, str) else "",
    )


def config_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """All settings as they are read back from a record."""
    found: dict[str, Any] = json.loads(to_json(config))
    return found


def command(study: str, preset_name: str) -> str:
    """What to type to get this table."""
    return f"python -m experiments.{study} --preset={preset_name} --workdir=runs/{preset_name}"


# --- Where and with what --------------------------------------------------------------------------


def provenance() -> dict[str, Any]:
    """Commit, versions, device and hardware, for what is not read from the summary of a run."""
    from mhd_jax import record as about  # slow to import

    return {
        "revision": revision(),
        "versions": about.versions(),
        "device": about.device(),
        "hardware": hardware(),
    }


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
    """The records in those of the files that exist.

    Raises:
      WorkdirError: one is damaged, or of another version.
    """
    for path in paths:
        if path.exists():
            with of_file(path):
                made = Record.from_json(json.loads(path.read_text()))
            yield made


def to_compact_json(value: Mapping[str, Any]) -> str:
    """Indented, but with every list of numbers on one line: small, and readable in a diff."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: re.sub(r"\s+", "", found[0]), text)
    return without_infinity(text) + "\n"


def write(path: Path, text: str) -> None:
    """All or nothing, so that a file that exists is complete.

    Raises:
      WorkdirError: it cannot be written, as when the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WorkdirError(f"{path}: cannot be written: {error.strerror or error}") from error
