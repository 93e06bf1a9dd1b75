# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Gradients of distillation: whom a client may learn from, and what it learns."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mhd_jax import distill
from mhd_jax.edges import Edges
from mhd_jax.inputs import StepInputs
from mhd_jax.methods import Distillation
from mhd_jax.parallel import DATA
from mhd_jax.state import State
from mhd_jax.step.parts import (
    Metrics,
    StepParts,
    mean_over_data,
    own_messages,
    student_keys,
)
from mhd_jax.step.publishing import (
    Memory,
    Predictions,
    Published,
    align,
    pool_predictions,
    projected,
    public_forward,
    read_heads,
    read_published,
)
from mhd_jax.trees import PyTree


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


def distillation_gradients(
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
    return Lessons(mean_over_data(parts, grads), *aux)


def trunk_metrics(private: tuple[PyTree, ...], lessons: tuple[PyTree, ...]) -> Metrics:
    """What both gradients do to the trunk, the embedding network, of every client, [k] each."""
    found = [_trunk_gradients(*both) for both in zip(private, lessons, strict=True)]
    names = distill.TrunkGradients._fields
    return {name: tuple(getattr(norms, name) for norms in found) for name in names}


def _trunk_gradients(private: PyTree, lessons: PyTree) -> distill.TrunkGradients:
    """Of the clients of one group; zeros where the network has no parameters."""
    trunks = [tree["model"].get("network", {}) for tree in (private, lessons)]
    if jax.tree.leaves(trunks):
        return jax.vmap(distill.trunk_gradients)(*trunks)
    nothing = jnp.zeros(len(jax.tree.leaves(private)[0]))
    return distill.TrunkGradients(*[nothing] * len(distill.TrunkGradients._fields))


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
    published, memory = read_published(parts, state, own, pooled, public, seed)
    embedding_losses, heads, unreadable = [], [], []
    for group, student in enumerate(own):
        unreadable.append(_unreadable(parts, group, published))
        embedding_losses.append(
            _embedding_loss(
                parts, group, chosen, own, params[group], published, inputs.reads[group]
            )
        )
        heads.append(
            _head_losses(parts, group, chosen, student, published, inputs, seed, state.step)
        )
    return tuple(embedding_losses), tuple(heads), tuple(unreadable), memory


def _head_losses(
    parts: StepParts,
    group: int,
    chosen: Distillation,
    student: Predictions,
    published: Published,
    inputs: StepInputs,
    seed: Array,
    step: Array,
) -> Float[Array, "k m"]:
    """Loss of every taught head of one group: none without predictions, 0 of frozen clients."""
    if published.scores is None:
        return jnp.zeros((len(student.embeddings), 0))
    if group < parts.frozen:
        return jnp.zeros((len(student.scores), _taught(chosen, student).shape[2]))
    peers = peers_of(parts, group, student, published, inputs)
    candidates = screen(parts, peers, parts.layout.data_devices, parts.repeats)
    taught = _taught(chosen, student)
    count = student.scores.shape[1]
    samples = jax.lax.axis_index(DATA) * count + jnp.arange(count)
    keys = student_keys(parts, group, inputs, samples, seed, step)
    return distill.head_losses(
        taught, candidates, keys, rule=chosen.rule, confidence=chosen.confidence,
        loss=chosen.loss, temperature=chosen.temperature,
    )  # fmt: skip


def _unreadable(parts: StepParts, group: int, published: Published) -> Float[Array, " k"]:
    """1 for a local client of whose message nothing can be read."""
    readable = published.readable
    if published.scores is None and not published.embeddings:  # nothing is sent
        return jnp.zeros(len(own_messages(parts, group)))
    if parts.routes is None:  # all versions of a client together
        readable = readable.reshape(parts.places.num_clients, -1).any(axis=1)
    return 1.0 - readable[own_messages(parts, group)]


def _taught(chosen: Distillation, student: Predictions) -> Float[Array, "k B m C"]:
    """Scores of the heads that learn from others."""
    return student.scores[:, :, 1:] if chosen.wiring == "chain" else student.scores[:, :, :1]


def peers_of(
    parts: StepParts, group: int, student: Predictions, published: Published, inputs: StepInputs
) -> distill.Candidates:
    """Whom the local clients of a group may learn from: peers and, if chosen, themselves."""
    chosen = parts.method.distillation
    assert chosen is not None and published.scores is not None
    own, reads, in_front = own_messages(parts, group), inputs.reads[group], None
    shares = _label_shares(parts, inputs, len(published.scores))
    present = _says_now(parts, chosen, student, published, inputs, own)
    if chosen.include_self and inputs.versions.size:
        # One's own present state is no snapshot: it joins the candidates in front.
        published = _with_present_in_front(published, present)
        if shares is not None:
            shares = jnp.concatenate([inputs.label_shares[own], shares], axis=0)
        in_front = inputs.seated[own] if parts.roster.attendances else own
        reads, own = reads.behind(len(own)), jnp.arange(len(own))
    below = reads.including(own) if chosen.include_self else reads
    chain = chosen.wiring == "chain"
    assert published.scores is not None
    return distill.candidates_along(
        published.scores, below, reads if chain and chosen.same_rank else None,
        student.scores.shape[2] - 1 if chain else 1, energy=published.energy, label_shares=shares,
        ids=publishers(parts, inputs, len(published.scores), in_front),
        readable=published.readable, own=present.scores,
    )  # fmt: skip


def _label_shares(
    parts: StepParts, inputs: StepInputs, published: int
) -> Float[Array, "N C"] | None:
    """Label shares of the clients of all published predictions; None where clients publish none."""
    shares = inputs.label_shares
    if not shares.size:
        return None
    if parts.routes is not None:
        return shares[parts.routes.clients()]
    return jnp.repeat(shares, published // len(shares), axis=0)


def _says_now(
    parts: StepParts,
    chosen: Distillation,
    student: Predictions,
    published: Published,
    inputs: StepInputs,
    own: Int[Array, " k"],
) -> Predictions:
    """What the local clients of a group say now, as their readers take it.

    Those who publish it have their energies among what is published.
    """
    assert published.scores is not None
    if not inputs.versions.size:
        return Predictions(published.scores[own], student.embeddings)
    mine = jax.lax.stop_gradient(read_heads(chosen, student))
    return mine._replace(scores=align(parts, chosen, mine.scores)[0]) if chosen.alignment else mine


def _with_present_in_front(published: Published, present: Predictions) -> Published:
    """Published snapshots behind what the local clients say now, which these can always read."""
    assert published.scores is not None
    always, energy = jnp.ones(len(present.scores), bool), published.energy
    readable = jnp.concatenate([always, published.readable])
    scores = jnp.concatenate([present.scores, published.scores], axis=0)
    if energy is not None and present.energy is not None:
        energy = jnp.concatenate([present.energy, energy], axis=0)
    return published._replace(scores=scores, energy=energy, readable=readable)


def screen(
    parts: StepParts, peers: distill.Candidates, devices: int, repeats: float
) -> distill.Candidates:
    """The same, of whom students learn from those alone whom they hear.

    Args:
      parts: of the step.
      peers: whom they may learn from.
      devices: over which the samples are divided.
      repeats: how often they hold the same one, see `mhd_jax.data.batches.repeats`.
    """
    chosen = parts.method.distillation
    assert chosen is not None
    if not chosen.screening:
        return peers
    hears = distill.heard(
        peers, chosen.screening, logits=chosen.mixes_logits,
        across=functools.partial(mean_over_data, parts), devices=devices, repeats=repeats,
    )  # fmt: skip
    return distill.screened(peers, hears)


def publishers(
    parts: StepParts,
    inputs: StepInputs,
    candidates: int,
    students: Int[Array, " k"] | None = None,
) -> Int[Array, " N"] | None:
    """The client of every candidate, `NOBODY` where a place is free; None for all clients in order.

    Args:
      parts: of the step.
      inputs: of the step; who is seated where.
      candidates: N, all of them.
      students: the clients whose present predictions stand in front; None where none do.
    """
    if parts.routes is not None:
        return parts.routes.clients()
    some = bool(parts.roster.attendances)
    clients = inputs.seated if some else jnp.arange(parts.places.num_clients)
    in_front = jnp.zeros(0, clients.dtype) if students is None else students
    versions = (candidates - len(in_front)) // len(clients)
    if not some and versions == 1 and students is None:
        return None
    return jnp.concatenate([in_front, jnp.repeat(clients, versions)])  # versions stay together


def _embedding_loss(
    parts: StepParts,
    group: int,
    chosen: Distillation,
    own: tuple[Predictions, ...],
    params: PyTree,
    published: Published,
    reads: Edges,
) -> Float[Array, " k"]:
    """Embedding loss of one group against all, 0 of frozen clients.

    Where widths differ, a learned linear map comes first.
    """
    total = jnp.zeros(len(own[group].embeddings))
    if not chosen.nu_emb or group < parts.frozen:
        return total
    start = 0
    for peers, theirs in zip(own, published.embeddings, strict=True):
        mine, width = own[group].embeddings, peers.embeddings.shape[-1]
        if mine.shape[-1] != width:
            mine = jnp.einsum("kbd,kde->kbe", mine, params["projections"][f"to_{width}"])
        mine = projected(parts, mine)
        total = total + distill.embedding_loss_along(mine, theirs, reads, published.readable, start)
        start += theirs.shape[0]
    return total
