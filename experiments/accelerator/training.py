# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""(e) CIFAR-10 with ResNet-20 at 32 px, s = 100: as many steps as a slice of time allows."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from configs import cifar10, digits
from experiments.accelerator.pieces import Case, Context, Piece, Records
from experiments.harness.candidates import CHANGES, METHODS
from experiments.harness.stepping import SteppedRun
from mhd_jax import train
from mhd_jax.config import update
from mhd_jax.data import sources
from mhd_jax.errors import ConfigError

SECONDS = 480.0  # of one run, calibration and evaluation included
CALIBRATION = 20.0  # seconds of stepping that say how many steps there will be
CHANCE = 1.05  # times 1 / C: an accuracy up to this is no better than guessing
SHARE = 0.8  # of the time that is left, for steps
ROUND = 100  # steps are whole multiples of it

RUNS: dict[str, dict[str, Any]] = {
    name: {**(CHANGES.get(name) or {"method": name}), "isolated_baseline": False}
    for name in ("mhd-all", "aligned", "isolated", "codistillation", "fedavg")
}


def settings(name: str, quick: bool) -> Any:
    """The config of a run, with as many steps as it would have without a clock."""
    config = digits.get_config("smoke") if quick else cifar10.get_config()
    update(config, RUNS[name])
    return config


def run(name: str, context: Context) -> dict[str, Any]:
    """One run; killed, it goes on from its last checkpoint with the same number of steps."""
    begin, config = time.monotonic(), settings(name, context.quick)
    workdir = context.out / "training" / "runs" / name
    steps = _steps(config, workdir, min(SECONDS, context.seconds), context.quick)
    evaluate = max(1, steps // (2 if context.quick else 10))
    update(config, {
        "train.steps": steps, "train.eval_every": evaluate, "train.checkpoint_every": evaluate,
        "optimizer.warmup_steps": min(config.optimizer.warmup_steps, steps // 20),
    })  # fmt: skip
    summary = train.train_and_evaluate(config, workdir, with_report=False)
    accuracy = np.asarray(summary["shared_accuracy"], float)
    return {
        "steps": steps,
        "seed": config.seed,
        "steps_per_second": summary["steps_per_second"],
        "shared_accuracy": accuracy.mean(axis=0).tolist(),
        "private_accuracy": np.asarray(summary["private_accuracy"], float).mean(axis=0).tolist(),
        # Distilled heads can collapse early on, after which every image gets the same class.
        "at_chance": int((accuracy[:, -1] <= CHANCE / summary["num_classes"]).sum()),
        "clients": len(accuracy),
        "least_and_most": [float(accuracy[:, -1].min()), float(accuracy[:, -1].max())],
        "seconds": time.monotonic() - begin,
    }


def _steps(config: Any, workdir: Path, seconds: float, quick: bool) -> int:
    """How many steps fit; measured once, then read from the run's folder."""
    kept = workdir.parent / f"{workdir.name}_steps.json"
    if kept.exists():
        return int(json.loads(kept.read_text()))
    begin = time.monotonic()
    endless = config.copy_and_resolve_references()
    update(endless, {"train.steps": 10**9})
    stepper = SteppedRun(endless)
    stepper.run(stepper.unit)
    limit, done, start = (0.2 if quick else CALIBRATION), 0, time.monotonic()
    while time.monotonic() - start < limit:
        stepper.run(stepper.unit)
        done += stepper.unit
    rate = done / (time.monotonic() - start)
    left = seconds - (time.monotonic() - begin)
    steps = max(ROUND, int(SHARE * left * rate) // ROUND * ROUND)
    steps = ROUND if quick else min(steps, config.train.steps)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(steps))
    return steps


def cases(context: Context) -> list[Case]:
    names = ("mhd-all",) if context.quick else tuple(RUNS)
    if not context.quick and (why := _not_prepared()):
        print(f"training: left out: {why}", flush=True)
        return []
    return [Case(name, functools.partial(run, name)) for name in names]


def _not_prepared() -> str:
    """Why CIFAR-10 cannot be read; "" where it can."""
    try:
        sources.source(cifar10.get_config().data)
    except ConfigError as error:
        return f"{error}. See python -m experiments.prepare cifar10"
    return ""


def rows(records: Records) -> list[tuple[str, str]]:
    """Shared accuracy of the last head, private accuracy of the main head."""
    found = []
    for name, record in records.items():
        if results := record.get("results"):
            last, (least, most) = results["shared_accuracy"][-1], results["least_and_most"]
            text = (
                f"shared accuracy {last:.3f} ({least:.3f} to {most:.3f}), "
                f"private accuracy {results['private_accuracy'][0]:.3f} after {results['steps']:,} "
                f"steps, {results['steps_per_second']:.3g} a second"
            )
            if lost := results["at_chance"]:
                text += f"; COLLAPSED: {lost} of {results['clients']} clients at chance"
            found.append((METHODS[name], text))
    return found


PIECE = Piece("training", "CIFAR-10, ResNet-20, 8 clients, s = 100, one seed", cases, rows)
