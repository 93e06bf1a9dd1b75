# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The pictures of a run, drawn from what it leaves (``summary.json`` and ``metrics.jsonl``).

Every function returns a `matplotlib.figure.Figure` made without pyplot, so nothing needs a
display and nothing is left open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from mhd_jax.reporting.style import (
    BASELINE,
    INK,
    LONGEST_NAME,
    MOST_CLASSES,
    MOST_CLIENTS,
    MUTED,
    SIDE_BY_SIDE,
    STYLE,
    WIDTH,
    Picture,
    accuracy_text,
    colour_bars,
    head_colours,
    heat,
    legend,
    new_figure,
    restyle,
    say,
    shorten,
    thin,
    titles,
    top,
)
from mhd_jax.results import (
    MANY,
    History,
    Line,
    Summary,
    for_every_client,
    head_names,
    hop_table,
)

# ----------------------------------------------------------------------------- over time


@mpl.rc_context(STYLE)
def accuracy_over_steps(history: History) -> Figure:
    """Shared and private accuracy of every head: mean line, band from min to max over clients."""
    lines = _lines(history, "shared_accuracy")
    figure, axes = new_figure(3.0, 1, 2)
    for axis, kind in zip(axes, ("shared", "private"), strict=True):
        titles(axis, f"{kind} accuracy", "step")
        if not lines:
            say(axis, "no evaluation recorded")
            continue
        steps = [line["step"] for line in lines]
        baseline = f"control_{kind}_accuracy"
        if lines[-1].get(baseline):
            values = np.array([line[baseline] for line in lines], dtype=float)[..., 0]
            _band(axis, steps, values, BASELINE, "isolated baseline", dashes=(4, 2))
        values = np.array([line[f"{kind}_accuracy"] for line in lines], dtype=float)
        for (name, colour), head in zip(head_colours(values.shape[-1]), values.T, strict=True):
            _band(axis, steps, head.T, colour, name, alpha=_pale(values.shape[-1]))
        axis.set_ylim(0, top(values))
    legend(figure, axes[0])
    return figure


@mpl.rc_context(STYLE)
def losses(history: History) -> Figure:
    """The parts of the loss over steps: mean line, band from min to max over clients.

    Parts that are zero throughout (those of distillation, for isolated clients) are left out.
    """
    parts = {
        "loss": "total loss",
        "private_loss": "private loss (cross-entropy)",
        "embedding_loss": "embedding distillation",
        "head_losses": "prediction distillation, by rank",
    }
    values = {key: _values(history, key) for key in parts}
    shown = [key for key in parts if np.any(values[key][1])] or ["loss"]
    rows = (len(shown) + 1) // 2
    figure, axes = new_figure(0.5 + 2.1 * rows, rows, min(2, len(shown)))
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis, key in zip(axes, shown, strict=False):
        titles(axis, parts[key], "step")
        steps, numbers = values[key]
        if numbers.ndim == 3:
            heads = _taught_heads(history, numbers.shape[-1])
            for (name, colour), head in zip(heads, numbers.T, strict=True):
                _band(axis, steps, head.T, colour, name, alpha=_pale(len(heads)))
            axis.legend(ncols=2)
        elif numbers.size:
            _band(axis, steps, numbers, INK, parts[key])
        else:
            say(axis, "no training step recorded")
        axis.set_ylim(bottom=0)
    return figure


@mpl.rc_context(STYLE)
def health(history: History) -> Figure:
    """How distillation is doing: spread and agreement of predictions, who teaches, who is right."""
    parts = {
        "prediction_entropy": "classes that a head names",
        "teacher_agreement": "two clients agree",
        "teaching_share": "share of all lessons, by client",
        "teacher_accuracy": "the chosen teacher is right",
    }
    figure, axes = new_figure(4.7, 2, 2)
    for axis, (key, title) in zip(axes, parts.items(), strict=True):
        titles(axis, title, "step")
        steps, numbers = _values(history, key)
        if not numbers.size:
            say(axis, "nothing recorded")
            continue
        if key == "teaching_share":
            _band(axis, steps, numbers, INK, "clients")
        elif key == "teacher_agreement":
            for (name, colour), rank in zip(head_colours(numbers.shape[1]), numbers.T, strict=True):
                marker = "o" if len(steps) < 2 else None
                axis.plot(steps, rank, color=colour, label=name, marker=marker, ms=4)
        else:
            shown = np.exp(numbers) if key == "prediction_entropy" else numbers
            heads = head_colours(shown.shape[-1])
            if key == "teacher_accuracy":
                heads = _taught_heads(history, shown.shape[-1])
            for (name, colour), head in zip(heads, shown.T, strict=True):
                _band(axis, steps, head.T, colour, name, alpha=_pale(len(heads)))
        axis.set_ylim(bottom=0)
    legend(figure, axes[0])
    return figure


@mpl.rc_context(STYLE)
def accuracy_over_bytes(history: History) -> Figure:
    """Shared accuracy of the last head over the bytes that all clients together have sent."""
    lines = _lines(history, "shared_accuracy")
    figure, (axis,) = new_figure(3.0, 1, 1, width=0.7 * WIDTH)
    steps = np.array([line["step"] for line in lines])
    sent = _bytes_at(history, steps)
    titles(axis, "shared accuracy of the last head", "bytes sent by all clients (log scale)")
    if not (sent > 0).any():
        say(axis, "nothing was sent")
        return figure
    values = np.array([line["shared_accuracy"] for line in lines], dtype=float)[sent > 0, :, -1]
    name, colour = head_colours(np.shape(lines[0]["shared_accuracy"])[-1])[-1]
    if lines[-1].get("control_shared_accuracy"):
        final = float(np.mean(lines[-1]["control_shared_accuracy"]))
        axis.axhline(
            final, color=BASELINE, dashes=(4, 2), lw=1.4, label="isolated baseline, at end"
        )
    _band(axis, sent[sent > 0], values, colour, name)
    axis.set_ylim(0, top(values))
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=_log_ticks(sent[sent > 0])))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: format_bytes(x)))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    legend(figure, axis)
    return figure


def format_bytes(count: float) -> str:
    """A number of bytes in decimal units, three digits.

    >>> format_bytes(1_234_567)
    '1.23 MB'
    """
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while abs(count) >= 999.5 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"


# ----------------------------------------------------------------------------- who knows what


@mpl.rc_context(STYLE)
def accuracy_per_class(summary: Summary) -> Figure:
    """Accuracy of every client on every class, main and last head, primary labels in orange.

    More than 20 classes are sorted by their primary clients, so that a client's own labels
    stand together.
    """
    primary = summary.primary_labels
    accuracy = for_every_client(summary.class_accuracy, len(primary))
    order = _class_order(primary)
    names = head_names(accuracy.shape[1])
    titles = {0: "main head", len(names) - 1: f"last head ({names[-1]})"}
    titles = titles if len(names) > 1 else {0: "main head"}
    figure, axes = _class_panels(summary, len(titles))
    norm = Normalize(0, 1)
    for axis, (head, title) in zip(axes, titles.items(), strict=True):
        axis.set_title(title)
        heat(axis, accuracy[:, head, order], norm, accuracy_text, own=primary[:, order])
    _class_labels(axes, summary)
    colour_bars(figure, axes, norm, "accuracy", own=True)
    return figure


@mpl.rc_context(STYLE)
def label_distribution(summary: Summary) -> Figure:
    """Private samples of every client and class, primary labels in orange, and the totals.

    The classes stand in the same order as in `accuracy_per_class`.
    """
    counts, primary = summary.label_histogram, summary.primary_labels
    clients, classes = counts.shape
    height = _heat_height(clients) + _names_height(summary)
    figure = Picture(figsize=(WIDTH, height), layout="constrained")
    axis, bars = figure.subplots(1, 2, sharey=True, width_ratios=[7, 1])
    for each in (axis, bars):
        restyle(each)
    order = _class_order(primary)
    shown = np.where(counts > 0, counts, np.nan)[:, order]
    norm = LogNorm(1, max(10, counts.max()))
    axis.set_title("private samples per class (log colours)")
    heat(axis, shown, norm, lambda count: f"{count:.0f}", own=primary[:, order])
    _class_labels([axis], summary)
    titles(bars, "total", "samples")
    if clients <= MANY:
        bars.barh(range(clients), counts.sum(axis=1), height=0.7, color=MUTED)
    else:
        bars.fill_betweenx(range(clients), counts.sum(axis=1), color=MUTED, linewidth=0)
    bars.tick_params(left=False, labelleft=False)
    bars.xaxis.set_major_locator(ticker.MaxNLocator(2, integer=True))
    colour_bars(figure, [axis, bars], norm, "samples", own=True)
    return figure


@mpl.rc_context(STYLE)
def hop_picture(summary: Summary) -> Figure:
    """The hop table as curves and as a map: rank r should know what happens r hops away.

    Hops of a graph that changes are counted along all its graphs at once, which the axis says.
    """
    found = hop_table(summary)
    ranks, distances, table = found.heads, found.distances, found.accuracy
    figure, (curves, cells) = new_figure(2.9, 1, 2)
    label = "hops to the nearest primary client"
    if not np.array_equal(summary.adjacency, summary.adjacency_union):
        label += "\n(along the edges of all graphs of the run)"
    titles(curves, "accuracy by hop distance", label)
    titles(cells, "the same numbers as a map", label)
    if not distances:
        for axis in (curves, cells):
            say(axis, "no primary labels in this partition")
        return figure
    reached = [column for column, d in enumerate(distances) if d >= 0]
    for (name, colour), row in zip(head_colours(len(ranks)), table, strict=True):
        marks = {"marker": "o", "ms": 3.5 if len(reached) <= 20 else 0, "color": colour}
        curves.plot(reached, row[reached], label=name, **marks)
        if len(reached) < len(distances):
            curves.plot([len(reached)], row[-1:], marker="D", ms=3.5, color=colour)
    curves.set_ylim(-0.02, top(table))
    heat(cells, table, Normalize(0, 1), accuracy_text, most=10)
    ticks = thin(len(reached), 12)
    if len(reached) < len(distances):
        ticks = [t for t in ticks if len(reached) - t > len(distances) / 12] + [len(reached)]
    for axis in (curves, cells):
        axis.set_xticks(ticks, [found.names[t] for t in ticks])
    cells.set_yticks(range(len(ranks)), ranks)
    colour_bars(figure, [cells], Normalize(0, 1), "")
    legend(figure, curves)
    return figure


# ----------------------------------------------------------------------------- parts


def _taught_heads(history: History, taught: int) -> list[tuple[str, ColorType]]:
    """The heads that distillation losses are of: the auxiliary ones, or the main head alone."""
    evaluated = _lines(history, "shared_accuracy")
    only_main = evaluated and np.shape(evaluated[-1]["shared_accuracy"])[-1] != taught + 1
    return head_colours(taught)[:taught] if only_main else head_colours(taught + 1)[1:]


def _band(
    axis: Axes,
    x: Sequence[float] | np.ndarray,
    values: Float[np.ndarray, "T K"],
    colour: ColorType,
    label: str,
    alpha: float = 0.11,
    **style: Any,
) -> None:
    """A line at the clients' mean and a band from their minimum to their maximum."""
    marker = "o" if len(x) < 2 else None
    known = np.ma.masked_invalid(values)  # clients may have taken no part
    axis.plot(x, known.mean(axis=1), color=colour, label=label, marker=marker, ms=4, **style)
    axis.fill_between(
        x, known.min(axis=1), known.max(axis=1), color=colour, alpha=alpha, linewidth=0
    )


def _pale(bands: int) -> float:
    """The opacity at which that many bands over each other still show their lines."""
    return min(0.11, 0.55 / bands)


def _lines(history: History, key: str) -> list[Line]:
    return [line for line in history if line.get(key) is not None]


def _values(history: History, key: str) -> tuple[list[int], np.ndarray]:
    lines = _lines(history, key)
    return [line["step"] for line in lines], np.array([line[key] for line in lines], dtype=float)


def _bytes_at(history: History, steps: np.ndarray) -> np.ndarray:
    """Bytes sent until each of `steps`, between logged steps in proportion."""
    logged, sent = _values(history, "bytes_sent")
    return np.interp(steps, [0, *logged], [0, *sent]) if len(steps) else np.zeros(0)


def _log_ticks(values: np.ndarray) -> tuple[float, ...]:
    """Multiples of powers of ten that are labelled: the more, the fewer powers are in sight."""
    spread = values.max() / values.min()
    return (1, 2, 3, 5, 7) if spread < 10 else (1, 2, 5) if spread < 300 else (1,)


def _class_order(primary: Bool[np.ndarray, "K C"]) -> Int[np.ndarray, " C"]:
    classes = primary.shape[1]
    return np.lexsort(~primary[::-1]) if classes > MOST_CLASSES else np.arange(classes)


def _heat_height(clients: int) -> float:
    return 0.75 + float(np.clip(0.21 * clients, 0.7, 2.8))


def _names_height(summary: Summary) -> float:
    """Inches for names of classes, which are written at a slant."""
    longest = max(map(len, summary.class_names), default=0)
    return 0.06 * min(longest, LONGEST_NAME) if summary.num_classes <= MOST_CLASSES else 0.0


def _class_panels(summary: Summary, panels: int) -> tuple[Figure, np.ndarray]:
    """Panels of clients and classes, beside each other while the classes are few."""
    clients, classes = summary.primary_labels.shape
    rows, columns = (1, panels) if classes <= SIDE_BY_SIDE else (panels, 1)
    height = rows * _heat_height(clients) + _names_height(summary)
    figure = Picture(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True).ravel()
    for axis in axes:
        restyle(axis)
    return figure, axes


def _class_labels(axes: Sequence[Axes] | np.ndarray, summary: Summary) -> None:
    """Names the axes; clients and classes with names carry them in place of their numbers."""
    clients, few = summary.client_names, summary.num_classes <= MOST_CLASSES
    for axis in axes:
        place = axis.get_subplotspec()
        if place is None:
            continue
        if place.is_first_col():
            axis.set_ylabel("client")
            if clients:
                rows = thin(len(clients), MOST_CLIENTS)
                axis.set_yticks(rows, [shorten(clients[row], LONGEST_NAME) for row in rows])
        if place.is_last_row():
            sorted_ = f"{summary.num_classes:,} classes, sorted by primary client"
            axis.set_xlabel("class" if few else sorted_)
            if few and summary.class_names:
                names = [shorten(name, LONGEST_NAME) for name in summary.class_names]
                axis.set_xticks(
                    range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor"
                )
        axis.tick_params(labelbottom=few and place.is_last_row())
