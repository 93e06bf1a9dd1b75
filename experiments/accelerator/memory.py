# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""(d) Growth until memory is full, beside what was estimated beforehand."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax

from experiments.accelerator import speed
from experiments.accelerator.pieces import Case, Context, Piece, Records
from experiments.harness import tables

GIB = 2**30
# What doubles from where, everything else being ResNet-18's case of 8 clients in bfloat16.
GROWING = {"clients": ("clients.num", 8), "batch": ("data.batch_size", 64)}
LARGEST = {"clients": 1024, "batch": 4096}


def grow(name: str, context: Context) -> dict[str, Any]:
    """Doubles one thing until a step does not fit or time is over; bytes and time of each size."""
    setting, value = GROWING[name]
    base, end = speed.settings("resnet18", 8, "bfloat16"), time.monotonic() + context.seconds
    largest = LARGEST[name]
    if context.quick:
        base = {**speed.settings("mlp", 2, "float32"), **speed.TINY}
        value, largest = (2, 4) if name == "clients" else (4, 8)
    sizes: list[dict[str, Any]] = []
    full, last = "", 0.0
    while value <= largest and not full:
        begin = time.monotonic()
        if end - begin < 3 * last:  # the next one takes about twice as long
            full = "time was over"
            break
        changes = {**base, setting: value}
        if name == "batch":
            changes["data.public_batch_size"] = value
        try:
            sizes.append({"value": value, **_one(changes, context.quick)})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            full = f"{value} does not fit"
            predicted = _predicted(changes)
            sizes.append({"value": value, "predicted": predicted, "fits": False})
        last, value = time.monotonic() - begin, 2 * value
    return {"setting": setting, "sizes": sizes, "stopped": full or f"largest size {largest}",
            "memory": _stat("bytes_limit")}  # fmt: skip


def _one(changes: dict[str, Any], quick: bool) -> dict[str, Any]:
    """A step of one size: its bytes as estimated, compiled and, where a device counts, used."""
    before = _stat("peak_bytes_in_use")
    stepper = speed.build(changes, quick)
    stepper.run(stepper.unit)
    begin = time.perf_counter()
    stepper.run(stepper.unit)
    found = stepper.compiled.memory_analysis()
    compiled = (
        found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )  # fmt: skip
    seconds = (time.perf_counter() - begin) / stepper.unit
    peak = _stat("peak_bytes_in_use")
    return {
        "fits": True,
        "predicted": _predicted(changes),
        "compiled": compiled,
        # Of all that this process has done: known where this size took more than what was before.
        "peak": peak if peak != before else None,
        "milliseconds": 1e3 * seconds,
    }


def _predicted(changes: dict[str, Any]) -> int:
    """Bytes of a device that `--estimate` says, for the data that is used here."""
    return speed.estimate(changes).total


def _stat(name: str) -> int | None:
    """Bytes that the first device says, if it does."""
    return (jax.devices()[0].memory_stats() or {}).get(name)


def cases(context: Context) -> list[Case]:
    del context
    return [Case(name, functools.partial(grow, name)) for name in GROWING]


def rows(records: Records) -> list[tuple[str, str]]:
    """The largest size that fits, and how far the estimate was off."""
    found = []
    for name, record in records.items():
        if not (results := record.get("results")):
            continue
        fitting = [size for size in results["sizes"] if size["fits"]]
        if not fitting:
            found.append((f"growth in {name}", results["stopped"]))
            continue
        last = fitting[-1]
        used = last["peak"] or last["compiled"]
        text = (
            f"up to {last['value']} ({results['stopped']}), {last['milliseconds']:.3g} ms a step, "
            f"{tables.short(used / GIB)} GiB; estimated {tables.short(last['predicted'] / GIB)} GiB"
        )
        found.append((f"growth in {name}", text))
    return found


PIECE = Piece(
    "memory", "Growth until memory is full, beside the estimate", cases, rows,
    # Memory is taken as it is needed, so that its peak can be read.
    {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
)  # fmt: skip
