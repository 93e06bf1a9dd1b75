# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who teaches: measures of confidence, a random teacher, the mean of all, and who may apply.

python -m experiments.teachers --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.harness import plots, sweep
from experiments.harness.candidates import ALL_PEERS, PAPER_ALL_PEERS
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study

Settings = Mapping[str, Any]

RULES: dict[str, tuple[str, Settings]] = {
    "max_prob": ("most confident: largest probability", {}),
    "neg_entropy": ("most confident: entropy", {"distill.confidence": "neg_entropy"}),
    "margin": ("most confident: margin", {"distill.confidence": "margin"}),
    "energy": ("most confident: standardised energy", {"distill.confidence": "energy"}),
    "class_thresholds": ("most confident above its thresholds (FreeMatch)",
                         {"distill.rule": "class_thresholds"}),
    "random": ("random", {"distill.rule": "random"}),
    "mean": ("mean of all", {"distill.rule": "mean"}),
    "sharpened": ("mean of all, sharpened (DS-FL)",
                  {"distill.rule": "mean", "distill.temperature": 0.1}),
    "mean_log_prob": ("mean log-probability", {"distill.rule": "mean_log_prob"}),
    "entropy_weighted": ("weights by entropy", {"distill.rule": "entropy_weighted"}),
    "entropy_power": ("weights by entropy, squared", {"distill.rule": "entropy_power"}),
    "label_share": ("weights by label shares",
                    {"distill.rule": "label_share", "distill.publish_label_shares": True}),
}  # fmt: skip
"""What a rule is called, and its settings."""

GROUPS = (("", "aligned", ALL_PEERS), ("_paper", "not aligned", PAPER_ALL_PEERS))
"""What is added to the name of a cell, the group it is in, and the settings of that."""


def cells(preset: Preset) -> list[Cell]:
    del preset
    found = [
        Cell(f"{name}{suffix}", label, {**changes, **teachers}, group=group)
        for suffix, group, teachers in GROUPS
        for name, (label, changes) in RULES.items()
    ]
    return [
        *found,
        Cell("without_self", "most confident, never oneself",
             {**ALL_PEERS, "distill.include_self": False}, group="aligned"),
        Cell("same_rank", "most confident, same rank too",
             {**ALL_PEERS, "distill.same_rank": True}, group="aligned"),
        Cell("batch_mean", "most confident, mean of this batch alone",
             {**ALL_PEERS, "distill.alignment_momentum": 0.0}, group="aligned"),
    ]  # fmt: skip


STUDY = Study(
    "teachers",
    "Teacher rules",
    cells,
    draw=plots.dots,
    all_heads=True,
    definitions=(
        "All peers teach in every step, and unless a row says otherwise a client's own lower head "
        "may be its teacher.",
        "Without alignment, the first row is the paper's method.",
        "A standardised energy costs one number more per sample and head, label shares one number "
        "per class and client, once.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
