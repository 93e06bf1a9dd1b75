# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A run's compiled training step, without the loop around it, for measuring."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import ml_collections
import numpy as np

from mhd_jax import experiment as experiment_lib
from mhd_jax import federation, train
from mhd_jax.experiment import Experiment
from mhd_jax.state import State


class SteppedRun:
    """A run that is only stepped: nothing is logged, evaluated or saved.

    Args:
      config: the run.
      data: what it learns from, see `mhd_jax.experiment.build`.
      change: of the experiment that is built, before its step is compiled.

    Attributes:
      experiment: the run.
      compiled: its step.
      compile_seconds: what compiling it took.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        data: federation.DataSets | None = None,
        change: Callable[[Experiment], Experiment] = lambda experiment: experiment,
    ) -> None:
        self.experiment = change(experiment_lib.build(config, data))
        self._stepper = train.Stepper(self.experiment, self.experiment.init_state(), 0)
        self._step = 0
        self.compiled = self._stepper.compiled
        self.compile_seconds = self._stepper.compile_seconds

    @property
    def unit(self) -> int:
        """Steps that one call does."""
        return self.experiment.parts.steps_per_call

    @property
    def state(self) -> State:
        """Where the run stands; donated to the next call."""
        return self._stepper.state

    def run(self, steps: int) -> list[dict[str, np.ndarray]]:
        """Does the next `steps` steps, whole calls of them, and waits until they are done.

        Returns:
          The metrics of every call, [n, R, K, ...], those of the clients that took part.
        """
        waiting, stop = [], self._step + steps
        while self._step < stop:
            waiting.append(self._stepper.advance(self._step, self._step + self.unit))
            self._step += self.unit
        layout = self.experiment.parts.places
        found = [layout.fetch(metrics) for metrics in waiting]
        jax.block_until_ready(self._stepper.state)
        return [{k: layout.join(v, axis=2) for k, v in one.items()} for one in found]

    def waiting(self, steps: int) -> float:
        """Does the next `steps` steps; the share of that time devices had nothing to do."""
        dispatched: list[float] = []
        finished: list[float] = []

        def watch(metrics: Any) -> None:
            jax.block_until_ready(metrics)
            finished.append(time.perf_counter())

        with futures.ThreadPoolExecutor(1) as watcher:

            def stamped(*arguments: Any) -> Any:
                dispatched.append(time.perf_counter())
                state, metrics = self.compiled(*arguments)
                watcher.submit(watch, metrics)
                return state, metrics

            self._stepper.compiled = stamped
            self.run(steps)
            self._stepper.compiled = self.compiled
        return idle_share(dispatched, finished)

    def memory(self) -> dict[str, int]:
        """Bytes on all devices: of the state, of the snapshots in it, and beside it in a step."""
        found, state = self.compiled.memory_analysis(), self._stepper.state
        return {
            "state": _bytes(state),
            "pool": _bytes(state.pool),
            "temporary": found.temp_size_in_bytes,
        }


def idle_share(dispatched: Sequence[float], finished: Sequence[float]) -> float:
    """How much of the time nothing was queued, from when each call was queued and was done.

    >>> idle_share([0.0, 1.0, 8.0], [4.0, 7.0, 10.0])
    0.1
    """
    idle = sum(
        max(0.0, queued - done) for queued, done in zip(dispatched[1:], finished[:-1], strict=True)
    )
    return idle / (finished[-1] - dispatched[0])


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
