# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""From iid to disjoint labels: the skew s of the primary labels, and Dirichlet's alpha.

python -m experiments.data_heterogeneity --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

import math

from experiments.harness import sweep
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study


def cells(preset: Preset) -> list[Cell]:
    skew, dirichlet = "primary labels", "Dirichlet"
    return [
        Cell("s0", "s = 0, iid", {"partition.skew": 0.0}, skew),
        Cell("s10", "s = 10", {"partition.skew": 10.0}, skew),
        Cell("s100", "s = 100", {}, skew),
        Cell("s_inf", "s = inf, disjoint", {"partition.skew": math.inf}, skew),
        *(
            Cell(
                f"alpha_{alpha:g}",
                f"alpha = {alpha:g}",
                {"partition.name": "dirichlet", "partition.alpha": alpha},
                dirichlet,
            )
            for alpha in preset.alphas
        ),
    ]


STUDY = Study(
    "data_heterogeneity",
    "How unlike the clients' data are",
    cells,
    definitions=(
        "Skew s: a sample with a label goes to one of the label's primary clients with 1 + s times "
        "the probability of the others.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
