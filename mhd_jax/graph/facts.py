# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Facts about a graph, and the weights with which neighbours average."""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Float64, Int, UInt64
from scipy import sparse
from scipy.sparse import csgraph

from mhd_jax.graph.catalogue import Adjacency
from mhd_jax.wording import listed

FAR = 64
"""Hops up to which all clients are searched at once, bit by bit."""

AT_ONCE = 2**23
"""Words of 64 clients that one step of that search gathers."""


def hop_distances(adjacency: Adjacency) -> Int[np.ndarray, "K K"]:
    """Hops over which client i hears from client j: 1 for a peer, 2 for a peer's peer, ...

    >>> from mhd_jax.graph.catalogue import cycle
    >>> hop_distances(cycle(4, np.random.default_rng(0)))[0]
    array([0, 3, 2, 1])

    Returns:
      [K, K], 0 on the diagonal and -1 where i never hears from j.
    """
    adjacency = np.asarray(adjacency, dtype=bool)
    clients = len(adjacency)
    hops = np.where(adjacency, 1, -1)
    np.fill_diagonal(hops, 0)
    heard = _packed(hops >= 0)
    for distance in range(2, FAR):
        if (hops >= 0).all():
            return hops
        further = _heard_through(adjacency, heard)
        new = np.unpackbits((further & ~heard).view(np.uint8), axis=1)[:, :clients].view(bool)
        if not new.any():
            return hops
        hops[new] = distance
        heard = further
    lengths = csgraph.shortest_path(sparse.csr_array(adjacency), method="D", unweighted=True)
    return np.where(np.isfinite(lengths), lengths, -1).astype(np.int64)


def _packed(mask: Bool[np.ndarray, "K K"]) -> UInt64[np.ndarray, "K w"]:
    """64 columns a word, the last word filled up with False."""
    missing = -len(mask) % 64
    bits = np.packbits(np.pad(mask, ((0, 0), (0, missing))), axis=1)
    return np.ascontiguousarray(bits).view(np.uint64)


def _heard_through(
    adjacency: Adjacency, heard: UInt64[np.ndarray, "K w"]
) -> UInt64[np.ndarray, "K w"]:
    """Whom everybody hears who hears what their peers hear."""
    further = heard.copy()
    degrees = adjacency.sum(axis=1)
    rows = np.flatnonzero(degrees)
    edges_a_part = max(AT_ONCE // heard.shape[1], 1)
    part = np.cumsum(degrees[rows]) // edges_a_part
    for some in np.split(rows, np.flatnonzero(np.diff(part)) + 1):
        if len(some):
            starts = np.cumsum(degrees[some]) - degrees[some]
            teachers = np.nonzero(adjacency[some])[1]
            further[some] |= np.bitwise_or.reduceat(heard[teachers], starts, axis=0)
    return further


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
    pieces, _ = csgraph.connected_components(
        sparse.csr_array(adjacency), directed=True, connection="weak"
    )
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
    unheard, alone = (np.flatnonzero(~adjacency.any(axis=axis)).tolist() for axis in (0, 1))
    if unheard:
        logging.warning("nobody distils from client %s", listed(unheard))
    if alone:
        logging.warning("no peers, private data only: client %s", listed(alone))


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
