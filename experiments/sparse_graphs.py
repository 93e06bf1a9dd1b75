# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Up to six auxiliary heads where knowledge travels far: on graphs with few edges.

python -m experiments.sparse_graphs --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import many, plots, sweep
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Record, Study
from experiments.harness.tables import grid, over_seeds

HEADS = (1, 3, 6)
_SMALL_WORLD = {**many.GRAPHS["small world"], "graph.degree": 4}
GRAPHS: dict[str, Mapping[str, Any]] = {
    "directed cycle of 16": {"graph.name": "cycle", "clients.num": 16},
    "chain of 16": {"graph.name": "chain", "clients.num": 16},
    "small world of 16": {**_SMALL_WORLD, "clients.num": 16},
    "small world of 64": {**_SMALL_WORLD, "clients.num": 64},
}


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        Cell(f"{name.replace(' ', '_')}_m{heads}", f"m = {heads}",
             {**settings, "heads.aux": heads}, name)
        for name, settings in GRAPHS.items() for heads in HEADS
    ]  # fmt: skip


def draw(records: Sequence[Record]) -> Figure:
    """Shared accuracy of every rank, one panel per graph and one line per number of heads."""
    groups = [name for name in GRAPHS if any(record.group == name for record in records)]
    figure, axes = plots.panels(len(groups), 2.6)
    for axis, name in zip(axes, groups, strict=True):
        some = [record for record in records if record.group == name]
        for record, colour, mark in zip(some, plots.COLOURS, plots.MARKS, strict=False):
            ranks = record.accuracy("shared").mean(axis=(0, 1))
            axis.plot(range(len(ranks)), ranks, color=colour, marker=mark, ms=4, lw=1.3,
                      label=record.label)  # fmt: skip
        axis.set_xlabel("head (0: main)")
        axis.set_title(name, loc="left", fontsize=9)
    axes[0].set_ylabel("shared accuracy")
    plots.legend(figure, axes[0])
    return figure


def more_heads(records: Sequence[Record]) -> str:
    """What the last of many heads has over the only one, on the same graph and seed by seed."""
    header = ("graph", "heads", "β_sh last head, difference", "seeds in which it is ahead")
    lines = []
    for name in GRAPHS:
        last = {
            record.config["heads"]["aux"]: record.last_head
            for record in records
            if record.group == name
        }
        one, *more = sorted(last) or [0]
        for heads in more:
            ahead = last[heads] - last[one]
            won = f"{int(np.sum(ahead > 0))} of {len(ahead)}"
            lines.append((name, f"{heads} against {one}", over_seeds(ahead), won))
    return grid(header, lines)


STUDY = Study(
    "sparse_graphs",
    "More heads on sparse graphs",
    cells,
    draw=draw,
    all_heads=True,
    extra=more_heads,
    definitions=("Small world: a ring of 4 neighbours each, 5 % of whose edges are moved.",),
)


if __name__ == "__main__":
    sweep.main(STUDY)
