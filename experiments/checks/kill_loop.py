# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Runs that are killed at random moments, and whether they end with the uninterrupted run's bits.

    python -m experiments.checks.kill_loop --runs=20

Every run is killed by SIGKILL or SIGTERM at a random moment, one time in four anywhere from the
start of the program on, else soon after a new checkpoint (there is one every few steps, so many of
these kills fall into a save); started again, and so on until it is done. Its last checkpoint is
compared with that of a run left alone: bit by bit on the same number of devices, to 1e-6 where
every start draws another number of devices. Starts share a compilation cache, which the kills hit
as well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import records

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "clients.num": 4, "model.width": 16, "heads.aux": 2, "data.batch_size": 8,
    "data.public_batch_size": 8, "isolated_baseline": False, "train.steps": 400,
    "train.log_every": 10,
    "train.checkpoint_every": 10, "train.eval_every": 200, "train.steps_per_call": 1,
}  # fmt: skip


def start(workdir: Path, devices: int) -> subprocess.Popen:
    """The run's command on `devices` CPU devices; compiled programs are kept beside `workdir`."""
    flags = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    command = [sys.executable, "-m", "mhd_jax.main", "--config=configs/digits.py"]
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_killed(workdir: Path, draw: random.Random, counts: list[int], kills: int) -> dict[str, Any]:
    """Kills the run `kills` times, then lets it end; what happened.

    Returns:
      devices of every start; kills; how many of them came before a checkpoint of their start, and
      how many in a save; what the ends by SIGTERM said.
    """
    record: dict[str, Any] = {"devices": [], "kills": [], "early": 0, "in_a_save": 0}
    record["messages"] = []
    while not (workdir / "summary.json").exists():
        before = _steps(workdir)
        record["devices"].append(draw.choice(counts))
        process = start(workdir, record["devices"][-1])
        if len(record["kills"]) < kills:
            _sleep(workdir, process, draw)
            chosen = draw.choice((signal.SIGKILL, signal.SIGTERM))
            if process.poll() is None:
                process.send_signal(chosen)
                record["in_a_save"] += _in_a_save(workdir)
                record["early"] += _steps(workdir) <= before
                record["kills"].append(chosen.name)
        _, said = process.communicate(timeout=600)
        expected = (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
        if process.returncode not in expected:
            raise RuntimeError(f"ended with {process.returncode}: {said[-2000:]}")
        record["messages"] += [line for line in said.splitlines() if "Interrupted" in line]
    return record


def _sleep(workdir: Path, process: subprocess.Popen, draw: random.Random) -> None:
    """Until the moment of the next kill, in seconds after the start or after a new checkpoint."""
    if draw.random() < 0.25:
        time.sleep(draw.uniform(0, 15))
    else:
        _wait_for_a_new_checkpoint(workdir, process)
        time.sleep(draw.uniform(0, 2))


def _wait_for_a_new_checkpoint(workdir: Path, process: subprocess.Popen) -> None:
    before = _steps(workdir)
    while process.poll() is None and _steps(workdir) <= before:
        time.sleep(0.02)


def _steps(workdir: Path) -> int:
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=-1)


def _in_a_save(workdir: Path) -> bool:
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def last_state(workdir: Path, step: int | None = None) -> list[np.ndarray]:
    """All arrays of the checkpoint of a step, the last one unless said otherwise."""
    import orbax.checkpoint as ocp

    path = workdir / "checkpoints" / str(step or SETTINGS["train.steps"]) / "default"
    import jax

    with ocp.StandardCheckpointer() as reader:
        described = reader.metadata(path)
        tree = getattr(described, "item_metadata", described)
        tree = getattr(tree, "tree", tree)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), tree
        )
        return [np.asarray(leaf) for leaf in jax.tree.leaves(reader.restore(path, target))]


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest absolute difference; 0 means the same bits."""
    if all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True)):
        return 0.0
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs if a.size)


def main() -> None:
    """Prints one line a run and, with --out, writes all of it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="per run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, nargs="+", default=[2], help="drawn at every start")
    parser.add_argument("--steps", type=int, default=SETTINGS["train.steps"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    SETTINGS["train.steps"] = options.steps
    draw, runs = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        run_killed(whole, draw, options.devices[:1], kills=0)
        expected = last_state(whole)
        for index in range(options.runs):
            workdir = Path(folder) / str(index)
            record = run_killed(workdir, draw, options.devices, options.kills)
            record["difference"] = difference(last_state(workdir), expected)
            runs.append(record)
            print(json.dumps({"run": index, **record}), flush=True)
            if options.out:
                done = {**records.provenance(), "devices": options.devices, "seed": options.seed,
                        "steps": options.steps, "kills": options.kills, "runs": runs}  # fmt: skip
                records.write(options.out, records.to_compact_json(done))
    tolerance = 0.0 if len(set(options.devices)) == 1 else 1e-6
    good = sum(record["difference"] <= tolerance for record in runs)
    print(f"{good} of {len(runs)} runs within {tolerance} of the uninterrupted run")
    sys.exit(good < len(runs))


if __name__ == "__main__":
    main()
