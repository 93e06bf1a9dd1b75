# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Resident against streamed images: images a second, and the share of time spent waiting.

    python -m experiments.feeds --config=configs/cifar10.py:cpu --steps=30

Both feeds run in turn, several times, in one process; the best of each counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from experiments.benchmarks.stepping import Stepper
from mhd_jax.config import update
from mhd_jax.data.streaming import Streaming

_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py", "The run to time.")
_STEPS = flags.DEFINE_integer("steps", 30, "Steps of one measurement.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each feed.", lower_bound=1)


class Timed:
    """One feed's run, compiled."""

    def __init__(self, config: ml_collections.ConfigDict, feed: str) -> None:
        chosen = config.copy_and_resolve_references()
        update(chosen, {"data.feed": feed})
        self._stepper = Stepper(chosen)

    def run(self, steps: int) -> dict[str, float]:
        """Images a second, all clients and the public batch, and the share of time waiting."""
        experiment = self._stepper.experiment
        feed, data = experiment.feed, experiment.config.data
        before = feed.seconds_waiting if isinstance(feed, Streaming) else 0.0
        steps += -steps % self._stepper.unit  # whole calls
        begin = time.monotonic()
        self._stepper.run(steps)
        seconds = time.monotonic() - begin
        waited = feed.seconds_waiting - before if isinstance(feed, Streaming) else 0.0
        images = steps * (experiment.config.clients.num * data.batch_size + data.public_batch_size)
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
