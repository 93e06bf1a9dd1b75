# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The one training step, for every method.

Inside `shard_map` a device holds k of the K clients; arrays below carry k, and only what is
published is gathered to K. The step consumes arrays (batches, who reads whom, weights) that the
host computed as functions of (seed, step), so nothing that changes during a run recompiles it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from mhd_jax import distill, rng
from mhd_jax.exchange import Encoding, from_wire, to_wire
from mhd_jax.inputs import Batch, StepInputs
from mhd_jax.methods import Distillation, Method
from mhd_jax.models.classifier import MultiHeadClassifier
from mhd_jax.parallel import CLIENTS, DATA, Layout, gather_clients, on_mesh
from mhd_jax.state import Learners, State

PyTree = Any

# XLA's library fusions on CPU without convolutions, which are among them by default: the library's
# are slower than XLA's own, by a tenth to a fifth of a whole step of small residual networks.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}

Metrics = dict[str, tuple[Array, ...]]  # per group


Load = Callable[[PyTree, StepInputs, Array, Array], Batch]


@dataclasses.dataclass(frozen=True)
class StepParts:
    """The fixed trees of a run that the step is compiled from.

    Attributes:
      layout: who owns which client.
      method: what is distilled, what is averaged, when.
      models: one per group.
      baseline_models: one per group, with a main head only; () without an isolated baseline.
      optimizer: of one client.
      encoding: the form in which predictions travel.
      load: (data, inputs of one step, seed, step) to a `Batch`.
      num_classes: C.
      replicas: R.
      steps_per_call: most steps one call can do; 1 means no loop in the program at all.
    """

    layout: Layout
    method: Method
    models: tuple[MultiHeadClassifier, ...]
    baseline_models: tuple[MultiHeadClassifier, ...]
    optimizer: optax.GradientTransformation
    encoding: Encoding
    load: Load
    num_classes: int
    replicas: int
    steps_per_call: int


def make_step(parts: StepParts, input_specs: StepInputs, data_specs: PyTree) -> Any:
    """Compiles nothing yet; returns `call(state, data, inputs, seeds, count) -> (state, metrics)`.

    The call does `count` <= `parts.steps_per_call` steps. The state is donated. Metrics are per
    step, axes [steps_per_call, R, K, ...]; entries beyond `count` are 0.
    """
    rows = P(None, CLIENTS)
    state_specs: Any = State(P(), rows, rows, rows)  # type: ignore[arg-type]  # specs, same tree

    def call(state: State, data: PyTree, inputs: StepInputs, seeds: Array, count: Array) -> Any:
        return _run_steps(parts, state, data, inputs, seeds, count)

    sharded = on_mesh(
        call,
        parts.layout,
        in_specs=(state_specs, data_specs, input_specs, P(), P()),
        out_specs=(state_specs, P(None, None, CLIENTS)),
    )
    options = CPU_OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(sharded, donate_argnums=0, compiler_options=options)


def _run_steps(
    parts: StepParts, state: State, data: PyTree, inputs: StepInputs, seeds: Array, count: Array
) -> tuple[State, Metrics]:
    """Steps 0..count - 1 of the inputs on one device's clients."""

    def one(state: State, index: Array | int) -> tuple[State, Metrics]:
        now = jax.tree.map(lambda x: x[index], inputs)
        return _all_replicas(parts, state, data, now, seeds)

    if parts.steps_per_call == 1:
        state, metrics = one(state, 0)
        return state, jax.tree.map(lambda x: x[None], metrics)

    def body(index: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, metrics = one(carry[0], index)
        return state, jax.tree.map(lambda all, now: all.at[index].set(now), carry[1], metrics)

    shapes = jax.eval_shape(lambda: one(state, 0)[1])
    empty = jax.tree.map(lambda x: jnp.zeros((parts.steps_per_call, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, (state, empty))


def _all_replicas(
    parts: StepParts, state: State, data: PyTree, inputs: StepInputs, seeds: Array
) -> tuple[State, Metrics]:
    """One step of every replica: `_one_system` vmapped, or called directly where R = 1."""
    per_replica = (state.clients, state.baseline, state.pool)
    axes = StepInputs(0, 0, 0, 0, None, None, None, 0)

    def one(trees: Any, data: PyTree, inputs: StepInputs, seed: Array) -> Any:
        return _one_system(parts, State(state.step, *trees), data, inputs, seed)

    if parts.replicas == 1:
        squeeze = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
        shared = StepInputs(
            *(x if axis is None else squeeze(x) for x, axis in zip(inputs, axes, strict=True))
        )
        out = one(squeeze(per_replica), squeeze(data), shared, seeds[0])
        trees, metrics = jax.tree.map(lambda x: x[None], out)
    else:
        trees, metrics = jax.vmap(one, in_axes=(0, 0, axes, 0))(per_replica, data, inputs, seeds)
    return State(state.step + 1, *trees), metrics


def _one_system(
    parts: StepParts, state: State, data: PyTree, inputs: StepInputs, seed: Array
) -> tuple[tuple[Any, Any, Any], Metrics]:
    """One step of one system: learn, average, snapshot; and the isolated baseline beside it."""
    batch = parts.load(data, inputs, seed, state.step)
    pooled = _pool_predictions(parts, state.pool, inputs.versions, batch.public)

    def objective(params: tuple[PyTree, ...]) -> tuple[Array, Any]:
        return _objective(parts, params, state, batch, pooled, inputs, seed)

    params = tuple(group.params for group in state.clients)
    grads, (stats, metrics) = jax.grad(objective, has_aux=True)(params)
    clients = _update(parts, state.clients, grads, stats)
    pool = _write_pool(state.pool, clients, inputs.write)
    clients = _average(parts, clients, inputs)
    baseline, baseline_loss = _train_baseline(parts, state.baseline, batch)
    if baseline:
        metrics["control_loss"] = baseline_loss
    return (clients, baseline, pool), _mean_over_data(parts, metrics)


# --- The objective --------------------------------------------------------------------------------


class Predictions(NamedTuple):
    """Scores and embeddings of one group on the public batch."""

    scores: Float[Array, "k B H C"]
    embeddings: Float[Array, "k B D"]


def _objective(
    parts: StepParts,
    params: tuple[PyTree, ...],
    state: State,
    batch: Batch,
    pooled: tuple[Predictions, ...],
    inputs: StepInputs,
    seed: Array,
) -> tuple[Array, Any]:
    """Sum over local clients of L_i; with it new statistics and metrics, per group [k, ...]."""
    chosen = parts.method.distillation
    private, stats = _private_losses(parts.models, params, state.clients, batch)
    metrics = {"private_loss": private}
    total = tuple(inputs.weights[0] * loss for loss in private)
    if chosen is not None:
        embedding, heads = _distillation(parts, chosen, params, state, batch, pooled, inputs, seed)
        metrics |= {"embedding_loss": embedding, "head_losses": heads}
        total = tuple(
            loss + inputs.weights[1] * (chosen.nu_emb * emb + chosen.nu_pred * head.sum(axis=1))
            for loss, emb, head in zip(total, embedding, heads, strict=True)
        )
    metrics["loss"] = total
    return jnp.asarray(sum(loss.sum() for loss in total)), (stats, metrics)


def _private_losses(
    models: Sequence[nn.Module],
    params: tuple[PyTree, ...],
    learners: tuple[Learners, ...],
    batch: Batch,
) -> tuple[tuple[Float[Array, " k"], ...], tuple[PyTree, ...]]:
    """Private losses and new batch statistics of every group."""
    trees = [
        _private_loss(model, tree["model"], group.stats, images, labels)
        for model, tree, group, images, labels in zip(
            models, params, learners, batch.images, batch.labels, strict=True
        )
    ]
    return tuple(loss for loss, _ in trees), tuple(stats for _, stats in trees)


def _private_loss(
    model: nn.Module, params: PyTree, stats: PyTree, images: Array, labels: Int[Array, "k B"]
) -> tuple[Float[Array, " k"], PyTree]:
    """CE of the main head on private labels; this stream alone updates batch statistics."""

    def one(params: PyTree, stats: PyTree, images: Array, labels: Array) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": stats}
        (logits, _), new = model.apply(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits[:, 0], labels)
        return losses.mean(), new.get("batch_stats", {})

    return jax.vmap(one)(params, stats, images, labels)


def _public_forward(
    model: nn.Module, method: Distillation, variables: PyTree, public: Array
) -> Predictions:
    """Predictions in evaluation mode on the public batch, as log-probabilities or logits."""

    def one(variables: PyTree) -> Any:
        return model.apply(variables, public, train=False)

    logits, embeddings = jax.vmap(one)(variables)
    scores = logits if method.mixes_logits else jax.nn.log_softmax(logits)
    return Predictions(scores, embeddings)


def _distillation(
    parts: StepParts,
    chosen: Distillation,
    params: tuple[PyTree, ...],
    state: State,
    batch: Batch,
    pooled: tuple[Predictions, ...],
    inputs: StepInputs,
    seed: Array,
) -> tuple[tuple[Float[Array, " k"], ...], tuple[Float[Array, "k m"], ...]]:
    """Embedding loss and head losses of the local clients of every group."""
    own = tuple(
        _public_forward(
            model, chosen, {"params": tree["model"], "batch_stats": learners.stats}, batch.public
        )
        for model, tree, learners in zip(parts.models, params, state.clients, strict=True)
    )
    fresh = not pooled
    scores, embeddings = publish(parts, chosen, jax.lax.stop_gradient(own if fresh else pooled))
    embedding_losses, heads = [], []
    for group, student in enumerate(own):
        reads = inputs.reads[group]
        embedding_losses.append(
            _embedding_loss(parts, group, chosen, student, params[group], embeddings, reads)
        )
        keys = _student_keys(parts, group, len(reads), student.scores.shape[1], seed, state.step)
        heads.append(_head_losses(parts, group, chosen, student.scores, scores, reads, keys, fresh))
    return tuple(embedding_losses), tuple(heads)


def _head_losses(
    parts: StepParts,
    group: int,
    chosen: Distillation,
    student: Float[Array, "k B H C"],
    published: Float[Array, "N B h C"] | None,
    reads: Bool[Array, "k N"],
    keys: Array,
    fresh: bool,
) -> Float[Array, "k m"]:
    """Losses of the taught heads of one group: aux heads in a chain, or the main head."""
    num_rows = student.shape[0]
    if published is None:
        return jnp.zeros((num_rows, 0))
    below, same = reads, reads if chosen.same_rank else None
    if chosen.include_self:
        connected = reads.any(axis=1)[:, None]
        if fresh:
            row = _client_ids(parts, group, num_rows)[:, None]
            below = reads | (jnp.arange(reads.shape[1])[None] == row) & connected
        else:  # one's own present state is no snapshot: it joins the candidates in front
            below = jnp.concatenate([jnp.eye(num_rows, dtype=bool) & connected, reads], axis=1)
            nobody = jnp.zeros((num_rows, num_rows), bool)
            same = None if same is None else jnp.concatenate([nobody, same], axis=1)
            published = jnp.concatenate([jax.lax.stop_gradient(student), published], axis=0)
    if chosen.wiring == "chain":
        candidates = distill.chain_candidates(published, below, same)
        taught = student[:, :, 1:]
    else:
        candidates = distill.Candidates(published, below, ranks=1)
        taught = student[:, :, :1]
    return distill.head_losses(
        taught, candidates, keys, rule=chosen.rule, confidence=chosen.confidence,
        loss=chosen.loss, temperature=chosen.temperature,
    )  # fmt: skip


def _embedding_loss(
    parts: StepParts,
    group: int,
    chosen: Distillation,
    student: Predictions,
    params: PyTree,
    embeddings: Sequence[Float[Array, "N B D"]],
    reads: Bool[Array, "k N"],
) -> Float[Array, " k"]:
    """Embedding loss of one group against all; a learned linear map where widths differ."""
    total = jnp.zeros(len(reads))
    if not chosen.nu_emb:
        return total
    share = reads / jnp.maximum(reads.sum(axis=1, keepdims=True), 1)
    width, start = student.embeddings.shape[-1], 0
    for theirs in embeddings:
        mine = student.embeddings
        if theirs.shape[-1] != width:
            mine = jnp.einsum("kbd,kde->kbe", mine, params["projections"][f"to_{theirs.shape[-1]}"])
        stop = start + theirs.shape[0]
        total = total + distill.weighted_embedding_loss(mine, theirs, share[:, start:stop])
        start = stop
    return total


# --- The exchange ---------------------------------------------------------------------------------


def publish(
    parts: StepParts, chosen: Distillation, predictions: tuple[Predictions, ...]
) -> tuple[Float[Array, "N B h C"] | None, tuple[Float[Array, "N B D"], ...]]:
    """Everything the clients let each other see, in client order: the only exchange.

    Predictions may carry a version axis, [k, V, B, ...]; candidates are then N = K * V, versions
    of a client together. None where no predictions are published; embeddings stay per group.
    """
    scores, embeddings = [], []
    for size, own in zip(parts.layout.groups, predictions, strict=True):
        versions = own.scores.ndim == 5

        def everyone(x: Array, size: int = size, versions: bool = versions) -> Array:
            rows = gather_clients(x)[:size]
            return rows.reshape(-1, *rows.shape[2:]) if versions else rows

        if chosen.nu_pred:
            taught_from = own.scores[..., :1, :] if chosen.wiring == "main" else own.scores
            message = tuple(everyone(part) for part in parts.encoding.encode(taught_from))
            scores.append(parts.encoding.decode(message, parts.num_classes))
        if chosen.nu_emb:
            wire = to_wire(own.embeddings, parts.encoding.embedding_type)
            embeddings.append(from_wire(everyone(wire), parts.encoding.embedding_type))
    return (jnp.concatenate(scores) if scores else None), tuple(embeddings)


def _pool_predictions(
    parts: StepParts, pool: tuple[PyTree, ...], versions: Int[Array, " V"], public: Array
) -> tuple[Predictions, ...]:
    """What the snapshots in the given slots predict, [k, V, B, ...]; () where there is no pool."""
    chosen = parts.method.distillation
    if not pool or chosen is None:
        return ()
    out = []
    for model, snapshots in zip(parts.models, pool, strict=True):
        read = jax.tree.map(lambda x: x[:, versions], snapshots)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), read)
        flat = _public_forward(model, chosen, rows, public)
        out.append(jax.tree.map(lambda x: x.reshape(-1, len(versions), *x.shape[1:]), flat))
    return tuple(out)


def _write_pool(
    pool: tuple[PyTree, ...], clients: tuple[Learners, ...], slot: Int[Array, ""]
) -> tuple[PyTree, ...]:
    """Puts every client's state into its own slot (nothing where slot < 0), in place."""

    def write(slots: Array, now: Array) -> Array:
        at = jnp.maximum(slot, 0)
        return slots.at[:, at].set(jnp.where(slot >= 0, now, slots[:, at]))

    return tuple(
        jax.tree.map(write, slots, group.snapshot)
        for slots, group in zip(pool, clients, strict=bool(pool))
    )


# --- Updates --------------------------------------------------------------------------------------


def _update(
    parts: StepParts,
    learners: tuple[Learners, ...],
    grads: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
) -> tuple[Learners, ...]:
    """One optimiser step of every client on its own gradient."""
    grads, stats = _mean_over_data(parts, (grads, stats))
    updated = []
    for group, gradient, new_stats in zip(learners, grads, stats, strict=True):
        step = jax.vmap(parts.optimizer.update)
        updates, opt_state = step(gradient, group.opt_state, group.params)
        params = optax.apply_updates(group.params, updates)
        updated.append(Learners(params, new_stats, opt_state))
    return tuple(updated)


def _train_baseline(
    parts: StepParts, baseline: tuple[Learners, ...], batch: Batch
) -> tuple[tuple[Learners, ...], tuple[Array, ...]]:
    """The isolated baseline's step on the very same private batches."""
    if not baseline:
        return (), ()

    def objective(params: tuple[PyTree, ...]) -> tuple[Array, Any]:
        losses, stats = _private_losses(parts.baseline_models, params, baseline, batch)
        return jnp.asarray(sum(loss.sum() for loss in losses)), (stats, losses)

    params = tuple(group.params for group in baseline)
    grads, (stats, losses) = jax.grad(objective, has_aux=True)(params)
    return _update(parts, baseline, grads, stats), losses


def _average(
    parts: StepParts, clients: tuple[Learners, ...], inputs: StepInputs
) -> tuple[Learners, ...]:
    """Mixes parameters and statistics over clients where an average is due.

    theta_i <- sum_j M_ij theta_j. Optimiser states stay local. This, and only this, sends
    parameters between clients; methods without averaging have no such collective.
    """
    if parts.method.averaging is None:
        return clients
    (group,), size = clients, parts.layout.num_clients

    def mix(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x: jnp.einsum("ij,j...->i...", inputs.mixing, gather_clients(x)[:size]), tree
        )

    values = (group.params, group.stats)
    params, stats = jax.lax.cond(inputs.average, mix, lambda tree: tree, values)
    opt_state = group.opt_state
    if parts.method.averaging.reset_momentum:
        opt_state = jax.tree.map(lambda x: _zero_floats(x, inputs.average), opt_state)
    return (Learners(params, stats, opt_state),)


def _zero_floats(x: Array, where: Bool[Array, ""]) -> Array:
    """Zeros in a floating-point leaf of an optimiser's state; its step counts go on."""
    return jnp.where(where, 0, x) if jnp.issubdtype(x.dtype, jnp.floating) else x


# --- Small helpers --------------------------------------------------------------------------------


def _client_ids(parts: StepParts, group: int, num_rows: int) -> Int[Array, " k"]:
    """Index among all clients of each local row of a group."""
    first = parts.layout.offsets[group] + jax.lax.axis_index(CLIENTS) * num_rows
    return first + jnp.arange(num_rows)


def _student_keys(
    parts: StepParts, group: int, num_rows: int, num_samples: int, seed: Array, step: Array
) -> Array:
    """Keys [k, B] for teacher rules that draw; the same however clients and batches are split."""
    base = rng.stream(seed, "teachers", step)
    ids = _client_ids(parts, group, num_rows)
    keys = jax.vmap(lambda client: jax.random.fold_in(base, client))(ids)
    first = jax.lax.axis_index(DATA) * num_samples
    return distill.sample_keys(keys, first + jnp.arange(num_samples))


def _mean_over_data(parts: StepParts, tree: PyTree) -> PyTree:
    """Means over the devices that share a client's batch; the identity where it has only one."""
    if parts.layout.data_devices == 1:
        return tree
    return jax.lax.pmean(tree, DATA)
