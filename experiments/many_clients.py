# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""From 16 to thousands of clients on sparse graphs: what each rank of heads gains.

python -m experiments.many_clients --preset=many --workdir=runs/many
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import ml_collections
import numpy as np
from matplotlib.figure import Figure

from experiments.harness import plots, sweep
from experiments.harness.many import EACH, GRAPHS, PUBLIC, size
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Record, Study
from experiments.harness.tables import grid
from mhd_jax import graph
from mhd_jax.results import head_names

SEEDS = {16: 5, 64: 3}
"""Seeds of few clients, whose accuracies vary most."""


def cells(preset: Preset) -> list[Cell]:
    return [
        Cell(
            f"{settings['graph.name']}_{clients}", f"{clients:,} clients",
            {**settings, **size(clients)}, label, seeds=SEEDS.get(clients, 0),
        )
        for label, settings in GRAPHS.items()
        for clients in preset.clients
    ]  # fmt: skip


def distances(record: Record) -> tuple[int | None, float]:
    """Diameter, None where somebody cannot be reached, and mean hops of a pair; first seed's."""
    return _distances(ml_collections.FrozenConfigDict(record.config))


@functools.cache
def _distances(config: ml_collections.FrozenConfigDict) -> tuple[int | None, float]:
    drawn = graph.make_topology(config.graph, config.clients.num, config.seed).at(0)
    facts = graph.describe(drawn)
    hops = np.asarray(facts["hop_counts"])
    return facts["diameter"], float((hops * np.arange(1, len(hops) + 1)).sum() / hops.sum())


def gains(record: Record) -> list[float]:
    """What every head has over the isolated baseline, mean over clients and seeds."""
    heads = record.accuracy("shared").shape[-1]
    return [float(record.gain(head=head).mean()) for head in range(heads)]


def draw(records: Sequence[Record]) -> Figure:
    """Gain of every head over the number of clients, and of the last over the mean distance."""
    figure, axes = plots.panels(2, 3.6)
    for record_group, line in zip(GRAPHS, ("-", "--"), strict=True):
        some = [record for record in records if record.group == record_group]
        if not some:
            continue
        clients = [record.config["clients"]["num"] for record in some]
        by_head = np.array([gains(record) for record in some]).T
        for head, (name, colour) in enumerate(
            zip(head_names(len(by_head)), plots.COLOURS, strict=False)
        ):
            axes[0].plot(
                clients, by_head[head], line, color=colour, marker=plots.MARKS[head], ms=4, lw=1.3,
                label=name,
            )  # fmt: skip
        hops = [distances(record)[1] for record in some]
        axes[1].plot(hops, by_head[-1], line, color=plots.COLOURS[0], marker="o", ms=4)
        for at in zip(hops, by_head[-1], clients, strict=True):
            axes[1].annotate(f"{at[2]:,}", at[:2], fontsize=7, xytext=(3, 4),
                             textcoords="offset points")  # fmt: skip
    axes[0].set_xscale("log", base=2)
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[0].set_xlabel("clients")
    axes[0].set_title("gain by head; dashed: random regular graph", loc="left", fontsize=9)
    axes[1].set_xlabel("mean hops of a pair of clients")
    axes[1].set_ylim(bottom=0)
    axes[1].set_title("gain of the last head, by number of clients", loc="left", fontsize=9)
    plots.legend(figure, axes[0])
    return figure


def by_distance(records: Sequence[Record]) -> str:
    """How far apart clients are, and every head's gain."""
    header = ["graph", "clients", "diameter", "mean hops"]
    most = max(record.accuracy("shared").shape[-1] for record in records)
    lines = []
    for record in records:
        diameter, mean = distances(record)
        lines.append([
            record.group, f"{record.config['clients']['num']:,}", str(diameter or "–"),
            f"{mean:.1f}", *(f"{gain:+.3f}" for gain in gains(record)),
        ])  # fmt: skip
    said = "Gain of every head over the isolated baseline, and how far apart the clients are:"
    return f"{said}\n\n{grid([*header, *head_names(most)], lines)}"


STUDY = Study(
    "many_clients",
    "Many clients on sparse graphs",
    cells,
    draw=draw,
    extra=by_distance,
    definitions=(
        f"Every client has {EACH} private samples on average and two primary labels; {PUBLIC} "
        "public ones whatever the number of clients.",
        "16 clients have five seeds, 64 three, and more clients one.",
        "Samples are scikit-learn's digits, moved by up to a pixel and with noise.",
        "Clients have 4 peers, on the small-world graph on average.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
