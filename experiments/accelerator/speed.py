# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""(b) How fast a step is, beside PyTorch on the same device, and what the device could do.

python -m experiments.accelerator.speed SETTINGS   # the operations of a step, on a CPU
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.accelerator.pieces import Case, Context, Piece, Records, read
from experiments.benchmarks import limits, ours, step, timing
from experiments.benchmarks.timing import Contender, missing
from experiments.harness import tables
from mhd_jax import estimate as estimate_lib

OURS = step.OURS
COUNTS = (8, 32, 4)  # clients, in order of worth
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"model.name": "resnet18"},
    "resnet8": {"model.name": "resnet8"},
    "mlp": {"model.name": "mlp"},
    "vit": {"model.name": "vit", "model.width": 192, "model.depth": 6},
}
DTYPES = ("bfloat16", "float32")
SAMPLES = 20_000
_IMAGES = {"data.batch_size": 64, "data.public_batch_size": 64, "heads.aux": 2,
           "data.name": "cifar10", "data.split": f"train[:{SAMPLES}]"}  # fmt: skip
TINY = {"clients.num": 2, "model.width": 8, "data.batch_size": 4, "data.public_batch_size": 4,
         "heads.aux": 1, "train.steps_per_call": 2}  # fmt: skip

# Between the losses of the first steps: float32 on a CPU, TF32 on a GPU, bfloat16.
TOLERANCE = {"cpu": 1e-3, "float32": 3e-2, "bfloat16": 1e-1}


def settings(network: str, clients: int, dtype: str) -> dict[str, Any]:
    """A run of the comparison."""
    chosen = {"clients.num": clients, "model.dtype": dtype, **NETWORKS[network]}
    return chosen if network == "mlp" else _IMAGES | chosen


def peaks(context: Context) -> dict[str, Any]:
    """Operations a second of a matrix product by type, and bytes a second of adding two arrays."""
    side, length = (64, 10**4) if context.quick else _sizes()
    found: dict[str, Any] = {"operations": {}}
    for dtype in DTYPES:
        square = jnp.ones((side, side), dtype)
        measured = timing.alternate(
            [limits.repeated(dtype, jnp.matmul, square, square)], context.effort
        )
        found["operations"][dtype] = 2.0 * side**3 / min(measured[dtype]["seconds"])
    long = jnp.ones(length)
    measured = timing.alternate([limits.repeated("add", jnp.add, long, long)], context.effort)
    return found | {"bytes": 12.0 * length / min(measured["add"]["seconds"])}


def _sizes() -> tuple[int, int]:
    """Side of the matrices and length of the vectors; a CPU's are smaller."""
    return (2048, 3 * 10**7) if jax.default_backend() == "cpu" else (8192, 2 * 10**8)


def build(changes: Mapping[str, Any], quick: bool) -> Any:
    """Our step on noise, or on digits for dense networks."""
    dense = changes["model.name"] == "mlp"
    images = ours.photographs(200, 8) if quick else ours.photographs(SAMPLES)
    return ours.build(changes, None if dense else images)


def measure(changes: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Losses compared, then our step and PyTorch's in turn."""
    counting = _count_operations(changes)
    stepper = build(changes, context.quick)
    experiment = stepper.experiment
    contenders = [ours.contender(OURS, stepper)]
    losses = {OURS: step._first_losses(stepper)}
    others, left_out = _torch(experiment, context)
    for name, other in others.items():
        try:
            losses[name] = [other.step().tolist() for _ in range(step.COMPARED)]
        except RuntimeError as error:  # some networks have no kernel under some transform
            left_out.append(f"{name}: {str(error).splitlines()[0]}")
        else:
            contenders.append(other.on_device(name))
    for line in left_out:
        print(f"speed: left out: {line}", flush=True)
    differences = {name: step.difference(losses, name) for name in losses if name != OURS}
    _compare(differences, experiment.config.model.dtype)
    measured: dict[str, Any] = {}
    for contender in contenders:
        measured |= _timed(contender, contenders[0], context)
    return {
        "clients": experiment.config.clients.num,
        "network": experiment.config.model.name,
        "dtype": experiment.config.model.dtype,
        "batches": [experiment.config.data.batch_size, experiment.config.data.public_batch_size],
        "steps_per_call": stepper.unit,
        "operations": float(counting.communicate()[0]),
        "bytes": float((stepper.compiled.cost_analysis() or {}).get("bytes accessed", 0)),
        "differences": differences,
        "left_out": left_out,
        "measured": measured,
    }


def _count_operations(changes: Mapping[str, Any]) -> subprocess.Popen[bytes]:
    """A process that prints the operations of a step of all devices.

    They are those of the program before optimisation: optimised programs call libraries whose
    operations are not counted. And they are counted on a CPU, as not every device's client can.
    """
    command = [sys.executable, "-m", "experiments.accelerator.speed", json.dumps(dict(changes))]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def estimate(changes: Mapping[str, Any]) -> estimate_lib.Estimate:
    """What `--estimate` says of a run on the data that is used here."""
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 2**40)
    return estimate_lib.estimate(ours.endless(changes), memory)


def _timed(contender: Contender, first: Contender, context: Context) -> dict[str, Any]:
    """A contender's times, in turn with ours."""
    pair = [first] if contender is first else [first, contender]
    found = timing.alternate(pair, context.effort)
    against = found[first.name]["seconds"]
    return {contender.name: {**found[contender.name], "ours": against}}


def _torch(experiment: Any, context: Context) -> tuple[dict[str, Any], list[str]]:
    """PyTorch's ways on this device, and in words what is not there."""
    needed = timing.Case("", dict, ("torch",))  # type: ignore[arg-type]
    if missing(needed):
        return {}, ["PyTorch: not installed (pip install -e '.[bench]')"]
    import torch

    from experiments.benchmarks import torch_devices

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return {}, ["PyTorch: installed without CUDA"]
    if jax.default_backend() == "tpu":
        return {}, ["PyTorch: not on a TPU"]
    # As JAX by default: products of float32 in TF32 where the device has it.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    return torch_devices.contenders(experiment, device, context.quick)


def _compare(differences: Mapping[str, Any], dtype: str) -> None:
    """Raises `ValueError` where a contender trains something else."""
    on_cpu = jax.default_backend() == "cpu" and dtype == "float32"
    tolerance = TOLERANCE["cpu" if on_cpu else dtype]
    for name, found in differences.items():
        if not max(found) < tolerance:
            raise ValueError(f"{name} trains something else: losses differ by {found}")


def cases(context: Context) -> list[Case]:
    first = Case("peaks", peaks)
    if context.quick:
        tiny = [{**settings("mlp", 2, "float32"), **TINY},
                {**settings("vit", 2, "bfloat16"), **TINY, "model.depth": 1}]  # fmt: skip
        return [first] + [
            Case(f"{one['model.name']}_2_{one['model.dtype']}", functools.partial(measure, one))
            for one in tiny
        ]
    return [first] + [
        Case(f"{network}_{clients}_{dtype}",
             functools.partial(measure, settings(network, clients, dtype)))
        for clients in COUNTS for network in NETWORKS for dtype in DTYPES
    ]  # fmt: skip


def milliseconds(results: Mapping[str, Any]) -> float:
    """Median of our step."""
    return timing.milliseconds(results["measured"], OURS)


def ratios(results: Mapping[str, Any]) -> dict[str, float]:
    """How much faster our step is than each of PyTorch's ways, medians within rounds."""
    return {
        name: float(np.median(np.divide(found["seconds"], found["ours"])))
        for name, found in results["measured"].items()
        if name != OURS
    }


def rows(records: Records) -> list[tuple[str, str]]:
    """Milliseconds, the share of the product's peak, and the ratio to each of PyTorch's ways."""
    limit = records.get("peaks", {}).get("results")
    found = []
    if limit:
        shown = ", ".join(f"{limit['operations'][d] / 1e12:.3g} TFLOP/s {d}" for d in DTYPES)
        found.append(("peaks measured", f"{shown}, {limit['bytes'] / 1e12:.3g} TB/s"))
    for name, record in records.items():
        results = record.get("results")
        if name == "peaks" or not results:
            continue
        text = f"{tables.short(milliseconds(results))} ms a step"
        if limit and results["operations"] == results["operations"]:  # a number
            rate = results["operations"] / milliseconds(results) * 1e3
            share = rate / limit["operations"][results["dtype"]]
            text += f", {share:.0%} of the product's peak" if share >= 0.01 else ""
        if others := ratios(results):
            ways = [f"{way.replace('_', ' ')} {_times(others[way])}"
                    for way in sorted(others, key=lambda way: others[way])]  # fmt: skip
            text += f"; over PyTorch: {', '.join(ways)}"
        found.append((f"{results['network']}, K = {results['clients']}, {results['dtype']}", text))
    return found


def _times(ratio: float) -> str:
    """A ratio.

    >>> _times(1.888), _times(73.2)
    ('1.9×', '73×')
    """
    return f"{ratio:.1f}×" if ratio < 10 else f"{ratio:.0f}×"


def slowest(context: Context) -> dict[str, Any] | None:
    """The settings of the case measured so far whose steps take longest."""
    found = {
        name: record["results"]
        for name, record in read(context.out, PIECE.name).items()
        if name != "peaks" and "results" in record
    }
    if not found:
        return None
    worst = max(found, key=lambda name: milliseconds(found[name]))
    network, clients, dtype = worst.split("_")
    chosen = settings(network, int(clients), dtype)
    return chosen | TINY | {"model.depth": 1} if context.quick else chosen


PIECE = Piece("speed", "A step beside PyTorch's, and the device's peaks", cases, rows)


if __name__ == "__main__":
    print(estimate(json.loads(sys.argv[1])).flops)
