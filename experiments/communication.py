# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Accuracy over bytes: predictions in full, rounded, and the largest few alone.

python -m experiments.communication --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from experiments.harness import plots, sweep
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study


def cells(preset: Preset) -> list[Cell]:
    del preset
    encoding, top_k = "exchange.encoding", {"exchange.encoding": "top_k"}
    no_embedding = {"distill.nu_emb": 0.0}
    return [
        Cell("float32", "float32"),
        Cell("bfloat16", "bfloat16", {encoding: "bfloat16"}),
        Cell("top_3", "3 largest", {**top_k, "exchange.top_k": 3}),
        Cell("top_1_only", "largest alone, no embedding",
             {**top_k, "exchange.top_k": 1, **no_embedding}),
        Cell("fedavg", "FedAvg", {"method": "fedavg"}),
    ]  # fmt: skip


STUDY = Study(
    "communication",
    "Encodings of what is published",
    cells,
    draw=plots.over_bytes,
    definitions=(
        "Bytes are those of what is published, however many peers read it.",
        "Largest few: their log-probabilities in float32 and their classes, the rest of the mass "
        "spread evenly; embeddings travel in full.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
