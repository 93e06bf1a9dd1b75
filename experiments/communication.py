# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Accuracy over bytes: all that makes messages smaller or rarer, beside other methods.

python -m experiments.communication --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.harness import plots, sweep, tables
from experiments.harness.candidates import ALL_PEERS
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Record, Study

LEVELS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)
DIGITS_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
PERIODS = (50, 200, 500)  # of FedAvg
SMALL: dict[str, Any] = {"exchange.encoding": "int4", "exchange.embedding_width": 4}


def cells(preset: Preset) -> list[Cell]:
    eighth = preset.base().data.public_batch_size // 8
    rarer = {
        "cache_8": ("cache 8", {"exchange.cache": 8}),
        "every_8": ("every 8", {"exchange.every": 8}),
        "batch_8": ("batch / 8", {"data.public_batch_size": eighth}),
    }
    bits, less, both, others = "fewer bits", "less often", "together", "other methods"
    ours = [
        Cell("float32", "float32", {}, bits),
        *(Cell(name, name, {"exchange.encoding": name}, bits)
          for name in ("bfloat16", "int8", "int4")),
        Cell("int4_w4", "int4, w = 4", SMALL, bits),
        *(Cell(name, label, changes, less) for name, (label, changes) in rarer.items()),
        *(Cell(f"int4_w4_{name}", f"int4, w = 4, {label}", {**SMALL, **changes}, both)
          for name, (label, changes) in rarer.items()),
    ]  # fmt: skip
    found = [  # caches need all peers
        *(Cell(c.name, c.label, {**ALL_PEERS, **c.changes}, c.group) for c in ours),
        Cell("codistillation", "codistillation", {"method": "codistillation"}, others),
        Cell("fedmd", "FedMD", {"method": "fedmd"}, others),
        *(Cell(f"fedavg_{every}", f"FedAvg, {every} steps",
               {"method": "fedavg", "average.every": every}, others) for every in PERIODS),
        Cell("fedavg_200_bfloat16", "FedAvg, 200, bfloat16",
             {"method": "fedavg", "average.every": 200, "exchange.encoding": "bfloat16"}, others),
    ]  # fmt: skip
    watched: dict[str, Any] = {"bytes_to": LEVELS}
    if preset.name == "digits":  # a small test set and a short way to the end
        watched = {"bytes_to": DIGITS_LEVELS, "train.eval_every": 25}
    network = "resnet20_" if preset.name == "cifar10_resnet20" else ""
    return [Cell(network + c.name, c.label, {**watched, **c.changes}, c.group) for c in found]


def until(records: Sequence[Record]) -> str:
    """What a client had sent when its last head was first seen at each level."""
    levels = list(dict.fromkeys(level for r in records for level in r.results.bytes_to))
    levels = [level for level in levels if any(_megabytes(r, level) != "–" for r in records)]
    lines = [[record.label, *(_megabytes(record, level) for level in levels)] for record in records]
    header = ["MB that a client had sent at a shared accuracy of", *levels]
    return tables.grid(header, lines) if levels else ""


def _megabytes(record: Record, level: str) -> str:
    spent = record.results.spent_until(level)
    return "–" if spent is None else tables.short(spent / 1e6)


STUDY = Study(
    "communication",
    "Accuracy over bytes",
    cells,
    draw=plots.over_bytes,
    extra=until,
    definitions=(
        "Bytes are those of what is published, however many peers read it, or of the parameters "
        "that are averaged.",
        "w = 4: embeddings travel in 4 numbers. cache 8: what is published of a public sample is "
        "sent once and read in 8 steps in a row. every 8: only each 8th step distils. batch / 8: "
        "an eighth of the public batch. FedAvg averages every so many steps.",
        "All peers are read in every step.",
        "A level of accuracy counts as reached at the first evaluation at which the mean over "
        "clients is there, in all seeds; MB are the mean over seeds.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
