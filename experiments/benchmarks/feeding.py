# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How long devices wait for data: a run against the same calls on data that are already there.

    python -m experiments.benchmarks.feeding --out=experiments/results/benchmarks

The yardstick repeats the compiled step on one call's plan, so that the host draws no batches, moves
nothing and reads no images. What a run takes beyond that is time its devices waited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks import ours, timing
from experiments.benchmarks.step import without_contenders
from experiments.benchmarks.timing import Benchmark, Effort, Record

FEEDS = ("resident", "streaming")
BARE = "bare"  # the resident step without a feed


def measure(settings: Mapping[str, Any], effort: Effort) -> dict[str, Any]:
    """Both feeds and the bare step in turn."""
    dense = settings.get("model.name", "mlp") == "mlp"
    source = None if dense else ours.photographs()
    runs = {feed: ours.build({**settings, "data.feed": feed}, source) for feed in FEEDS}
    bare = ours.build({**settings, "data.feed": "resident"}, source).bare(BARE)
    config = runs["resident"].experiment.config
    images = config.clients.num * config.data.batch_size + config.data.public_batch_size
    return {
        "clients": config.clients.num,
        "model": config.model.name,
        "images_per_step": images,
        "steps_per_call": {feed: run.unit for feed, run in runs.items()},
        "measured": timing.alternate(
            [bare, *(run.contender(feed) for feed, run in runs.items())], effort
        ),
    }


def waiting(results: Mapping[str, Any], feed: str) -> dict[str, float]:
    """Share of the time that devices wait; below 0 where noise is larger than it."""
    measured = results["measured"]
    pairs = zip(measured[feed]["seconds"], measured[BARE]["seconds"], strict=True)
    return timing.spread([1 - least / took for took, least in pairs])


def table(records: Sequence[Record]) -> str:
    """A row for every case and feed."""
    head = ("clients", "network", "feed", "steps per call", "images/s", "devices wait")
    lines = [head, ("---",) * len(head)]
    for record in records:
        lines += [_row(record["results"], feed) for feed in FEEDS]
    facts = (
        f"Medians over {timing.rounds(records)}, smallest and largest in brackets; "
        f"on a CPU the host's work takes cores from the step. {records[0]['hardware']}. "
        f"`{records[0]['command']}`"
    )
    return timing.markdown(lines, facts)


def _row(results: Mapping[str, Any], feed: str) -> tuple[str, ...]:
    waits = waiting(results, feed)
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
