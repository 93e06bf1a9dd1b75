# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A small study, and summaries and records with invented accuracies, for the tests of studies."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.harness.presets import Preset
from experiments.harness.study import Cell, PerClass, Record, Results, Study
from mhd_jax.results import SeedResult, Summary

TINY = Preset("tiny", "configs/digits.py:smoke", seeds=2, num_seeds=2, changes={"clients.num": 4})
STUDY = Study(
    "example",
    "Example",
    lambda chosen: [
        Cell("mhd", "MHD"),
        Cell("cycle", "cycle", {"graph.name": "cycle"}, per_class=True),
        Cell("fedavg", "FedAvg", {"method": "fedavg"}),
    ],
)


def summary(config: Any) -> Summary:
    """What a run of four clients leaves, with invented accuracies."""
    heads = config.heads.aux + 1 if config.method == "mhd" else 1
    draw = np.random.default_rng(len(config.method))
    by_seed: list[dict[str, Any]] = [
        {
            "seed": config.seed + r,
            "partition_hash": f"hash {config.seed + r}",
            "normalization": [[0.5], [0.25]],
            "shared_accuracy": draw.random((4, heads)),
            "private_accuracy": draw.random((4, heads)),
            "class_accuracy": draw.random((4, heads, 10)),
            "label_histogram": np.ones((4, 10), int),
            "primary_labels": np.eye(4, 10, dtype=bool),
            "adjacency": np.zeros((4, 4), bool),
            "adjacency_union": np.roll(np.eye(4, dtype=bool), -1, axis=1),
        }
        for r in range(config.num_seeds)
    ]
    return Summary(
        **by_seed[0],
        replicas=tuple(SeedResult(**one) for one in by_seed),
        method=config.method,
        config=config.to_dict(),
        versions={"jax": "0"},
        device="cpu",
        mesh="1 x 1",
        num_params=[5] * 4,
        num_classes=10,
        steps=config.train.steps,
        steps_per_second=10.0,
        compile_seconds=1.0,
        bytes_per_step={"predictions": np.array([1.0, 3.0])},
        bytes_sent=0.0 if config.method == "isolated" else 1e4,
    )


def record(
    cell: str, shared: list[float], private: float = 0.9, per_class: PerClass | None = None
) -> Record:
    """Of two seeds and three clients: shared accuracy by head, an isolated baseline of 0.4."""
    values = np.broadcast_to(np.array(shared), (2, 3, len(shared)))
    found = Results(
        seeds=[0, 1],
        partition_hash=["hash 0", "hash 1"],
        shared_accuracy=values,
        private_accuracy=np.full(values.shape, private),
        isolated_shared_accuracy=np.full((2, 3, 1), 0.4),
        isolated_private_accuracy=np.full((2, 3, 1), 0.9),
        bytes_per_client_and_step=100.0,
        bytes_per_step={"predictions": 100.0},
        per_class=per_class,
    )
    return Record(
        study="example", cell=cell, label=cell, group="", column="", preset="tiny",
        command="python", changes={}, config=TINY.base().to_dict(),
        revision="0" * 12, versions={"jax": "0"}, device="cpu",
        hardware="1 core", num_params=[5, 5, 5], seconds_per_step=0.1,
        compile_seconds=1.0, wall_seconds=60.0, found=found,
    )  # fmt: skip
