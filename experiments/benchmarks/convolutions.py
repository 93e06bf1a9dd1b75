# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The lowerings of stacked convolutions: one training step of small residual networks.

    pip install -c requirements.txt -e ".[bench]"
    python -m experiments.benchmarks.convolutions --out=experiments/results/benchmarks

The whole step of ResNet-8 clients on 32x32 images with each value of `parallel.conv_lowering`, and
the same clients one after another in PyTorch. What "auto" stands for on a platform is decided by
this table.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Benchmark, Case, Effort, Record
from experiments.harness import tables
from experiments.harness.records import cores

LOWERINGS = ("unrolled", "looped", "grouped")
SPREAD = "a device a core"  # unrolled, clients spread over as many CPU devices as there are cores
TORCH = "torch"
CLIENTS = (4, 8, 16)
TOLERANCE = 1e-3  # relative, between the losses of the first two steps

_RESNET = {"model.name": "resnet8", "data.batch_size": 32, "data.public_batch_size": 32,
           "heads.aux": 1, "train.steps_per_call": 1}  # fmt: skip
_TINY = {**_RESNET, "model.width": 2, "data.batch_size": 2, "data.public_batch_size": 2}


def measure(settings: Mapping[str, Any], effort: Effort) -> dict[str, Any]:
    """Losses of all contenders compared, then their steps in turn."""
    from experiments.benchmarks import ours
    from experiments.benchmarks.sequential import Sequential

    images = ours.photographs(200, 8) if effort.quick else ours.photographs()
    one = {**settings, "parallel.client_devices": 1}
    steppers = {
        lowering: ours.build({**one, "parallel.conv_lowering": lowering}, images)
        for lowering in LOWERINGS
    }
    steppers[SPREAD] = ours.build({**settings, "parallel.conv_lowering": "unrolled"}, images)
    torch = Sequential(steppers[LOWERINGS[0]].experiment)
    losses = {TORCH: np.array([torch.step().tolist() for _ in range(2)])}
    for name, stepper in steppers.items():
        calls = [stepper.run(1)[0] for _ in range(2)]
        losses[name] = np.array([call["loss"][0, 0] for call in calls])
    differences = {
        name: float(np.abs(found / losses[LOWERINGS[0]] - 1).max())
        for name, found in losses.items()
    }
    if max(differences.values()) > TOLERANCE:
        raise ValueError(f"the contenders train different things: {differences}")
    contenders = [ours.contender(name, stepper) for name, stepper in steppers.items()]
    contenders.append(torch.contender(TORCH, cores()))
    return {
        "clients": settings["clients.num"],
        "differences": differences,
        "measured": timing.alternate(contenders, effort),
    }


def cases(quick: bool) -> list[Case]:
    if quick:
        tiny = functools.partial(measure, {"clients.num": 2, **_TINY})
        return [Case("clients_2", tiny, ("torch",))]
    return [
        Case(f"clients_{k}", functools.partial(measure, {"clients.num": k, **_RESNET}), ("torch",))
        for k in CLIENTS
    ]


def table(records: Sequence[Record]) -> str:
    """Milliseconds of every lowering, and how much faster than PyTorch the fastest is."""
    header = ("clients", *LOWERINGS, f"unrolled, {SPREAD}", "PyTorch", "unrolled over PyTorch",
              "the same, a device a core", "compile, s")  # fmt: skip
    lines = [_row(record["results"]) for record in records]
    said = (
        "Milliseconds of one step of ResNet-8 clients of width 16 with one auxiliary head, batches "
        f"of 32 + 32 images of 32×32×3; medians over {timing.rounds(records)} in turn, "
        "smallest and largest ratio in brackets; compile time is that of `unrolled` and of "
        "`looped`."
    )
    return timing.markdown(header, lines, said, records, [TORCH])


def _row(results: Mapping[str, Any]) -> tuple[str, ...]:
    measured = results["measured"]
    compiled = [measured[name]["compile_seconds"] for name in ("unrolled", "looped")]
    return (
        str(results["clients"]),
        *(
            tables.short(timing.milliseconds(measured, name))
            for name in (*LOWERINGS, SPREAD, TORCH)
        ),
        *(timing.factor(timing.speedup(measured, name, TORCH)) for name in ("unrolled", SPREAD)),
        " and ".join(f"{seconds:.0f}" for seconds in compiled),
    )


BENCHMARK = Benchmark("convolutions", "Lowerings of stacked convolutions", cases, table)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", cores())
    timing.main(BENCHMARK)
