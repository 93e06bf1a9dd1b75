# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Resident against streamed images: images a second, and the share of time spent waiting.

    python -m experiments.feeds --config=configs/cifar10.py:cpu --steps=30

Both feeds run in turn, several times, in one process; the best of each counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from mhd_jax import experiment as experiment_lib
from mhd_jax.config import update
from mhd_jax.data.streaming import Streaming
from mhd_jax.experiment import Experiment

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py", "The run to time.")
_STEPS = flags.DEFINE_integer("steps", 30, "Steps of one measurement.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each feed.", lower_bound=1)


class Timed:
    """One feed's run, compiled."""

    def __init__(self, config: ml_collections.ConfigDict, feed: str) -> None:
        chosen = config.copy_and_resolve_references()
        update(chosen, {"data.feed": feed})
        self.experiment: Experiment = experiment_lib.build(chosen)
        self._state, self._step = self.experiment.init_state(), 0
        self._call = self.experiment.step.lower(*self._arguments()).compile()

    def _arguments(self) -> tuple:
        experiment, window = self.experiment, self.experiment.system.window
        plan = experiment.schedule.plan(self._step, self._step + window)
        count = experiment.layout.put(np.int32(window))
        return self._state, experiment.feed.data, plan, experiment.seed_array, count

    def run(self, steps: int) -> dict[str, float]:
        """Images a second, all clients and the public batch, and the share of time waiting."""
        feed, data = self.experiment.feed, self.experiment.config.data
        waited = feed.seconds_waiting if isinstance(feed, Streaming) else 0.0
        begin, first = time.monotonic(), self._step
        while self._step < first + steps:
            self._state, _ = self._call(*self._arguments())
            self._step += self.experiment.system.window
        jax.block_until_ready(self._state)
        seconds = time.monotonic() - begin
        waited = feed.seconds_waiting - waited if isinstance(feed, Streaming) else 0.0
        clients = self.experiment.config.clients.num
        images = (self._step - first) * (clients * data.batch_size + data.public_batch_size)
        return {"images_per_second": images / seconds, "share_waiting": waited / seconds}


def main(argv: Sequence[str]) -> None:
    """Prints one JSON object."""
    del argv
    timed = {feed: Timed(_CONFIG.value, feed) for feed in ("resident", "streaming")}
    rounds = [{name: run.run(_STEPS.value) for name, run in timed.items()}
              for _ in range(_ROUNDS.value)]  # fmt: skip
    best = {
        name: max((found[name] for found in rounds), key=lambda x: x["images_per_second"])
        for name in timed
    }
    print(json.dumps({"steps": _STEPS.value, "best": best, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    app.run(main)
