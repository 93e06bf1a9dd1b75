# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How much public data, and from where.

python -m experiments.public_data --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from experiments.harness import sweep
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study


def cells(preset: Preset) -> list[Cell]:
    sizes = [
        Cell(
            f"fraction_{fraction:g}",
            f"{fraction:.0%} of the training set",
            {"data.public_fraction": fraction},
        )
        for fraction in (0.02, 0.1, 0.3)
    ]
    return sizes + [
        Cell(f"from_{name}", f"images of {name}", {"data.public_name": name})
        for name in preset.public_names
    ]


STUDY = Study(
    "public_data",
    "The public set",
    cells,
    definitions=(
        "What is public is not private: a larger public set leaves the clients fewer samples, one "
        "from elsewhere leaves them all.",
        "photos: 416 patches of two photographs, resized to 8x8 and grey.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
