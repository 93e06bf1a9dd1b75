# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Where the seconds of the README's first run go.

    python -m experiments.benchmarks.quickstart --out=experiments/results/benchmarks

Every run is a process of its own (`experiments.benchmarks.clock`), as a user starts it, without a
compilation cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Benchmark, Effort, Record
from experiments.harness.presets import ROOT

RUNS = 3
_NOT_A_USERS = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES")


def measure(effort: Effort) -> dict[str, Any]:
    """Seconds of every part, run by run."""
    variant = "smoke" if effort.quick else ""
    runs = []
    for _ in range(1 if effort.quick else RUNS):
        command = [sys.executable, "-m", "experiments.benchmarks.clock", variant]
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_A_USERS}
        begin = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, check=True, env=environment, capture_output=True, text=True
        )
        whole = time.monotonic() - begin
        found = json.loads(done.stdout.splitlines()[-1])
        found["the rest"] = whole - sum(found.values())
        runs.append(found | {"all": whole})
    return {"runs": runs}


def table(records: Sequence[Record]) -> str:
    """Seconds of every part, and their share of the whole."""
    runs = records[0]["results"]["runs"]
    parts = {part: float(np.median([run[part] for run in runs])) for part in runs[0]}
    lines = [(part, f"{s:.1f}", f"{s / parts['all']:.0%}") for part, s in parts.items()]
    said = f"Medians over {len(runs)} runs of `configs/digits.py`, compilation cache empty."
    return timing.markdown(("part", "seconds", "share"), lines, said, records)


BENCHMARK = Benchmark(
    "quickstart",
    "Where the quickstart's seconds go",
    timing.one_case("digits", measure),
    table,
)


if __name__ == "__main__":
    timing.main(BENCHMARK)
