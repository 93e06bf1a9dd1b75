# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who distils from whom: communication graphs, fixed or changing, as boolean matrices.

`A[i, j]` is True when client i distils from client j (row reads column); the diagonal is False.
The graphs by name are in `catalogue`, graphs over time in `topology`, what can be said about a
graph in `facts`.
"""

from mhd_jax.graph.catalogue import FIXED, GRAPHS, Adjacency, check_adjacency, read_matrix
from mhd_jax.graph.facts import (
    describe,
    hop_distances,
    metropolis_weights,
    warn_unreachable,
)
from mhd_jax.graph.topology import (
    Topology,
    check_settings,
    make_topology,
    sample_peers,
    warn_without_effect,
)

__all__ = [
    "FIXED",
    "GRAPHS",
    "Adjacency",
    "Topology",
    "check_adjacency",
    "check_settings",
    "describe",
    "hop_distances",
    "metropolis_weights",
    "read_matrix",
    "sample_peers",
    "make_topology",
    "warn_unreachable",
    "warn_without_effect",
]
