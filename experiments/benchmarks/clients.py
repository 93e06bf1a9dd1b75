# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A step of many clients: its cost by edges, beside the same step with every pair compared.

    python -m experiments.benchmarks.clients --out=experiments/results/benchmarks

Tiny clients, so that choosing teachers weighs most: digits, 16 hidden features, batches of 16 + 64,
two auxiliary heads. The other contender is the same program with who reads whom as a mask over all
pairs. A last case has 5 % of 4,096 clients take part in a step, beside a run of as many clients.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

from experiments.benchmarks import ours, timing
from experiments.benchmarks.timing import Benchmark, Case, Effort, Record
from experiments.harness import tables
from experiments.harness.stepping import Stepper
from mhd_jax.edges import Form
from mhd_jax.experiment import Experiment
from mhd_jax.participation import active_clients

BASE: dict[str, Any] = {
    "model.width": 16, "heads.aux": 2, "data.batch_size": 16, "data.public_batch_size": 64,
    "parallel.client_devices": 1, "train.steps_per_call": 10,
}  # fmt: skip
FOUR = {"graph.name": "random_regular", "graph.degree": 4}
SIXTEEN = {"graph.name": "random_regular", "graph.degree": 16}
CASES: dict[str, dict[str, Any]] = {
    **{f"degree4_{n}": {"clients.num": n, **FOUR} for n in (64, 256, 1024, 4096)},
    **{f"degree16_{n}": {"clients.num": n, **SIXTEEN} for n in (256, 1024)},
    **{f"complete_{n}": {"clients.num": n} for n in (64, 256, 1024)},
    "active_4096": {"clients.num": 4096, "clients.active": 0.05, **FOUR},
}
EDGES, PAIRS, FEW = "edges", "pairs", "few"


def measure(settings: dict[str, Any], effort: Effort) -> dict[str, Any]:
    """Both contenders in turn; what they need beside time."""
    chosen = {**BASE, **settings}
    runs = {EDGES: ours.build(chosen)}
    config = runs[EDGES].experiment.config
    if runs[EDGES].experiment.parts.roster.attendances:
        few = {**chosen, "clients.num": active_clients(config), "clients.active": 1.0}
        runs[FEW] = ours.build(few)
    else:
        runs[PAIRS] = ours.build(chosen, change=comparing_pairs)
    return {
        "clients": config.clients.num,
        "active": active_clients(config),
        "graph": config.graph.name,
        "degree": config.graph.degree
        if config.graph.name != "complete"
        else config.clients.num - 1,
        "form": runs[EDGES].experiment.schedule.readers[0].form.kind,
        "memory": {name: run.memory() for name, run in runs.items()},
        "host_seconds": {name: host_seconds(run) for name, run in runs.items()},
        "measured": timing.alternate(
            [ours.contender(name, run) for name, run in runs.items()], effort
        ),
    }


def comparing_pairs(experiment: Experiment) -> Experiment:
    """The same run with a mask over all pairs."""
    candidates = experiment.schedule.readers[0].form.candidates
    pairs = Form("pairs", candidates, candidates)
    readers: list[Any] = list(experiment.schedule.readers)
    readers = [dataclasses.replace(reader, form=pairs) for reader in readers]
    schedule = dataclasses.replace(experiment.schedule, readers=readers)
    return dataclasses.replace(experiment, schedule=schedule)


def host_seconds(run: Stepper) -> float:
    """What the host needs to plan one step, mean over a call."""
    schedule = run.experiment.schedule
    begin = time.perf_counter()
    schedule.host_inputs(run.unit, 2 * run.unit)
    return (time.perf_counter() - begin) / run.unit


def cases(quick: bool) -> list[Case]:
    tiny = {"clients.num": 16, "train.steps_per_call": 2, "data.batch_size": 4,
            "data.public_batch_size": 4}  # fmt: skip
    chosen = CASES
    if quick:
        chosen = {
            "degree4_16": {**FOUR, **tiny},
            "active_16": {**FOUR, **tiny, "clients.active": 4},
        }
    return [Case(name, functools.partial(measure, changes)) for name, changes in chosen.items()]


def table(records: Sequence[Record]) -> str:
    """A row for every number of clients and graph."""
    head = ("clients", "taking part", "peers", "teachers found by", "ms a step", "beside, ms",
            "over that", "temporary memory, MB", "beside, MB", "host, ms a step",
            "compile, s")  # fmt: skip
    said = (
        f"Medians over {timing.rounds(records)}, smallest and largest ratio in brackets. Beside "
        "stands the same step with every pair of clients compared; for 5 % taking part, a run of "
        "as many clients in all."
    )
    return timing.markdown(head, [_row(record["results"]) for record in records], said, records)


def _row(results: Any) -> tuple[str, ...]:
    measured, memory = results["measured"], results["memory"]
    other = PAIRS if PAIRS in measured else FEW
    return (
        f"{results['clients']:,}",
        f"{results['active']:,}",
        f"{results['degree']:,}",
        results["form"].replace("_", " "),
        *(tables.short(timing.milliseconds(measured, name)) for name in (EDGES, other)),
        timing.factor(timing.speedup(measured, EDGES, other)),
        *(tables.short(memory[name]["temporary"] / 1e6) for name in (EDGES, other)),
        tables.short(1e3 * results["host_seconds"][EDGES]),
        f"{measured[EDGES]['compile_seconds']:.1f}",
    )


BENCHMARK = Benchmark("clients", "A step of many clients", cases, table)


if __name__ == "__main__":
    timing.main(BENCHMARK)
