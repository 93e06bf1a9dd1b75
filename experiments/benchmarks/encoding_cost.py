# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What smaller and rarer messages cost: time of a step, and bytes published.

python -m experiments.benchmarks.encoding_cost --out=experiments/results/benchmarks
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.benchmarks import exchange_cost, timing
from experiments.benchmarks.timing import Benchmark, Effort, Record
from experiments.harness import tables

PLAIN = "float32"
SMALL: dict[str, Any] = {"exchange.encoding": "int4", "exchange.embedding_width": 4}
FORMS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    **{name: {"exchange.encoding": name} for name in ("bfloat16", "int8", "int4", "top_k")},
    "int4, embeddings in 4 numbers": SMALL,
    "float32, sent once, read 8 times": {"exchange.cache": 8},
    "int4, 4 numbers, sent once, read 8 times": {**SMALL, "exchange.cache": 8},
    "float32, every 8th step": {"exchange.every": 8},
}


def measure(effort: Effort) -> dict[str, Any]:
    """Seconds a step of every form, round by round, with bytes."""
    return exchange_cost.side_by_side(FORMS, effort)


def table(records: Sequence[Record]) -> str:
    """A row for every form; time as a multiple of float32's."""
    measured, sent = (records[0]["results"][key] for key in ("measured", "published"))
    lines = []
    for name in measured:
        took = timing.factor(timing.speedup(measured, PLAIN, name)) if name != PLAIN else "1×"
        kilobytes = tables.short(sent[name] / 1e3)
        lines.append((name, f"{timing.milliseconds(measured, name):.1f}", took, kilobytes))
    said = (
        f"Medians over {timing.rounds(records)}, smallest and largest ratio in brackets; 8 clients "
        "on digits without an isolated baseline. kB are those of a step that distils."
    )
    return timing.markdown(("form", "ms a step", "time", "kB published"), lines, said, records)


BENCHMARK = Benchmark(
    "encoding_cost",
    "What smaller and rarer messages cost",
    timing.one_case("digits", measure),
    table,
)


if __name__ == "__main__":
    timing.main(BENCHMARK)
