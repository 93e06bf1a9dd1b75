# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Runs made up without training, for the tests of what shows them."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

from mhd_jax import graph
from mhd_jax.config import default_config, update
from mhd_jax.results import VERSION, Summary


def cycle(num_clients: int) -> np.ndarray:
    """Every client learns from the next one."""
    return np.roll(np.eye(num_clients, dtype=bool), 1, axis=1) & ~np.eye(num_clients, dtype=bool)


def synthetic_run(
    num_clients: int = 8,
    num_classes: int = 10,
    aux: int = 4,
    adjacency: np.ndarray | None = None,
    isolated_baseline: bool = True,
    replicas: int = 1,
    seed: int = 0,
) -> tuple[Summary, list[dict[str, Any]]]:
    """A made-up summary and history with the shapes and the manners of a real run's."""
    rng = np.random.default_rng(seed)
    adjacency = cycle(num_clients) if adjacency is None else adjacency
    summary = _summary(rng, num_clients, num_classes, aux, adjacency, isolated_baseline)
    history = _history(rng, summary)
    if replicas > 1:
        others = [
            _summary(rng, num_clients, num_classes, aux, adjacency, isolated_baseline)
            for _ in range(replicas - 1)
        ]
        fields = (
            "seed", "partition_hash", "normalization", "shared_accuracy", "private_accuracy",
            "isolated_baseline", "class_accuracy", "label_histogram", "primary_labels", "adjacency",
            "adjacency_union",
        )  # fmt: skip
        summary["replicas"] = [
            {key: run[key] for key in fields} | {"seed": index, "partition_hash": f"{index}" * 20}
            for index, run in enumerate([copy.deepcopy(summary), *others])
        ]
    # Through JSON, as everybody meets them.
    return Summary.from_json(json.loads(json.dumps(summary))), json.loads(json.dumps(history))


def _summary(
    rng: np.random.Generator,
    clients: int,
    classes: int,
    aux: int,
    adjacency: np.ndarray,
    isolated_baseline: bool,
) -> dict[str, Any]:
    owned = max(1, round(2 * classes / clients))
    primary = np.zeros((clients, classes), dtype=bool)
    for row in primary:
        row[rng.choice(classes, min(owned, classes), replace=False)] = True
    counts = rng.binomial(12, 0.02, primary.shape) + primary * rng.integers(30, 70, primary.shape)
    counts[:, 0] += 1
    hops = np.where(graph.hop_distances(adjacency) < 0, 99, graph.hop_distances(adjacency))
    nearest = np.where(primary[None], hops[:, :, None], 99).min(axis=1)
    rank = np.arange(aux + 1)[None, :, None]
    known = np.exp(-np.maximum(0, nearest[:, None] - rank)) * (0.97 - 0.03 * rank)
    accuracy = np.clip(known - np.abs(rng.normal(0, 0.04, known.shape)), 0, 1)
    mix = counts / counts.sum(axis=1, keepdims=True)
    alone = np.clip(0.97 * primary + 0.02 - np.abs(rng.normal(0, 0.02, primary.shape)), 0, 1)
    return {
        "version": VERSION,
        "method": "mhd",
        "seed": 0,
        "config": _config(clients, aux, isolated_baseline),
        "versions": {"python": "3.11.7", "mhd_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
        "device": "cpu (4 devices)",
        "mesh": "4 x 1",
        "num_classes": classes,
        "bytes_sent": 64.0 * ((aux + 1) * classes + 64) * 4 * clients * 1500,
        "bytes_published": 64.0 * ((aux + 1) * classes + 64) * 4 * clients * 1500,
        "num_params": [18_123] * clients,
        "steps": 1500,
        "steps_per_second": 341.2,
        "compile_seconds": 6.4,
        "partition_hash": "3f2a9c0d7be14c55a1e0",
        "normalization": [[0.5], [0.25]],
        "shared_accuracy": accuracy.mean(axis=-1).tolist(),
        "private_accuracy": (accuracy * mix[:, None]).sum(axis=-1).tolist(),
        "isolated_baseline": {
            "shared_accuracy": alone.mean(axis=-1, keepdims=True).tolist(),
            "private_accuracy": (alone * mix).sum(axis=-1, keepdims=True).tolist(),
        }
        if isolated_baseline
        else None,
        "class_accuracy": accuracy.tolist(),
        "label_histogram": counts.tolist(),
        "primary_labels": primary.tolist(),
        "adjacency": adjacency.tolist(),
        "adjacency_union": adjacency.tolist(),
        "bytes_per_step": {
            "predictions": [64 * ((aux + 1) * classes + 64) * 4] * clients,
            "snapshots": [18_123 * 4 / 200] * clients,
            "fedavg": [18_123 * 4 / 200 * 2] * clients,
        },
    }


def _config(clients: int, aux: int, isolated_baseline: bool) -> dict[str, Any]:
    config = default_config()
    changes = {"clients.num": clients, "heads.aux": aux, "graph.name": "cycle"}
    changes["isolated_baseline"] = isolated_baseline
    update(config, changes)
    return config.to_dict()


def _history(rng: np.random.Generator, summary: dict[str, Any]) -> list[dict[str, Any]]:
    clients, heads = np.shape(summary["shared_accuracy"])
    per_step = sum(summary["bytes_per_step"]["predictions"])
    lines: list[dict[str, Any]] = []
    for step in range(50, 1501, 50):
        decay = np.exp(-step / 300)
        noise = np.abs(rng.normal(1, 0.1, (clients, heads + 2)))
        parts = noise[:, 3:] * (0.5 + 1.8 * decay)
        private, embedding = (0.02 + 2 * decay) * noise[:, 0], (0.1 + 0.8 * decay) * noise[:, 1]
        lines.append(
            {
                "step": step,
                "seconds": step / 341,
                "steps_per_second": 341.2,
                "loss": (private + embedding + 3 * parts.sum(axis=1)).tolist(),
                "private_loss": private.tolist(),
                "embedding_loss": embedding.tolist(),
                "head_losses": parts.tolist(),
                **_vitals(rng, parts),
                "bytes_sent": per_step * step,
            }
        )
        if step % 100 == 0:
            lines.append({"step": step, "seconds": step / 341} | _evaluation(rng, summary, step))
    return lines


def _vitals(rng: np.random.Generator, parts: np.ndarray) -> dict[str, Any]:
    """What the probe finds; nothing for clients that nobody teaches."""
    clients, taught = parts.shape
    if not taught:
        return {}
    heads = taught + 1
    return {
        "prediction_entropy": rng.uniform(0.5, 2, (clients, heads)).tolist(),
        "top_class_share": rng.uniform(0.1, 0.9, (clients, heads)).tolist(),
        "teacher_agreement": rng.uniform(0, 1, heads).tolist(),
        "ignored_by": rng.uniform(0, 0.2, clients).tolist(),
        "teaching_share": rng.dirichlet(np.ones(clients)).tolist(),
        "teacher_accuracy": rng.uniform(0.3, 0.9, (clients, taught)).tolist(),
    }


def _evaluation(rng: np.random.Generator, summary: dict[str, Any], step: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    groups = [("", summary), ("control_", summary["isolated_baseline"])]
    for prefix, run in [(prefix, run) for prefix, run in groups if run]:
        for kind in ("shared_accuracy", "private_accuracy"):
            final = np.array(run[kind])
            delay = 150 + 120 * np.arange(final.shape[-1])
            grown = 0.1 + (final - 0.1) * (1 - np.exp(-step / delay))
            noisy = grown + rng.normal(0, 0.01, final.shape)
            values[prefix + kind] = np.clip(noisy, 0, 1).tolist()
    return values


def changed(summary: Summary, **values: Any) -> Summary:
    """The same summary with other values, given as in JSON."""
    return Summary.from_json(summary.to_json() | values)
