# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Gradients of the private loss, with privacy those of every sample clipped."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

from mhd_jax import privacy as privacy_lib
from mhd_jax.inputs import Batch
from mhd_jax.models import bridge, statistics
from mhd_jax.state import Learners
from mhd_jax.step.parts import StepParts, mean_over_data
from mhd_jax.trees import PyTree

_FULL_PRECISION = functools.partial(jax.default_matmul_precision, "highest")
"""Matrix products in full float32. Accelerators round the factors by default, and a gradient could
then be longer than the norm by which it was clipped."""


class PrivateGradients(NamedTuple):
    """Of the private loss; everything per group, losses [k] weighted as in the objective."""

    grads: tuple[PyTree, ...]
    stats: tuple[PyTree, ...]
    losses: tuple[Float[Array, " k"], ...]


def private_gradients(
    parts: StepParts,
    models: Sequence[nn.Module],
    learners: tuple[Learners, ...],
    batch: Batch,
    weight: Float[Array, ""],
    keys: Sequence[Array],
    noise_keys: tuple[Array, ...] = (),
    paces: tuple[PyTree, ...] = (),
    public: Shaped[Array, "B' ..."] | None = None,
) -> PrivateGradients:
    """Gradients of weight * CE(private labels) of the local clients, over their whole batches.

    With `parts.privacy` that of every sample is clipped, and their sum gets noise. Where there are
    `paces`, new batch statistics move that much further. Given `public` samples, batch statistics
    are those of private and public samples together, and the loss is the mean of two
    (`_sample_losses`); networks without batch statistics do not look at them.
    """
    rest = parts.frozen
    resting, learners, models = learners[:rest], learners[rest:], models[rest:]
    batch = batch._replace(
        images=batch.images[rest:], labels=batch.labels[rest:], weights=batch.weights[rest:]
    )
    privacy, unclipped = parts.privacy, None
    if privacy is not None:
        with _FULL_PRECISION():
            batch, unclipped = _clipped(privacy, models, learners, batch, keys[rest:])

    def objective(params: tuple[PyTree, ...]) -> tuple[Array, Any]:
        losses, stats = _private_losses(models, params, learners, batch, keys[rest:], public)
        losses = tuple(weight * loss for loss in losses)
        return jnp.asarray(sum(loss.sum() for loss in losses)), (stats, losses)

    params = tuple(group.params for group in learners)
    with _FULL_PRECISION() if privacy is not None else contextlib.nullcontext():
        grads, (stats, losses) = jax.grad(objective, has_aux=True)(params)
    if paces:
        old = tuple(group.stats for group in learners)
        stats = statistics.keep_up(old, stats, paces[rest:])
    grads, stats = mean_over_data(parts, (grads, stats))
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


def _private_losses(
    models: Sequence[nn.Module],
    params: tuple[PyTree, ...],
    learners: tuple[Learners, ...],
    batch: Batch,
    keys: Sequence[Array],
    public: Array | None,
) -> tuple[tuple[Float[Array, " k"], ...], tuple[PyTree, ...]]:
    """Private losses and new batch statistics of every group."""
    trees = [
        _private_loss(model, tree["model"], group.stats, images, labels, each, weights, public)
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
    public: Array | None,
) -> tuple[Float[Array, " k"], PyTree]:
    """CE of the main head on private labels, with dropout, and new batch statistics."""

    def one(
        params: PyTree, stats: PyTree, images: Array, labels: Array, key: Array, weights: Any
    ) -> tuple[Array, PyTree]:
        losses, new = _sample_losses(model, params, stats, images, labels, key, public)
        return (losses if weights is None else weights * losses).mean(), new

    return jax.vmap(one)(params, stats, images, labels, keys, weights)


def _sample_losses(
    model: nn.Module,
    params: PyTree,
    stats: PyTree,
    images: Array,
    labels: Int[Array, " B"],
    key: Array,
    public: Array | None = None,
) -> tuple[Float[Array, " B"], PyTree]:
    """CE of one client's main head on every sample, and its new batch statistics.

    With statistics, half of the loss is that of the batch alone, from which a client of one class
    learns that this is always the answer, and half that of the batch together with public samples,
    whose statistics are kept for test samples.
    """
    variables, rngs = {"params": params, "batch_stats": stats}, bridge.keys(key)

    def losses(batch: Array) -> tuple[Float[Array, " B"], PyTree]:
        (logits, _), new = model.apply(
            variables, batch, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        main = logits[: len(images), 0]
        found = optax.losses.softmax_cross_entropy_with_integer_labels(main, labels)
        return found, new.get("batch_stats", {})

    alone, new = losses(images)
    if public is None or not stats:
        return alone, new
    together, new = losses(jnp.concatenate([images, public]))
    return (alone + together) / 2, new


def _rows_of(group: Learners) -> int:
    """k."""
    return len(jax.tree.leaves(group.params)[0])
