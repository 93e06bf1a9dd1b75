# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What goes wrong without the defaults: gradients, predictions and teachers over one run.

    python -m experiments.mechanism --workdir=runs/mechanism

Three runs of a small convolutional network on digits, one seed: the defaults, the paper's method
under them, and the defaults of version 0.1. The figure and the numbers behind it come from what
every run writes into `metrics.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import plots, records
from experiments.harness.candidates import CANDIDATES
from experiments.harness.presets import ROOT
from mhd_jax import command
from mhd_jax.config import default_config, update

RESULTS = ROOT / "experiments" / "results" / "digits" / "mechanism"
SETTINGS: Mapping[str, Any] = {
    "model.name": "cnn", "model.width": 8, "train.steps": 1000, "train.log_every": 50,
    "train.eval_every": 100, "isolated_baseline": False,
}  # fmt: skip
PANELS = {
    "gradient ratio": "norm of the distillation gradient on the trunk over the private one's",
    "classes named": "how many classes the last head names, exp of its entropy",
    "teacher right": "how often the teacher of rank 1 is right",
    "shared accuracy": "of the last head",
}
"""What is drawn over the steps, and what it is."""


def curves(records: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Means over clients by panel, a list of [step, value] each."""
    found: dict[str, list[list[float]]] = {name: [] for name in PANELS}
    for record in records:
        step = float(record["step"])
        values = {}
        if "prediction_entropy" in record:
            private, lesson = (
                np.array(record[f"{kind}_gradient"]) for kind in ("private", "distillation")
            )
            values["gradient ratio"] = (lesson / private.clip(1e-6)).mean()
            values["classes named"] = np.exp(np.array(record["prediction_entropy"])[:, -1]).mean()
            values["teacher right"] = np.array(record["teacher_accuracy"])[:, 0].mean()
        if "shared_accuracy" in record:
            values["shared accuracy"] = np.array(record["shared_accuracy"])[:, -1].mean()
        for name, value in values.items():
            found[name].append([step, round(float(value), 4)])
    return found


def draw(found: Mapping[str, Mapping[str, list[list[float]]]]) -> Figure:
    """A panel for every measure, a line for every candidate."""
    figure, axes = plots.panels(len(PANELS), 2.6)
    for axis, panel in zip(axes, PANELS, strict=True):
        for colour, (name, lines) in zip(plots.COLOURS, found.items(), strict=False):
            steps, values = np.array(lines[panel]).T
            axis.plot(steps, values, color=colour, label=name, linewidth=1.4)
        axis.set_title(panel, loc="left", fontsize=8)
        axis.set_xlabel("steps")
    axes[0].set_yscale("log")
    plots.legend(figure, axes[0])
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing, then writes the numbers and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/mechanism", type=Path)
    parser.add_argument("--out", default=RESULTS, type=Path)
    options = parser.parse_args(argv)
    with command.told_in_one_line("stopped; the same command goes on"):
        found = {name: curves(_lines(name, options.workdir)) for name in CANDIDATES}
    record = {**records.provenance(), "settings": SETTINGS, "curves": found}
    records.write(options.out / "curves.json", records.to_compact_json(record))
    plots.save(draw(found), options.out / "figure.png")


def _lines(name: str, workdir: Path) -> list[dict[str, Any]]:
    """What the run of a candidate logs; trains it unless it is finished."""
    from mhd_jax import train

    config, folder = default_config(), workdir / name.replace(" ", "_")
    update(config, {**SETTINGS, **CANDIDATES[name]})
    train.train_and_evaluate(config, folder, with_report=False)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
