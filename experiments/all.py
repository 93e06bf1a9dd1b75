# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""All tables, the most important first: ``python -m experiments.all --preset=digits``."""

from __future__ import annotations

from experiments import (
    architectures,
    auxiliary_heads,
    communication,
    data_heterogeneity,
    digits_claims,
    embedding_weight,
    held_out,
    liars,
    main_comparison,
    many_clients,
    one_change,
    photographs,
    public_data,
    ring,
    robustness,
    scaling,
    sequences,
    small_tables,
    sparse_graphs,
    staleness,
    tabular,
    teachers,
    topology,
)
from experiments.harness import sweep

STUDIES = (
    digits_claims.STUDY,
    main_comparison.STUDY,
    topology.STUDY,
    staleness.STUDY,
    auxiliary_heads.STUDY,
    sparse_graphs.STUDY,
    teachers.STUDY,
    communication.STUDY,
    architectures.STUDY,
    data_heterogeneity.STUDY,
    public_data.STUDY,
    scaling.STUDY,
)

EVERY = (
    *STUDIES,
    robustness.STUDY,
    one_change.STUDY,
    embedding_weight.STUDY,
    held_out.STUDY,
    small_tables.STUDY,
    sequences.STUDY,
    photographs.STUDY,
    liars.STUDY,
    tabular.STUDY,
    many_clients.STUDY,
    ring.STUDY,
)
"""With those that have data sets and presets of their own: the grid of defaults, its rows with one
change and the weight of embeddings (`grid`), the tables, words, series and networks on which
nothing was chosen (`held_out`), silos (`tabular`), liars, which attack the same clients in many
ways, many clients (`many`), and the ring, whose public images are another data set's."""

if __name__ == "__main__":
    sweep.main(*STUDIES)
