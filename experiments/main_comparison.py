# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every method on the same data, model, budget and seeds, with skewed and with iid labels.

python -m experiments.main_comparison --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.harness import sweep
from experiments.harness.candidates import CHANGES, METHODS, SAME_FOR_ALL, WHAT_IS_OURS
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Record, Study
from experiments.harness.tables import grid
from mhd_jax.results import Spread

OURS = "aligned"
"""The row that the others are compared with."""


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        Cell(
            f"{method}_s{skew:g}",
            label,
            {
                **(CHANGES.get(method) or {"method": method}),
                **({} if skew == 100 else {"partition.skew": skew}),
            },
            group=f"s = {skew:g}",
        )
        for skew in (100.0, 0.0)
        for method, label in METHODS.items()
    ]


def against(records: Sequence[Record]) -> str:
    """Aligned MHD's last head minus the last head of each other method there is, by seed."""
    found = {(record.cell.partition("_")[0], record.group): record for record in records}
    groups = sorted({group for method, group in found if method == OURS}, key=len, reverse=True)
    titles = [title for group in groups for title in (f"β_sh at {group}", "in seeds")]
    lines = []
    for method, label in METHODS.items():
        cells = [cell for group in groups for cell in _difference(found, method, group)]
        if method != OURS and any(cells):
            lines.append([label, *cells])
    return grid(["aligned MHD's last head minus", *titles], lines) if lines else ""


def _difference(found: dict[tuple[str, str], Record], method: str, group: str) -> tuple[str, str]:
    if (method, group) not in found or (OURS, group) not in found:
        return "", ""
    ours, theirs = (found[m, group].accuracy("shared")[..., -1] for m in (OURS, method))
    difference = ours - theirs
    ahead = int((difference.mean(axis=1) > 0).sum())
    return Spread.of(difference).text(signed=True), f"{ahead} of {len(difference)}"


STUDY = Study(
    "main_comparison",
    "Every method at s = 100 and s = 0",
    cells,
    definitions=(
        WHAT_IS_OURS,
        "With mixup, up to a quarter of another public sample is mixed into each.",
        SAME_FOR_ALL,
        "Supervised is one model on all private data, in the steps and batch of a single client.",
        "FedAvg and gossip average parameters (of everybody; of graph neighbours) every "
        "`average.every` steps, all clients taking part, momentum staying with its client; "
        "on a complete graph the two are the same.",
        "FedMD fits the mean of the logits by its absolute error, without a transfer phase on "
        "public labels, which no method reads; FedDF has no server, each client distils the "
        "averaged model itself.",
        "Only MHD has auxiliary heads: the last head of the others is their main head, and their "
        "gain is the main head's.",
    ),
    extra=against,
)


if __name__ == "__main__":
    sweep.main(STUDY)
