# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Embedding distillation, and how much distillation weighs on the embedding network."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from mhd_jax.distill.unreadable import blank
from mhd_jax.edges import Edges, from_pairs


class TrunkGradients(NamedTuple):
    """What the two gradients do to one client's embedding network.

    Attributes:
      private_gradient: norm of the private loss's gradient.
      distillation_gradient: norm of the distillation losses' gradient.
      gradient_cosine: of the angle between them; below 0 they pull against each other.
    """

    private_gradient: Float[Array, ""]
    distillation_gradient: Float[Array, ""]
    gradient_cosine: Float[Array, ""]


def trunk_gradients(private: Any, lesson: Any) -> TrunkGradients:
    """Compares two gradients of one network, trees of the same shape.

    >>> found = trunk_gradients(jnp.array([1.0, 0.0]), jnp.array([-3.0, 4.0]))
    >>> float(found.distillation_gradient), round(float(found.gradient_cosine), 2)
    (5.0, -0.6)
    """
    ours, theirs = optax.tree.norm(private), optax.tree.norm(lesson)
    inner = optax.tree.vdot(private, lesson)
    return TrunkGradients(ours, theirs, inner / jnp.maximum(ours * theirs, 1e-12))


def normalize(embeddings: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
    """Scales embeddings to unit length; a zero vector stays zero, with a finite gradient."""
    squared = jnp.sum(embeddings**2, axis=-1, keepdims=True)
    return embeddings * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


def embedding_loss(
    student_embeddings: Float[Array, "k B D"],
    embeddings: Float[Array, "K B D"],
    peers: Bool[Array, "k K"],
) -> Float[Array, " k"]:
    """Mean over samples and peers of the squared distance of normalised embeddings.

    L_emb,i = mean_x mean_{j in peers(i)} |n(e_i) - stop(n(e_j))|^2; 0 for a client without peers.
    The square is expanded, so that no [k, K, B, D] array is built. Peers whose embeddings are not
    all finite are left out.
    """
    finite = jnp.isfinite(embeddings).all(axis=(1, 2))
    read = blank(embeddings, finite, 0.0)
    return embedding_loss_along(student_embeddings, read, from_pairs(jnp.asarray(peers)), finite)


def embedding_loss_along(
    student_embeddings: Float[Array, "k B D"],
    embeddings: Float[Array, "M B D"],
    peers: Edges,
    readable: Bool[Array, " N"],
    first: int = 0,
) -> Float[Array, " k"]:
    """The part of candidates first..first + M - 1 in `embedding_loss`, along the edges of a graph.

    The mean is over those of the peers that are `readable`; the others' embeddings are zeros.
    """
    student = normalize(student_embeddings)
    teacher = jax.lax.stop_gradient(normalize(embeddings))
    can_read = readable.astype(teacher.dtype)
    cross = jnp.einsum("kbd,kbd->kb", student, peers.mean(teacher, first))
    share = peers.mean(can_read[first : first + len(teacher)], first)
    own = jnp.sum(student**2, axis=-1) * share[:, None]
    theirs = peers.mean(jnp.sum(teacher**2, axis=-1), first)
    loss = jnp.mean(own + theirs - 2.0 * cross, axis=1)
    every = peers.mean(can_read)  # 1 where all peers can be read
    return jnp.where(every > 0, loss / jnp.maximum(every, 1e-6), 0.0)
