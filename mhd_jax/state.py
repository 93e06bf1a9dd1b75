# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The state of a run: stacked clients, their isolated baseline, and the pool of snapshots.

Every leaf but the step has axes [R, K, ...]: replica, then client.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool

from mhd_jax import rng
from mhd_jax.inputs import Sample, network_input
from mhd_jax.models import bridge, shapes
from mhd_jax.parallel import CLIENTS, DATA, Layout
from mhd_jax.trees import AnyTree, PyTree, Variables
from mhd_jax.weights import Flat

Pool = tuple[Variables, ...]
"""Snapshots of every group of clients."""


class Learners(struct.PyTreeNode):
    """The clients of one group, stacked.

    Attributes:
      params: trainable parameters, `{"model": ..., "projections": ...}`.
      stats: batch statistics, `{}` without BatchNorm.
      opt_state: the optimiser's state, one per client.
    """

    params: PyTree
    stats: PyTree
    opt_state: PyTree

    @property
    def snapshot(self) -> Variables:
        """What a snapshot keeps of a client: enough to predict."""
        return {"params": self.params["model"], "batch_stats": self.stats}


class State(struct.PyTreeNode):
    """Everything a checkpoint holds.

    Attributes:
      step: steps done so far, a scalar.
      clients: one `Learners` per group.
      baseline: the same clients without peers and without aux heads; () when not wanted.
      pool: per group, the last snapshots of its clients, leaves [R, K, S, ...]; () when fresh.
      marginals: moving average of every published head's mean prediction, [R, K, H, C], on all
        devices or with its publisher; () where alignment needs none.
      cache: what readers have of the public batch's samples, leaves [R, K, B', ...], the same for
        all; () where everything is sent anew in every exchange.
    """

    step: jax.Array
    clients: tuple[Learners, ...]
    baseline: tuple[Learners, ...]
    pool: Pool
    marginals: jax.Array | tuple[()] = ()
    cache: PyTree = ()


def init_learner(
    key: jax.Array,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    sample: Sample,
    projection_widths: Sequence[int] = (),
) -> Learners:
    """One client's initial state.

    Args:
      key: the client's own key.
      model: a `MultiHeadClassifier`.
      optimizer: of one client.
      sample: shape of one normalised sample, and its type where that is not float32.
      projection_widths: embedding widths of other groups, each learned linearly from ours.
    """
    spec = network_input(sample)
    first = jnp.zeros(spec.shape, spec.dtype)
    keys = bridge.keys(rng.fold(key, "model"))
    (_, embedding), variables = model.init_with_output(keys, first, train=False)
    make = nn.initializers.lecun_normal()
    width = embedding.shape[-1]
    projections = {
        f"to_{other}": make(rng.fold(key, "projection", other), (width, other))
        for other in projection_widths
    }
    params = {"model": variables["params"], "projections": projections}
    return Learners(params, variables.get("batch_stats", {}), optimizer.init(params))


class Initial(NamedTuple):
    """The initial state of a run, before it is made.

    Attributes:
      shapes: its shapes, types and shardings; nothing is compiled for them.
      make: compiles and runs what draws it.
    """

    shapes: State
    make: Callable[[], State]


def initial(
    seeds: Sequence[int],
    layout: Layout,
    models: Sequence[nn.Module],
    baseline_models: Sequence[nn.Module],
    optimizer: optax.GradientTransformation,
    sample: Sample,
    *,
    pool_slots: int = 0,
    marginals: tuple[int, ...] = (),
    with_publishers: bool = False,
    cache: PyTree = (),
    same_start: bool = False,
) -> Initial:
    """The sharded initial state of all replicas; nothing is ever whole on one device.

    Args:
      seeds: one per replica, [R].
      layout: who owns which client.
      models: one per group.
      baseline_models: one per group with a main head only, or () for no isolated baseline.
      optimizer: of one client.
      sample: shape of one normalised sample, and its type where that is not float32.
      pool_slots: snapshots kept per client.
      marginals: (K, H, C) of the moving average that alignment keeps, which starts uniform; ()
        for none.
      with_publishers: each device keeps those of its own clients alone.
      cache: shapes of what readers keep, leaves [K, B', ...]; () for nothing.
      same_start: give every client of a group the parameters of its first client.
    """
    widths = [shapes.embedding_width(model, sample) for model in models]

    def learners(seed: jax.Array, group: int, model: nn.Module, others: list[int]) -> Learners:
        rows = jnp.arange(layout.rows[group]) * (0 if same_start else 1)
        clients = rows + layout.offsets[group]
        keys = jax.vmap(lambda client: rng.stream(seed, "init", client))(clients)
        one = lambda key: init_learner(key, model, optimizer, sample, others)  # noqa: E731
        return jax.vmap(one)(keys)

    def system(seed: jax.Array) -> tuple[tuple[Learners, ...], tuple[Learners, ...], Pool]:
        clients = tuple(
            learners(seed, group, model, sorted(set(widths) - {widths[group]}))
            for group, model in enumerate(models)
        )
        baseline = tuple(learners(seed, c, model, []) for c, model in enumerate(baseline_models))
        pool = tuple(_fill_pool(group.snapshot, pool_slots) for group in clients)
        return clients, baseline, pool if pool_slots else ()

    def everything(seeds: jax.Array) -> State:
        clients, baseline, pool = jax.vmap(system)(seeds)
        start = jnp.full((len(seeds), *marginals), 1 / marginals[-1]) if marginals else ()
        kept = jax.tree.map(lambda x: jnp.zeros((len(seeds), *x.shape), x.dtype), cache)
        return State(jnp.zeros((), jnp.int32), clients, baseline, pool, start, kept)

    seed_array = jnp.asarray(seeds, jnp.uint32)
    found = jax.eval_shape(jax.jit(everything), seed_array)  # jitted, so that it is traced once
    spread = shardings(found, layout, with_publishers)

    # Runs once: on CPU, optimising the random number generators takes seconds and gains nothing.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(everything, out_shardings=spread, compiler_options=options)
    shapes_of = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), found, spread
    )
    return Initial(shapes_of, lambda: init(seed_array))


def start_from(
    state: State, layout: Layout, clients: Sequence[Flat], baseline: Sequence[Flat]
) -> State:
    """The initial state with given weights in place of drawn ones, the same in every replica.

    Args:
      state: as `initial` makes it.
      layout: who owns which client.
      clients: weights of every client, see `mhd_jax.weights.fitted`; {} for none.
      baseline: likewise of the isolated baseline.
    """

    def replaced(groups: tuple[Learners, ...], given: Sequence[Flat]) -> tuple[Learners, ...]:
        return tuple(
            _with_weights(learners, layout, given[offset : offset + size])
            for learners, offset, size in zip(groups, layout.offsets, layout.groups, strict=True)
        )

    made = replaced(state.clients, clients)
    alone = replaced(state.baseline, baseline) if state.baseline else ()
    pool = tuple(
        jax.tree.map(lambda slots, x: slots.at[:].set(x[:, :, None]), slots, group.snapshot)
        for slots, group in zip(state.pool, made, strict=bool(state.pool))
    )
    return state.replace(clients=made, baseline=alone, pool=pool)


def _with_weights(learners: Learners, layout: Layout, given: Sequence[Flat]) -> Learners:
    """One group of clients with the weights that are given of each."""
    flat = traverse_util.flatten_dict(learners.snapshot, sep="/")
    for path in {path for weights in given for path in weights}:
        rows = layout.fetch(flat[path]).copy()
        for row, weights in enumerate(given):
            if path in weights:
                rows[:, row] = weights[path]
        flat[path] = layout.put(rows, None, CLIENTS)
    made = traverse_util.unflatten_dict(flat, sep="/")
    params = {**learners.params, "model": made["params"]}
    return learners.replace(params=params, stats=made.get("batch_stats", {}))


def specs(with_publishers: bool = False) -> State:
    """How every field lies on the mesh: the client axis over devices, what all share everywhere.

    Args:
      with_publishers: see `initial`.
    """
    rows, everywhere = PartitionSpec(None, CLIENTS), PartitionSpec()
    fields: Any = {
        "step": everywhere, "clients": rows, "baseline": rows, "pool": rows,
        "marginals": rows if with_publishers else everywhere,
        "cache": PartitionSpec(None, None, DATA),
    }  # fmt: skip
    return State(**fields)


def shardings(state: State, layout: Layout, with_publishers: bool = False) -> State:
    """The sharding of every leaf of a state of shapes or arrays, after `specs`."""

    def spread(spec: PartitionSpec, field: PyTree) -> PyTree:
        return jax.tree.map(lambda _: layout.sharding(*spec), field)

    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    found: State = jax.tree.map(spread, specs(with_publishers), state, is_leaf=is_spec)
    return found


def abstract(state: State) -> State:
    """Shapes, types and shardings without the numbers, for restoring a checkpoint."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def strip(state: State, layout: Layout) -> State:
    """Shapes without the inert rows, the same for any number of devices.

    Args:
      state: of shapes or arrays, leaves [R, rows, ...].
      layout: who owns which client.

    Returns:
      Shapes [R, K_group, ...] and types; shardings too, and as rows that are stripped cannot be
      dealt evenly, those are on every device.
    """
    if layout.rows == layout.groups:
        return abstract(state)
    everywhere = layout.sharding()

    def cut(size: int, x: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((len(x), size, *x.shape[2:]), x.dtype, sharding=everywhere)

    return abstract(state).replace(**_each_group(cut, layout, state))


def refill(state: State, initial: State, layout: Layout) -> State:
    """`state` with the inert rows of `initial`; every device writes its own rows.

    A checkpoint from another number of devices has other inert rows, or none.
    """
    if layout.rows == layout.groups:
        return state

    def fill(size: int, x: jax.Array, start: jax.Array) -> jax.Array:
        row = jnp.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))
        return jnp.where(row < size, x, start)

    def whole(state: State, initial: State) -> State:
        return state.replace(**_each_group(fill, layout, state, initial))

    return jax.jit(whole, out_shardings=shardings(state, layout), donate_argnums=0)(state, initial)


@jax.jit
def finite(params: PyTree) -> Bool[Array, "R k"]:
    """Whether all parameters [R, k, ...] of every client are finite."""
    found = [jnp.isfinite(x).all(axis=range(2, x.ndim)) for x in jax.tree.leaves(params)]
    return functools.reduce(jnp.logical_and, found)


def _each_group(
    change: Callable[..., AnyTree], layout: Layout, *states: State
) -> dict[str, tuple[AnyTree, ...]]:
    """`change(clients of the group, leaf of every state)` for all that has a client axis."""

    def parts(*groups: Pool) -> tuple[AnyTree, ...]:
        if not groups[0]:  # no isolated baseline, no pool
            return ()
        return tuple(
            jax.tree.map(functools.partial(change, size), *trees)
            for size, *trees in zip(layout.groups, *groups, strict=True)
        )

    names = ("clients", "baseline", "pool")
    return {name: parts(*(getattr(state, name) for state in states)) for name in names}


def _fill_pool(snapshot: Variables, slots: int) -> Variables:
    """[K, ...] to [K, S, ...]: at the start every slot holds the initial state."""
    return jax.tree.map(lambda x: jnp.repeat(x[:, None], slots, axis=1), snapshot)
