# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What old snapshots cost: time and memory of a step, and bytes published, beside fresh teachers.

python -m experiments.benchmarks.exchange_cost --out=experiments/results/benchmarks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks import ours, timing
from experiments.benchmarks.timing import Benchmark, Effort, Record
from experiments.harness import tables
from experiments.harness.presets import PRESETS
from experiments.harness.stepping import SteppedRun

FRESH = "fresh"
REFRESH = 50  # S_P: how often a snapshot is replaced

# (N_P, Δ) by what the table calls it: how many snapshots are kept and how many are read.
POOLS = {
    "N_P = 1": (1, 0),
    "N_P = 4": (4, 0),
    "N_P = 4, Δ = 1": (4, 1),
    "N_P = 16, Δ = 1": (16, 1),
}


def settings() -> dict[str, dict[str, Any]]:
    """What differs from the preset, by contender."""
    stale = {"exchange.mode": "stale", "exchange.refresh_steps": REFRESH}
    return {FRESH: {}} | {
        name: {**stale, "exchange.pool_size": size, "graph.peers_per_step": read}
        for name, (size, read) in POOLS.items()
    }


def measure(effort: Effort) -> dict[str, Any]:
    """Seconds a step of every contender, round by round, with memory and bytes."""
    return {"refresh_steps": REFRESH, **side_by_side(settings(), effort)}


def side_by_side(settings: Mapping[str, Mapping[str, Any]], effort: Effort) -> dict[str, Any]:
    """The same of any contenders, by what each changes in the preset."""
    common = {"isolated_baseline": False, **(ours.TINY if effort.quick else {})}
    base = PRESETS["smoke" if effort.quick else "digits"]
    steppers = {}
    for name, changes in settings.items():
        config = base.base({**common, **changes})
        config.num_seeds = 1
        steppers[name] = SteppedRun(config)
    contenders = [ours.contender(name, stepper) for name, stepper in steppers.items()]
    return {
        "measured": timing.alternate(contenders, effort),
        "memory": {name: stepper.memory() for name, stepper in steppers.items()},
        "published": {
            name: float(stepper.experiment.ledger.predictions.mean())
            for name, stepper in steppers.items()
        },
    }


def table(records: Sequence[Record]) -> str:
    """A row for every contender; time and memory as multiples of fresh teachers."""
    results = records[0]["results"]
    head = ("teachers", "ms a step", "time", "state", "memory beside it", "kB published")
    lines = [_row(results, name) for name in results["measured"]]
    said = (
        f"Medians over {timing.rounds(records)}, smallest and largest ratio in "
        f"brackets; 8 clients on digits without an isolated baseline, one snapshot replaced every "
        f"{results['refresh_steps']} steps."
    )
    return timing.markdown(head, lines, said, records)


def _row(results: Mapping[str, Any], name: str) -> tuple[str, ...]:
    measured, memory = results["measured"], results["memory"]
    ratios = [f"{memory[name][part] / memory[FRESH][part]:.2f}×" for part in ("state", "temporary")]
    took = timing.factor(timing.speedup(measured, FRESH, name)) if name != FRESH else "1×"
    milliseconds = f"{timing.milliseconds(measured, name):.1f}"
    return (name, milliseconds, took, *ratios, tables.short(results["published"][name] / 1e3))


BENCHMARK = Benchmark(
    "exchange_cost",
    "What old snapshots cost",
    timing.one_case("digits", measure),
    table,
)


if __name__ == "__main__":
    timing.main(BENCHMARK)
