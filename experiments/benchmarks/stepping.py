# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A run's compiled training step, without the loop around it, for measuring."""

from __future__ import annotations

import time
from typing import Any

import jax
import ml_collections
import numpy as np

from mhd_jax import experiment as experiment_lib


class Stepper:
    """A run that is only stepped: nothing is logged, evaluated or saved.

    Attributes:
      experiment: the run.
      compiled: its step.
      compile_seconds: what compiling it took.
    """

    def __init__(self, config: ml_collections.ConfigDict) -> None:
        self.experiment = experiment_lib.build(config)
        self._state, self._step = self.experiment.init_state(), 0
        begin = time.monotonic()
        self.compiled = self.experiment.step.lower(*self._arguments()).compile()
        self.compile_seconds = time.monotonic() - begin

    @property
    def unit(self) -> int:
        """Steps that one call does."""
        return self.experiment.system.window

    def _arguments(self) -> tuple[Any, ...]:
        experiment = self.experiment
        plan = experiment.schedule.plan(self._step, self._step + self.unit)
        count = experiment.layout.put(np.int32(self.unit))
        return self._state, experiment.feed.data, plan, experiment.seed_array, count

    def run(self, steps: int) -> None:
        """Does the next `steps` steps, whole calls of them, and waits until they are done."""
        stop = self._step + steps
        while self._step < stop:
            self._state, _ = self.compiled(*self._arguments())
            self._step += self.unit
        jax.block_until_ready(self._state)

    def memory(self) -> dict[str, int]:
        """Bytes on all devices: of the state, of the snapshots in it, and beside it in a step."""
        found = self.compiled.memory_analysis()
        return {
            "state": _bytes(self._state),
            "pool": _bytes(self._state.pool),
            "temporary": found.temp_size_in_bytes,
        }


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
