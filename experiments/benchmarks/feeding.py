# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How long devices wait for data, and how many images a second both feeds bring them.

    python -m experiments.benchmarks.feeding --out=experiments/results/benchmarks

Devices wait while nothing is queued on them: from the moment a call is done until the host, which
draws batches, reads images and moves both, queues the next one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks import ours, timing
from experiments.benchmarks.step import without_contenders
from experiments.benchmarks.timing import Benchmark, Effort, Record
from experiments.harness.stepping import SteppedRun

FEEDS = ("resident", "streaming")
SWITCH_SECONDS = 1e-4  # between threads, so that the end of a call is noticed at once


def measure(settings: Mapping[str, Any], effort: Effort) -> dict[str, Any]:
    """Both feeds in turn, first for their speed, then for the time that devices wait."""
    runs = {feed: ours.build({**settings, "data.feed": feed}) for feed in FEEDS}
    config = runs["resident"].experiment.config
    images = config.clients.num * config.data.batch_size + config.data.public_batch_size
    measured = timing.alternate([ours.contender(feed, run) for feed, run in runs.items()], effort)
    return {
        "clients": config.clients.num,
        "model": config.model.name,
        "images_per_step": images,
        "steps_per_call": {feed: run.unit for feed, run in runs.items()},
        "measured": measured,
        "waiting": _waiting(runs, measured, effort.rounds),
    }


def _waiting(
    runs: Mapping[str, SteppedRun], measured: Mapping[str, Any], rounds: int
) -> dict[str, list[float]]:
    """Share of the time that devices wait, by feed and round."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    found: dict[str, list[float]] = {feed: [] for feed in runs}
    for _ in range(rounds):
        for feed, run in runs.items():
            found[feed].append(run.waiting(max(measured[feed]["count"], 3 * run.unit)))
    sys.setswitchinterval(usual)
    return found


def table(records: Sequence[Record]) -> str:
    """A row for every case and feed."""
    head = ("clients", "network", "feed", "steps per call", "images/s", "devices wait")
    lines = [_row(record["results"], feed) for record in records for feed in FEEDS]
    said = (
        f"Medians over {timing.rounds(records)}, smallest and largest in brackets; "
        "on a CPU the host's work takes cores from the step."
    )
    return timing.markdown(head, lines, said, records)


def _row(results: Mapping[str, Any], feed: str) -> tuple[str, ...]:
    waits = timing.spread(results["waiting"][feed])
    milliseconds = timing.milliseconds(results["measured"], feed)
    return (
        str(results["clients"]),
        results["model"],
        feed,
        str(results["steps_per_call"][feed]),
        f"{1e3 * results['images_per_step'] / milliseconds:,.0f}",
        f"{waits['median']:.1%} ({waits['min']:.1%} to {waits['max']:.1%})",
    )


BENCHMARK = Benchmark(
    "feeding", "How long devices wait for data", without_contenders(measure), table
)


if __name__ == "__main__":
    timing.main(BENCHMARK)
