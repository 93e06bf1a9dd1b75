# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The drawing of the communication graph, on made-up runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.patches import FancyArrowPatch

from mhd_jax.reporting.graph_drawing import communication_graph
from tests.synthetic import changed, synthetic_run


def test_arrows_point_from_teacher_to_student() -> None:
    summary, _ = synthetic_run(num_clients=3, aux=0)
    adjacency = [[False, True, False], [False, False, False], [False, True, False]]
    summary = changed(summary, adjacency=adjacency)
    figure = communication_graph(summary)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    places = {int(text.get_text()): np.array(text.get_position()) for text in axis.texts}
    arrows = [patch for patch in axis.patches if isinstance(patch, FancyArrowPatch)]
    found = set()
    for arrow in arrows:
        line = np.asarray(arrow.get_path().vertices)[:3]  # the head follows
        start, stop = (min(places, key=lambda n: np.hypot(*(places[n] - p))) for p in line[[0, 2]])
        style: Any = arrow.get_arrowstyle()
        assert style.arrow == "-|>"
        found.add((start, stop))
    assert found == {(1, 0), (1, 2)}


def test_too_many_edges_become_lines_and_say_so() -> None:
    summary, _ = synthetic_run(num_clients=40, adjacency=~np.eye(40, dtype=bool))
    axis = communication_graph(summary).axes[0]
    assert not [patch for patch in axis.patches if isinstance(patch, FancyArrowPatch)]
    assert "780 edges, all of them mutual" in [text.get_text() for text in axis.texts]
