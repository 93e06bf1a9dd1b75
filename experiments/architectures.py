# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Small and large clients: what they gain from each other over staying among their own kind.

python -m experiments.architectures --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.harness import sweep
from experiments.harness.candidates import PAPER
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Record, Study
from experiments.harness.tables import grid
from mhd_jax.results import Spread

SETTINGS = {
    "together": "together",
    "own_kind": "among their own kind",
    "together_emb0": "together, predictions alone",
    "own_kind_emb0": "among their own kind, predictions alone",
    "together_at_once": "together, no fade-in",
    "together_mhd": "together, no alignment",
}
OWN_KIND = "experiments/graphs/own_kind.txt"  # clients 0 to 4 and 5 to 7, complete each


def cells(preset: Preset) -> list[Cell]:
    (small, few), (large, fewer) = preset.models
    everybody = f"{few} {small} and {fewer} {large}"
    own_kind = {"graph.name": "matrix", "graph.matrix": OWN_KIND}
    mixed = {"clients.models": preset.models}
    without = {**mixed, "distill.nu_emb": 0.0}
    return [
        Cell("together", everybody, mixed),
        Cell("own_kind", f"{everybody}, each among its own kind", {**mixed, **own_kind}),
        Cell("together_emb0", f"{everybody}, predictions alone", without),
        Cell("own_kind_emb0", f"{everybody}, predictions alone, each among its own kind",
             {**without, **own_kind}),
        Cell("together_at_once", f"{everybody}, no fade-in", {**mixed, "distill.fade_in": 0.0}),
        Cell("together_mhd", f"{everybody}, no alignment", {**mixed, **PAPER}),
    ]  # fmt: skip


def by_kind(records: Sequence[Record]) -> str:
    """Shared accuracy of small and of large clients: together, among their own kind, isolated."""
    header = ("clients", "setting", "β_sh main", "β_sh last head", "β_sh isolated")
    lines = []
    for record in records:
        first = 0
        for name, count in record.config["clients"]["models"]:
            kind = slice(first, first + count)
            first += count
            shared = record.accuracy("shared")[:, kind]
            isolated = record.isolated("shared")[:, kind]
            values = (shared[..., 0], shared[..., -1], isolated)
            spreads = [Spread.of(value).text() for value in values]
            lines.append((f"{count} {name}", SETTINGS[record.cell], *spreads))
    return grid(header, lines)


STUDY = Study(
    "architectures",
    "Clients of two architectures",
    cells,
    definitions=(
        "Embeddings of different width are compared after a learned linear map of the student's.",
    ),
    extra=by_kind,
)


if __name__ == "__main__":
    sweep.main(STUDY)
