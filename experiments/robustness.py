# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""One default for everything: data, networks, partitions and graphs, judged by the worst row.

    python -m experiments.robustness --preset=grid --workdir=runs/grid --jobs=2

Every row is 1,000 steps on one kind of data, network, partition, number of clients and heads, and
graph; the groups of columns are candidates for the defaults. `--quick` shows in a minute that all
of it runs. Rows of photographs need prepared data sets; see `docs/launching.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.harness import sweep, worst
from experiments.harness.candidates import ALL_PEERS, CANDIDATES, DATA, DIRICHLET, Settings
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Record, Study

CHANGED: dict[str, Settings] = {
    "all peers": {},
    "no fade-in": {"distill.fade_in": 0.0},
    "SGD 0.01": {"optimizer.name": "sgd", "optimizer.learning_rate": 0.01},
    "every head nu_aux": {"distill.split_nu_aux": False},
    "nu_emb = 1": {"distill.nu_emb": 1.0},
    "mean of the batch": {"distill.alignment_momentum": 0.0},
    "no screening": {"distill.screening": 0.0},
    "mixup 0.25": {"distill.mixup": 0.25},
}
"""What is left out or added, one at a time, where all peers teach in every step."""

# Convolutions of stacked seeds take longer to compile than they save.
CNN: Settings = {"model.name": "cnn", "model.width": 8, "num_seeds": 1}
RESNET: Settings = {"model.name": "resnet8", "model.width": 8, "num_seeds": 1}
BATCH_NORM: Settings = {**RESNET, "model.norm": "batch"}
VIT: Settings = {"model.name": "vit", "model.width": 32, "num_seeds": 1}
IID: Settings = {"partition.skew": 0.0}
CYCLE: Settings = {"graph.name": "cycle"}

ROWS: tuple[tuple[str, str, Settings], ...] = (
    ("digits", "mlp, s = 100", {}),
    ("digits", "mlp, s = 0", IID),
    ("digits", "mlp, Dirichlet 0.1", DIRICHLET),
    ("digits", "mlp, s = 100, directed cycle", CYCLE),
    ("digits", "mlp, s = 100, 4 clients", {"clients.num": 4}),
    ("digits", "mlp, s = 100, 16 clients", {"clients.num": 16}),
    ("digits", "mlp, s = 100, 64 clients", {"clients.num": 64}),
    ("digits", "mlp, s = 100, 1 head", {"heads.aux": 1}),
    ("digits at 28 px", "mlp, s = 100", {}),
    ("CIFAR-10", "mlp, s = 100", {}),
    ("CIFAR-10", "mlp, Dirichlet 0.1", DIRICHLET),
    ("CIFAR-10", "mlp, s = 0", IID),
    ("CIFAR-10", "mlp, s = 100, directed cycle", CYCLE),
    ("Tiny ImageNet", "mlp, s = 100", {}),
    ("Tiny ImageNet", "mlp, Dirichlet 0.1", DIRICHLET),
    ("Tiny ImageNet", "mlp, s = 0", IID),
    ("Tiny ImageNet", "mlp, s = 100, directed cycle", CYCLE),
    ("digits", "cnn, s = 100", CNN),
    ("digits", "resnet8, s = 100", RESNET),
    ("digits", "resnet8 with batch norm, s = 100", BATCH_NORM),
    ("CIFAR-10", "cnn, s = 100", CNN),
    ("CIFAR-10", "resnet8 with batch norm, s = 100, 4 clients", {**BATCH_NORM, "clients.num": 4}),
    ("CIFAR-10", "vit of width 32, s = 100", VIT),
)
"""Data, what is tried on it, and the settings of that."""

MORE_SEEDS = {("Tiny ImageNet", "mlp, s = 100, directed cycle"): 10}
"""Of rows where three seeds leave private accuracy within a standard error of the limit, −0.01."""

DECISIVE = (
    ("digits", "mlp, s = 100"),
    ("digits", "mlp, s = 100, 64 clients"),
    ("CIFAR-10", "mlp, s = 100"),
    ("CIFAR-10", "mlp, Dirichlet 0.1"),
    ("Tiny ImageNet", "mlp, s = 100"),
    ("digits", "cnn, s = 100"),
)
"""Rows on which each ingredient is left out or added, one at a time."""


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        _cell(data, label, changes, name, candidate)
        for data, label, changes in ROWS
        for name, candidate in _candidates(data, label).items()
    ]


def _candidates(data: str, label: str) -> dict[str, Settings]:
    return {**CANDIDATES, **(_changed() if (data, label) in DECISIVE else {})}


def _changed() -> dict[str, Settings]:
    return {name: {**ALL_PEERS, **changes} for name, changes in CHANGED.items()}


def _cell(data: str, label: str, changes: Settings, name: str, candidate: Settings) -> Cell:
    slug = "-".join(f"{data} {label} {name}".lower().replace("=", "").replace(",", "").split())
    keep = "".join(letter for letter in slug if letter.isalnum() or letter in "-.")
    settings = {"train.steps": 1000, **DATA[data], **changes, **candidate}
    seeds = MORE_SEEDS.get((data, label), 0)
    return Cell(keep, label, settings, group=data, column=name, seeds=seeds)


def draw(records: Sequence[Record]) -> Figure:
    """What every row gains over isolation and what its main heads keep, by candidate."""
    return worst.draw(records, list(CANDIDATES))


STUDY = Study(
    "robustness",
    "One default on everything",
    cells,
    draw=draw,
    definitions=(
        "8 clients, complete graph, 4 auxiliary heads and 1,000 steps unless the row says "
        "otherwise; networks are the built-in ones, cnn and resnet8 of width 8.",
        "Photographs are at 16 px; of Tiny ImageNet the first 20 classes.",
        worst.WHAT_COLLAPSES,
    ),
    extra=worst.verdict,
)


if __name__ == "__main__":
    sweep.main(STUDY)
