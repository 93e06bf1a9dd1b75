# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A step of many clients: its cost by edges, beside the same step with every pair compared.

    python -m experiments.benchmarks.clients --out=experiments/results/benchmarks

Tiny clients, so that choosing teachers weighs most: digits, 16 hidden features, batches of 16 + 64,
two auxiliary heads; in one case those of the quickstart. Two more contenders have who reads whom as
a mask over all pairs: one takes the argmax of all confidences under the mask, as one would write it
first; the other compares one candidate after another, which vectorises. Three last cases stand for
themselves: how a step grows from 64 clients to 4,096; 5 % of 4,096 taking part beside a run of as
many clients in all; and those beside a run whose clients wait in the memory of the host.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from experiments.benchmarks import ours, timing
from experiments.benchmarks.timing import Benchmark, Case, Effort, Record
from experiments.harness import tables
from experiments.harness.stepping import SteppedRun
from mhd_jax import distill
from mhd_jax.edges import NOBODY, Form
from mhd_jax.experiment import Experiment
from mhd_jax.participation import active_clients

BASE: dict[str, Any] = {
    "model.width": 16, "heads.aux": 2, "data.batch_size": 16, "data.public_batch_size": 64,
    "parallel.client_devices": 1, "train.steps_per_call": 10,
}  # fmt: skip
TINY: dict[str, Any] = {
    "train.steps_per_call": 2,
    "data.batch_size": 4,
    "data.public_batch_size": 4,
}
QUICKSTART = {"model.width": 128, "heads.aux": 4, "data.batch_size": 64}
FOUR = {"graph.name": "random_regular", "graph.degree": 4}
SIXTEEN = {"graph.name": "random_regular", "graph.degree": 16}
EDGES, PAIRS, ARGMAX, LESS, HOST = "edges", "pairs", "argmax", "less", "host"

# Graphs whose step is measured beside that with every pair compared.
GRAPHS: dict[str, dict[str, Any]] = {
    **{f"degree4_{n}": {"clients.num": n, **FOUR} for n in (64, 256, 1024)},
    **{f"degree16_{n}": {"clients.num": n, **SIXTEEN} for n in (256, 1024)},
    **{f"complete_{n}": {"clients.num": n} for n in (64, 256, 1024)},
    "quickstart_256": {"clients.num": 256, **QUICKSTART},
}


@distill.RULES.register("argmax_over_pairs")
def argmax_over_pairs(candidates: distill.Candidates, confidence: Array, keys: Array) -> Array:
    """The most confident of all candidates under a mask: an array of all pairs and one argmax."""
    del keys
    masked = jnp.where(candidates.allowed[:, :, None, None], confidence[None], -jnp.inf)
    best = jnp.argmax(masked, axis=1).astype(jnp.int32)
    return jnp.where(masked.max(axis=1) > -jnp.inf, best, NOBODY)


def compare(settings: dict[str, Any], effort: Effort) -> dict[str, Any]:
    """The step along the edges and over all pairs, in turn; their losses have to agree."""
    chosen = {**BASE, **settings}
    runs = {
        EDGES: ours.build(chosen),
        PAIRS: ours.build(chosen, change=over_pairs),
        ARGMAX: ours.build({**chosen, "distill.rule": "argmax_over_pairs"}, change=over_pairs),
    }
    losses = {name: run.run(run.unit)[0]["loss"] for name, run in runs.items()}
    differences = [float(abs(losses[name] / losses[EDGES] - 1).max()) for name in (PAIRS, ARGMAX)]
    if max(differences) > 1e-4:
        raise ValueError(f"over pairs trains something else: losses differ by {differences}")
    return _measured(runs, effort) | {"largest_difference": max(differences)}


def beside(
    name: str, settings: dict[str, Any], changes: dict[str, Any], effort: Effort
) -> dict[str, Any]:
    """A run and, under this name, the same with some changes, in turn."""
    chosen = {**BASE, **settings}
    return _measured({EDGES: ours.build(chosen), name: ours.build({**chosen, **changes})}, effort)


def _measured(runs: dict[str, SteppedRun], effort: Effort) -> dict[str, Any]:
    config = runs[EDGES].experiment.config
    complete = config.graph.name == "complete"
    return {
        "clients": config.clients.num,
        "active": active_clients(config),
        "less": runs[LESS].experiment.config.clients.num if LESS in runs else None,
        "degree": config.clients.num - 1 if complete else config.graph.degree,
        "form": runs[EDGES].experiment.readers[0].form.kind,
        "memory": {name: run.memory() for name, run in runs.items()},
        "host_seconds": host_seconds(runs[EDGES]),
        "measured": timing.alternate(
            [ours.contender(name, run) for name, run in runs.items()], effort
        ),
    }


def over_pairs(experiment: Experiment) -> Experiment:
    """The same run with a mask over all pairs."""
    candidates = experiment.readers[0].form.candidates
    pairs = Form("pairs", candidates, candidates)
    readers: list[Any] = list(experiment.readers)
    readers = [dataclasses.replace(reader, form=pairs) for reader in readers]
    return dataclasses.replace(experiment, readers=readers)


def host_seconds(run: SteppedRun) -> float:
    """What the host needs to plan one step, mean over a call."""
    schedule = run.experiment.schedule
    begin = time.perf_counter()
    schedule.host_inputs(run.unit, 2 * run.unit)
    return (time.perf_counter() - begin) / run.unit


def cases(quick: bool) -> list[Case]:
    few, many = (8, 16) if quick else (64, 4096)
    graphs = {"degree4_16": {**TINY, **FOUR, "clients.num": many}} if quick else GRAPHS
    size = {**(TINY if quick else {}), **FOUR, "clients.num": many}
    part = {"clients.active": 0.5 if quick else 0.05}
    everybody = {"clients.num": round(many * part["clients.active"]), "clients.active": 1.0}
    on_host = {"clients.offload": "host"}
    return [
        *(Case(name, functools.partial(compare, changes)) for name, changes in graphs.items()),
        Case("growth", functools.partial(beside, LESS, size, {"clients.num": few})),
        Case("active", functools.partial(beside, LESS, {**size, **part}, everybody)),
        Case("offload", functools.partial(beside, HOST, {**size, **part}, on_host)),
    ]


def table(records: Sequence[Record]) -> str:
    """A row for every number of clients and graph, and a sentence for each of the last cases."""
    head = ("clients", "hidden features", "peers", "teachers found by", "ms a step",
            "argmax over pairs, ms", "over that", "all pairs vectorised, ms", "over that",
            "temporary memory, MB", "argmax over pairs, MB", "host, ms a step",
            "compile, s")  # fmt: skip
    found = {record["case"]: record["results"] for record in records}
    rows = [_row(name, one) for name, one in found.items() if PAIRS in one["measured"]]
    sentences = [
        f"Medians over {timing.rounds(records)}, smallest and largest ratio in brackets."
        f"{timing.busy(records)}",
        *(_grown(one) for name, one in found.items() if name == "growth"),
        *(_part(one) for name, one in found.items() if name == "active"),
        *(_waiting(one) for name, one in found.items() if name == "offload"),
    ]
    return timing.markdown(head, rows, " ".join(sentences), records)


def _row(case: str, results: Any) -> tuple[str, ...]:
    measured, memory = results["measured"], results["memory"]
    ms = _milliseconds(measured)
    over = {name: timing.factor(timing.speedup(measured, EDGES, name)) for name in measured}
    return (
        f"{results['clients']:,}",
        str({**BASE, **GRAPHS.get(case, {})}["model.width"]),
        f"{results['degree']:,}",
        results["form"].replace("_", " "),
        ms[EDGES], ms[ARGMAX], over[ARGMAX], ms[PAIRS], over[PAIRS],
        *(tables.short(memory[name]["temporary"] / 1e6) for name in (EDGES, ARGMAX)),
        tables.short(1e3 * results["host_seconds"]),
        f"{measured[EDGES]['compile_seconds']:.1f}",
    )  # fmt: skip


def _milliseconds(measured: Any) -> dict[str, str]:
    return {name: tables.short(timing.milliseconds(measured, name)) for name in measured}


def _grown(results: Any) -> str:
    measured, times = results["measured"], results["clients"] / results["less"]
    grown = timing.speedup(measured, LESS, EDGES)
    ms = _milliseconds(measured)
    return (
        f"From {results['less']:,} clients to {results['clients']:,} at {results['degree']} peers "
        f"a step goes from {ms[LESS]} to {ms[EDGES]} ms (planned by the host in "
        f"{tables.short(1e3 * results['host_seconds'])}): {grown['median'] / times:.2f} times "
        f"proportional ({grown['min'] / times:.2f}–{grown['max'] / times:.2f})."
    )


def _part(results: Any) -> str:
    measured = results["measured"]
    ms = _milliseconds(measured)
    taken = timing.speedup(measured, LESS, EDGES)
    return (
        f"With {results['active']:,} of {results['clients']:,} taking part a step takes "
        f"{ms[EDGES]} ms, that of {results['less']:,} clients in all {ms[LESS]} ms: "
        f"{taken['median']:.2f} times as long ({taken['min']:.2f}–{taken['max']:.2f})."
    )


def _waiting(results: Any) -> str:
    measured = results["measured"]
    ms = _milliseconds(measured)
    taken = timing.speedup(measured, EDGES, HOST)
    return (
        f"If all {results['clients']:,} wait in the memory of the host, a step of "
        f"{results['active']:,} takes {ms[HOST]} ms in place of {ms[EDGES]}: "
        f"{taken['median']:.1f} times as long ({taken['min']:.1f}–{taken['max']:.1f})."
    )


BENCHMARK = Benchmark("clients", "A step of many clients", cases, table)


if __name__ == "__main__":
    timing.main(BENCHMARK)
