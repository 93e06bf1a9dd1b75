# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a correct implementation shows: five claims, each with its measured value and verdict.

python -m experiments.digits_claims --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from experiments.harness import plots, sweep
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Record, Study
from experiments.harness.tables import grid, over_seeds
from mhd_jax.methods import PEERS

LEAST_GAIN = 0.35
MOST_LOSS = 0.02


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim, what was measured seed by seed, and the least mean that bears the claim out."""

    claim: str
    measured: Float[np.ndarray, " R"]
    least: float

    @property
    def holds(self) -> bool:
        """Whether the mean is at least what is claimed."""
        return bool(self.measured.mean() >= self.least)

    def row(self) -> list[str]:
        """A line of a table."""
        seen = f"{(self.measured >= self.least).sum()} of {len(self.measured)}"
        passed = "PASS" if self.holds else "FAIL"
        return [self.claim, over_seeds(self.measured), seen, passed]


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        Cell("complete", "complete graph, most confident"),
        Cell("cycle", "directed cycle", {"graph.name": "cycle"}, per_class=True),
        Cell("islands", "two islands", {"graph.name": "islands", "graph.islands": 2}),
        Cell("random", "complete graph, random teacher",
             {"distill.rule": "random", "graph.peers_per_step": PEERS}),
    ]  # fmt: skip


def verdicts(records: Sequence[Record]) -> list[Verdict]:
    """The claims that the finished cells can decide."""
    by_cell = {record.cell: record for record in records}
    shared = {name: r.accuracy("shared").mean(axis=1) for name, r in by_cell.items()}
    found: list[Verdict] = []

    def claim(text: str, measured: np.ndarray, least: float = 0.0) -> None:
        found.append(Verdict(text, measured, least))

    if "complete" in shared:
        complete, last = by_cell["complete"], shared["complete"][:, -1]
        claim(
            f"shared accuracy, last auxiliary head minus isolated: at least {LEAST_GAIN}",
            complete.gain().mean(axis=1), LEAST_GAIN,
        )  # fmt: skip
        claim(
            f"private accuracy, main head minus isolated: at least -{MOST_LOSS}",
            complete.gain("private", head=0).mean(axis=1), -MOST_LOSS,
        )  # fmt: skip
        if "islands" in shared:
            claim("complete minus two islands, last head: above 0", last - shared["islands"][:, -1])
        if "random" in shared:
            claim("most confident minus random teacher, last head: above 0",
                  last - shared["random"][:, -1])  # fmt: skip
    if "cycle" in shared:
        cycle = shared["cycle"]
        claim("cycle, rank 2 minus rank 1: above 0", cycle[:, 2] - cycle[:, 1])
        claim("cycle, rank 3 minus rank 2: above 0", cycle[:, 3] - cycle[:, 2])
    return found


def verdict_table(records: Sequence[Record]) -> str:
    """The verdicts as a Markdown table."""
    header = ("claim", "measured, mean ± std over seeds", "seeds that show it", "verdict")
    return grid(header, [verdict.row() for verdict in verdicts(records)])


STUDY = Study(
    "digits_claims",
    "What a correct implementation shows",
    cells,
    draw=plots.ranks,
    all_heads=True,
    extra=verdict_table,
)


if __name__ == "__main__":
    sweep.main(STUDY)
