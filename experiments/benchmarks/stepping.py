# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A run's compiled training step, without the loop around it, for measuring."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.benchmarks.timing import Contender
from mhd_jax import experiment as experiment_lib
from mhd_jax import train
from mhd_jax.state import State


class Stepper:
    """A run that is only stepped: nothing is logged, evaluated or saved.

    Args:
      config: the run.
      data: what it learns from, see `mhd_jax.experiment.build`.

    Attributes:
      experiment: the run.
      compiled: its step.
      compile_seconds: what compiling it took.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, data: experiment_lib.DataSets | None = None
    ) -> None:
        self.experiment = experiment_lib.build(config, data)
        self._stepper = train.Stepper(self.experiment, self.experiment.init_state(), 0)
        self._step = 0
        self.compiled = self._stepper.compiled
        self.compile_seconds = self._stepper.compile_seconds

    @property
    def unit(self) -> int:
        """Steps that one call does."""
        return self.experiment.system.window

    @property
    def state(self) -> State:
        """Where the run stands; donated to the next call."""
        return self._stepper.state

    def run(self, steps: int) -> list[dict[str, np.ndarray]]:
        """Does the next `steps` steps, whole calls of them, and waits until they are done.

        Returns:
          The metrics of every call, [n, R, K, ...].
        """
        waiting, stop = [], self._step + steps
        while self._step < stop:
            waiting.append(self._stepper.advance(self._step, self._step + self.unit))
            self._step += self.unit
        layout = self.experiment.layout
        found = [layout.fetch(metrics) for metrics in waiting]
        jax.block_until_ready(self._stepper.state)
        return [{k: layout.join(v, axis=2) for k, v in one.items()} for one in found]

    def contender(self, name: str = "ours") -> Contender:
        """For `timing.alternate`."""
        return Contender(name, self.run, self.compile_seconds, self.unit)

    def bare(self, name: str) -> Contender:
        """The compiled step on one call's plan over and over: no host work; ends this run."""
        experiment, state = self.experiment, [self._stepper.state]
        plan = experiment.schedule.plan(0, self.unit)
        count = experiment.layout.put(np.int32(self.unit))

        def run(steps: int) -> None:
            for _ in range(-(-steps // self.unit)):
                state[0], _ = self.compiled(
                    state[0], experiment.feed.data, plan, experiment.seed_array, count
                )
            jax.block_until_ready(state[0])

        return Contender(name, run, self.compile_seconds, self.unit)

    def memory(self) -> dict[str, int]:
        """Bytes on all devices: of the state, of the snapshots in it, and beside it in a step."""
        found, state = self.compiled.memory_analysis(), self._stepper.state
        return {
            "state": _bytes(state),
            "pool": _bytes(state.pool),
            "temporary": found.temp_size_in_bytes,
        }


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
