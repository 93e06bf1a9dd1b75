# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Settings judged by their worst row: what it gains, what it costs, and whether heads collapse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import plots
from experiments.harness.study import Record
from experiments.harness.tables import grid
from mhd_jax.estimate import KNOWN
from mhd_jax.reporting.style import BASELINE
from mhd_jax.results import Spread

COLLAPSED = 1.02
"""A head has collapsed if its shared accuracy is below so many times that of naming one class."""

WHAT_COLLAPSES = (
    "A row counts as collapsed if any auxiliary head of any client, in any seed, is no better than "
    "always predicting one class."
)
"""Stands below tables with a `verdict`."""


class Worst(NamedTuple):
    """The worst of some rows, means over seeds and clients.

    Attributes:
      gain: the smallest of the last head over isolation.
      least: the row where that is.
      private: the smallest difference of the main head's private accuracy to isolation.
      most: the row where that is.
      collapsed: rows with a collapsed head, in words.
    """

    gain: float
    least: str
    private: float
    most: str
    collapsed: str


def find(records: Sequence[Record]) -> Worst:
    """The worst of the rows."""
    gains = {row_name(r): float(r.gain().mean()) for r in records}
    private = {row_name(r): float(r.gain("private", head=0).mean()) for r in records}
    least, most = min(gains, key=gains.__getitem__), min(private, key=private.__getitem__)
    collapsed = ", ".join(row_name(r) for r in records if has_collapsed(r))
    return Worst(gains[least], least, private[most], most, collapsed or "none")


def verdict(records: Sequence[Record]) -> str:
    """The worst row of every column: what it gains least, what it costs most, what collapses."""
    header = ["candidate", "rows", "smallest gain", "where", "largest loss of private accuracy",
              "where", "collapsed heads"]  # fmt: skip
    lines = []
    for column in dict.fromkeys(record.column for record in records):
        rows = [record for record in records if record.column == column]
        gain, least, private, most, collapsed = find(rows)
        lines.append(
            [column, str(len(rows)), f"{gain:+.3f}", least, f"{private:+.3f}", most, collapsed]
        )
    return grid(header, lines)


def row_name(record: Record) -> str:
    """The row of a record, with its group."""
    return f"{record.group}, {record.label}"


def has_collapsed(record: Record) -> bool:
    """Whether any client's auxiliary head, in any seed, knows no more than one class."""
    accuracy = record.accuracy("shared")[..., 1:]
    data = record.config["data"]
    classes = data["num_classes"] or KNOWN[data["name"]][0]
    return bool(np.any(accuracy < COLLAPSED / classes))


def draw(records: Sequence[Record], columns: Sequence[str] = ()) -> Figure:
    """What every row gains over isolation and what its main heads keep, column by column.

    Args:
      records: of all rows.
      columns: those to draw; () for all, in the order of the records.
    """
    columns = columns or list(dict.fromkeys(record.column for record in records))
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
