# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who can hear whom: shared accuracy by communication graph and head rank, and the hop picture.

python -m experiments.topology --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments import plots, sweep
from experiments.presets import Preset
from experiments.sweep import Cell, Record, Study
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
    return "\n\n".join(_hops(record) for record in records if "adjacency" in record["results"])


def _hops(record: Record) -> str:
    names, distances, tables = plots.hops(record)
    columns = [hop_name(distance) for distance in distances]
    lines = [[f"{record['label']}: hops", *columns], ["---"] * (1 + len(columns))]
    mean = np.nanmean(tables, axis=0)
    for name, row, seeds in zip(names, mean, tables.swapaxes(0, 1), strict=True):
        lines.append([name, *map(_cell, row, seeds.T)])
    occurs = np.isfinite(tables[:, 0]).sum(axis=0)
    lines.append(["seeds with such a label", *map(str, occurs)])
    said = "Accuracy on labels by how many hops away their nearest primary client is:"
    return f"{said}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(mean: float, seeds: np.ndarray) -> str:
    known = seeds[np.isfinite(seeds)]
    return f"{mean:.3f}" + (f" ± {known.std(ddof=1):.3f}" if len(known) > 1 else "")


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
