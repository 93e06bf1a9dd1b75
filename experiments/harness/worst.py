# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Settings judged by their worst row: what it gains, what it costs, and whether heads collapse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import plots
from experiments.harness.study import Record
from experiments.harness.tables import grid
from mhd_jax.reporting.style import BASELINE
from mhd_jax.results import Spread

COLLAPSED = 0.02
"""A head whose shared accuracy is within this of naming one class for everything."""


def verdict(records: Sequence[Record]) -> str:
    """The worst row of every column: what it gains least, what it costs most, what collapses."""
    header = ["candidate", "rows", "smallest gain", "where", "largest loss of private accuracy",
              "where", "collapsed heads"]  # fmt: skip
    lines = []
    for column in dict.fromkeys(record.column for record in records):
        found = [record for record in records if record.column == column]
        gains = {row_name(r): float(r.gain().mean()) for r in found}
        losses = {row_name(r): float(r.gain("private", head=0).mean()) for r in found}
        least, most = min(gains, key=gains.__getitem__), min(losses, key=losses.__getitem__)
        collapsed = [row_name(r) for r in found if has_collapsed(r)]
        lines.append([
            column, str(len(found)), f"{gains[least]:+.3f}", least, f"{losses[most]:+.3f}", most,
            ", ".join(collapsed) or "none",
        ])  # fmt: skip
    return grid(header, lines)


def row_name(record: Record) -> str:
    """The row of a record, with its group."""
    return f"{record.group}, {record.label}"


def has_collapsed(record: Record) -> bool:
    """Whether any client's auxiliary head, in any seed, knows no more than one class."""
    accuracy = record.accuracy("shared")[..., 1:]
    classes = record.config["data"]["num_classes"] or 10
    return bool(np.any(accuracy < 1 / classes + COLLAPSED / classes))


def draw(records: Sequence[Record], columns: Sequence[str]) -> Figure:
    """What every row gains over isolation and what its main heads keep, column by column.

    Args:
      records: of all rows.
      columns: those to draw.
    """
    rows = list(dict.fromkeys(row_name(record) for record in records))
    figure, axes = plots.panels(2, 1.1 + 0.24 * len(rows))
    for order, name in enumerate(columns):
        found = [record for record in records if record.column == name]
        lines = [rows.index(row_name(record)) for record in found]
        shared = [Spread.of(record.gain()) for record in found]
        private = [Spread.of(record.gain("private", head=0)) for record in found]
        for axis, gains in zip(axes, (shared, private), strict=True):
            axis.errorbar(
                [gain.mean for gain in gains], lines, xerr=[gain.std or 0.0 for gain in gains],
                color=plots.COLOURS[order], marker=plots.MARKS[order], linestyle="", ms=5, mew=0.5,
                elinewidth=1, label=name, zorder=10 - order,  # the first on top
            )  # fmt: skip
    for axis, title in zip(axes, ("last head, shared", "main head, private"), strict=True):
        axis.axvline(0, color=BASELINE, ls="--", lw=1.2)
        axis.set_xlabel("accuracy over isolation")
        axis.set_title(title, loc="left", fontsize=9)
    plots.name_lines(axes, rows)
    if len(columns) > 1:
        plots.legend(figure, axes[0])
    return figure
