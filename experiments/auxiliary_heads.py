# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How many auxiliary heads, and how heavy their distillation and that of the embedding.

python -m experiments.auxiliary_heads --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.harness import plots, sweep
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Kind, Record, Study
from mhd_jax.reporting.style import BASELINE

MOST_HEADS = 4
WEIGHTS = ((1.0, 0.2), (1.0, 1.0), (1.0, 0.0), (3.0, 0.2))  # nu_aux, nu_emb; the defaults first


def cells(preset: Preset) -> list[Cell]:
    del preset
    grid = [(0, 1.0, 0.2), (0, 1.0, 1.0)]
    grid += [(heads, *pair) for pair in WEIGHTS for heads in range(1, MOST_HEADS + 1)]
    return [
        Cell(
            f"m{heads}_aux{nu_aux:g}_emb{nu_emb:g}",
            f"m = {heads}",
            {"heads.aux": heads, "distill.nu_aux": nu_aux, "distill.nu_emb": nu_emb},
            group=f"ν_aux = {nu_aux:g}, ν_emb = {nu_emb:g}"
            if heads
            else f"embeddings alone, ν_emb = {nu_emb:g}",
        )
        for heads, nu_aux, nu_emb in grid
    ]


def by_number(records: Sequence[Record]) -> Figure:
    """Shared accuracy of the last head and private accuracy of the main head over m."""
    figure, axes = plots.panels(2, 3.6)
    chosen_heads: tuple[tuple[Kind, int], ...] = (("shared", -1), ("private", 0))
    for axis, (kind, head) in zip(axes, chosen_heads, strict=True):
        groups = dict.fromkeys(record.group for record in records)
        for group, colour, mark in zip(groups, plots.COLOURS, plots.MARKS, strict=False):
            chosen = [record for record in records if record.group == group]
            values = [record.accuracy(kind)[..., head].mean(axis=1) for record in chosen]
            axis.errorbar(
                [record.config["heads"]["aux"] for record in chosen],
                [value.mean() for value in values],
                [value.std(ddof=1) if len(value) > 1 else 0.0 for value in values],
                color=colour, marker=mark, ms=4, lw=1.3, elinewidth=0.8, label=group,
            )  # fmt: skip
        isolated = records[0].isolated(kind).mean()
        axis.axhline(isolated, color=BASELINE, ls="--", lw=1.2, label="isolated")
        axis.set_xticks(range(MOST_HEADS + 1))
        axis.set_xlabel("auxiliary heads m")
    axes[0].set_title("shared accuracy, last head", loc="left", fontsize=9)
    axes[1].set_title("private accuracy, main head", loc="left", fontsize=9)
    plots.legend(figure, axes[0])
    return figure


STUDY = Study(
    "auxiliary_heads",
    "Auxiliary heads and the weights of distillation",
    cells,
    draw=by_number,
    all_heads=True,
    definitions=("m = 0 distils embeddings alone.",),
)


if __name__ == "__main__":
    sweep.main(STUDY)
