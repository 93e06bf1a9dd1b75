# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Facts about a graph, and the weights with which neighbours average."""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float64, Int
from scipy.sparse import csgraph

from mhd_jax.graph.catalogue import Adjacency

LISTED = 10
"""Clients that a message names."""


def hop_distances(adjacency: Adjacency) -> Int[np.ndarray, "K K"]:
    """Hops over which client i hears from client j: 1 for a peer, 2 for a peer's peer, ...

    >>> from mhd_jax.graph.catalogue import cycle
    >>> hop_distances(cycle(4, np.random.default_rng(0)))[0]
    array([0, 3, 2, 1])

    Returns:
      [K, K], 0 on the diagonal and -1 where i never hears from j.
    """
    # SciPy up to 1.18 gives wrong distances, raising nothing, for arrays in another memory order.
    lengths = np.ascontiguousarray(adjacency, dtype=float)
    hops = csgraph.shortest_path(lengths, unweighted=True)
    return np.where(np.isfinite(hops), hops, -1).astype(np.int64)


def describe(adjacency: Adjacency) -> dict[str, Any]:
    """Statistics of a graph in plain Python numbers, fit for JSON.

    >>> from mhd_jax.graph.catalogue import star
    >>> describe(star(3, np.random.default_rng(0)))["hop_counts"]
    [4, 2]

    Returns:
      clients: K.
      edges: directed edges, so that two clients who read each other count twice.
      min_degree, mean_degree, max_degree: peers that a client reads.
      weakly_connected: whether the graph is in one piece if directions are ignored.
      strongly_connected: whether everybody hears from everybody over some number of hops.
      diameter: the most hops between two clients, None unless strongly connected.
      hop_counts: number of pairs (i, j) with i hearing from j over 1, 2, ... hops.
      unheard: clients whom nobody reads.
      without_peers: clients who read nobody.
    """
    adjacency = np.asarray(adjacency, dtype=bool)
    degrees = adjacency.sum(axis=1)
    hops = hop_distances(adjacency)
    connected = bool((hops >= 0).all())
    pieces, _ = csgraph.connected_components(adjacency, directed=True, connection="weak")
    return {
        "clients": len(adjacency),
        "edges": int(adjacency.sum()),
        "min_degree": int(degrees.min()),
        "mean_degree": float(degrees.mean()),
        "max_degree": int(degrees.max()),
        "weakly_connected": bool(pieces == 1),
        "strongly_connected": connected,
        "diameter": int(hops.max()) if connected else None,
        "hop_counts": np.bincount(hops[hops > 0])[1:].tolist(),
        "unheard": np.flatnonzero(~adjacency.any(axis=0)).tolist(),
        "without_peers": np.flatnonzero(degrees == 0).tolist(),
    }


def warn_unreachable(adjacency: Adjacency) -> None:
    """Logs a warning for clients whom nobody reads and one for clients who read nobody.

    Both are legal. For a graph that changes, pass who reads whom at any time, `Topology.ever`. A
    client that is alone in the run is no news.
    """
    if len(adjacency) == 1:
        return
    facts = describe(adjacency)
    if facts["unheard"]:
        logging.warning("nobody distils from client %s", listed(facts["unheard"]))
    if facts["without_peers"]:
        alone = listed(facts["without_peers"])
        logging.warning("no peers, private data only: client %s", alone)


def listed(clients: list[int] | set[int]) -> str:
    """Clients in ascending order, for a message; of many the first few and how many more.

    >>> listed({4, 2}), listed(list(range(1000)))
    ('2, 4', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 990 more')
    """
    named = ", ".join(map(str, sorted(clients)[:LISTED]))
    return named if len(clients) <= LISTED else f"{named} and {len(clients) - LISTED:,} more"


# --- Averaging weights ----------------------------------------------------------------------------


def metropolis_weights(adjacency: Bool[np.ndarray, "*n K K"]) -> Float64[np.ndarray, "*n K K"]:
    """Weights with which neighbours average: symmetric and doubly stochastic.

    Edges count in both directions. With d_i the number of neighbours of client i,
    ``W[i, j] = 1 / (1 + max(d_i, d_j))`` for neighbours, ``W[i, i] = 1 - sum of the others`` and 0
    elsewhere, so averaging over and over leads every connected client to the mean of all.

    Source: Xiao and Boyd, Fast linear iterations for distributed averaging, Systems & Control
    Letters 53, 2004, for averaging with symmetric weights; Xiao, Boyd and Lall, A scheme for
    robust distributed sensor fusion based on average consensus, IPSN 2005, for these weights,
    which also serve graphs that change.

    >>> from mhd_jax.graph.catalogue import chain
    >>> metropolis_weights(chain(3, np.random.default_rng(0))).round(2)
    array([[0.67, 0.33, 0.  ],
           [0.33, 0.33, 0.33],
           [0.  , 0.33, 0.67]])

    Args:
      adjacency: one graph, or one for each of n steps.
    """
    neighbours = adjacency | np.swapaxes(adjacency, -1, -2)
    degrees = neighbours.sum(axis=-1)
    larger = np.maximum(degrees[..., :, None], degrees[..., None, :])
    weights = neighbours / (1.0 + larger)
    own = 1.0 - weights.sum(axis=-1)
    return weights + own[..., None] * np.eye(adjacency.shape[-1])
