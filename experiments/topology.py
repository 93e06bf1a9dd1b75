# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who can hear whom: shared accuracy by communication graph and head rank, and the hop picture.

python -m experiments.topology --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.harness import plots, sweep
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, PerClass, Record, Study
from experiments.harness.tables import grid, over_seeds
from mhd_jax.results import hop_name


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


def hop_picture(records: Sequence[Record]) -> str:
    """Accuracy by hop distance and head, mean ± std over seeds, of the cells that have it."""
    kept = ((record.label, record.results.per_class) for record in records)
    return "\n\n".join(_hops(label, found) for label, found in kept if found)


def _hops(label: str, found: PerClass) -> str:
    names, distances, tables = plots.hops(found)
    columns = [hop_name(distance) for distance in distances]
    by_head = zip(names, tables.swapaxes(0, 1), strict=True)
    lines = [[name, *map(_cell, seeds.T)] for name, seeds in by_head]
    occurs = np.isfinite(tables[:, 0]).sum(axis=0)
    lines.append(["seeds with such a label", *map(str, occurs)])
    said = "Accuracy on labels by how many hops away their nearest primary client is:"
    return f"{said}\n\n{grid([f'{label}: hops', *columns], lines)}"


def _cell(seeds: np.ndarray) -> str:
    """Over the seeds in which there is such a label."""
    return over_seeds(seeds[np.isfinite(seeds)], signed=False)


STUDY = Study(
    "topology",
    "Communication graphs by head rank",
    cells,
    draw=plots.ranks,
    all_heads=True,
    extra=hop_picture,
    definitions=(
        "On a directed cycle client i learns from client i - 1 alone; in the other graphs edges "
        "go both ways.",
        "The isolated clients are the graph without edges.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
