# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How much public data, what it is worth with labels and without, and from where.

python -m experiments.public_data --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.harness import plots, sweep
from experiments.harness.candidates import METHODS
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Record, Study
from experiments.harness.tables import grid, over_seeds

OURS = METHODS["aligned"]
FEDAVG = METHODS["fedavg"]
LABELLED = "one client, as many images with labels"
ELSEWHERE = "aligned MHD, images from elsewhere"

ALONE = {"method": "isolated", "clients.num": 1, "partition.skew": 0.0}
"""One client that has all that is private."""

FRACTIONS = (0.02, 0.1, 0.3, 0.5)
"""Of the training set, that are public."""


def cells(preset: Preset) -> list[Cell]:
    return [
        *(_cell("fraction", OURS, f, {"data.public_fraction": f}) for f in FRACTIONS),
        *(
            _cell("fedavg", FEDAVG, f, {"data.public_fraction": f, "method": "fedavg"})
            for f in FRACTIONS
        ),
        # It learns from what is private, so that is what has to be as much.
        *(
            _cell("labels", LABELLED, f, {"data.public_fraction": 1 - f, **ALONE})
            for f in FRACTIONS
        ),
        *(
            Cell(f"from_{name}", f"images of {name}", {"data.public_name": name}, ELSEWHERE)
            for name in preset.public_names
        ),
    ]


def _cell(name: str, group: str, fraction: float, changes: dict[str, Any]) -> Cell:
    return Cell(f"{name}_{fraction:g}", f"{fraction:.0%} of the training set", changes, group)


def against(records: Sequence[Record]) -> str:
    """Aligned MHD's last head minus the others' main head, by fraction and seed by seed."""
    found = {(record.group, record.label): record for record in records}
    labels = [label for group, label in found if group == OURS]
    lines = [
        [group, *(_difference(found[OURS, label], found.get((group, label))) for label in labels)]
        for group in (FEDAVG, LABELLED)
    ]
    return grid(["aligned MHD's last head minus", *labels], lines) if labels else ""


def _difference(ours: Record, theirs: Record | None) -> str:
    return over_seeds(ours.last_head - theirs.last_head) if theirs else ""


def draw(records: Sequence[Record]) -> Figure:
    """Shared accuracy over the size of the public set, a line for each way to learn from it."""
    figure, (axis,) = plots.panels(1, 3.2)
    for group, colour, mark in zip(
        (OURS, FEDAVG, LABELLED), plots.COLOURS, plots.MARKS, strict=False
    ):
        some = [record for record in records if record.group == group and record.found]
        sizes = [float(record.label.partition("%")[0]) for record in some]
        ends = [record.last_head for record in some]
        spread = [end.std(ddof=1) if len(end) > 1 else 0.0 for end in ends]
        axis.errorbar(
            sizes, [end.mean() for end in ends], spread, color=colour, marker=mark,
            ms=5, lw=1.3, elinewidth=0.8, label=group,
        )  # fmt: skip
    axis.set_xlabel("public images, % of the training set")
    axis.set_title("shared accuracy", loc="left", fontsize=9)
    plots.legend(figure, axis)
    return figure


STUDY = Study(
    "public_data",
    "The public set",
    cells,
    draw=draw,
    definitions=(
        "What is public is not private: a larger public set leaves the clients fewer samples, one "
        "from elsewhere leaves them all.",
        "FedAvg has no use for public data.",
        "*One client with labels* trains alone on as many images as are public in the other rows, "
        "with their labels.",
    ),
    extra=against,
)


if __name__ == "__main__":
    sweep.main(STUDY)
