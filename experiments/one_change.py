# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The quickstart with one setting changed, as users change it: is anybody worse off than alone?

    python -m experiments.one_change --preset=grid --workdir=runs/grid --jobs=2

The grid (`experiments.robustness`) tries the defaults on kinds of data, networks and graphs. Here
they are tried with sizes, lengths and partitions that are far from those they were chosen with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from experiments.harness import sweep, worst
from experiments.harness.candidates import DATA, Settings
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Record, Study

ANYWHERE: dict[str, Settings] = {
    "nothing changed": {},
    "2 clients": {"clients.num": 2},
    "disjoint labels": {"partition.skew": math.inf},
    "2 shards each": {"partition.name": "shards"},
    "2 classes each": {"partition.name": "classes_per_client"},
    "Dirichlet 0.02": {"partition.name": "dirichlet", "partition.alpha": 0.02},
    "unequal sizes": {"partition.name": "quantity"},
    "half of the clients at a time": {"clients.active": 0.5},
    "batches of 8": {"data.batch_size": 8},
    "public batches of 16": {"data.public_batch_size": 16},
    "100 steps": {"train.steps": 100},
    "300 steps": {"train.steps": 300},
    "learning rate 0.0005": {"optimizer.learning_rate": 0.0005},
    "learning rate 0.01": {"optimizer.learning_rate": 0.01},
    "constant learning rate": {"optimizer.schedule": "constant"},
    "network of width 16": {"model.width": 16},
    "network of width 256": {"model.width": 256},
    "5 hidden layers": {"model.depth": 5},
    "no normalisation": {"model.norm": "none"},
    "batch normalisation": {"model.norm": "batch"},
    "8 auxiliary heads": {"heads.aux": 8},
    "star": {"graph.name": "star"},
    "chain": {"graph.name": "chain"},
    "two islands": {"graph.name": "islands"},
}
"""What is changed, whatever the data."""

SOMEWHERE: dict[str, Mapping[str, Settings]] = {
    "digits": {
        "26 public images": {"data.public_fraction": 0.02},
        "half of the images public": {"data.public_fraction": 0.5},
        "3 clients": {"clients.num": 3},
        "32 clients": {"clients.num": 32},
        "5,000 steps": {"train.steps": 5000},
        "bfloat16": {"model.dtype": "bfloat16"},
    },
    "CIFAR-10": {
        "200 public images": {"data.public_fraction": 0.004},
        "32 clients": {"clients.num": 32},
    },
}
"""What is changed on one kind of data, where it makes a difference or is quick."""


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        _cell(data, label, changes)
        for data in SOMEWHERE
        for label, changes in {**ANYWHERE, **SOMEWHERE[data]}.items()
    ]


def _cell(data: str, label: str, changes: Settings) -> Cell:
    slug = "-".join(f"{data} {label}".lower().replace(",", "").split())
    settings = {"train.steps": 1000, **DATA[data], **changes}
    return Cell(slug, label, settings, group=data)


def verdict(records: Sequence[Record]) -> str:
    """The worst rows in a sentence."""
    found = worst.find(records)
    return (
        f"Of {len(records)} rows the smallest gain is {found.gain:+.3f} ({found.least}), the "
        f"largest loss of private accuracy {found.private:+.3f} ({found.most}); collapsed heads: "
        f"{found.collapsed}."
    )


STUDY = Study(
    "one_change",
    "One setting changed",
    cells,
    draw=worst.draw,
    definitions=(
        "The defaults with 8 clients, a dense network and 1,000 steps, but for what the row says; "
        "CIFAR-10 at 16 px.",
        "Classes, shards and sizes of clients are those of the defaults of each partition.",
    ),
    extra=verdict,
)


if __name__ == "__main__":
    sweep.main(STUDY)
