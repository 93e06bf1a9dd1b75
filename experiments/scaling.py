# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""More clients: over the same data cut finer, and each with as much data as before.

python -m experiments.scaling --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from experiments.harness import sweep
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study


def cells(preset: Preset) -> list[Cell]:
    usual = preset.base().clients.num
    auto = {"partition.primary_labels": 0}  # two primary clients a label, whatever their number
    total, each = "fixed total data", "fixed data per client"
    return [
        *(
            Cell(
                f"each_{k}",
                f"{k} clients, {percent} % of the data",
                {"clients.num": k, "data.split": f"train[:{percent}%]", **auto},
                each,
            )
            for k, percent in preset.shares
        ),
        *(
            Cell(f"usual_{k}", f"{k} clients", auto, total)
            if k == usual
            else Cell(f"total_{k}", f"{k} clients", {"clients.num": k, **auto}, total)
            for k in sorted({usual, *preset.clients})
        ),
    ]


STUDY = Study(
    "scaling",
    "Numbers of clients",
    cells,
    definitions=(
        "A label has two primary clients on average whatever their number, so that fewer clients "
        "hold more labels each; two clients hold all of them.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
