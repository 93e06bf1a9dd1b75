# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""(a) Does it compute the same here? The tests' small runs beside a CPU's, resume, every config.

python -m experiments.accelerator.correctness OUT.npz   # the CPU's side, in its own process
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.accelerator.pieces import Case, Context, Piece, Records
from experiments.harness import runs, workers
from mhd_jax import estimate, federation
from mhd_jax import experiment as experiment_lib
from mhd_jax.config import update
from mhd_jax.data import sources
from tests import small

CALLS = 2  # of the step; the second one is through an update
# Largest relative difference of a loss, and of a parameter to the largest of its kind.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}
# Plain SGD, but for the last: a first step of AdamW has the same length however small a gradient
# is, so that it blows up roundings where the gradient should be 0.
SGD = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.01}
CASES: dict[str, dict[str, Any]] = {
    "mhd": SGD,
    "resnet8": {"model__name": "resnet8", "model__width": 4, **SGD},
    "bfloat16": {"model__dtype": "bfloat16", **SGD},
    "stale": {
        "exchange__mode": "stale", "exchange__pool_size": 2, "exchange__refresh_steps": 2, **SGD,
    },
    "fedavg": {"method": "fedavg", "average__every": 2, **SGD},
    "fedmd": {"method": "fedmd", **SGD},
    "codistillation": {"method": "codistillation", **SGD},
    "cnn": {"model__name": "cnn", "model__width": 4, **SGD},
    "streaming": {"data__feed": "streaming", **SGD},
    "adamw": {},
}  # fmt: skip
QUICK = ("mhd",)
STREAMING = "streaming"  # a case of its own: it needs all of Grain
RESUMED = {"resume": "resumed run", "resume_cnn": "convolutions, resumed by another process"}
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def outcome(name: str) -> dict[str, np.ndarray]:
    """Losses and parameters after a small run, by name."""
    experiment = small.build(**CASES[name])
    state, metrics = small.run(experiment, calls=CALLS)
    leaves = small.clients(experiment, state)
    return {f"{name}/loss": metrics["loss"]} | {
        f"{name}/parameter{index}": leaf for index, leaf in enumerate(leaves)
    }


def reference(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The same on the CPU, computed by another process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cpu.npz"
        command = [sys.executable, "-m", "experiments.accelerator.correctness", str(file), *names]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        subprocess.run(command, check=True, env=environment)
        with np.load(file) as found:
            return dict(found)


def compare(mine: Mapping[str, np.ndarray], cpu: Mapping[str, np.ndarray]) -> float:
    """The largest difference, relative to the largest value of an array.

    Raises:
      ValueError: something is not a finite number.
    """
    worst = 0.0
    for key, value in mine.items():
        scale = max(float(np.abs(cpu[key]).max()), 1e-6)
        found = float(np.abs(value.astype(np.float64) - cpu[key]).max()) / scale
        if not np.isfinite(found):
            raise ValueError(f"{key}: a value that is not finite")
        worst = max(worst, found)
    return worst


def steps(names: Sequence[str], context: Context) -> dict[str, Any]:
    """Small runs here and on the CPU.

    Raises:
      ValueError: some differ by more than their tolerance.
    """
    del context
    cpu = reference(names)
    found = {name: compare(outcome(name), cpu) for name in names}
    check(found)
    return {"difference": found}


def check(found: Mapping[str, float]) -> None:
    """Raises `ValueError` where runs differ by more than their tolerance; names them all."""
    far = {
        name: f"{difference:.2g}"
        for name, difference in found.items()
        if difference > TOLERANCE[CASES[name].get("model__dtype", "float32")]
    }
    if far:
        raise ValueError(f"differ from the CPU's, relative to the largest value: {far}")


def resume(
    changes: Mapping[str, Any],
    go_on: Callable[[ml_collections.ConfigDict, Path], object],
    context: Context,
) -> dict[str, Any]:
    """A run that is resumed from its first checkpoint ends with the bits of one left alone."""
    from experiments.checks import kill_loop

    del context
    settings = {**changes, "train__steps": 6, "train__checkpoint_every": 3}
    config = small.config(**settings, isolated_baseline=False)
    with tempfile.TemporaryDirectory() as folder:
        whole, again = Path(folder) / "whole", Path(folder) / "again"
        runs.make(config, whole)
        shutil.copytree(whole, again)
        shutil.rmtree(again / "checkpoints" / "6")
        (again / "summary.json").unlink()
        go_on(config, again)
        ends = [kill_loop.last_state(path, 6) for path in (whole, again)]
    if difference := kill_loop.difference(*ends):
        raise ValueError(f"the resumed run differs by {difference:.2g}")
    return {"difference": 0.0, "arrays": len(ends[0])}


def _elsewhere(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """In a process that finds the step compiled, and so has run none of its operations before."""
    pool = workers.Workers(1, workdir.parent / "logs", {})
    with contextlib.closing(pool):
        for _, error in pool.make({"run": (config, workdir)}):
            if error:
                raise error


def config_trains(file: Path, context: Context) -> dict[str, Any]:
    """Some steps of a config's smallest variant, on random images of its data set's shape."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("smoke")
    update(config, {"clients.num": 2 if context.quick else 4, "isolated_baseline": False})
    experiment = experiment_lib.build(config, _random_images(config))
    _, metrics = small.run(experiment, calls=CALLS)
    if not np.isfinite(metrics["loss"]).all():
        raise ValueError(f"{file.name}: a loss that is not finite")
    return {"loss": float(metrics["loss"].mean())}


def _random_images(config: Any) -> federation.DataSets | None:
    """Random images, a few of each class, for the data sets that have to be prepared."""
    if config.data.name == "digits" or config.data.name not in estimate.KNOWN:
        return None  # scikit-learn brings them
    classes = estimate.KNOWN[config.data.name][0]
    draw, count = np.random.default_rng(0), 4 * classes
    shape = (config.data.image_size, config.data.image_size, 3)
    images = draw.integers(0, 256, (count, *shape), np.uint8)
    labels = np.arange(count) % classes
    return sources.from_arrays("random", (images, labels), (images[:40], labels[:40])), None


def cases(context: Context) -> list[Case]:
    files = sorted(CONFIGS.glob("*.py"))
    if context.quick:
        files = [file for file in files if file.stem == "cifar10"]
    names = QUICK if context.quick else tuple(name for name in CASES if name != STREAMING)
    found = [
        Case("steps", functools.partial(steps, names)),
        Case("resume", functools.partial(resume, {}, runs.make)),
        *(Case(f"config_{f.stem}", functools.partial(config_trains, f)) for f in files),
    ]
    if not context.quick:
        found += [
            Case("resume_cnn", functools.partial(resume, CASES["cnn"], _elsewhere)),
            Case("steps_streaming", functools.partial(steps, (STREAMING,))),
        ]
    return found


def rows(records: Records) -> list[tuple[str, str]]:
    """What agrees, and by how much."""
    found = []
    for name, record in records.items():
        results = record.get("results", {})
        if name.startswith("steps") and results:
            worst = max(results["difference"].values())
            what = ", ".join(results["difference"])
            found.append((f"small runs beside the CPU's: {what}", f"differ by at most {worst:.1g}"))
        elif name in RESUMED and results:
            found.append((RESUMED[name], "the same bits"))
        elif results:
            found.append((f"{name.removeprefix('config_')}.py:smoke", "trains"))
    return found


PIECE = Piece(
    "correctness", "The tests' small cases beside the CPU's, resume, every config", cases, rows,
    # Products in full float32, and the same order of additions every time.
    {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": "--xla_gpu_deterministic_ops=true"},
)  # fmt: skip


if __name__ == "__main__":
    arrays: dict[str, np.ndarray] = {}
    for chosen in sys.argv[2:]:
        arrays |= outcome(chosen)
    assert jax.default_backend() == "cpu"
    np.savez(sys.argv[1], **arrays)  # type: ignore[arg-type]
