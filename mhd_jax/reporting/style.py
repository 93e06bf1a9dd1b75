# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How all figures look, and the parts that they share.

One language of colours holds throughout: the main head is orange, the auxiliary heads go from light
to dark blue with their rank, the isolated baseline is grey and dashed; in maps of clients and
classes a client's primary labels are orange, all other labels blue. Orange and blue stay apart in
every common form of colour blindness, and whatever has an order differs in lightness.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from mhd_jax.results import head_names

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

STYLE: dict[Any, Any] = {
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
    "text.parse_math": False,  # names of classes and clients may have dollars in them
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


def new_figure(
    height: float, rows: int, columns: int, width: float = WIDTH
) -> tuple[Figure, np.ndarray]:
    """A figure of several panels, `height` and `width` in inches, and its axes."""
    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        restyle(axis)
        axis.grid(color=GRID, linewidth=0.7)
        axis.set_axisbelow(True)
    return figure, axes


def restyle(axis: Axes) -> None:
    """Ticks and their labels in the colours of the figures."""
    # Ticks are made when first drawn, long after the style's context has ended.
    axis.tick_params(which="both", colors=MUTED, labelcolor=INK, labelsize=8, width=0.7, length=3)


def titles(axis: Axes, title: str, xlabel: str) -> None:
    """Names a panel and its horizontal axis."""
    axis.set_title(title)
    axis.set_xlabel(xlabel)
    if xlabel == "step":
        whole = ticker.MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
        axis.xaxis.set_major_locator(whole)


def say(axis: Axes, text: str) -> None:
    """Words in place of a curve."""
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=MUTED)


def legend(figure: Figure, axis: Axes) -> None:
    """The legend of one panel, below the whole figure."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        columns = len(handles) if len(handles) <= 7 else (len(handles) + 1) // 2
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def head_colours(num_heads: int) -> list[tuple[str, ColorType]]:
    """Name and colour of every head."""
    ranks = num_heads - 1
    shades = [AUX] if ranks == 1 else [RANKS(r / max(1, ranks - 1)) for r in range(ranks)]
    return list(zip(head_names(num_heads), [MAIN, *shades], strict=True))


def top(accuracies: np.ndarray) -> float:
    """The upper end of an axis of accuracies: 1, or less where all of them are low."""
    highest = np.nanmax(accuracies)
    return next((top for top in (0.2, 0.4, 0.6) if highest <= top), 1.0) + 0.02


LONGEST_NAME = 14  # letters of a client's name in a figure


def shorten(name: str, most: int) -> str:
    """A name of at most `most` letters.

    >>> shorten("university hospital", 14)
    'university ho…'
    """
    return name if len(name) <= most else name[: most - 1] + "…"


def thin(count: int, most: int) -> list[int]:
    """Positions of at most `most` ticks, a round number apart."""
    for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
        if count <= most * step:
            break
    return list(range(0, count, step))


def heat(
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
    axis.set_xticks(thin(columns, MOST_CLASSES))
    axis.set_yticks(thin(rows, MOST_CLIENTS))
    if rows > MOST_CLIENTS or columns > most:
        return
    for row, column in np.argwhere(np.isfinite(values)):
        axis.text(
            column, row, text(values[row, column]), ha="center", va="center_baseline",
            fontsize=6.5, color=contrast(colours[row, column]),
        )  # fmt: skip


def colour_bars(
    figure: Figure,
    axes: Sequence[Axes] | np.ndarray,
    norm: Normalize,
    label: str,
    own: bool = False,
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


def accuracy_text(value: float) -> str:
    """Two digits.

    >>> accuracy_text(0.456)
    '.46'
    """
    return f"{value:.2f}".removeprefix("0")


def contrast(colour: Sequence[float]) -> str:
    """The colour of text on `colour`, red, green, blue and opacity in 0..1."""
    red, green, blue, _ = colour
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.6 else INK
