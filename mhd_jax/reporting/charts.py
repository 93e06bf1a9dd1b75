# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The pictures of a run, drawn from what it leaves (``summary.json`` and ``metrics.jsonl``).

Every function returns a `matplotlib.figure.Figure` made without pyplot, so nothing needs a
display and nothing is left open. One language of colours holds throughout: the main head is
orange, the auxiliary heads go from light to dark blue with their rank, the isolated baseline is
grey and dashed; in maps of clients and classes a client's primary labels are orange, all other
labels blue. Orange and blue stay apart in every common form of colour blindness, and whatever
has an order differs in lightness.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import networkx as nx
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure

from mhd_jax.results import (
    History,
    Line,
    Summary,
    for_every_client,
    head_names,
    hop_table,
)

INK = "#24292f"
MUTED = "#6e7781"
GRID = "#e6e8eb"
MAIN = "#d55e00"
AUX = "#0072b2"
BASELINE = "#7d858e"
RANKS = LinearSegmentedColormap.from_list("ranks", ["#7cbcec", "#0072b2", "#08315c"])
HEAT = LinearSegmentedColormap.from_list("heat", ["#f5f8fb", "#a9cfec", "#3b8bc4", "#0a4478"])
OWN = LinearSegmentedColormap.from_list("own", ["#fdebdc", "#f5b98a", "#e0741f", "#9c3d00"])

WIDTH = 7.2  # inches: the text width of a paper, and of the report
DPI = 200
MOST_CLASSES = 20  # as many classes and clients get a label and a number each, more do not
MOST_CLIENTS = 16
SIDE_BY_SIDE = 12  # classes of two panels that still fit beside each other
MOST_SMALL = 24  # nodes of a graph that fit on a small figure
MOST_NAMED = 100  # nodes of a graph that still carry their number
MOST_PLACED = 150  # nodes of a graph whose best places take no longer than a moment to find
MOST_ARROWS = 300  # edges that still get arrow heads

_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


class Picture(Figure):
    """A figure that a notebook shows although pyplot does not know of it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=DPI / 2, facecolor="white")
        return buffer.getvalue()


# ----------------------------------------------------------------------------- over time


@mpl.rc_context(_STYLE)
def accuracy_over_steps(history: History) -> Figure:
    """Shared and private accuracy of every head: mean line, band from min to max over clients."""
    lines = _lines(history, "shared_accuracy")
    figure, axes = _figure(3.0, 1, 2)
    for axis, kind in zip(axes, ("shared", "private"), strict=True):
        _title(axis, f"{kind} accuracy", "step")
        if not lines:
            _say(axis, "no evaluation recorded")
            continue
        steps = [line["step"] for line in lines]
        baseline = f"control_{kind}_accuracy"
        if lines[-1].get(baseline):
            values = np.array([line[baseline] for line in lines], dtype=float)[..., 0]
            _band(axis, steps, values, BASELINE, "isolated baseline", dashes=(4, 2))
        values = np.array([line[f"{kind}_accuracy"] for line in lines], dtype=float)
        for (name, colour), head in zip(_heads(values.shape[-1]), values.T, strict=True):
            _band(axis, steps, head.T, colour, name, alpha=_pale(values.shape[-1]))
        axis.set_ylim(0, _top(values))
    _legend(figure, axes[0])
    return figure


@mpl.rc_context(_STYLE)
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
    figure, axes = _figure(0.5 + 2.1 * rows, rows, min(2, len(shown)))
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis, key in zip(axes, shown, strict=False):
        _title(axis, parts[key], "step")
        steps, numbers = values[key]
        if numbers.ndim == 3:
            heads = _taught_heads(history, numbers.shape[-1])
            for (name, colour), head in zip(heads, numbers.T, strict=True):
                _band(axis, steps, head.T, colour, name, alpha=_pale(len(heads)))
            axis.legend(ncols=2)
        elif numbers.size:
            _band(axis, steps, numbers, INK, parts[key])
        else:
            _say(axis, "no training step recorded")
        axis.set_ylim(bottom=0)
    return figure


@mpl.rc_context(_STYLE)
def accuracy_over_bytes(history: History) -> Figure:
    """Shared accuracy of the last head over the bytes that all clients together have sent."""
    lines = _lines(history, "shared_accuracy")
    figure, (axis,) = _figure(3.0, 1, 1, width=0.7 * WIDTH)
    steps = np.array([line["step"] for line in lines])
    sent = _bytes_at(history, steps)
    _title(axis, "shared accuracy of the last head", "bytes sent by all clients (log scale)")
    if not (sent > 0).any():
        _say(axis, "nothing was sent")
        return figure
    values = np.array([line["shared_accuracy"] for line in lines], dtype=float)[sent > 0, :, -1]
    name, colour = _heads(np.shape(lines[0]["shared_accuracy"])[-1])[-1]
    if lines[-1].get("control_shared_accuracy"):
        final = float(np.mean(lines[-1]["control_shared_accuracy"]))
        axis.axhline(
            final, color=BASELINE, dashes=(4, 2), lw=1.4, label="isolated baseline, at end"
        )
    _band(axis, sent[sent > 0], values, colour, name)
    axis.set_ylim(0, _top(values))
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=_log_ticks(sent[sent > 0])))
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: format_bytes(x)))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    _legend(figure, axis)
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


@mpl.rc_context(_STYLE)
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
    figure, axes = _class_panels(primary.shape, len(titles))
    norm = Normalize(0, 1)
    for axis, (head, title) in zip(axes, titles.items(), strict=True):
        axis.set_title(title)
        _heat(axis, accuracy[:, head, order], norm, _accuracy_text, own=primary[:, order])
    _class_labels(axes, primary.shape[1])
    _colour_bars(figure, axes, norm, "accuracy", own=True)
    return figure


@mpl.rc_context(_STYLE)
def label_distribution(summary: Summary) -> Figure:
    """Private samples of every client and class, primary labels in orange, and the totals.

    The classes stand in the same order as in `accuracy_per_class`.
    """
    counts, primary = summary.label_histogram, summary.primary_labels
    clients, classes = counts.shape
    figure = Picture(figsize=(WIDTH, _heat_height(clients)), layout="constrained")
    axis, bars = figure.subplots(1, 2, sharey=True, width_ratios=[7, 1])
    for each in (axis, bars):
        _restyle(each)
    order = _class_order(primary)
    shown = np.where(counts > 0, counts, np.nan)[:, order]
    norm = LogNorm(1, max(10, counts.max()))
    axis.set_title("private samples per class (log colours)")
    _heat(axis, shown, norm, lambda count: f"{count:.0f}", own=primary[:, order])
    _class_labels([axis], classes)
    _title(bars, "total", "samples")
    bars.barh(range(clients), counts.sum(axis=1), height=0.7, color=MUTED)
    bars.tick_params(left=False, labelleft=False)
    bars.xaxis.set_major_locator(ticker.MaxNLocator(2, integer=True))
    _colour_bars(figure, [axis, bars], norm, "samples", own=True)
    return figure


# ----------------------------------------------------------------------------- the graph


@mpl.rc_context(_STYLE)
def communication_graph(summary: Summary) -> Figure:
    """Who learns from whom: arrows point the way knowledge flows, from teacher to student.

    A node's colour is the shared accuracy of that client's last head.
    """
    accuracy = summary.shared_accuracy[:, -1]
    flows = nx.from_numpy_array(summary.adjacency.T, create_using=nx.DiGraph)
    scale = 1.0 if len(flows) <= MOST_SMALL else 1.5
    figure, (axis,) = _figure(3.4 * scale, 1, 1, width=0.6 * scale * WIDTH)
    axis.set_axis_off()
    axis.set_aspect("equal")
    positions = _positions(flows)
    (left, bottom), (right, top) = _corners(positions)
    axis.set(xlim=(left, right), ylim=(bottom, top))
    size = float(np.clip(scale**2 * 3200 / len(flows), 20, 360))
    norm = Normalize(0, 1)
    _edges(axis, flows, positions, size)
    _nodes(axis, positions, HEAT(norm(accuracy)), size)
    _colour_bars(figure, [axis], norm, "shared accuracy of the last head")
    return figure


@mpl.rc_context(_STYLE)
def hop_picture(summary: Summary) -> Figure:
    """The hop table as curves and as a map: rank r should know what happens r hops away.

    Hops of a graph that changes are counted along all its graphs at once, which the axis says.
    """
    found = hop_table(summary)
    ranks, distances, table = found.heads, found.distances, found.accuracy
    figure, (curves, cells) = _figure(2.9, 1, 2)
    label = "hops to the nearest primary client"
    if not np.array_equal(summary.adjacency, summary.adjacency_union):
        label += "\n(along the edges of all graphs of the run)"
    _title(curves, "accuracy by hop distance", label)
    _title(cells, "the same numbers as a map", label)
    if not distances:
        for axis in (curves, cells):
            _say(axis, "no primary labels in this partition")
        return figure
    reached = [column for column, d in enumerate(distances) if d >= 0]
    for (name, colour), row in zip(_heads(len(ranks)), table, strict=True):
        marks = {"marker": "o", "ms": 3.5 if len(reached) <= 20 else 0, "color": colour}
        curves.plot(reached, row[reached], label=name, **marks)
        if len(reached) < len(distances):
            curves.plot([len(reached)], row[-1:], marker="D", ms=3.5, color=colour)
    curves.set_ylim(-0.02, _top(table))
    _heat(cells, table, Normalize(0, 1), _accuracy_text, most=10)
    ticks = _thin(len(reached), 12)
    if len(reached) < len(distances):
        ticks = [t for t in ticks if len(reached) - t > len(distances) / 12] + [len(reached)]
    for axis in (curves, cells):
        axis.set_xticks(ticks, [found.names[t] for t in ticks])
    cells.set_yticks(range(len(ranks)), ranks)
    _colour_bars(figure, [cells], Normalize(0, 1), "")
    _legend(figure, curves)
    return figure


# ----------------------------------------------------------------------------- all of them


def save_all(summary: Summary, history: History, directory: epath.PathLike) -> list[epath.Path]:
    """Writes every figure as a PNG.

    Args:
      summary: what a run leaves in ``summary.json``.
      history: The objects of ``metrics.jsonl``.
      directory: Where to; made if it is not there. May be on a remote file system.

    Returns:
      The files, one per figure, named like the functions of this module.
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for draw in (accuracy_per_class, label_distribution, communication_graph, hop_picture):
        paths.append(_save(draw(summary), folder, draw))
    for trace in (accuracy_over_steps, losses, accuracy_over_bytes):
        paths.append(_save(trace(history), folder, trace))
    return paths


def _save(figure: Figure, folder: epath.Path, draw: Callable[..., Figure]) -> epath.Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    path = folder / f"{draw.__name__}.png"
    path.write_bytes(buffer.getvalue())
    return path


# ----------------------------------------------------------------------------- parts


def _figure(height: float, rows: int, columns: int, width: float = WIDTH) -> tuple[Figure, Any]:
    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        _restyle(axis)
        axis.grid(color=GRID, linewidth=0.7)
        axis.set_axisbelow(True)
    return figure, axes


def _restyle(axis: Axes) -> None:
    # Ticks are made when first drawn, long after the style's context has ended.
    axis.tick_params(which="both", colors=MUTED, labelcolor=INK, labelsize=8, width=0.7, length=3)


def _title(axis: Axes, title: str, xlabel: str) -> None:
    axis.set_title(title)
    axis.set_xlabel(xlabel)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=MUTED)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        columns = len(handles) if len(handles) <= 7 else (len(handles) + 1) // 2
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _heads(num_heads: int) -> list[tuple[str, Any]]:
    """Name and colour of every head."""
    ranks = num_heads - 1
    shades = [AUX] if ranks == 1 else [RANKS(r / max(1, ranks - 1)) for r in range(ranks)]
    return list(zip(head_names(num_heads), [MAIN, *shades], strict=True))


def _taught_heads(history: History, taught: int) -> list[tuple[str, Any]]:
    """The heads that distillation losses are of: the auxiliary ones, or the main head alone."""
    evaluated = _lines(history, "shared_accuracy")
    only_main = evaluated and np.shape(evaluated[-1]["shared_accuracy"])[-1] != taught + 1
    return _heads(taught)[:taught] if only_main else _heads(taught + 1)[1:]


def _band(
    axis: Axes,
    x: Sequence[float] | np.ndarray,
    values: Float[np.ndarray, "T K"],
    colour: Any,
    label: str,
    alpha: float = 0.11,
    **style: Any,
) -> None:
    """A line at the clients' mean and a band from their minimum to their maximum."""
    marker = "o" if len(x) < 2 else None
    axis.plot(x, values.mean(axis=1), color=colour, label=label, marker=marker, ms=4, **style)
    axis.fill_between(
        x, values.min(axis=1), values.max(axis=1), color=colour, alpha=alpha, linewidth=0
    )


def _top(accuracies: np.ndarray) -> float:
    """The upper end of an axis of accuracies: 1, or less where all of them are low."""
    highest = np.nanmax(accuracies)
    return next((top for top in (0.2, 0.4, 0.6) if highest <= top), 1.0) + 0.02


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


def _thin(count: int, most: int) -> list[int]:
    """Positions of at most `most` ticks, a round number apart."""
    for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
        if count <= most * step:
            break
    return list(range(0, count, step))


def _class_order(primary: Bool[np.ndarray, "K C"]) -> Int[np.ndarray, " C"]:
    classes = primary.shape[1]
    return np.lexsort(~primary[::-1]) if classes > MOST_CLASSES else np.arange(classes)


def _heat_height(clients: int) -> float:
    return 0.75 + float(np.clip(0.21 * clients, 0.7, 2.8))


def _class_panels(shape: tuple[int, int], panels: int) -> tuple[Figure, Any]:
    """Panels of clients and classes, beside each other while the classes are few."""
    clients, classes = shape
    rows, columns = (1, panels) if classes <= SIDE_BY_SIDE else (panels, 1)
    figure = Picture(figsize=(WIDTH, rows * _heat_height(clients)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True).ravel()
    for axis in axes:
        _restyle(axis)
    return figure, axes


def _class_labels(axes: Sequence[Axes], classes: int) -> None:
    few = classes <= MOST_CLASSES
    for axis in axes:
        place = axis.get_subplotspec()
        if place is None:
            continue
        if place.is_first_col():
            axis.set_ylabel("client")
        if place.is_last_row():
            axis.set_xlabel("class" if few else f"{classes:,} classes, sorted by primary client")
        axis.tick_params(labelbottom=few and place.is_last_row())


def _heat(
    axis: Axes,
    values: Float[np.ndarray, "N M"],
    norm: Normalize,
    text: Callable[[float], str],
    own: Bool[np.ndarray, "N M"] | None = None,
    most: int = MOST_CLASSES,
) -> None:
    """A map with a number in every cell while there are few; cells of `own` in orange."""
    rows, columns = values.shape
    colours = HEAT(norm(values))
    if own is not None:
        colours = np.where(own[..., None], OWN(norm(values)), colours)
    colours = np.where(np.isfinite(values)[..., None], colours, 1.0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.imshow(colours, aspect="auto", interpolation="nearest")
    axis.set_xticks(_thin(columns, MOST_CLASSES))
    axis.set_yticks(_thin(rows, MOST_CLIENTS))
    if rows > MOST_CLIENTS or columns > most:
        return
    for row, column in np.argwhere(np.isfinite(values)):
        axis.text(
            column, row, text(values[row, column]), ha="center", va="center_baseline",
            fontsize=6.5, color=_contrast(colours[row, column]),
        )  # fmt: skip


def _colour_bars(
    figure: Figure, axes: Sequence[Axes], norm: Normalize, label: str, own: bool = False
) -> None:
    """The scale of a map; where it has orange cells, both scales side by side."""
    # Each bar goes inside the ones before it, so the first is the one with room for numbers.
    names = {"other": HEAT, "own": OWN} if own else {"": HEAT}
    for name, colours in names.items():
        outer = name != "own"
        bar = figure.colorbar(
            ScalarMappable(norm, colours), ax=axes, fraction=0.02, aspect=28, shrink=0.9,
            pad=0.02, label=label if outer else "",
        )  # fmt: skip
        bar.outline.set_visible(False)
        side: Literal["left", "right"] = "left" if outer else "right"
        bar.ax.set_title(name, loc=side, fontsize=6.5, fontweight="normal")
        bar.ax.tick_params(which="both", length=0, labelsize=7, labelcolor=INK, labelright=outer)
        bar.minorticks_off()
        if isinstance(norm, LogNorm):
            bar.ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _accuracy_text(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _contrast(colour: Sequence[float]) -> str:
    red, green, blue, _ = colour
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.6 else INK


def _nodes(axis: Axes, positions: Mapping[int, Any], colours: np.ndarray, size: float) -> None:
    x, y = np.array([positions[node] for node in range(len(positions))]).T
    axis.scatter(x, y, s=size, c=colours, edgecolors=INK, linewidths=0.7, clip_on=False, zorder=3)
    for node in range(len(positions)) if len(positions) <= MOST_NAMED else ():
        axis.text(
            x[node], y[node], str(node), ha="center", va="center_baseline", zorder=4,
            fontsize=min(9, 0.48 * size**0.5), color=_contrast(colours[node]),
        )  # fmt: skip


def _edges(axis: Axes, flows: nx.DiGraph, positions: Mapping[int, Any], size: float) -> None:
    """Arrows from teacher to student, two-headed between mutual teachers, as long as few."""
    mutual = nx.Graph([(a, b) for a, b in flows.edges if a < b and flows.has_edge(b, a)])
    single = nx.DiGraph([(a, b) for a, b in flows.edges if not flows.has_edge(b, a)])
    drawn = mutual.number_of_edges() + single.number_of_edges()
    width = float(np.clip(40 / (1 + drawn), 0.35, 1.2))
    looks: dict[str, Any] = {"ax": axis, "edge_color": MUTED, "width": width, "node_size": size}
    if drawn <= MOST_ARROWS:
        head = float(np.clip(0.5 * size**0.5, 3, 9))
        arrows = {"arrows": True, "arrowsize": head, **looks}
        nx.draw_networkx_edges(single, positions, arrowstyle="-|>", **arrows)
        nx.draw_networkx_edges(mutual, positions, arrowstyle="<|-|>", **arrows)
        return
    alpha = float(np.clip(200 / drawn, 0.1, 0.6))
    nx.draw_networkx_edges(flows.to_undirected(), positions, alpha=alpha, **looks)
    note = "too many to show their directions" if single else "all of them mutual"
    text = f"{drawn:,} edges, {note}"
    axis.text(0, -0.02, text, transform=axis.transAxes, va="top", fontsize=7, color=MUTED)


def _positions(flows: nx.DiGraph) -> dict[int, np.ndarray]:
    """Places each connected part on its own, the parts side by side in rows."""
    parts = sorted(nx.weakly_connected_components(flows), key=lambda part: (-len(part), min(part)))
    radii = [0.6 * len(part) ** 0.5 for part in parts]
    row_width = (2.2 * sum((2 * radius + 0.6) ** 2 for radius in radii)) ** 0.5
    positions: dict[int, np.ndarray] = {}
    x = y = row_height = 0.0
    for part, radius in zip(parts, radii, strict=True):
        if x > 0 and x + 2 * radius > row_width:
            x, y, row_height = 0.0, y - row_height, 0.0
        row_height = max(row_height, 2 * radius + 0.6)
        centre = np.array([x + radius, y - radius])
        positions |= {n: centre + radius * p for n, p in _layout(flows.subgraph(part)).items()}
        x += 2 * radius + 0.6
    return positions


def _corners(positions: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    places = np.array(list(positions.values()))
    return places.min(axis=0) - 0.6, places.max(axis=0) + 0.6


def _layout(part: nx.DiGraph) -> dict[int, np.ndarray]:
    """Positions within the unit circle, which a ring, a chain or a dense graph keeps."""
    links = part.to_undirected()
    degrees = dict(links.degree)
    hubs = [node for node in links if degrees[node] == len(links) - 1]
    if len(hubs) == 1 and max(degrees.values()) > 2:  # a star, or a wheel
        return {hubs[0]: np.zeros(2)} | _circle(sorted(set(links) - set(hubs)))
    # The ends of a chain must not look joined.
    circle = _circle(sorted(links), is_open=links.number_of_edges() < len(links))
    if max(degrees.values()) <= 2 or nx.density(links) > 0.8 or len(links) > MOST_PLACED:
        return circle
    return nx.kamada_kawai_layout(links, pos=circle)


def _circle(nodes: Sequence[int], is_open: bool = False) -> dict[int, np.ndarray]:
    """Clockwise from the top."""
    if len(nodes) == 1:
        return {nodes[0]: np.zeros(2)}
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(nodes)) / (len(nodes) + is_open)
    return dict(zip(nodes, np.stack([np.cos(angles), np.sin(angles)], axis=-1), strict=True))
