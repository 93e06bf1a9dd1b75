# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Time, memory and compile time of a step as one thing grows: clients, heads, batch, peers, ...

    python -m experiments.benchmarks.growth --out=experiments/results/benchmarks

Everything else is the quickstart's: 8 dense clients on digits, 4 auxiliary heads, 64 + 64 samples.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import ours, timing
from experiments.benchmarks.timing import Benchmark, Case, Contender, Effort, Record
from experiments.harness import tables
from experiments.harness.stepping import SteppedRun

DEVICES = 4  # virtual ones, of the case that compares numbers of devices

# What grows, by case: what the table calls it, the setting, its values.
GROWING: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "clients": ("clients K", "clients.num", (8, 16, 32, 64)),
    "heads": ("auxiliary heads m", "heads.aux", (1, 2, 4, 8, 16)),
    "public_batch": ("public batch B'", "data.public_batch_size", (32, 64, 128, 256)),
    "peers": ("peers a step Δ", "graph.peers_per_step", (1, 2, 4, 7)),
    "calls": ("steps per call", "train.steps_per_call", (1, 5, 25, 50)),
    "devices": ("CPU devices", "parallel.client_devices", (1, 2, 4)),
}


def grow(name: str, effort: Effort) -> dict[str, Any]:
    """One run per value, all in turn."""
    _, setting, values = GROWING[name]
    if name == "devices" and not effort.quick and len(jax.devices()) < DEVICES:
        return _with_devices(effort)
    base = ours.TINY if effort.quick else {"parallel.client_devices": 1}
    chosen = values[:2] if effort.quick else values
    if name == "devices":
        chosen = tuple(value for value in chosen if value <= len(jax.devices()))
    runs = {str(value): ours.build({**base, setting: value}) for value in chosen}
    return _measure(runs, effort)


def _measure(runs: Mapping[str, SteppedRun], effort: Effort) -> dict[str, Any]:
    return {
        "measured": timing.alternate(
            [ours.contender(name, run) for name, run in runs.items()], effort
        ),
        "memory": {name: run.memory() for name, run in runs.items()},
    }


def _with_devices(effort: Effort) -> dict[str, Any]:
    """The case in a process of its own, which has several devices."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "experiments.benchmarks.growth", "--cases=devices",
            f"--rounds={effort.rounds}", f"--seconds={effort.seconds}", f"--out={folder}",
        ]  # fmt: skip
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(DEVICES)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "growth" / "devices.json").read_text())["results"]


def together(name: str, effort: Effort) -> dict[str, Any]:
    """An isolated baseline, or five seeds, in one step and in steps of their own."""
    base = ours.TINY if effort.quick else {}
    seeds = 2 if effort.quick else 5
    if name == "isolated_baseline":
        joint = ours.build({**base, "isolated_baseline": True})
        apart = [ours.build(base), ours.build({**base, "method": "isolated"})]
    else:
        joint = ours.build({**base, "num_seeds": seeds})
        apart = [ours.build({**base, "seed": seed}) for seed in range(seeds)]

    def one_after_another(steps: int) -> None:
        for run in apart:
            run.run(steps)

    compiled = sum(run.compile_seconds for run in apart)
    separate = Contender("apart", one_after_another, compiled, joint.unit)
    return {"measured": timing.alternate([ours.contender("together", joint), separate], effort)}


def cases(quick: bool) -> list[Case]:
    del quick
    return [Case(name, functools.partial(grow, name)) for name in GROWING] + [
        Case(name, functools.partial(together, name)) for name in TOGETHER
    ]


TOGETHER = {"isolated_baseline": "isolated baseline", "num_seeds": "5 seeds"}


def table(records: Sequence[Record]) -> str:
    """What grows, one row each, and below it what is done in one step instead of several."""
    head = ("what grows", "values", "ms a step", "time, largest over smallest",
            "temporary memory, MB", "compile, s")  # fmt: skip
    grown = [record for record in records if record["case"] in GROWING]
    joint = [record for record in records if record["case"] in TOGETHER]
    lines = list(map(_grown_row, grown))
    sentences = []
    for record in joint:
        measured = record["results"]["measured"]
        gain = timing.factor(timing.speedup(measured, "together", "apart"))
        joined, apart = (
            tables.short(timing.milliseconds(measured, name)) for name in ("together", "apart")
        )
        sentences.append(
            f"{TOGETHER[record['case']].capitalize()} in the same step: {joined} ms; as runs of "
            f"their own, together: {apart} ms; {gain}."
        )
    facts = (
        f"Medians over {timing.rounds(records)}; 8 dense clients on digits unless "
        "said otherwise, no isolated baseline."
    )
    return timing.markdown(head, lines, "\n\n".join([*sentences, facts]), records)


def _grown_row(record: Record) -> tuple[str, ...]:
    results, label = record["results"], GROWING[record["case"]][0]
    measured, memory = results["measured"], results["memory"]
    names = list(measured)
    growth = timing.factor(timing.speedup(measured, names[0], names[-1]))
    return (
        label,
        ", ".join(names),
        ", ".join(tables.short(timing.milliseconds(measured, name)) for name in names),
        growth,
        ", ".join(tables.short(memory[name]["temporary"] / 1e6) for name in names),
        ", ".join(f"{measured[name]['compile_seconds']:.1f}" for name in names),
    )


BENCHMARK = Benchmark("growth", "What a step costs as things grow", cases, table)


if __name__ == "__main__":
    timing.main(BENCHMARK)
