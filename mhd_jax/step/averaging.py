# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The average of parameters, for methods that have one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mhd_jax import aggregation, rng
from mhd_jax.attacks import Attackers
from mhd_jax.exchange import from_wire, to_wire
from mhd_jax.inputs import StepInputs
from mhd_jax.methods import Averaging
from mhd_jax.optimizer import restarted
from mhd_jax.parallel import gather_clients
from mhd_jax.state import Learners
from mhd_jax.step.parts import StepParts
from mhd_jax.trees import PyTree


def average(
    parts: StepParts,
    averaging: Averaging,
    clients: tuple[Learners, ...],
    inputs: StepInputs,
    seed: Array,
    step: Array,
) -> tuple[tuple[Learners, ...], tuple[Float[Array, " k"], ...]]:
    """Mixes parameters and statistics over clients where an average is due; see `AGGREGATORS`.

    Optimiser states stay local. Parameters travel in the type of embeddings. This, and only this,
    sends parameters between clients; methods without averaging have no such collective. Clients
    whose parameters are not all finite are read by nobody; they are 1 in the second result.
    """
    (group,), size = clients, parts.layout.num_clients
    due = inputs.average >= 0
    travels, rows = parts.encoding.embedding_type, parts.roster.own(0)

    def gathered(x: Array) -> Array:
        return from_wire(gather_clients(to_wire(x, travels))[:size], travels)

    def mix(tree: PyTree) -> tuple[PyTree, Array]:
        everyone = jax.tree.map(gathered, tree)
        if parts.attackers is not None:
            everyone = _with_false_parameters(parts.attackers, everyone, seed, step)
        weights = inputs.mixing if averaging.matrix == "graph" else _uniform(rows, size)
        mixed, readable = aggregation.aggregate(
            tree, everyone, weights, averaging.rule, averaging.trim
        )
        return mixed, 1.0 - readable[rows]

    values = (group.params, group.stats)
    nothing = jnp.zeros(len(rows))
    (params, stats), unreadable = jax.lax.cond(due, mix, lambda tree: (tree, nothing), values)
    opt_state = group.opt_state
    if averaging.reset_momentum:
        opt_state = restarted(opt_state, jax.vmap(parts.optimizer.init)(params), due)
    return (Learners(params, stats, opt_state),), (unreadable,)


def _uniform(rows: Int[Array, " k"], clients: int) -> Float[Array, "k K"]:
    """Equal weights of all clients for each of these rows; inert rows read nobody."""
    exists = jnp.broadcast_to((rows < clients)[:, None], (len(rows), clients))
    return jnp.where(exists, jnp.float32(1 / clients), 0.0)


def _with_false_parameters(liars: Attackers, everyone: PyTree, seed: Array, step: Array) -> PyTree:
    """Parameters [K, ...] as readers get them, leaf by leaf."""
    leaves, tree = jax.tree.flatten(everyone)
    told = [
        liars.on_vectors(leaf, np.arange(len(leaf)), rng.stream(seed, "attack", step, index), step)
        for index, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, told)
