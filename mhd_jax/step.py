# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The one training step, for every method.

Inside `shard_map` a device holds k of the K clients; arrays below carry k, and only what is
published is gathered to K. The step consumes arrays (batches, who reads whom, weights) that the
host computed as functions of (seed, step), so nothing that changes during a run recompiles it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from mhd_jax import defences, distill, rng
from mhd_jax import privacy as privacy_lib
from mhd_jax.attacks import Attackers
from mhd_jax.data.batches import Visits
from mhd_jax.edges import NOBODY, Edges
from mhd_jax.exchange import Encoding, from_wire, projection, to_wire
from mhd_jax.inputs import Batch, StepInputs
from mhd_jax.methods import Averaging, Distillation, Method
from mhd_jax.models import bridge
from mhd_jax.models.classifier import MultiHeadClassifier
from mhd_jax.parallel import CLIENTS, DATA, Layout, gather_clients, on_mesh
from mhd_jax.participation import Roster, put_back, take
from mhd_jax.state import Learners, State, at_step

PyTree = Any

# XLA's library fusions on CPU without convolutions, which are among them by default: the library's
# are slower than XLA's own, by a tenth to a fifth of a whole step of small residual networks.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}

# XLA's options on GPU. A step is many short kernels, and launched one by one they wait longer than
# they run. So the loop over steps is one CUDA graph, convolutions included.
GPU_OPTIONS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION,"
    "CONDITIONAL,WHILE,DYNAMIC_SLICE_FUSION"
}
# Convolutions are one call of a library per client and do not fill a device, so they run side by
# side.
SIDE_BY_SIDE = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}

ENERGY_OF_LIARS = 4.0  # standard deviations: more than honest ones reach

Metrics = dict[str, tuple[Array, ...]]  # per group
Computed = TypeVar("Computed")
Pauses = Literal["nothing", "all", "exchange"]
Load = Callable[[PyTree, StepInputs, Array, Array], Batch]


@dataclasses.dataclass(frozen=True)
class StepParts:
    """The fixed parts of a run that the step is compiled from.

    Attributes:
      roster: who owns which client, and who takes part in a step.
      method: what is distilled, what is averaged, when.
      models: one per group.
      baseline_models: one per group, with a main head only; () without an isolated baseline.
      optimizer: of one client.
      encoding: the form in which predictions travel.
      load: (data, inputs of one step, seed, step) to a `Batch`.
      num_classes: C.
      replicas: R.
      steps_per_call: most steps one call can do; 1 means no loop in the program at all.
      convolutional: whether a network has convolutions.
      pauses: what a step in which distillation has no weight leaves out: "nothing", as there is
        none in the run; "all" of distillation; or "exchange" alone, where code in a branch is slow.
      embedding_width: numbers in which an embedding travels; 0 for all it has.
      frozen: groups, the first ones, whose clients publish but never learn.
      visits: how often what was sent of a public sample is read.
      attackers: who lies and how; None where nobody does, and then nothing of it is compiled.
      privacy: what happens to private gradients; None for nothing.
    """

    roster: Roster
    method: Method
    models: tuple[MultiHeadClassifier, ...]
    baseline_models: tuple[MultiHeadClassifier, ...]
    optimizer: optax.GradientTransformation
    encoding: Encoding
    load: Load
    num_classes: int
    replicas: int
    steps_per_call: int
    convolutional: bool = False
    pauses: Pauses = "nothing"
    embedding_width: int = 0
    frozen: int = 0
    visits: Visits = Visits()
    attackers: Attackers | None = None
    privacy: privacy_lib.Privacy | None = None

    @property
    def layout(self) -> Layout:
        """Who owns which client."""
        return self.roster.layout

    @property
    def places(self) -> Layout:
        """The clients of one step: all of them, or a place for each that takes part."""
        return self.roster.places


def make_step(parts: StepParts, input_specs: StepInputs, data_specs: PyTree) -> Any:
    """Compiles nothing yet; returns `call(state, data, inputs, seeds, count) -> (state, metrics)`.

    The call does `count` <= `parts.steps_per_call` steps. The state is donated. Metrics are per
    step, axes [steps_per_call, R, K, ...]; entries beyond `count` are 0.
    """
    specs = state_specs()

    def call(state: State, data: PyTree, inputs: StepInputs, seeds: Array, count: Array) -> Any:
        return _run_steps(parts, state, data, inputs, seeds, count)

    sharded = on_mesh(
        call,
        parts.layout,
        in_specs=(specs, data_specs, input_specs, P(), P()),
        out_specs=(specs, P(None, None, CLIENTS)),
    )
    options = _compiler_options(jax.default_backend(), parts.convolutional)
    return jax.jit(sharded, donate_argnums=0, compiler_options=options)


def _compiler_options(platform: str, convolutional: bool) -> dict[str, str] | None:
    """XLA's options for the step; what `XLA_FLAGS` says of CUDA graphs goes first."""
    if platform == "cpu":
        return CPU_OPTIONS
    if platform != "gpu" or "command_buffer" in os.environ.get("XLA_FLAGS", ""):
        return None
    return GPU_OPTIONS | (SIDE_BY_SIDE if convolutional else {})


def state_specs() -> Any:
    """How the state lies on the mesh, the same tree with a spec for every part."""
    rows: Any = P(None, CLIENTS)
    return State(P(), rows, rows, rows, P(), P(None, None, DATA))  # type: ignore[arg-type]


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
    per_replica = (state.clients, state.baseline, state.pool, state.marginals, state.cache)
    axes = StepInputs(0, 0, 0, 0, None, None, None, 0, 0, 0)

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
) -> tuple[tuple[Any, Any, Any, Any, Any], Metrics]:
    """One step of one system: learn, average, snapshot; and the isolated baseline beside it.

    Where not everybody takes part, it is the step of those who do, whose rows are then put back.
    """
    everyone, state = state, seat(parts, state, inputs)
    batch = parts.load(data, inputs, seed, state.step)
    keys, weight = network_keys(parts, inputs, seed, state.step), inputs.weights[0]
    noise = functools.partial(_noise_keys, parts, inputs, seed, state.step)
    private = _where_due(
        "all" if getattr(parts.method.when, "rests", True) else "nothing",
        weight > 0,
        lambda: _private_gradients(
            parts, parts.models, state.clients, batch, weight, keys, noise("privacy")
        ),
        stats=tuple(group.stats for group in state.clients),
    )
    grads, metrics = private.grads, {"private_loss": private.losses, "loss": private.losses}
    memory = Memory(state.marginals, state.cache)
    if parts.method.distillation is not None:
        lessons = _where_due(
            parts.pauses,
            _distils(inputs),
            lambda: _distillation_gradients(parts, state, batch.public, inputs, seed),
            memory=memory,
        )
        memory = lessons.memory
        metrics |= _trunk_metrics(grads, lessons.grads)
        grads = jax.tree.map(jnp.add, grads, lessons.grads)
        metrics |= {"embedding_loss": lessons.embedding, "head_losses": lessons.heads}
        metrics["unreadable"] = lessons.unreadable
        metrics["loss"] = jax.tree.map(jnp.add, private.losses, lessons.losses)
    clients = _update(parts, state, state.clients, grads, private.stats)
    pool = _write_pool(state.pool, clients, inputs.write)
    if parts.method.averaging is not None:
        clients, unreadable = _average(
            parts, parts.method.averaging, clients, inputs, seed, state.step
        )
        metrics["unreadable_parameters"] = unreadable
    baseline, baseline_loss = _train_baseline(parts, state, batch, keys, noise("privacy baseline"))
    if baseline:
        metrics["control_loss"] = baseline_loss
    changed = state.replace(
        clients=clients, baseline=baseline, pool=pool, marginals=memory.marginals,
        cache=memory.cache,
    )  # fmt: skip
    new = _put_back(parts, everyone, changed, inputs)
    trees = (new.clients, new.baseline, new.pool, new.marginals, new.cache)
    return trees, _mean_over_data(parts, metrics)


def seat(parts: StepParts, state: State, inputs: StepInputs) -> State:
    """The state of those who take part, in the order of their places."""
    rows = [parts.roster.rows(group, inputs.seated) for group in range(len(parts.models))]

    def of_groups(trees: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        return tuple(take(tree, at) for tree, at in zip(trees, rows, strict=bool(trees)))

    return state.replace(
        clients=of_groups(state.clients),
        baseline=of_groups(state.baseline),
        pool=of_groups(state.pool),
        marginals=take(state.marginals, parts.roster.everywhere(inputs.seated)),
    )


def _put_back(parts: StepParts, everyone: State, changed: State, inputs: StepInputs) -> State:
    """The inverse of `seat`: everybody's state with that of those who took part changed."""
    rows = [parts.roster.rows(group, inputs.seated) for group in range(len(parts.models))]

    def of_groups(old: tuple[PyTree, ...], new: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        return tuple(put_back(*trees) for trees in zip(old, new, rows, strict=bool(old)))

    everywhere = parts.roster.everywhere(inputs.seated)
    return changed.replace(
        clients=of_groups(everyone.clients, changed.clients),
        baseline=of_groups(everyone.baseline, changed.baseline),
        pool=of_groups(everyone.pool, changed.pool),
        marginals=put_back(everyone.marginals, changed.marginals, everywhere),
    )


def _where_due(
    pauses: Pauses, due: Bool[Array, ""] | bool, compute: Callable[[], Computed], **kept: object
) -> Computed:
    """`compute()`; in steps where it is not due, zeros in its place.

    Args:
      pauses: "nothing" if it is due in every step; "all" if nothing is computed where it is not;
        "exchange" if it is computed all the same, as code in a branch is slow there.
      due: whether this step needs it.
      compute: gradients and what comes with them.
      **kept: fields that are not zeros then.
    """
    if pauses == "nothing":
        return compute()

    def rest() -> Computed:
        zeros: Any = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))
        made: Computed = zeros._replace(**kept) if kept else zeros
        return made

    if pauses == "all":
        return jax.lax.cond(due, compute, rest)
    chosen: Computed = jax.tree.map(functools.partial(jnp.where, due), compute(), rest())
    return chosen


# --- The objective --------------------------------------------------------------------------------


class Predictions(NamedTuple):
    """Scores and embeddings of one group on the public batch; energies where they are published."""

    scores: Float[Array, "k B H C"]
    embeddings: Float[Array, "k B D"]
    energy: Float[Array, "k B H"] | None = None


class Memory(NamedTuple):
    """What readers remember of earlier exchanges: see `State.marginals` and `State.cache`."""

    marginals: Any = ()
    cache: Any = ()


class PrivateGradients(NamedTuple):
    """Of the private loss; everything per group, losses [k] weighted as in the objective."""

    grads: tuple[PyTree, ...]
    stats: tuple[PyTree, ...]
    losses: tuple[Float[Array, " k"], ...]


class Lessons(NamedTuple):
    """Gradients of the distillation losses and what they were, per group.

    Attributes:
      grads: by client, like its parameters.
      losses: weighted as in the objective, [k].
      embedding: the embedding loss, [k].
      heads: the loss of every taught head, [k, m].
      unreadable: 1 for a client whose message nobody can read, see `distill.readable`, [k].
      memory: what readers remember from now on.
    """

    grads: tuple[PyTree, ...]
    losses: tuple[Float[Array, " k"], ...]
    embedding: tuple[Float[Array, " k"], ...]
    heads: tuple[Float[Array, "k m"], ...]
    unreadable: tuple[Float[Array, " k"], ...]
    memory: Memory


def _private_gradients(
    parts: StepParts,
    models: Sequence[nn.Module],
    learners: tuple[Learners, ...],
    batch: Batch,
    weight: Float[Array, ""],
    keys: Sequence[Array],
    noise_keys: tuple[Array, ...] = (),
) -> PrivateGradients:
    """Gradients of weight * CE(private labels) of the local clients, over their whole batches.

    With `parts.privacy` that of every sample is clipped, and their sum gets noise.
    """
    rest = parts.frozen
    resting, learners, models = learners[:rest], learners[rest:], models[rest:]
    batch = batch._replace(
        images=batch.images[rest:], labels=batch.labels[rest:], weights=batch.weights[rest:]
    )
    privacy, unclipped = parts.privacy, None
    if privacy is not None:
        batch, unclipped = _clipped(privacy, models, learners, batch, keys[rest:])

    def objective(params: tuple[PyTree, ...]) -> tuple[Array, Any]:
        losses, stats = _private_losses(models, params, learners, batch, keys[rest:])
        losses = tuple(weight * loss for loss in losses)
        return jnp.asarray(sum(loss.sum() for loss in losses)), (stats, losses)

    params = tuple(group.params for group in learners)
    grads, (stats, losses) = jax.grad(objective, has_aux=True)(params)
    grads, stats = _mean_over_data(parts, (grads, stats))
    if privacy is not None and unclipped is not None:
        losses = tuple(weight * loss for loss in unclipped)
        grads = tuple(
            privacy_lib.protect(privacy, model, gradient, each, weight)
            for model, gradient, each in zip(models, grads, noise_keys[rest:], strict=True)
        )
    return PrivateGradients(
        grads=(*(jax.tree.map(jnp.zeros_like, group.params) for group in resting), *grads),
        stats=(*(group.stats for group in resting), *stats),
        losses=(*(jnp.zeros(_rows_of(group)) for group in resting), *losses),
    )


def _clipped(
    privacy: privacy_lib.Privacy,
    models: Sequence[nn.Module],
    learners: tuple[Learners, ...],
    batch: Batch,
    keys: Sequence[Array],
) -> tuple[Batch, tuple[Float[Array, " k"], ...]]:
    """The batch with samples weighted so that its gradient is the sum of clipped ones.

    sum_i s_i g_i is the gradient of sum_i s_i loss_i, so that one pass finds the norms and a
    second, as large as that of plain training, the gradient: no client's gradients of all samples
    are ever held at once. Source: J. Lee and D. Kifer, 2021, https://arxiv.org/abs/2009.03106.

    Returns:
      The batch, and the mean loss of every client before clipping, [k] per group.
    """
    weights = batch.weights or tuple(jnp.ones(labels.shape) for labels in batch.labels)
    clipped, means = [], []
    for model, group, images, labels, counts, each in zip(
        models, learners, batch.images, batch.labels, weights, keys, strict=True
    ):
        losses, norms = sample_gradients(model, group, images, labels, each)
        clipped.append(counts * privacy.clip(norms))
        means.append((counts * losses).mean(axis=1))
    return batch._replace(weights=tuple(clipped)), tuple(means)


def sample_gradients(
    model: nn.Module, group: Learners, images: Array, labels: Int[Array, "k B"], keys: Array
) -> tuple[Float[Array, "k B"], Float[Array, "k B"]]:
    """The private loss of every sample alone, and the norm of its gradient.

    One sample of all clients after another, so that a gradient leaves the cache only as its norm: a
    fifth of the time of all samples at once on a CPU, and a fortieth of the memory.
    """

    def one(params: PyTree, stats: PyTree, image: Array, label: Array, key: Array) -> Any:
        def loss(params: PyTree) -> Array:
            return _sample_losses(model, params, stats, image[None], label[None], key)[0][0]

        value, gradient = jax.value_and_grad(loss)(params)
        return value, optax.tree.norm(gradient)

    def all_clients(sample: tuple[Array, Array]) -> tuple[Array, Array]:
        found: tuple[Array, Array] = jax.vmap(one)(
            group.params["model"], group.stats, *sample, keys
        )
        return found

    losses, norms = jax.lax.map(all_clients, (images.swapaxes(0, 1), labels.swapaxes(0, 1)))
    return losses.T, norms.T


def _distillation_gradients(
    parts: StepParts, state: State, public: Array, inputs: StepInputs, seed: Array
) -> Lessons:
    """Gradients of weight * (nu_emb L_emb + nu_aux sum_r L_aux,r) of the local clients."""
    chosen = parts.method.distillation
    assert chosen is not None
    pooled = pool_predictions(parts, state.pool, inputs.versions, public)

    def objective(params: tuple[PyTree, ...]) -> tuple[Array, Any]:
        embedding, heads, unreadable, memory = _distillation(
            parts, chosen, params, state, public, pooled, inputs, seed
        )
        losses = tuple(
            inputs.weights[1] * (chosen.nu_emb * emb + chosen.nu_pred * head.sum(axis=1))
            for emb, head in zip(embedding, heads, strict=True)
        )
        total = jnp.asarray(sum(loss.sum() for loss in losses))
        return total, (losses, embedding, heads, unreadable, memory)

    params = tuple(group.params for group in state.clients)
    grads, aux = jax.grad(objective, has_aux=True)(params)
    return Lessons(_mean_over_data(parts, grads), *aux)


def _trunk_metrics(private: tuple[PyTree, ...], lessons: tuple[PyTree, ...]) -> Metrics:
    """What both gradients do to the trunk, the embedding network, of every client, [k] each."""
    found = [
        jax.vmap(distill.trunk_gradients)(ours["model"]["network"], theirs["model"]["network"])
        for ours, theirs in zip(private, lessons, strict=True)
    ]
    names = distill.TrunkGradients._fields
    return {name: tuple(getattr(norms, name) for norms in found) for name in names}


def _private_losses(
    models: Sequence[nn.Module],
    params: tuple[PyTree, ...],
    learners: tuple[Learners, ...],
    batch: Batch,
    keys: Sequence[Array],
) -> tuple[tuple[Float[Array, " k"], ...], tuple[PyTree, ...]]:
    """Private losses and new batch statistics of every group."""
    trees = [
        _private_loss(model, tree["model"], group.stats, images, labels, each, weights)
        for model, tree, group, images, labels, each, weights in zip(
            models,
            params,
            learners,
            batch.images,
            batch.labels,
            keys,
            batch.weights or [None] * len(batch.labels),
            strict=True,
        )  # fmt: skip
    ]
    return tuple(loss for loss, _ in trees), tuple(stats for _, stats in trees)


def _private_loss(
    model: nn.Module,
    params: PyTree,
    stats: PyTree,
    images: Array,
    labels: Int[Array, "k B"],
    keys: Array,
    weights: Float[Array, "k B"] | None,
) -> tuple[Float[Array, " k"], PyTree]:
    """CE of the main head on private labels, the one stream with dropout and new statistics."""

    def one(
        params: PyTree, stats: PyTree, images: Array, labels: Array, key: Array, weights: Any
    ) -> tuple[Array, PyTree]:
        losses, new = _sample_losses(model, params, stats, images, labels, key)
        return (losses if weights is None else weights * losses).mean(), new

    return jax.vmap(one)(params, stats, images, labels, keys, weights)


def _sample_losses(
    model: nn.Module,
    params: PyTree,
    stats: PyTree,
    images: Array,
    labels: Int[Array, " B"],
    key: Array,
) -> tuple[Float[Array, " B"], PyTree]:
    """CE of one client's main head on every sample, and its new batch statistics."""
    variables, rngs = {"params": params, "batch_stats": stats}, bridge.keys(key)
    (logits, _), new = model.apply(
        variables, images, train=True, rngs=rngs, mutable=["batch_stats"]
    )
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits[:, 0], labels)
    return losses, new.get("batch_stats", {})


def public_forward(
    parts: StepParts, model: nn.Module, variables: PyTree, public: Array
) -> Predictions:
    """Predictions in evaluation mode on the public batch, as log-probabilities or logits."""
    chosen = parts.method.distillation
    assert chosen is not None

    def one(variables: PyTree) -> Any:
        return model.apply(variables, public, train=False)

    logits, embeddings = jax.vmap(one)(variables)
    scores = logits if chosen.mixes_logits else jax.nn.log_softmax(logits)
    energy = None
    if chosen.publishes_energy:
        mean = lambda x: _mean_over_data(parts, distill.batch_mean(x))  # noqa: E731
        energy = distill.standardized_energy(logits, mean)
    return Predictions(scores, embeddings, energy)


def _distillation(
    parts: StepParts,
    chosen: Distillation,
    params: tuple[PyTree, ...],
    state: State,
    public: Array,
    pooled: tuple[Predictions, ...],
    inputs: StepInputs,
    seed: Array,
) -> tuple[
    tuple[Float[Array, " k"], ...], tuple[Float[Array, "k m"], ...], tuple[Array, ...], Memory
]:  # fmt: skip
    """Embedding loss, head losses and unreadable messages of the local clients; new memory."""
    own = tuple(
        public_forward(
            parts, model, {"params": tree["model"], "batch_stats": learners.stats}, public
        )
        for model, tree, learners in zip(parts.models, params, state.clients, strict=True)
    )
    published, memory = read_published(parts, state, own, pooled, public, seed, _distils(inputs))
    embedding_losses, heads, unreadable = [], [], []
    for group, student in enumerate(own):
        unreadable.append(_unreadable(parts, group, published))
        if group < parts.frozen:
            taught_heads = 0 if published.scores is None else _taught(chosen, student).shape[2]
            embedding_losses.append(jnp.zeros(len(student.scores)))
            heads.append(jnp.zeros((len(student.scores), taught_heads)))
            continue
        reads = inputs.reads[group]
        embedding_losses.append(
            _embedding_loss(parts, group, chosen, own, params[group], published, reads)
        )
        if published.scores is None:
            heads.append(jnp.zeros((len(student.embeddings), 0)))
            continue
        candidates = candidates_of(parts, group, student, published, inputs)
        taught = _taught(chosen, student)
        samples = student.scores.shape[1]
        keys = student_keys(parts, group, inputs, samples, seed, state.step)
        heads.append(
            distill.head_losses(
                taught, candidates, keys, rule=chosen.rule, confidence=chosen.confidence,
                loss=chosen.loss, temperature=chosen.temperature,
            )
        )  # fmt: skip
    return tuple(embedding_losses), tuple(heads), tuple(unreadable), memory


def _unreadable(parts: StepParts, group: int, published: Published) -> Float[Array, " k"]:
    """1 for a local client of whose message nothing can be read."""
    by_client = published.readable.reshape(parts.places.num_clients, -1).any(axis=1)
    return 1.0 - by_client[parts.roster.own(group)]


def _taught(chosen: Distillation, student: Predictions) -> Float[Array, "k B m C"]:
    """Scores of the heads that learn from others."""
    return student.scores[:, :, 1:] if chosen.wiring == "chain" else student.scores[:, :, :1]


class Published(NamedTuple):
    """What the clients let each other see, as its readers take it.

    Attributes:
      scores: aligned if the method aligns; None where no predictions are published.
      embeddings: per group, in `StepParts.embedding_width` dimensions if that is not 0.
      energy: where it is published.
      readable: bool [N], whose message can be read, see `distill.readable`, the rest being blank;
        None until a reader looks.
    """

    scores: Float[Array, "N B h C"] | None
    embeddings: tuple[Float[Array, "N B w"], ...]
    energy: Float[Array, "N B h"] | None
    readable: Any = None


def read_published(
    parts: StepParts,
    state: State,
    own: tuple[Predictions, ...],
    pooled: tuple[Predictions, ...],
    public: Array,
    seed: Array,
    distils: Bool[Array, ""] | bool = True,
) -> tuple[Published, Memory]:
    """Publishes (the snapshots where there are any) and aligns; with it what is remembered.

    Only what is due is published where readers keep the rest. Liars have their say in between, and
    what cannot be read is dropped.
    """
    chosen, cache = parts.method.distillation, state.cache
    assert chosen is not None
    shown = jax.lax.stop_gradient(pooled or own)
    if cache:
        due = functools.partial(_due, parts.visits, state.step)
        shown, public = jax.tree.map(due, shown), due(public[None])[0]
    alone: Pauses = "all" if parts.pauses == "exchange" else "nothing"
    sent = _where_due(alone, distils, lambda: publish(parts, chosen, shown))
    if parts.attackers is not None:
        sent = _with_lies(parts, parts.attackers, sent, public, seed, state.step)
    if cache:
        keep = functools.partial(_keep, parts.visits, state.step)
        sent = cache = jax.tree.map(keep, cache, sent)
    sent = _readable_part(parts, chosen, sent)
    if sent.scores is None or not chosen.alignment:
        return sent, Memory(state.marginals, cache)
    scores, marginals = _align(parts, chosen, sent.scores, state.marginals)
    return sent._replace(scores=scores), Memory(marginals, cache)


def _due(visits: Visits, step: Array, batch: Float[Array, "k B ..."]) -> Float[Array, "k F ..."]:
    """What is sent of a batch: every D-th place."""
    rows = batch.reshape(len(batch), -1, visits.count, *batch.shape[2:])
    place = visits.exchange(step) % visits.count
    return jax.lax.dynamic_index_in_dim(rows, place, axis=2, keepdims=False)


def _keep(
    visits: Visits, step: Array, before: Float[Array, "N B ..."], sent: Float[Array, "N F ..."]
) -> Float[Array, "N B ..."]:
    """What readers have after an exchange, place by place."""
    exchange, places = visits.exchange(step), np.arange(before.shape[1])
    new = visits.sent(exchange, places) == exchange
    filled = jnp.repeat(sent, visits.count, axis=1)
    return jnp.where(new.reshape(-1, *[1] * (before.ndim - 2)), filled, before)


def cache_shapes(parts: StepParts, widths: Sequence[int], samples: int) -> Published | tuple[()]:
    """Shapes of what readers keep, as in `State.cache` without its first axis; () for nothing.

    Args:
      parts: of the step.
      widths: of the embeddings, group by group.
      samples: B', of the public batch.
    """
    chosen = parts.method.distillation
    if chosen is None or parts.visits.count == 1:
        return ()

    def kept(clients: int, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((clients, samples, *shape), jnp.float32)

    clients = parts.layout.num_clients
    heads = chosen.published_heads(parts.models[0].num_heads)
    sizes = zip(parts.layout.groups, widths, strict=True)
    return Published(
        scores=kept(clients, heads, parts.num_classes) if chosen.nu_pred else None,
        embeddings=tuple(
            kept(size, parts.embedding_width or width) for size, width in sizes if chosen.nu_emb
        ),
        energy=kept(clients, heads) if chosen.nu_pred and chosen.publishes_energy else None,
    )


def _with_lies(
    parts: StepParts, liars: Attackers, sent: Published, public: Array, seed: Array, step: Array
) -> Published:
    """What liars say in the place of what they computed, as far as the encoding can carry it."""
    layout, key = parts.layout, rng.stream(seed, "attack", step)
    scores, energy = sent.scores, sent.energy
    if scores is not None:
        told = liars.on_predictions(scores, layout.num_clients, public, key, step)
        carried = parts.encoding.decode(parts.encoding.encode(told), parts.num_classes)
        scores = liars.only_lies(carried, scores, layout.num_clients, step)
    if energy is not None:
        boast = jnp.full_like(energy, ENERGY_OF_LIARS)
        energy = liars.only_lies(boast, energy, layout.num_clients, step)
    embeddings = []
    for first, size, values in zip(layout.offsets, layout.groups, sent.embeddings, strict=False):
        ids = np.repeat(first + np.arange(size), len(values) // size)
        embeddings.append(liars.on_vectors(values, ids, key, step))
    return sent._replace(scores=scores, energy=energy, embeddings=tuple(embeddings))


def _readable_part(parts: StepParts, chosen: Distillation, sent: Published) -> Published:
    """Blanks whole messages of which any part cannot be read."""
    messages = sent.embeddings if sent.scores is None else (sent.scores,)
    readable = jnp.ones(sum(len(values) for values in messages), bool)
    if sent.scores is not None:
        readable &= distill.readable(sent.scores, logits=chosen.mixes_logits)
    if sent.energy is not None:
        readable &= jnp.isfinite(sent.energy).all(axis=(1, 2))
    if sent.embeddings:
        finite = [jnp.isfinite(values).all(axis=(1, 2)) for values in sent.embeddings]
        readable &= jnp.concatenate(finite)
    uniform = 0.0 if chosen.mixes_logits else -math.log(parts.num_classes)
    sizes = np.cumsum([len(values) for values in sent.embeddings])[:-1]
    shares = jnp.split(readable, sizes) if sent.embeddings else ()
    return sent._replace(
        readable=readable,
        scores=None if sent.scores is None else distill.blank(sent.scores, readable, uniform),
        energy=None if sent.energy is None else distill.blank(sent.energy, readable, 0.0),
        embeddings=tuple(
            distill.blank(values, share, 0.0)
            for values, share in zip(sent.embeddings, shares, strict=True)
        ),
    )


def _align(
    parts: StepParts, chosen: Distillation, scores: Float[Array, "N B h C"], marginals: Any = ()
) -> tuple[Float[Array, "N B h C"], Any]:
    """Scores aligned with their mean over the batch, or with its moving average."""
    now = distill.mean_prediction(scores, logits=chosen.mixes_logits)
    now = _mean_over_data(parts, now)
    if not isinstance(marginals, tuple):
        keep = chosen.alignment_momentum
        now = marginals = keep * marginals + (1 - keep) * now
    aligned = distill.align(
        scores, now, chosen.alignment,
        frequencies=chosen.class_frequencies, logits=chosen.mixes_logits,
    )  # fmt: skip
    return aligned, marginals


def candidates_of(
    parts: StepParts, group: int, student: Predictions, published: Published, inputs: StepInputs
) -> distill.Candidates:
    """Whom the local clients of a group may learn from: peers and, if chosen, themselves."""
    chosen = parts.method.distillation
    assert chosen is not None and published.scores is not None
    num_rows, own = student.scores.shape[0], parts.roster.own(group)
    reads, scores, energy = inputs.reads[group], published.scores, published.energy
    readable = published.readable
    shares = inputs.label_shares if inputs.label_shares.size else None
    if shares is not None:
        shares = jnp.repeat(shares, len(scores) // len(shares), axis=0)
    fresh = not inputs.versions.size
    if fresh:
        present = scores[own]
    else:
        mine = jax.lax.stop_gradient(read_heads(chosen, student))
        present = _align(parts, chosen, mine.scores)[0] if chosen.alignment else mine.scores
    if chosen.include_self and not fresh:
        # One's own present state is no snapshot: it joins the candidates in front.
        readable = jnp.concatenate([jnp.ones(num_rows, bool), readable])
        scores = jnp.concatenate([present, scores], axis=0)
        if energy is not None and mine.energy is not None:
            energy = jnp.concatenate([mine.energy, energy], axis=0)
        if shares is not None:
            shares = jnp.concatenate([inputs.label_shares[own], shares], axis=0)
        reads, own = reads.behind(num_rows), jnp.arange(num_rows)
    below = reads.including(own) if chosen.include_self else reads
    chain = chosen.wiring == "chain"
    return distill.candidates_along(
        scores, below, reads if chain and chosen.same_rank else None,
        student.scores.shape[2] - 1 if chain else 1, energy=energy, label_shares=shares,
        ids=_publishers(parts, inputs, len(scores)), readable=readable, own=present,
    )  # fmt: skip


def _publishers(parts: StepParts, inputs: StepInputs, candidates: int) -> Int[Array, " N"] | None:
    """Where candidates would stand if everybody took part; None where they stand there.

    Students in front keep their numbers, versions of a client stay together.
    """
    if not parts.roster.attendances:
        return None
    seated = inputs.seated
    versions = candidates // len(seated)
    in_front = candidates - versions * len(seated)
    place = in_front + seated[:, None] * versions + jnp.arange(versions)
    known = jnp.where(seated[:, None] < 0, NOBODY, place).ravel()
    return jnp.concatenate([jnp.arange(in_front), known])


def _embedding_loss(
    parts: StepParts,
    group: int,
    chosen: Distillation,
    own: tuple[Predictions, ...],
    params: PyTree,
    published: Published,
    reads: Edges,
) -> Float[Array, " k"]:
    """Embedding loss of one group against all; a learned linear map where widths differ."""
    total = jnp.zeros(len(own[group].embeddings))
    if not chosen.nu_emb:
        return total
    start = 0
    for peers, theirs in zip(own, published.embeddings, strict=True):
        mine, width = own[group].embeddings, peers.embeddings.shape[-1]
        if mine.shape[-1] != width:
            mine = jnp.einsum("kbd,kde->kbe", mine, params["projections"][f"to_{width}"])
        mine = _projected(parts, mine)
        total = total + distill.embedding_loss_along(mine, theirs, reads, published.readable, start)
        start += theirs.shape[0]
    return total


# --- The exchange ---------------------------------------------------------------------------------


def publish(
    parts: StepParts, chosen: Distillation, predictions: tuple[Predictions, ...]
) -> Published:
    """Everything the clients let each other see, in client order: the only exchange.

    Predictions may carry a version axis, [k, V, B, ...]; candidates are then N = K * V, versions
    of a client together.
    """
    scores, embeddings, energies = [], [], []
    for size, own in zip(parts.places.groups, predictions, strict=True):
        versions = own.scores.ndim == 5

        def everyone(x: Array, size: int = size, versions: bool = versions) -> Array:
            rows = gather_clients(x)[:size]
            return rows.reshape(-1, *rows.shape[2:]) if versions else rows

        def floats(x: Array, everyone: Callable[[Array], Array] = everyone) -> Array:
            wire = to_wire(x, parts.encoding.embedding_type)
            return from_wire(everyone(wire), parts.encoding.embedding_type)

        if chosen.nu_pred:
            read = read_heads(chosen, own)
            message = tuple(everyone(part) for part in parts.encoding.encode(read.scores))
            scores.append(parts.encoding.decode(message, parts.num_classes))
            if read.energy is not None:
                energies.append(floats(read.energy))
        if chosen.nu_emb:
            embeddings.append(floats(_projected(parts, own.embeddings)))
    return Published(
        scores=jnp.concatenate(scores) if scores else None,
        embeddings=tuple(embeddings),
        energy=jnp.concatenate(energies) if energies else None,
    )


def read_heads(chosen: Distillation, predictions: Predictions) -> Predictions:
    """Predictions of those heads alone that somebody may learn from."""
    count = chosen.published_heads(predictions.scores.shape[-2])
    energy = None if predictions.energy is None else predictions.energy[..., :count]
    return predictions._replace(scores=predictions.scores[..., :count, :], energy=energy)


def _projected(parts: StepParts, embeddings: Float[Array, "*k B D"]) -> Float[Array, "*k B w"]:
    """Embeddings in the dimensions in which they travel."""
    width = parts.embedding_width
    return embeddings @ projection(embeddings.shape[-1], width) if width else embeddings


def pool_predictions(
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
        flat = public_forward(parts, model, rows, public)
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
    state: State,
    learners: tuple[Learners, ...],
    grads: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
) -> tuple[Learners, ...]:
    """One optimiser step of every client on its own gradient; none of the frozen ones."""
    updated = list(learners[: parts.frozen])
    learning = list(zip(learners, grads, stats, strict=True))[parts.frozen :]
    for group, gradient, new_stats in learning:
        opt_state = group.opt_state
        if parts.roster.attendances:
            opt_state = at_step(opt_state, state.step)
        step = jax.vmap(parts.optimizer.update)
        updates, opt_state = step(gradient, opt_state, group.params)
        params = optax.apply_updates(group.params, updates)
        updated.append(Learners(params, new_stats, opt_state))
    return tuple(updated)


def _train_baseline(
    parts: StepParts,
    state: State,
    batch: Batch,
    keys: Sequence[Array],
    noise_keys: tuple[Array, ...],
) -> tuple[tuple[Learners, ...], tuple[Array, ...]]:
    """The isolated baseline's step on the very same private batches."""
    baseline = state.baseline
    if not baseline:
        return (), ()
    models, weight = parts.baseline_models, jnp.float32(1)
    made = _private_gradients(parts, models, baseline, batch, weight, keys, noise_keys)
    return _update(parts, state, baseline, made.grads, made.stats), made.losses


def _average(
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
    travels, rows = parts.encoding.embedding_type, parts.roster.own(0)

    def gathered(x: Array) -> Array:
        return from_wire(gather_clients(to_wire(x, travels))[:size], travels)

    def mix(tree: PyTree) -> tuple[PyTree, Array]:
        everyone = jax.tree.map(gathered, tree)
        if parts.attackers is not None:
            everyone = _with_false_parameters(parts.attackers, everyone, seed, step)
        mixed, readable = defences.aggregate(
            tree, everyone, inputs.mixing, averaging.rule, averaging.trim
        )
        return mixed, 1.0 - readable[rows]

    values = (group.params, group.stats)
    nothing = jnp.zeros(len(rows))
    (params, stats), unreadable = jax.lax.cond(
        inputs.average, mix, lambda tree: (tree, nothing), values
    )
    opt_state = group.opt_state
    if averaging.reset_momentum:
        opt_state = jax.tree.map(lambda x: _zero_floats(x, inputs.average), opt_state)
    return (Learners(params, stats, opt_state),), (unreadable,)


def _with_false_parameters(liars: Attackers, everyone: PyTree, seed: Array, step: Array) -> PyTree:
    """Parameters [K, ...] as readers get them, leaf by leaf."""
    leaves, tree = jax.tree.flatten(everyone)
    told = [
        liars.on_vectors(leaf, np.arange(len(leaf)), rng.stream(seed, "attack", step, index), step)
        for index, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, told)


def _zero_floats(x: Array, where: Bool[Array, ""]) -> Array:
    """Zeros in a floating-point leaf of an optimiser's state; its step counts go on."""
    return jnp.where(where, 0, x) if jnp.issubdtype(x.dtype, jnp.floating) else x


# --- Small helpers --------------------------------------------------------------------------------


def _rows_of(group: Learners) -> int:
    """k."""
    return len(jax.tree.leaves(group.params)[0])


def _client_keys(parts: StepParts, inputs: StepInputs, base: Array) -> tuple[Array, ...]:
    """Keys [k] of the client at every local place, per group; the same wherever it sits."""
    groups = range(len(parts.models))
    return tuple(rng.each(base, parts.roster.ids(group, inputs.seated)) for group in groups)


def _noise_keys(
    parts: StepParts, inputs: StepInputs, seed: Array, step: Array, purpose: str
) -> tuple[Array, ...]:
    """Keys [k] of every group for the noise on private gradients; () without privacy."""
    if parts.privacy is None:
        return ()
    return _client_keys(parts, inputs, rng.stream(seed, f"{purpose} noise", step))


def _distils(inputs: StepInputs) -> Bool[Array, ""]:
    """Whether distillation has weight in this step."""
    distils: Array = inputs.weights[1] > 0
    return distils


def network_keys(
    parts: StepParts, inputs: StepInputs, seed: Array, step: Array
) -> tuple[Array, ...]:
    """Keys [k] for what networks draw in training, such as dropout, per group.

    A client draws the same on any device, and so does its isolated baseline. Devices that share a
    batch draw for their own part of it.
    """
    base = rng.stream(seed, "network", step)
    if parts.layout.data_devices > 1:
        base = jax.random.fold_in(base, jax.lax.axis_index(DATA))
    return _client_keys(parts, inputs, base)


def student_keys(
    parts: StepParts, group: int, inputs: StepInputs, num_samples: int, seed: Array, step: Array
) -> Array:
    """Keys [k, B] for teacher rules that draw; the same however clients and batches are split."""
    base = rng.stream(seed, "teachers", step)
    keys = _client_keys(parts, inputs, base)[group]
    first = jax.lax.axis_index(DATA) * num_samples
    return distill.sample_keys(keys, first + jnp.arange(num_samples))


def _mean_over_data(parts: StepParts, tree: PyTree) -> PyTree:
    """Means over the devices that share a client's batch; the identity where it has only one."""
    if parts.layout.data_devices == 1:
        return tree
    return jax.lax.pmean(tree, DATA)
