# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""One run of thousands of clients from start to report, killed and started again on the way.

    python -m experiments.checks.thousands --out=experiments/results/digits/thousands.json

The run is a process of its own, killed after its first checkpoint; the same command goes on with
it. Prints wall time of every part and peak memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.harness import records
from experiments.harness.many import GRAPHS, size
from experiments.harness.presets import preset
from mhd_jax import train

CLIENTS = 4096
STEPS = 150


def check(clients: int, steps: int, workdir: Path) -> dict[str, Any]:
    """The run in `workdir`, killed once; its record."""
    command = [sys.executable, "-m", "experiments.checks.thousands", f"--clients={clients}",
               f"--steps={steps}", f"--child={workdir}"]  # fmt: skip
    begin = time.monotonic()
    first = subprocess.Popen(command)
    while first.poll() is None and not _saved(workdir):
        time.sleep(0.5)
    with contextlib.suppress(ProcessLookupError):
        os.kill(first.pid, signal.SIGKILL)
    first.wait()
    killed = time.monotonic() - begin
    subprocess.run(command, check=True)
    seconds = time.monotonic() - begin
    summary = json.loads((workdir / "summary.json").read_text())
    return {
        "clients": clients,
        "steps": steps,
        "killed_after_seconds": round(killed, 1),
        "seconds": round(seconds, 1),
        "steps_per_second": summary["steps_per_second"],
        "compile_seconds": summary["compile_seconds"],
        "peak_gib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
        "megabytes": {
            path.name: round(path.stat().st_size / 1e6, 3)
            for path in sorted(workdir.iterdir())
            if path.is_file()
        },
        **records.provenance(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def _saved(workdir: Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())


def child(clients: int, steps: int, workdir: Path) -> None:
    """The run itself: train, evaluate, report."""
    every = {f"train.{name}_every": max(steps // 3, 1) for name in ("log", "checkpoint")}
    changes = {"train.steps": steps, "train.eval_every": steps, **GRAPHS["random regular"]}
    config = preset("many").base({**size(clients), **changes, **every})
    train.train_and_evaluate(config, workdir)


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the run, or is one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="file for the record")
    parser.add_argument("--workdir", type=Path, help="to keep the run in; a temporary one if none")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        child(options.clients, options.steps, options.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        workdir = options.workdir or Path(folder) / "run"
        record = check(options.clients, options.steps, workdir)
    print(json.dumps(record, indent=1))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
