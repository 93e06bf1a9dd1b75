# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Up to thousands of clients on sparse graphs: what they gain, and whether a whole run works.

    python -m experiments.many_clients study --out=experiments/results/many_clients.json
    python -m experiments.many_clients whole --clients=4096

`study`: 16 to 4,096 clients on a small-world graph and on a random regular one, with as many
private samples each; what every rank of heads gains over the same clients left alone, beside the
diameter of the graph. Ten minutes on one core. `whole`: one run from start to report in a process
of its own, killed after its first checkpoint and started again; wall time and peak memory.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from experiments.harness import records
from experiments.harness.tables import grid
from mhd_jax import experiment as experiment_lib
from mhd_jax import graph, rng, train
from mhd_jax.config import default_config, update
from mhd_jax.data import sources
from mhd_jax.results import accuracy_rows

EACH = 16  # private samples of a client
PUBLIC = 256
SIZES = (16, 64, 256, 1024, 4096)
GRAPHS: Mapping[str, Mapping[str, Any]] = {
    "small world": {"graph.name": "small_world", "graph.probability": 0.05},
    "random regular": {"graph.name": "random_regular"},
}
SETTINGS: Mapping[str, Any] = {
    "data.name": "many_digits", "data.batch_size": 16, "data.public_batch_size": 64,
    "model.width": 32, "partition.name": "primary_labels", "partition.primary_labels": 2,
    "graph.degree": 4, "train.steps": 300, "train.log_every": 100, "train.eval_every": 300,
    "train.checkpoint_every": 100, "parallel.client_devices": 1,
}  # fmt: skip


@sources.SOURCES.register("many_digits")
def many_digits(directory: str, split: str, shape: sources.Shape) -> sources.Source:
    """scikit-learn's digits, moved by up to a pixel and with noise, as many as `split` asks for.

    Args:
      directory: not used; the images come with scikit-learn.
      split: "train[:N]" for N samples.
      shape: that of digits.
    """
    del directory, shape
    digits = sources.source(default_config().data)
    count = int(split.partition(":")[2].rstrip("]"))
    draw = rng.generator(0, "many digits")
    index = np.arange(count) % len(digits.train)
    images = digits.train.images(index)
    for down, right in np.ndindex(3, 3):
        some = draw.random(count) < 1 / 9
        images[some] = np.roll(images[some], (down - 1, right - 1), axis=(1, 2))
    noisy = images + draw.normal(0, 0.05, images.shape)
    train_set = (noisy.clip(0, 1).astype(np.float32), digits.train.labels[index])
    test = (digits.test.images(np.arange(len(digits.test))), digits.test.labels)
    return sources.from_arrays("many_digits", train_set, test)


def config_of(clients: int, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The run of so many clients, `EACH` private samples a client on average, `PUBLIC` public."""
    config, total = default_config(), clients * EACH + PUBLIC
    size = {
        "clients.num": clients, "data.split": f"train[:{total}]",
        "data.public_fraction": PUBLIC / total,
    }  # fmt: skip
    update(config, {**SETTINGS, **size, **changes})
    return config


# --- The study ------------------------------------------------------------------------------------


def measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Trains and evaluates once; gains by rank, and what the graph is like."""
    begin = time.monotonic()
    made = experiment_lib.build(config)
    stepper = train.Stepper(made, made.init_state(), 0)
    unit, steps = made.parts.steps_per_call, config.train.steps
    for start in range(0, steps, unit):
        stepper.advance(start, min(start + unit, steps))
    found = made.evaluator.evaluate(stepper.state)
    assert found.baseline is not None
    rows = accuracy_rows(found.shared, found.private, *found.baseline)
    facts = graph.describe(made.schedule.topologies[0].at(0))
    hops = np.asarray(facts["hop_counts"])
    distances = np.arange(1, len(hops) + 1)
    return {
        "clients": config.clients.num,
        "diameter": facts["diameter"],
        "mean_distance": float((hops * distances).sum() / hops.sum()),
        "isolated": rows[-1].shared.mean,
        "gains": {row.name: row.shared_gain.mean for row in rows if row.shared_gain},
        "private_gain": rows[0].private_gain.mean if rows[0].private_gain else None,
        "seconds": round(time.monotonic() - begin, 1),
    }


def study(sizes: Sequence[int], steps: int) -> dict[str, Any]:
    """All graphs and numbers of clients."""
    results: dict[str, list[dict[str, Any]]] = {}
    for name, settings in GRAPHS.items():
        for clients in sizes:
            found = measure(config_of(clients, {**settings, "train.steps": steps}))
            results.setdefault(name, []).append(found)
            print(f"{name}, {clients} clients: {found['seconds']} s", flush=True)
    command = "python -m experiments.many_clients study --out=experiments/results/many_clients.json"
    made = {"revision": records.revision(), "hardware": records.hardware()}
    return {"command": command, "steps": steps, **made, "versions": train.versions(),
            "load": list(os.getloadavg()), "results": results}  # fmt: skip


def table(record: Mapping[str, Any]) -> str:
    """Markdown from the record of a study."""
    first = next(iter(record["results"].values()))[0]
    header = ["graph", "clients", "diameter", "mean distance", "isolated", *first["gains"],
              "private, main"]  # fmt: skip
    lines = [
        [
            name, f"{one['clients']:,}", str(one["diameter"] or "–"),
            f"{one['mean_distance']:.1f}", f"{one['isolated']:.3f}",
            *(f"{gain:+.3f}" for gain in one["gains"].values()), f"{one['private_gain']:+.3f}",
        ]
        for name, rows in record["results"].items()
        for one in rows
    ]  # fmt: skip
    said = (
        f"Shared accuracy of the isolated baseline and each head's gain over it, mean over "
        f"clients, after {record['steps']:,} steps; {EACH} private samples a client, two primary "
        f"labels, 4 peers on average, one seed. {record['hardware']}. `{record['command']}`"
    )
    return f"{grid(header, lines)}\n\n{said}\n"


# --- A whole run ----------------------------------------------------------------------------------


def whole(clients: int, steps: int) -> dict[str, Any]:
    """One run in processes of its own, killed after its first checkpoint; time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", "experiments.many_clients", "child",
                   f"--clients={clients}", f"--steps={steps}", f"--workdir={workdir}"]  # fmt: skip
        begin = time.monotonic()
        first = subprocess.Popen(command)
        while first.poll() is None and not _saved(workdir):
            time.sleep(0.5)
        with contextlib.suppress(ProcessLookupError):
            os.kill(first.pid, signal.SIGKILL)
        first.wait()
        killed = time.monotonic() - begin
        subprocess.run(command, check=True)
        sizes = {path.name: path.stat().st_size for path in workdir.iterdir() if path.is_file()}
        return {
            "clients": clients,
            "steps": steps,
            "seconds": round(time.monotonic() - begin, 1),
            "killed_after_seconds": round(killed, 1),
            "peak_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
            "bytes": sizes,
            "load": list(os.getloadavg()),
        }


def _saved(workdir: Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.exists() and any(path.name.isdigit() for path in folder.iterdir())


def child(clients: int, steps: int, workdir: Path) -> None:
    """The run itself: train, evaluate, report."""
    every = {f"train.{name}_every": max(steps // 3, 1) for name in ("log", "checkpoint")}
    changes = {"train.steps": steps, "train.eval_every": steps, "graph.name": "random_regular"}
    train.train_and_evaluate(config_of(clients, {**changes, **every}), workdir)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the first argument says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("study", "whole", "child"))
    parser.add_argument("--clients", type=int, default=0, help="at most so many, or just so many")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="file for the record")
    parser.add_argument("--workdir", type=Path, help="of the child")
    options = parser.parse_args(argv)
    if options.what == "child":
        child(options.clients, options.steps, options.workdir)
        return
    if options.what == "whole":
        record = whole(options.clients or SIZES[-1], options.steps)
        print(json.dumps(record, indent=1))
    else:
        sizes = [size for size in SIZES if size <= (options.clients or SIZES[-1])]
        record = study(sizes, options.steps)
        print(table(record))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
