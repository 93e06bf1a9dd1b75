# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The communication graph as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import networkx as nx
import numpy as np
from jaxtyping import Int
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mhd_jax.graph import describe
from mhd_jax.reporting.style import (
    HEAT,
    INK,
    LONGEST_NAME,
    MUTED,
    STYLE,
    WIDTH,
    colour_bars,
    contrast,
    new_figure,
    shorten,
    titles,
)
from mhd_jax.results import Summary, for_every_client

MOST_SMALL = 24  # nodes of a graph that fit on a small figure
MOST_NAMED = 100  # nodes of a graph that still carry their number
MOST_PLACED = 150  # nodes of a graph whose best places take no longer than a moment to find
FITS_A_NODE = 3  # letters of a name
MOST_ARROWS = 300  # edges that still get arrow heads
MOST_DRAWN = 400  # nodes of a graph that is drawn; of a larger one there are counts


@mpl.rc_context(STYLE)
def communication_graph(summary: Summary) -> Figure:
    """Who learns from whom: arrows point the way knowledge flows, from teacher to student.

    A node's colour is the shared accuracy of that client's last head. A graph of many clients is
    shown as `graph_counts`.
    """
    if len(summary.adjacency) > MOST_DRAWN:
        return graph_counts(summary)
    accuracy = summary.shared_accuracy[:, -1]
    flows = nx.from_numpy_array(summary.adjacency.T, create_using=nx.DiGraph)
    scale = 1.0 if len(flows) <= MOST_SMALL else 1.5
    figure, (axis,) = new_figure(3.4 * scale, 1, 1, width=0.6 * scale * WIDTH)
    axis.set_axis_off()
    axis.set_aspect("equal")
    positions = _positions(flows)
    (left, bottom), (right, top) = _corners(positions)
    axis.set(xlim=(left, right), ylim=(bottom, top))
    size = float(np.clip(scale**2 * 3200 / len(flows), 20, 360))
    norm = Normalize(0, 1)
    _edges(axis, flows, positions, size)
    _nodes(axis, positions, HEAT(norm(accuracy)), size, summary.names)
    colour_bars(figure, [axis], norm, "shared accuracy of the last head")
    return figure


@mpl.rc_context(STYLE)
def graph_counts(summary: Summary) -> Figure:
    """A large graph in numbers: peers of a client, hops of a pair, and accuracy by peers.

    Accuracies are those of clients that learn and do not lie.
    """
    degrees = summary.adjacency.sum(axis=1)
    figure, (peers, hops, by_peers) = new_figure(2.6, 1, 3)
    values, count = np.unique(degrees, return_counts=True)
    titles(peers, "clients, by number of peers", "peers")
    peers.bar(values, count, color=MUTED)
    pairs = np.asarray(describe(summary.adjacency)["hop_counts"])
    titles(hops, "pairs of clients, by distance", "hops")
    hops.bar(np.arange(1, len(pairs) + 1), pairs, color=MUTED)
    titles(by_peers, "shared accuracy, last head", "peers")
    _accuracy_by_peers(by_peers, summary, degrees)
    for axis in (peers, hops, by_peers):
        axis.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))
    return figure


def _accuracy_by_peers(axis: Axes, summary: Summary, degrees: Int[np.ndarray, " K"]) -> None:
    """Mean, and range without the tenths at both ends, over counted clients of so many peers."""
    accuracy = for_every_client(summary.shared_accuracy, len(degrees))[:, -1]
    counted = np.broadcast_to(summary.counted, degrees.shape)
    values = np.unique(degrees[counted])
    groups = [accuracy[counted & (degrees == value)] for value in values]
    axis.plot(values, [group.mean() for group in groups], color=INK, marker="o", ms=3)
    low, high = zip(*(np.quantile(group, [0.1, 0.9]) for group in groups), strict=True)
    axis.fill_between(values, low, high, color=INK, alpha=0.15, linewidth=0)
    axis.set_ylim(bottom=0)


def _nodes(
    axis: Axes,
    positions: Mapping[int, Any],
    colours: np.ndarray,
    size: float,
    names: Sequence[str],
) -> None:
    """A disc for every client with its number in it, or its name below where that is too long."""
    x, y = np.array([positions[node] for node in range(len(positions))]).T
    axis.scatter(x, y, s=size, c=colours, edgecolors=INK, linewidths=0.7, clip_on=False, zorder=3)
    for node in range(len(positions)) if len(positions) <= MOST_NAMED else ():
        if len(names[node]) <= FITS_A_NODE:
            axis.text(
                x[node], y[node], names[node], ha="center", va="center_baseline", zorder=4,
                fontsize=min(9, 0.48 * size**0.5), color=contrast(colours[node]),
            )  # fmt: skip
        else:
            axis.annotate(
                shorten(names[node], LONGEST_NAME), (x[node], y[node]), ha="center", va="top",
                xytext=(0, -0.6 * size**0.5), textcoords="offset points", zorder=4, fontsize=7,
                color=INK,
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
