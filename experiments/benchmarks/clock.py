# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The quickstart in this process with a clock on its parts; prints their seconds as JSON.

    python -m experiments.benchmarks.clock smoke

The parts are timed by wrapping the functions that do them; a part does not count what another one
inside it takes. Nothing is imported here that the run itself does not import.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# What is timed, innermost last: part, module of the package, function.
PARTS = (
    ("data, graph and models", "experiment", "build"),
    ("initial state, compiled", "experiment", "Experiment.init_state"),
    ("compiling the step", "train", "Stepper.__init__"),
    ("training", "train", "Passage._advance"),
    ("training", "train", "Passage._collect"),
    ("evaluation", "train", "Passage._evaluate"),
    ("evaluation", "record", "summarize"),
    ("checkpoints", "train", "Passage._save"),
    ("report", "reporting.report", "write_report"),
)


class Clock:
    """Exclusive seconds of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.monotonic()
            self._inside.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                took = time.monotonic() - begin
                own = took - self._inside.pop()
                self.seconds[part] = self.seconds.get(part, 0.0) + own
                if self._inside:
                    self._inside[-1] += took

        return timed


def child(variant: str) -> dict[str, float]:
    """The quickstart in this process, from its first import on; seconds of every part."""
    clock = Clock()
    load = clock.wrap("imports", importlib.import_module)
    for part, module, path in PARTS:
        owner: Any = load(f"mhd_jax.{module}")
        *outer, name = path.split(".")
        owner = functools.reduce(getattr, outer, owner)
        setattr(owner, name, clock.wrap(part, getattr(owner, name)))
    config = load("configs.digits").get_config(variant)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        load("mhd_jax.train").train_and_evaluate(config, folder)
    return clock.seconds


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1] if len(sys.argv) > 1 else "")))
