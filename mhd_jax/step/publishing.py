# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What leaves a client: predictions and embeddings, as they travel and as readers take them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mhd_jax import distill, rng
from mhd_jax.attacks import Attackers
from mhd_jax.data.batches import Visits
from mhd_jax.exchange import from_wire, projection, to_wire
from mhd_jax.methods import Distillation
from mhd_jax.parallel import gather_clients
from mhd_jax.state import Learners, State
from mhd_jax.step.parts import StepParts, mean_over_data
from mhd_jax.trees import PyTree

ENERGY_OF_LIARS = 4.0  # standard deviations: more than honest ones reach


class Predictions(NamedTuple):
    """Scores and embeddings of one group on the public batch; energies where they are published."""

    scores: Float[Array, "k B H C"]
    embeddings: Float[Array, "k B D"]
    energy: Float[Array, "k B H"] | None = None


def public_forward(
    parts: StepParts, model: nn.Module, variables: PyTree, public: Array
) -> Predictions:
    """Predictions in evaluation mode on the public batch, as log-probabilities or logits.

    Gradients pass through batch normalisation as in training.
    """
    chosen = parts.method.distillation
    assert chosen is not None

    def one(variables: PyTree) -> Any:
        return model.apply(variables, public, train=False, renormalise=True)

    logits, embeddings = jax.vmap(one)(variables)
    scores = logits if chosen.mixes_logits else jax.nn.log_softmax(logits)
    energy = None
    if chosen.publishes_energy:
        mean = lambda x: mean_over_data(parts, distill.batch_mean(x))  # noqa: E731
        energy = distill.standardized_energy(logits, mean)
    return Predictions(scores, embeddings, energy)


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


def write_pool(
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


class Memory(NamedTuple):
    """What readers remember of earlier exchanges: see `State.marginals` and `State.cache`."""

    marginals: Any = ()
    cache: Any = ()


def read_published(
    parts: StepParts,
    state: State,
    own: tuple[Predictions, ...],
    pooled: tuple[Predictions, ...],
    public: Array,
    seed: Array,
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
    sent = publish(parts, chosen, shown)
    if parts.attackers is not None:
        sent = _with_lies(parts, parts.attackers, sent, public, seed, state.step)
    if cache:
        keep = functools.partial(_keep, parts.visits, state.step)
        sent = cache = jax.tree.map(keep, cache, sent)
    sent = _readable_part(parts, chosen, sent)
    if sent.scores is None or not chosen.alignment:
        return sent, Memory(state.marginals, cache)
    if parts.routes is None or isinstance(state.marginals, tuple):
        scores, marginals = align(parts, chosen, sent.scores, state.marginals)
    else:  # their publishers keep the averages, and send them along
        known = parts.routes.deliver(state.marginals)
        scores, marginals = align(parts, chosen, sent.scores, known)
        marginals = marginals[parts.routes.own()]
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


def publish(
    parts: StepParts, chosen: Distillation, predictions: tuple[Predictions, ...]
) -> Published:
    """What the clients here may see of all, in client order: the only exchange.

    Of all clients, or with `StepParts.routes` of those on the device and their peers. Predictions
    may carry a version axis, [k, V, B, ...]; candidates are then N = K * V, versions of a client
    together.
    """
    scores, embeddings, energies = [], [], []
    for size, own in zip(parts.places.groups, predictions, strict=True):
        versions = own.scores.ndim == 5

        def everyone(x: Array, size: int = size, versions: bool = versions) -> Array:
            rows = parts.routes.deliver(x) if parts.routes else gather_clients(x)[:size]
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
            embeddings.append(floats(projected(parts, own.embeddings)))
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


def projected(parts: StepParts, embeddings: Float[Array, "*k B D"]) -> Float[Array, "*k B w"]:
    """Embeddings in the dimensions in which they travel."""
    width = parts.embedding_width
    return embeddings @ projection(embeddings.shape[-1], width) if width else embeddings


def _with_lies(
    parts: StepParts, liars: Attackers, sent: Published, public: Array, seed: Array, step: Array
) -> Published:
    """What liars say in the place of what they computed, as far as the encoding can carry it."""
    layout, key = parts.layout, rng.stream(seed, "attack", step)
    scores, energy = sent.scores, sent.energy
    if scores is not None and liars.attack.predictions:
        told = liars.on_predictions(scores, layout.num_clients, public, key, step)
        carried = parts.encoding.decode(tuple(parts.encoding.encode(told)), parts.num_classes)
        scores = liars.only_lies(carried, scores, layout.num_clients, step)
    if energy is not None and liars.attack.predictions:
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


def align(
    parts: StepParts, chosen: Distillation, scores: Float[Array, "N B h C"], marginals: Any = ()
) -> tuple[Float[Array, "N B h C"], Any]:
    """Scores aligned with their mean over the batch, or with its moving average."""
    now = distill.mean_prediction(scores, logits=chosen.mixes_logits)
    now = mean_over_data(parts, now)
    if not isinstance(marginals, tuple):
        keep = chosen.alignment_momentum
        now = marginals = keep * marginals + (1 - keep) * now
    aligned = distill.align(
        scores, now, chosen.alignment,
        frequencies=chosen.class_frequencies, logits=chosen.mixes_logits,
    )  # fmt: skip
    return aligned, marginals
