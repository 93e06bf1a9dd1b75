# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The runs that cells need, each in a folder named by its settings, so that none is made twice."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from experiments.harness import records
from experiments.harness.presets import Preset
from experiments.harness.study import Cell
from mhd_jax.config import default_config, flatten, update
from mhd_jax.results import Summary
from mhd_jax.runtime.workdir import FREE_SETTINGS, Workdir, to_json

# What a client that exchanges nothing does not depend on.
_ONLY_FOR_EXCHANGE = (
    "graph.*",
    "exchange.*",
    "distill.*",
    "average.*",
    "rounds.*",
    "attack.*",
    "heads.aux",
)


def run_key(config: ml_collections.ConfigDict) -> str:
    """The name of the run with these settings; settings that change no result do not count.

    Levels of accuracy and how often it is measured change no training, but a run only says when it
    was seen to reach the levels it was given.
    """
    flat = {
        name: value
        for name, value in flatten(config).items()
        if name in ("bytes_to", "train.eval_every")
        or not any(fnmatch.fnmatchcase(name, free) for free in FREE_SETTINGS)
    }
    return hashlib.sha256(to_json(dict(sorted(flat.items()))).encode()).hexdigest()[:12]


def cell_configs(
    chosen: Preset, cell: Cell, changes: Mapping[str, Any] | None = None
) -> list[ml_collections.ConfigDict]:
    """The runs of a cell: seed by seed, or as many seeds in each as the preset stacks.

    Settings of an exchange have their defaults where there is none, so that isolated clients that
    differ in nothing else share a run.

    Args:
      chosen: the preset.
      cell: to run.
      changes: settings that replace the cell's.
    """
    found, seeds = [], cell.seeds or chosen.seeds
    together = cell.changes.get("num_seeds", cell.seeds or chosen.num_seeds)
    for first in range(0, seeds, together):
        stacked = {"seed": first, "num_seeds": min(together, seeds - first)}
        settings = {"isolated_baseline": False, **cell.changes, **(changes or {}), **stacked}
        config = chosen.base(settings, cell.config)
        if config.method == "isolated":
            update(config, _exchange_defaults())
        found.append(config)
    return found


def isolated_configs(chosen: Preset, cell: Cell) -> list[ml_collections.ConfigDict]:
    """The runs of the same clients in isolation."""
    return cell_configs(chosen, cell, {"method": "isolated"})


def _exchange_defaults() -> dict[str, Any]:
    return {
        name: value
        for name, value in flatten(default_config()).items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in _ONLY_FOR_EXCHANGE)
    }


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs below a folder.

    Attributes:
      folder: that holds a folder for each.
    """

    folder: Path

    def path(self, config: ml_collections.ConfigDict) -> Path:
        """The run's own folder."""
        return self.folder / run_key(config)

    def finished(self, config: ml_collections.ConfigDict) -> bool:
        """Whether there is nothing left to do."""
        return (self.path(config) / "summary.json").exists()

    def summary(self, config: ml_collections.ConfigDict) -> Summary:
        """What the finished run left."""
        return Workdir(self.path(config), read_only=True).read_summary()

    def seconds(self, config: ml_collections.ConfigDict) -> float:
        """Wall seconds spent on the run so far; what a killed process spent is not counted."""
        return seconds(self.path(config))


def seconds(folder: Path) -> float:
    """Wall seconds spent on the run in `folder`."""
    file = folder / "seconds.json"
    return float(json.loads(file.read_text())) if file.exists() else 0.0


def make(config: ml_collections.ConfigDict, folder: Path) -> None:
    """Makes a run, or goes on with it, and adds to its seconds.

    Raises:
      ConfigError, WorkdirError, DivergedError, Interrupted: as `train.train_and_evaluate`.
    """
    # After the command line is read, so that --help is quick; the first two register networks.
    from experiments.harness import photo_networks, sequence_networks  # noqa: F401
    from mhd_jax import train

    begin = time.monotonic()
    try:
        train.train_and_evaluate(config, folder, with_report=False)
    finally:
        if folder.exists():
            total = seconds(folder) + time.monotonic() - begin
            records.write(folder / "seconds.json", json.dumps(total))
