# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Accuracy by how far away, along the graph, those are who know a label."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Int

from mhd_jax import graph
from mhd_jax.results.statistics import head_names
from mhd_jax.results.summary import SeedResult

NO_PRIMARY = -2
"""In place of hops: no table counts this pair, such as a label that is nobody's primary label."""


@dataclasses.dataclass(frozen=True)
class HopTable:
    """Accuracy on labels by how far away, in hops, their nearest primary client is.

    Attributes:
      heads: the heads' names, [H].
      distances: that occur, in ascending order, with -1 (nobody who holds the label can be heard)
        last; empty where no label has a primary client, [D].
      accuracy: mean over all pairs of a client and a label at that distance, [H, D].
      pairs: how many pairs that are, [D].
    """

    heads: list[str]
    distances: list[int]
    accuracy: Float[np.ndarray, "H D"]
    pairs: list[int]

    @functools.cached_property
    def names(self) -> list[str]:
        """How the distances are written."""
        return [hop_name(distance) for distance in self.distances]


def hop_name(distance: int) -> str:
    """How a distance of the hop table is written: -1 is 'none', nobody who knows is heard."""
    return "none" if distance < 0 else str(distance)


def hop_table(result: SeedResult) -> HopTable:
    """Accuracy by distance along the graph; where the graph changes, along all its graphs at once.

    A client is 0 hops from its own primary labels, 1 hop from those of the clients it learns
    from, and so on. A label with several primary clients counts with the nearest; labels without
    a primary client or a test sample are left out, and so are clients that lie or are frozen.
    """
    hops = label_hops(result.primary_labels, result.adjacency_union)
    return accuracy_by_hops(
        result.class_accuracy, np.where(result.counted[:, None], hops, NO_PRIMARY)
    )


def accuracy_by_hops(
    class_accuracy: Float[np.ndarray, "K H C"], hops: Int[np.ndarray, "K C"]
) -> HopTable:
    """`hop_table` from accuracies and `label_hops`."""
    accuracy = for_every_client(class_accuracy, len(hops))
    hops = np.where(np.isnan(accuracy).any(axis=1), NO_PRIMARY, hops)
    distances = sorted({int(d) for d in np.unique(hops)} - {NO_PRIMARY})
    distances.sort(key=lambda d: (d == -1, d))
    table = np.empty((accuracy.shape[1], len(distances)))
    pairs = []
    for column, distance in enumerate(distances):
        client, label = np.nonzero(hops == distance)
        table[:, column] = accuracy[client, :, label].mean(axis=0)
        pairs.append(len(client))
    return HopTable(head_names(accuracy.shape[1]), distances, table, pairs)


def label_hops(
    primary_labels: Bool[np.ndarray, "K C"], adjacency: Bool[np.ndarray, "K K"]
) -> Int[np.ndarray, "K C"]:
    """Hops from every client to the nearest primary client of every label.

    Returns:
      [K, C], -1 where no primary client can be heard and `NO_PRIMARY` for labels that have none.
    """
    primary = np.asarray(primary_labels, dtype=bool)
    hops = graph.hop_distances(np.asarray(adjacency, dtype=bool))
    far = len(hops) + 1
    reach = np.where(hops < 0, far, hops)
    # Label by label: [K, K, C] at once would be large for many clients and classes.
    nearest = np.stack([reach[:, own].min(axis=1, initial=far) for own in primary.T], axis=1)
    nearest = np.where(nearest == far, -1, nearest)
    return np.where(primary.any(axis=0), nearest, NO_PRIMARY)


def for_every_client(
    values: Float[np.ndarray, "k ..."], num_clients: int
) -> Float[np.ndarray, "K ..."]:
    """`values`, for every client the same where one pooled model stands for all."""
    array = np.asarray(values, dtype=float)
    return np.broadcast_to(array, (num_clients, *array.shape[1:]))
