# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How close a step comes to what this machine can do, by its own measure.

    python -m experiments.benchmarks.limits --out=experiments/results/benchmarks

The peaks are measured beside the step: arithmetic by a large matrix product, memory by adding two
arrays that no cache holds. What a step does is read from the compiled program (`cost_analysis`);
its bytes count every operand of every instruction, cached or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import ours, timing
from experiments.benchmarks.step import without_contenders
from experiments.benchmarks.timing import Benchmark, Contender, Effort, Record
from experiments.harness import tables

STEP, PRODUCT, MEMORY = "step", "product", "memory"


def repeated(name: str, function: Callable[..., jax.Array], *arguments: jax.Array) -> Contender:
    """A compiled function as a contender; one unit of work is one call."""
    call = jax.jit(function).lower(*arguments).compile()

    def run(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(call(*arguments))

    return Contender(name, run)


def measure(settings: Mapping[str, Any], effort: Effort) -> dict[str, Any]:
    """The step and both peaks in turn."""
    side, length = (64, 10**4) if effort.quick else (2048, 3 * 10**7)
    square, long = jnp.ones((side, side)), jnp.ones(length)
    stepper = ours.build(settings)
    contenders = [
        ours.contender(STEP, stepper),
        repeated(PRODUCT, jnp.matmul, square, square),
        repeated(MEMORY, jnp.add, long, long),
    ]
    cost = stepper.compiled.cost_analysis()
    return {
        "clients": stepper.experiment.config.clients.num,
        "model": stepper.experiment.config.model.name,
        "operations": {STEP: float(cost["flops"]), PRODUCT: 2.0 * side**3},
        "bytes": {STEP: float(cost["bytes accessed"]), MEMORY: 12.0 * length},
        "measured": timing.alternate(contenders, effort),
    }


def share(results: Mapping[str, Any], kind: str, peak: str) -> dict[str, float]:
    """The step's rate over the peak's, within rounds."""
    work, measured = results[kind], results["measured"]
    pairs = zip(measured[STEP]["seconds"], measured[peak]["seconds"], strict=True)
    return timing.spread([work[STEP] / mine / (work[peak] / theirs) for mine, theirs in pairs])


def table(records: Sequence[Record]) -> str:
    """A row for every case."""
    head = ("clients", "network", "GFLOP a step", "GFLOP/s", "of a matrix product's",
            "GB/s", "of memory's")  # fmt: skip
    lines = [_row(record["results"]) for record in records]
    said = (
        f"Medians over {timing.rounds(records)}. Bytes count every operand, cached or not, so "
        "their share may pass 100 %."
    )
    return timing.markdown(head, lines, said, records)


def _row(results: Mapping[str, Any]) -> tuple[str, ...]:
    def rate(kind: str, name: str) -> str:
        seconds = timing.milliseconds(results["measured"], name) / 1e3
        return tables.short(results[kind][name] / seconds / 1e9)

    return (
        str(results["clients"]),
        results["model"],
        tables.short(results["operations"][STEP] / 1e9),
        f"{rate('operations', STEP)} of {rate('operations', PRODUCT)}",
        f"{share(results, 'operations', PRODUCT)['median']:.0%}",
        f"{rate('bytes', STEP)} of {rate('bytes', MEMORY)}",
        f"{share(results, 'bytes', MEMORY)['median']:.0%}",
    )


BENCHMARK = Benchmark("limits", "What the machine could do", without_contenders(measure), table)


if __name__ == "__main__":
    timing.main(BENCHMARK)
