# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What clients make of each other's parameters, where a method averages them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mhd_jax.distill import blank
from mhd_jax.distill.robust_rules import inner, middle
from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.registry import Registry, is_ours
from mhd_jax.trees import AnyTree, unfit_type


class Aggregator(Protocol):
    """What clients make of each other's parameters."""

    def __call__(self, everyone: AnyTree, weights: Float[Array, "k K"], trim: float) -> AnyTree:
        """Combines.

        Args:
          everyone: parameters of all clients, leaves [K, ...], all of them finite.
          weights: of the plain average; 0 where client i does not read client j.
          trim: the share of liars to be ready for.

        Returns:
          Parameters of the k readers, leaves [k, ...].
        """
        ...


AGGREGATORS: Registry[Aggregator] = Registry("average.rule")

WANTED = "a function (everyone, leaves [K, ...], weights [k, K], trim) to leaves [k, ...]"


def check(rule: str) -> None:
    """Calls a rule of one's own on shapes: 2 readers of 3 clients.

    Raises:
      ConfigError: an unknown name, or parameters of other shapes or types than the contract says.
    """
    if is_ours(AGGREGATORS.get(rule)):
        return
    own, everyone = (
        {"kernel": jax.ShapeDtypeStruct((n, 5, 4), jnp.float32),
         "bias": jax.ShapeDtypeStruct((n, 4), jnp.float32)} for n in (2, 3)
    )  # fmt: skip
    weights = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    jax.eval_shape(functools.partial(aggregate, rule=rule, trim=0.25), own, everyone, weights)


@AGGREGATORS.register("mean")
def mean(everyone: AnyTree, weights: Float[Array, "k K"], trim: float) -> AnyTree:
    """theta_i <- sum_j M_ij theta_j."""
    del trim

    def leaf(x: Float[Array, "K ..."]) -> Float[Array, "k ..."]:
        # Accelerators would round parameters to the ten or seven bits of TF32 or bfloat16.
        return jnp.einsum("ij,j...->i...", weights, x, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.map(leaf, everyone)


def aggregate(
    own: AnyTree, everyone: AnyTree, weights: Float[Array, "k K"], rule: str, trim: float
) -> tuple[AnyTree, Bool[Array, " K"]]:
    """What each client makes of the parameters that can be read, by the named rule.

    Parameters that are not all finite are read by nobody, and the weights of the others grow to
    add up to 1 again. Who can read nobody keeps its own.

    Args:
      own: parameters of the k readers, leaves [k, ...].
      everyone: what all clients have sent, leaves [K, ...].
      weights: of the plain average.
      rule: a name in `AGGREGATORS`.
      trim: see `Aggregator`.

    Returns:
      New parameters, leaves [k, ...], and whose could be read.

    Raises:
      ConfigError: the rule returns parameters of other shapes, or complex or whole numbers.
    """
    leaves = jax.tree.leaves(everyone)
    finite = jnp.stack([jnp.isfinite(x).reshape(len(x), -1).all(axis=1) for x in leaves])
    readable = finite.all(axis=0)
    left = jnp.where(readable, weights, 0.0)
    left = left / jnp.maximum(left.sum(axis=1, keepdims=True), 1e-12)
    left = jnp.where(readable.all(), weights, left)  # to the bit what it is without liars
    read = jax.tree.map(lambda x: blank(x, readable, 0.0), everyone)
    with of_piece("average.rule", rule, WANTED):
        mixed = AGGREGATORS.get(rule)(read, left, trim)
    if jax.tree.map(jnp.shape, mixed) != jax.tree.map(jnp.shape, own):
        raise ConfigError("average.rule", rule, f"{WANTED}, of the same tree")
    if unfit := unfit_type(mixed, own):
        raise ConfigError("average.rule", rule, f"{WANTED}, of floating point, not {unfit}")
    reads_somebody = (left > 0).any(axis=1)

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(reads_somebody.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(keep, mixed, own), readable


def _coordinates(
    everyone: AnyTree, weights: Array, keep: Callable[[Array, Array], Array]
) -> AnyTree:
    """Coordinate by coordinate, the mean of those places in the order of clients that are kept."""

    def leaf(x: Float[Array, "K ..."]) -> Float[Array, "k ..."]:
        def one(read: Bool[Array, " K"]) -> Array:
            column = (-1, *[1] * (x.ndim - 1))
            ordered = jnp.sort(jnp.where(read.reshape(column), x, jnp.inf), axis=0)
            kept = keep(jnp.arange(len(x)), read.sum())
            return jnp.where(kept.reshape(column), ordered, 0.0).sum(axis=0) / kept.sum()

        return jax.lax.map(one, weights > 0)

    return jax.tree.map(leaf, everyone)


@AGGREGATORS.register("median")
def median(everyone: AnyTree, weights: Float[Array, "k K"], trim: float) -> AnyTree:
    """The median of every parameter. Source: D. Yin et al., https://arxiv.org/abs/1803.01498."""
    del trim
    return _coordinates(everyone, weights, middle)


@AGGREGATORS.register("trimmed_mean")
def trimmed_mean(everyone: AnyTree, weights: Float[Array, "k K"], trim: float) -> AnyTree:
    """The mean of every parameter without the largest and smallest `trim` of its values.

    Source: D. Yin et al., 2018, https://arxiv.org/abs/1803.01498.
    """
    return _coordinates(everyone, weights, lambda place, count: inner(place, count, trim))


@AGGREGATORS.register("krum")
def krum(everyone: AnyTree, weights: Float[Array, "k K"], trim: float) -> AnyTree:
    """The parameters of that client who is nearest to its n - f - 2 nearest, f = trim n of n read.

    Source: P. Blanchard et al., 2017, https://arxiv.org/abs/1703.02757.
    """
    flat = [x.reshape(len(x), -1) for x in jax.tree.leaves(everyone)]
    size = len(flat[0])
    apart = sum(jnp.sum((x[:, None] - x[None]) ** 2, axis=-1) for x in flat)
    apart = jnp.where(jnp.eye(size, dtype=bool), jnp.inf, apart)

    def one(read: Bool[Array, " K"]) -> Int[Array, ""]:
        near = jnp.sort(jnp.where(read[None], apart, jnp.inf), axis=1)
        count = read.sum()
        nearest = jnp.maximum(count - jnp.floor(trim * count).astype(jnp.int32) - 2, 1)
        score = jnp.where(jnp.arange(size) < nearest, near, 0.0).sum(axis=1)
        score = jnp.where(count > 1, score, 0.0)  # whoever reads one client alone takes its
        return jnp.argmin(jnp.where(read, score, jnp.inf))

    chosen = jax.vmap(one)(weights > 0)
    return jax.tree.map(lambda x: x[chosen], everyone)
