# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who can hear whom: shared accuracy by communication graph and head rank, and the hop picture.

python -m experiments.topology --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from experiments import plots, sweep
from experiments.presets import Preset
from experiments.sweep import Cell, Study


def cells(preset: Preset) -> list[Cell]:
    del preset
    graph = "graph.name"
    return [
        Cell("cycle", "directed cycle", {graph: "cycle"}, per_class=True),
        Cell("complete", "complete"),
        Cell("islands", "two islands", {graph: "islands", "graph.islands": 2}),
        Cell("star", "star", {graph: "star"}),
        Cell("chain", "chain", {graph: "chain"}),
        Cell("undirected_cycle", "undirected cycle", {graph: "undirected_cycle"}),
        Cell("random_regular", "random, 2 peers each", {graph: "random_regular"}),
        Cell("changing", "random, 2 peers each, fresh every 50 steps",
             {graph: "random_regular", "graph.every": 50}),
    ]  # fmt: skip


STUDY = Study(
    "topology",
    "Communication graphs by head rank",
    cells,
    draw=plots.ranks,
    all_heads=True,
    definitions=(
        "On a directed cycle client i learns from client i - 1 alone; in the other graphs edges "
        "go both ways.",
        "The isolated clients are the graph without edges.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
