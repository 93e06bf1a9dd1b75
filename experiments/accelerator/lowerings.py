# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""(c) The lowerings of stacked convolutions, and which one `auto` should stand for here."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from experiments.accelerator import speed
from experiments.accelerator.pieces import Case, Context, Piece, Records
from experiments.benchmarks import ours, timing
from experiments.benchmarks.convolutions import LOWERINGS
from experiments.harness import tables
from mhd_jax.models import conv

CLIENTS = 8


def measure(changes: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """A step with every lowering, in turn; one that does not fit or compile is left out."""
    contenders, failed = [], {}
    for lowering in LOWERINGS[:2] if context.quick else LOWERINGS:
        try:
            stepper = speed.build({**changes, "parallel.conv_lowering": lowering}, context.quick)
            stepper.run(stepper.unit)
        except jax.errors.JaxRuntimeError as error:
            failed[lowering] = str(error).splitlines()[0][:200]
            continue
        contenders.append(ours.contender(lowering, stepper))
    measured = timing.alternate(contenders, context.effort)
    best = min(measured, key=lambda name: timing.milliseconds(measured, name))
    return {
        "platform": jax.default_backend(),
        "network": changes["model.name"],
        "dtype": changes["model.dtype"],
        "measured": measured,
        "failed": failed,
        "best": best,
        "auto": conv.resolve("auto"),
    }


def cases(context: Context) -> list[Case]:
    if context.quick:
        tiny = {**speed.settings("resnet8", 2, "float32"), **speed.TINY, "model.name": "cnn",
                "model.depth": 2}  # fmt: skip
        return [Case("cnn_float32", functools.partial(measure, tiny))]
    return [
        Case(f"{network}_{dtype}",
             functools.partial(measure, speed.settings(network, CLIENTS, dtype)))
        for network in ("resnet18", "resnet8") for dtype in speed.DTYPES
    ]  # fmt: skip


def rows(records: Records) -> list[tuple[str, str]]:
    """Milliseconds of every lowering, and whether `auto` is the best of them."""
    found = []
    for record in records.values():
        if not (results := record.get("results")):
            continue
        measured = results["measured"]
        shown = ", ".join(
            f"{name} {tables.short(timing.milliseconds(measured, name))} ms" for name in measured
        )
        right = "auto is the fastest"
        if results["best"] != results["auto"]:
            right = (
                f"auto is {results['auto']}: set AUTO[{results['platform']!r}] = "
                f"{results['best']!r} in mhd_jax/models/conv.py"
            )
        found.append((f"{results['network']}, {results['dtype']}", f"{shown}; {right}"))
    return found


PIECE = Piece("lowerings", "Lowerings of stacked convolutions", cases, rows)
