# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Old, few and lost messages: age of the teachers, peers read per step, edges that are silent.

python -m experiments.staleness --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from typing import Any

from experiments.harness import sweep
from experiments.harness.candidates import ALL_PEERS
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study


def cells(preset: Preset) -> list[Cell]:
    del preset
    age, peers, lost = "snapshots", "fresh, Δ", "fresh, lost messages"
    return [
        Cell("fresh", "all peers", ALL_PEERS, peers),
        *(
            Cell(
                f"delta_{count}",
                f"Δ = {count} of them" + ", the default" * (count == 2),
                {"graph.peers_per_step": count},
                peers,
            )
            for count in (1, 2)
        ),
        *(
            Cell(f"drop_{p:.0f}", f"{p:.0f} %", {**ALL_PEERS, "graph.drop": p / 100}, lost)
            for p in (30, 60)
        ),
        *(
            Cell(f"stale_{every}", f"N_P = 1, S_P = {every}", _pool(1, every), age)
            for every in (1, 50, 200, 800)
        ),
        Cell("pool_4", "N_P = 4, S_P = 50", _pool(4, 50), age),
    ]


def _pool(size: int, every: int) -> dict[str, Any]:
    return {
        "exchange.mode": "stale",
        "exchange.pool_size": size,
        "exchange.refresh_steps": every,
    }


STUDY = Study(
    "staleness",
    "Old, few and lost messages",
    cells,
    definitions=(
        "With snapshots every client has N_P teachers, earlier states of random peers, of which "
        "one is replaced by a current one every S_P steps.",
        "The bytes of snapshots are those of publishing what they predict.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
