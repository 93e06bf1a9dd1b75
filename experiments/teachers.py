# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who teaches: measures of confidence, a random teacher, the mean of all, and who may apply.

python -m experiments.teachers --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from experiments.harness import plots, sweep
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        Cell("max_prob", "most confident: largest probability"),
        Cell("neg_entropy", "most confident: entropy", {"distill.confidence": "neg_entropy"}),
        Cell("margin", "most confident: margin", {"distill.confidence": "margin"}),
        Cell("random", "random", {"distill.confidence": "random"}),
        Cell("mean", "mean of all", {"distill.rule": "mean"}),
        Cell("without_self", "most confident, never oneself", {"distill.include_self": False}),
        Cell("same_rank", "most confident, same rank too", {"distill.same_rank": True}),
    ]


STUDY = Study(
    "teachers",
    "Teacher rules",
    cells,
    draw=plots.ranks,
    all_heads=True,
    definitions=("Unless a row says otherwise a client's own lower head may be its teacher.",),
)


if __name__ == "__main__":
    sweep.main(STUDY)
