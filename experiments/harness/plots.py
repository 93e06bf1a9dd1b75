# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Figures from the records of a study, in the colours of `mhd_jax.reporting.charts`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.harness.study import PerClass, Record
from experiments.harness.tables import rows
from mhd_jax.reporting.style import (
    AUX,
    BASELINE,
    GRID,
    HEAT,
    INK,
    MAIN,
    MUTED,
    WIDTH,
)
from mhd_jax.results import Spread, accuracy_by_hops, head_names, hop_name, label_hops

DPI = 110  # enough for a screen, small enough for a repository
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7d858e", "#000000")
MARKS = "os^Dv<>P"


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG whose bytes depend on the figure alone."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    path.write_bytes(buffer.getvalue())


def panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of the usual width with so many axes beside each other."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False).ravel())
    for axis in axes:
        axis.grid(color=GRID, linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=MUTED, labelcolor=INK, labelsize=8, length=3)
        axis.xaxis.label.set_size(8.5)
    return figure, axes


def dots(records: Sequence[Record]) -> Figure:
    """A line for every cell: main head, last head and isolated baseline, shared and private."""
    figure, axes = panels(2, 1.1 + 0.24 * len(records))
    names = [_row_name(record) for record in records]
    for axis, kind in zip(axes, ("shared", "private"), strict=True):
        for line, record in enumerate(records):
            *heads, baseline = rows(record)
            spreads = [(baseline, BASELINE, "|", "isolated"), (heads[0], MAIN, "o", "main head")]
            if len(heads) > 1 and kind == "shared":
                spreads.append((heads[-1], AUX, "D", "last auxiliary head"))
            for row, colour, mark, label in spreads:
                _dot(axis, line, getattr(row, kind), colour, mark, label)
        axis.set_title(f"{kind} accuracy", loc="left", fontsize=9)
        axis.locator_params(axis="x", nbins=4)  # long names leave little room for numbers
    name_lines(axes, names)
    legend(figure, axes[0])
    return figure


def name_lines(axes: Sequence[Axes], names: Sequence[str]) -> None:
    """A line for every name from the top down, named at the first of the axes."""
    for axis in axes:
        shown = names if axis is axes[0] else [""] * len(names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_yticks(range(len(names)), shown)


def _row_name(record: Record) -> str:
    more = ", ".join(part for part in (record.group, record.column) if part)
    return f"{record.label} ({more})" if more else record.label


def _dot(axis: Axes, line: int, spread: Spread, colour: str, mark: str, label: str) -> None:
    axis.errorbar(
        spread.mean, line, xerr=spread.std or 0.0, color=colour, marker=mark, linestyle="",
        ms=9 if mark == "|" else 5, mew=2 if mark == "|" else 0.5, elinewidth=1.2, label=label,
    )  # fmt: skip


def ranks(records: Sequence[Record]) -> Figure:
    """Shared accuracy over the heads' ranks, a line per cell, and how far each rank hears."""
    heard = [(r.label, kept) for r in records if (kept := r.results.per_class)][:1]
    figure, axes = panels(1 + len(heard), 3.8)
    deepest = max(record.accuracy("shared").shape[-1] for record in records)
    for record, colour, mark in zip(records, _cycle(COLOURS), _cycle(MARKS), strict=False):
        means = record.accuracy("shared").mean(axis=1)
        if means.shape[1] > 1:
            spread = means.std(axis=0, ddof=1) if len(means) > 1 else None
            axes[0].errorbar(
                range(means.shape[1]), means.mean(axis=0), spread, color=colour, marker=mark,
                ms=4, lw=1.3, elinewidth=0.8, label=record.label,
            )  # fmt: skip
    baseline = records[0].isolated("shared").mean()
    axes[0].axhline(baseline, color=BASELINE, ls="--", lw=1.2, label="isolated")
    axes[0].set_xticks(range(deepest), head_names(deepest))
    axes[0].set_title("shared accuracy by head", loc="left", fontsize=9)
    for label, kept in heard:
        _hops(axes[1], label, kept)
    legend(figure, axes[0])
    return figure


def hops(found: PerClass) -> tuple[list[str], list[int], Float[np.ndarray, "R H D"]]:
    """The hop table of every seed: heads, distances, accuracies; NaN where a seed lacks one."""
    heard = [
        accuracy_by_hops(np.array(accuracy), label_hops(np.array(primary), np.array(adjacency)))
        for accuracy, primary, adjacency in zip(
            found.class_accuracy, found.primary_labels, found.adjacency, strict=True
        )
    ]
    distances = sorted({d for table in heard for d in table.distances}, key=lambda d: (d < 0, d))
    tables = np.full((len(heard), len(heard[0].heads), len(distances)), np.nan)
    for seed, table in enumerate(heard):
        tables[seed][:, [distances.index(d) for d in table.distances]] = table.accuracy
    return heard[0].heads, distances, tables


def _hops(axis: Axes, label: str, kept: PerClass) -> None:
    names, distances, by_seed = hops(kept)
    table = np.nanmean(by_seed, axis=0)
    axis.grid(False)
    axis.imshow(table, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if value > 0.55 else INK
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7.5)
    axis.set_xticks(range(len(distances)), [hop_name(distance) for distance in distances])
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("hops to the nearest client that holds the label")
    axis.set_title(f"{label}: accuracy by distance", loc="left", fontsize=9)


def over_bytes(records: Sequence[Record]) -> Figure:
    """Shared accuracy of the last head over the megabytes that a client has sent.

    The mark is the end of the run, one kind for each group; a line leads to it through the levels
    of `bytes_to`.
    """
    figure, axes = panels(1, 4.2)
    (axis,) = axes
    groups = list(dict.fromkeys(record.group for record in records))
    for record, colour in zip(records, _cycle(COLOURS), strict=False):
        if record.results.bytes_per_client_and_step:
            _spent(axis, record, colour, _cycle(MARKS)[groups.index(record.group)])
    axis.axhline(rows(records[0])[-1].shared.mean, color=BASELINE, ls="--", label="isolated")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axis.tick_params(which="both", labelsize=8)
    axis.set_xlabel("MB that a client has sent")
    axis.set_title("shared accuracy of the last head over bytes", loc="left", fontsize=9)
    legend(figure, axis)
    return figure


def _spent(axis: Axes, record: Record, colour: str, mark: str) -> None:
    """One record: its levels of accuracy, mean of the bytes over seeds, and its end."""
    found = record.results
    seen = [(spent, float(at)) for at in found.bytes_to if (spent := found.spent_until(at))]
    last = rows(record)[-2].shared
    total = found.bytes_per_client_and_step * record.config["train"]["steps"]
    way = np.array([*seen, (total, last.mean)])
    axis.plot(way[:, 0] / 1e6, way[:, 1], color=colour, lw=1, alpha=0.6)
    axis.errorbar(
        total / 1e6, last.mean, last.std or 0.0, color=colour, marker=mark, ms=6,
        linestyle="", label=record.label,
    )  # fmt: skip


def _cycle(values: Sequence[str]) -> list[str]:
    return list(values) * 8


def legend(figure: Figure, axis: Axes) -> None:
    """One entry for every label, below the axes."""
    handles, labels = axis.get_legend_handles_labels()
    first = {label: handle for handle, label in zip(handles, labels, strict=True)}
    columns = max(1, min(5, 100 // (max(map(len, first)) + 6)))  # as many as fit the width
    figure.legend(
        first.values(), first, loc="outside lower center", ncols=columns,
        frameon=False, fontsize=8,
    )  # fmt: skip
