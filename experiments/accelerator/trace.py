# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""(f) A profile of the slowest case, with its five largest costs in words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.accelerator import speed
from experiments.accelerator.pieces import Case, Context, Piece, Records

STEPS = 20
COSTS = 5

# An instruction of an optimised program with what it was traced from.
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{.*?op_name=\"([^\"]+)\"", re.M)
_CONTAINERS = ("while", "call", "conditional", "tuple", "end:")

# What an instruction does, by the last part of what it was traced from.
_WORDS = {
    "conv_general_dilated": "convolution",
    "dot_general": "matrix product",
    "reduce_sum": "sums",
    "reduce_max": "maxima",
    "argmax": "choice of teachers",
    "gather": "reading by index",
    "dynamic_slice": "cutting out",
    "scatter": "writing by index",
    "scatter-add": "adding by index",
    "all_gather": "gathering predictions from other devices",
    "psum": "sums over devices",
    "transpose": "change of memory order",
    "concatenate": "joining arrays",
    "exp": "softmax",
    "log": "softmax",
    "random_bits": "random numbers",
    "threefry2x32": "random numbers",
}
_TYPES = {"convolution": "convolution", "dot": "matrix product", "gemm": "matrix product",
          "cudnn": "convolution", "copy": "copies", "transpose": "change of memory order",
          "all-gather": "gathering predictions from other devices", "reduce": "sums"}  # fmt: skip


def profile(context: Context) -> dict[str, Any]:
    """Traces some steps of the slowest case.

    Raises:
      ValueError: nothing has been measured yet, or the trace shows no instructions.
    """
    changes = speed.slowest(context)
    if changes is None:
        raise ValueError("the piece `speed` has no record yet")
    stepper = speed.build(changes, context.quick)
    stepper.run(stepper.unit)
    folder = context.out / PIECE.name / "trace"
    calls = max(1, (2 if context.quick else STEPS) // stepper.unit)
    with jax.profiler.trace(str(folder)):
        stepper.run(calls * stepper.unit)
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    seconds = durations(newest)
    if not seconds:
        raise ValueError(f"{newest}: no instruction was traced")
    traced = traced_from(stepper.compiled.as_text())
    costs: dict[str, float] = defaultdict(float)
    for name, spent in seconds.items():
        costs[words(name, traced.get(name, ""))] += spent
    total = sum(costs.values())
    largest = sorted(costs, key=lambda cost: -costs[cost])[:COSTS]
    steps = calls * stepper.unit
    return {
        "case": {name: value for name, value in changes.items() if "." in name},
        "trace": str(newest.relative_to(context.out)),
        "milliseconds_a_step": 1e3 * total / steps,
        "largest": [{"what": cost, "share": costs[cost] / total} for cost in largest],
    }


def durations(file: Path) -> dict[str, float]:
    """Seconds of every instruction of the step in a trace, summed over threads or streams."""
    from jax.profiler import ProfileData

    spent: dict[str, float] = defaultdict(float)
    planes = list(ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or planes:
        lines = list(plane.lines)
        operations = [line for line in lines if line.name == "XLA Ops"]  # a TPU's
        for line in operations or lines:
            for event in line.events:
                name = event.name if operations else _instruction(event.stats)
                if name and not name.startswith(_CONTAINERS):
                    spent[name] += event.duration_ns / 1e9
    return dict(spent)


def _instruction(stats: Iterable[tuple[str, Any]]) -> str:
    """The instruction an event belongs to; "" for what is not the step's."""
    found = dict(stats)
    return str(found.get("hlo_op", "")) if "_call" in found.get("hlo_module", "_call") else ""


def traced_from(program: str) -> Mapping[str, str]:
    """What every instruction of an optimised program was traced from.

    >>> line = '%dot.1 = f32[2]{0} dot(%a, %b), metadata={op_name="jit(call)/dot_general" id=1}'
    >>> traced_from(line)
    {'dot.1': 'jit(call)/dot_general'}
    """
    return dict(_INSTRUCTION.findall(program))


def words(instruction: str, source: str) -> str:
    """What an instruction does, in words.

    >>> words("fusion.3", "jit(call)/transpose(jvp(network))/stage1_block1/conv2/dot_general")
    'matrix product, backward, in network'
    >>> words("wrapped_copy.2", "")
    'copies'
    """
    last = source.rsplit("/", 1)[-1]
    kind = _WORDS.get(last)
    if kind is None:
        kind = next((text for part, text in _TYPES.items() if part in instruction.lower()), None)
    kind = kind or (f"arithmetic ({last})" if last else "other arithmetic")
    if not source:
        return kind
    direction = ", backward" if "transpose(" in source else ""
    where = next((part for part in ("network", "head") if re.search(rf"\b{part}\b", source)), "")
    return f"{kind}{direction}" + (f", in {where}" if where else "")


def cases(context: Context) -> list[Case]:
    del context
    return [Case("slowest", profile)]


def rows(records: Records) -> list[tuple[str, str]]:
    """The largest costs."""
    found = []
    for record in records.values():
        if results := record.get("results"):
            case = results["case"]
            text = "; ".join(f"{one['share']:.0%} {one['what']}" for one in results["largest"])
            name = f"{case['model.name']}, K = {case['clients.num']}, {case['model.dtype']}"
            found.append((name, text))
    return found


PIECE = Piece(
    "profile", "Where the slowest case spends its time", cases, rows,
    # A CUDA graph's kernels do not say which instruction they belong to.
    {"XLA_FLAGS": "--xla_gpu_enable_command_buffer="},
)  # fmt: skip
