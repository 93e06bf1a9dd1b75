# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Silos of a real table that needs no download: every method on `configs/tabular.py`.

python -m experiments.tabular --preset=tabular --workdir=runs/tabular
"""

from __future__ import annotations

from experiments.harness import sweep
from experiments.harness.candidates import CHANGES, METHODS, SAME_FOR_ALL, WHAT_IS_OURS
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study

CHOSEN = ("aligned", "mhd", "codistillation", "fedavg", "supervised", "isolated")


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        Cell(method, METHODS[method], CHANGES.get(method) or {"method": method})
        for method in CHOSEN
    ]


STUDY = Study(
    "tabular",
    "Every method on a table in four silos",
    cells,
    definitions=(
        "569 tumours, 30 numbers each, benign or malignant; 150 of them, drawn once, are for "
        "testing. Each client has the tumours of one size.",
        "A fifth of the 419 others, drawn by the seed, is public and has no labels.",
        WHAT_IS_OURS,
        SAME_FOR_ALL,
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
