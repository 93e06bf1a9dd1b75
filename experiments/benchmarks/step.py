# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""One training step: all clients at once, beside PyTorch and a plain loop over clients in JAX.

    pip install -c requirements.txt -e ".[bench]"
    python -m experiments.benchmarks.step --out=experiments/results/benchmarks

PyTorch takes one client after another or, in cases of their own, stacks them all with
`torch.func.vmap`. Same networks, initial parameters, batches, losses and optimiser. Before anything
is timed, the losses of the first steps are compared; if they differ, there is nothing to time.

Our step runs on one device, and where the process has more on clients spread over as many as it has
cores: started as above, that is one for each.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import ours, timing
from experiments.benchmarks.timing import Benchmark, Case, Effort, Record
from experiments.harness import tables
from experiments.harness.records import cores
from experiments.harness.stepping import SteppedRun

OURS, SPREAD, TORCH, PLAIN, STACKED = "ours", "spread", "torch", "plain", "stacked"
COMPARED = 3  # steps whose losses have to agree
TOLERANCE = 1e-3  # relative; at the second step roundings have been through an update

_DENSE = {"train.log_every": 50}
_RESNET = {"model.name": "resnet8", "data.batch_size": 32, "data.public_batch_size": 32}
CASES: dict[str, dict[str, Any]] = {
    "mlp_8": {"clients.num": 8, **_DENSE},
    "mlp_64": {"clients.num": 64, **_DENSE},
    "mlp_256": {"clients.num": 256, **_DENSE},
    "resnet8_4": {"clients.num": 4, **_RESNET},
    "resnet8_8": {"clients.num": 8, **_RESNET},
}


def measure(settings: Mapping[str, Any], effort: Effort) -> dict[str, Any]:
    """Losses compared, then all contenders in turn."""
    from experiments.benchmarks.per_client import PerClient
    from experiments.benchmarks.sequential import Sequential

    runs = _ours(settings)
    experiment = runs[OURS].experiment
    torch, plain = Sequential(experiment), PerClient(experiment)
    losses = {
        **{name: _first_losses(run) for name, run in runs.items()},
        TORCH: [torch.step().tolist() for _ in range(COMPARED)],
        PLAIN: [[float(loss) for loss in plain.step()] for _ in range(COMPARED)],
    }
    compare(losses)
    threads = _best_threads(torch, effort)
    contenders = [
        *(ours.contender(name, run) for name, run in runs.items()),
        torch.contender(TORCH, threads),
        plain.contender(PLAIN),
    ]
    return _results(runs[OURS], threads, losses, timing.alternate(contenders, effort))


def measure_stacked(settings: Mapping[str, Any], effort: Effort) -> dict[str, Any]:
    """The same beside all clients stacked in PyTorch, alone."""
    from experiments.benchmarks.stacked import Stacked

    runs = _ours(settings)
    stacked = Stacked(runs[OURS].experiment)
    losses = {
        **{name: _first_losses(run) for name, run in runs.items()},
        STACKED: [stacked.step().tolist() for _ in range(COMPARED)],
    }
    compare(losses)
    threads = _best_threads(stacked, effort)
    contenders = [
        *(ours.contender(name, run) for name, run in runs.items()),
        stacked.contender(STACKED, threads),
    ]
    return _results(runs[OURS], threads, losses, timing.alternate(contenders, effort))


def _ours(settings: Mapping[str, Any]) -> dict[str, SteppedRun]:
    """Our step on one device and, where there are more, on one for each core."""
    devices = {OURS: 1, SPREAD: min(cores(), jax.local_device_count())}
    return {
        name: ours.build({**settings, "parallel.client_devices": count})
        for name, count in devices.items()
        if name == OURS or count > 1
    }


def _results(
    stepper: SteppedRun, threads: int, losses: Any, measured: dict[str, Any]
) -> dict[str, Any]:
    config = stepper.experiment.config
    return {
        "clients": config.clients.num,
        "model": config.model.name,
        "batches": [config.data.batch_size, config.data.public_batch_size],
        "heads": config.heads.aux + 1,
        "steps_per_call": stepper.unit,
        "torch_threads": threads,
        "mean_losses": {name: [float(np.mean(step)) for step in losses[name]] for name in losses},
        "largest_difference": {name: difference(losses, name) for name in losses if name != OURS},
        "measured": measured,
    }


def _first_losses(stepper: SteppedRun) -> list[list[float]]:
    steps: list[np.ndarray] = []
    while len(steps) < COMPARED:
        for call in stepper.run(stepper.unit):
            steps += list(call["loss"][:, 0])
    return [step.tolist() for step in steps[:COMPARED]]


def difference(losses: Mapping[str, Sequence[Sequence[float]]], other: str) -> list[float]:
    """Largest relative difference between a client's loss and ours, step by step."""
    mine, theirs = np.asarray(losses[OURS]), np.asarray(losses[other])
    return [float(x) for x in (np.abs(theirs - mine) / np.abs(mine)).max(axis=1)]


def compare(losses: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Raises `ValueError` where a contender does not compute what the others do."""
    for other in (name for name in losses if name != OURS):
        found = difference(losses, other)
        if not found[0] < TOLERANCE / 10 or not max(found) < TOLERANCE:
            raise ValueError(f"{other} trains something else: losses differ by {found}")


def _best_threads(torch: Any, effort: Effort) -> int:
    """One thread or one per core, whichever makes PyTorch faster."""
    choices = [torch.contender(str(threads), threads) for threads in sorted({1, cores()})]
    found = timing.alternate(choices, Effort(3, effort.seconds / 4))
    return int(min(found, key=lambda name: min(found[name]["seconds"])))


def cases(quick: bool) -> list[Case]:
    chosen = {"mlp_2": ours.TINY} if quick else CASES
    dense = {name: one for name, one in chosen.items() if name.startswith("mlp")}
    return [
        *(
            Case(name, functools.partial(measure, settings), ("torch",))
            for name, settings in chosen.items()
        ),
        *(
            Case(f"stacked_{name}", functools.partial(measure_stacked, settings), ("torch",))
            for name, settings in dense.items()
        ),
    ]


def without_contenders(
    measure: Callable[[Mapping[str, Any], Effort], Mapping[str, Any]],
) -> Callable[[bool], list[Case]]:
    """The cases of a benchmark of our own step alone, some of those here."""
    some = {name: CASES[name] for name in ("mlp_8", "mlp_64", "resnet8_4")}

    def cases(quick: bool) -> list[Case]:
        chosen = {"mlp_2": ours.TINY} if quick else some
        return [Case(name, functools.partial(measure, changes)) for name, changes in chosen.items()]

    return cases


def table(records: Sequence[Record]) -> str:
    """Milliseconds of all contenders and how much faster ours is, those stacked by themselves."""
    apart = [record for record in records if record["case"].startswith("stacked")]
    beside = [record for record in records if record not in apart]
    return "\n".join([*map(_one_by_one, [beside] if beside else []), *_stacked(apart)])


def _one_by_one(records: Sequence[Record]) -> str:
    head = ("clients", "network", "ours, ms", "a device for each core, ms", "PyTorch, ms",
            "JAX client by client, ms", "over PyTorch", "over JAX client by client",
            "compile, s")  # fmt: skip
    lines = [_row(record["results"], (TORCH, PLAIN), (OURS,)) for record in records]
    private, public = records[0]["results"]["batches"]
    said = (
        f"Medians over {timing.rounds(records)}, smallest and largest ratio in "
        f"brackets; {records[0]['results']['heads'] - 1} auxiliary heads, batches of "
        f"{private} + {public} (residual networks: 32 + 32 images of 32×32×3), complete graph, no "
        f"isolated baseline; losses of the first step agree to {_agreement(records):.0e}; "
        "PyTorch has as many threads as suit it."
    )
    return timing.markdown(head, lines, said, records, [TORCH])


def _stacked(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    head = ("clients", "network", "ours, ms", "a device for each core, ms", "PyTorch stacked, ms",
            "over PyTorch stacked", "with a device for each core", "compile, s")  # fmt: skip
    lines = [_row(record["results"], (STACKED,), (OURS, SPREAD)) for record in records]
    said = (
        "All clients at once in PyTorch, with `torch.func.vmap` and the teacher chosen once for "
        f"all; medians over {timing.rounds(records)}, losses of the first step agree to "
        f"{_agreement(records):.0e}.{timing.busy(records)}"
    )
    return [timing.markdown(head, lines, said, records, [TORCH])]


def _agreement(records: Sequence[Record]) -> float:
    found = [record["results"]["largest_difference"] for record in records]
    return max(max(steps[0] for steps in one.values()) for one in found)


def _row(
    results: Mapping[str, Any], others: Sequence[str], forms: Sequence[str]
) -> tuple[str, ...]:
    """Milliseconds of all, and how much faster than the others these forms of ours are."""
    measured = results["measured"]

    def if_any(name: str, shown: Callable[[], str]) -> str:
        return shown() if name in measured else "–"

    def faster(form: str, other: str) -> str:
        return if_any(form, lambda: timing.factor(timing.speedup(measured, form, other)))

    def took(name: str) -> str:
        return if_any(name, lambda: tables.short(timing.milliseconds(measured, name)))

    return (
        str(results["clients"]),
        results["model"],
        *(took(name) for name in (OURS, SPREAD, *others)),
        *(faster(form, other) for form in forms for other in others),
        f"{measured[OURS]['compile_seconds']:.1f}",
    )


BENCHMARK = Benchmark("step", "One step, beside client by client", cases, table)


if __name__ == "__main__":
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", cores())
    timing.main(BENCHMARK)
