# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Runs from Python: `fit` a config and look at what came out of it.

    import mhd_jax
    run = mhd_jax.fit({"train.steps": 500}, "runs/mine", head=MyHead)
    run.summary["shared_accuracy"]     # the record, also in runs/mine/summary.json
    run.history                        # one row per step, a pandas frame if pandas is there
    run.predict(images)                # probabilities [K, N, H, C]
    run.plot_accuracy()                # a matplotlib figure
    run.clients[0].private_accuracy    # one client

Pieces of your own (a head, a graph, a data set, ...) are passed as objects; each goes into the
registry of its setting, so that the run's config stays a list of names and numbers. Their shapes
are checked before anything is compiled.
"""

from mhd_jax.api.export import load_client
from mhd_jax.api.fitting import fit
from mhd_jax.api.joining import join
from mhd_jax.api.pieces import PIECES, register
from mhd_jax.api.run import Client, Run
from mhd_jax.data.sources import from_arrays, from_clients

__all__ = [
    "PIECES",
    "Client",
    "Run",
    "fit",
    "from_arrays",
    "from_clients",
    "join",
    "load_client",
    "register",
]
