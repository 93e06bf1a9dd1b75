# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The head chain: rank r learns from rank r - 1, and whom a student may learn from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from mhd_jax import rng
from mhd_jax.distill.confidence import confidence_of
from mhd_jax.edges import NOBODY, UNROLLED, Edges, over_columns


class Teachers(NamedTuple):
    """Who teaches aux head r = 1..m of each student on each sample; -1 where nobody may."""

    client: Int[Array, "k B m"]
    head: Int[Array, "k B m"]


class Candidates(struct.PyTreeNode):
    """Whose published predictions the taught heads may learn from.

    Candidates come in blocks of K clients: N = K, or 2 K with `same_rank`. For taught head j (0 is
    the first that learns), block b offers head j + b of every client: in the head chain, where the
    first taught head is aux 1, block 0 is one rank below and block 1 the same rank. So a first-wins
    argmax breaks ties as the method asks: lower rank first, then the lowest client index.

    With `rows`, a block holds the L clients that a student may read instead of all K, other ones
    for every student. Teacher rules do not see that: they are called for one student at a time,
    to whom those L clients are all there are (see `choose`).

    Attributes:
      published: scores of all clients: log-probabilities, or logits where the method's loss is one
        of logits.
      allowed: who may learn from whom.
      ranks: number of taught heads m.
      energy: standardised energies, published only where `confidence="energy"` asks for them.
      label_shares: every client's label distribution, where clients publish it.
      rows: the clients of each student's blocks in ascending order; -1 fills up short rows.
      unread: the few candidates that a student with any may not learn from, where that is known
        of a dense graph; -1 fills up.
      ids: which clients published these; None for all of them, in order.
      readable: publishers whose message can be read, see `readable`; None for all of them. What
        the others have published is finite, but nobody may learn from it.
      own: what the students themselves say in the heads that are published, as their readers
        take it; for rules that compare. None where the caller knows none.
    """

    published: Float[Array, "K B H C"]
    allowed: Bool[Array, "k N"]
    ranks: int = struct.field(pytree_node=False)
    energy: Float[Array, "K B H"] | None = None
    label_shares: Float[Array, "K C"] | None = None
    rows: Int[Array, "k L"] | None = None
    unread: Int[Array, "k u"] | None = None
    ids: Int[Array, " K"] | None = None
    readable: Bool[Array, " K"] | None = None
    own: Float[Array, "k B H C"] | None = None

    @property
    def publishers(self) -> Int[Array, " K"]:
        """The client of each row of `published`; -1 for a place that nobody takes.

        A rule that treats clients by name needs it. Snapshots have the number of their client.
        """
        return jnp.arange(len(self.published)) if self.ids is None else self.ids

    @property
    def per_block(self) -> int:
        """Candidates of one rank: K, or L with `rows`."""
        return self.published.shape[0] if self.rows is None else self.rows.shape[1]

    @property
    def blocks(self) -> int:
        """1, or 2 with `same_rank`."""
        return self.allowed.shape[1] // self.per_block

    def by_rank(self, values: Float[Array, "K B H ..."]) -> Float[Array, "N B m ..."]:
        """One value per published head, rearranged to one per candidate of every taught head."""
        parts = [values[:, :, block : block + self.ranks] for block in range(self.blocks)]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=0)

    def take(self, index: Int[Array, "k B m"]) -> Float[Array, "k B m C"]:
        """The scores of the chosen candidates, gathered; of client 0 where index < 0."""
        chosen = jnp.maximum(index, 0)
        sample = jnp.arange(self.published.shape[1])[None, :, None]
        head = jnp.arange(self.ranks)[None, None, :] + chosen // self.per_block
        return self.published[self.publisher(chosen), sample, head]

    def publisher(self, index: Int[Array, k * shape]) -> Int[Array, k * shape]:
        """Whose prediction candidate `index` >= 0 of each student is, a row of `published`."""
        place = index % self.per_block
        if self.rows is None:
            return place
        flat = jnp.take_along_axis(self.rows, place.reshape(len(place), -1), axis=1)
        return jnp.maximum(flat, 0).reshape(place.shape)

    def of_student(
        self, rows: Int[Array, " L"], allowed: Bool[Array, " N"], own: Float[Array, "B H C"] | None
    ) -> Candidates:
        """What one student may read, as a system of its own: k = 1, K = L."""
        read = jnp.maximum(rows, 0)
        pick = lambda x: None if x is None else x[read]  # noqa: E731
        ids = rows if self.ids is None else jnp.where(rows < 0, NOBODY, self.ids[read])
        return Candidates(
            self.published[read], allowed[None], self.ranks,
            pick(self.energy), pick(self.label_shares), ids=ids, readable=pick(self.readable),
            own=None if own is None else own[None],
        )  # fmt: skip


def chain_candidates(
    log_probs: Float[Array, "K B H C"],
    below: Bool[Array, "k K"],
    same: Bool[Array, "k K"] | None = None,
) -> Candidates:
    """The candidates of aux heads 1..m: heads of rank r - 1 (and, with `same`, of rank r)."""
    allowed = below if same is None else jnp.concatenate([below, same], axis=1)
    return Candidates(log_probs, allowed, log_probs.shape[2] - 1)


def candidates_along(
    published: Float[Array, "K B H C"],
    below: Edges,
    same: Edges | None,
    ranks: int,
    *,
    energy: Float[Array, "K B H"] | None = None,
    label_shares: Float[Array, "K C"] | None = None,
    ids: Int[Array, " K"] | None = None,
    readable: Bool[Array, " K"] | None = None,
    own: Float[Array, "k B H C"] | None = None,
) -> Candidates:
    """Candidates along the edges of a graph, in the form in which the edges are written.

    Args:
      published: scores of all clients.
      below: whose lower head each student may learn from.
      same: whose head of the same rank, some of those in `below`; None for none.
      ranks: number of taught heads m.
      energy: see `Candidates`.
      label_shares: see `Candidates`.
      ids: see `Candidates`.
      readable: see `Candidates`.
      own: see `Candidates`.
    """
    can_read = jnp.ones(len(published), bool) if readable is None else readable
    extra = {
        "energy": energy, "label_shares": label_shares, "ids": ids, "readable": readable, "own": own
    }  # fmt: skip
    if below.form.kind == "lists":
        rows = below.ids
        allowed = (rows != NOBODY) & can_read[jnp.maximum(rows, 0)]
        if same is not None:
            also = (rows[:, :, None] == same.ids[:, None]).any(axis=2) & allowed
            allowed = jnp.concatenate([allowed, also], axis=1)
        return Candidates(published, allowed, ranks, rows=rows, **extra)
    allowed, unread = below.mask() & can_read, None
    if same is not None:
        allowed = jnp.concatenate([allowed, same.mask() & can_read], axis=1)
    if below.form.kind == "all_but":
        unread = below.ids
        if same is not None:
            others = jnp.where(same.ids == NOBODY, NOBODY, same.ids + len(published))
            unread = jnp.concatenate([unread, others], axis=1)
    return Candidates(published, allowed, ranks, unread=unread, **extra)


def most_confident(
    confidence: Float[Array, "N B m"],
    allowed: Bool[Array, "k N"],
    unread: Int[Array, "k u"] | None = None,
) -> Int[Array, "k B m"]:
    """Index of the most confident allowed candidate per sample; -1 where none is allowed.

    No array has an axis for students and one for candidates beside that of the samples. A
    candidate of confidence -inf or NaN is never chosen.

    Args:
      confidence: of every candidate.
      allowed: who may learn from whom.
      unread: all the candidates that a student with any may not learn from, if these are few, but
        for those of confidence -inf; then one of the best u + 1 is the answer for everybody.
    """
    confidence = jax.lax.stop_gradient(confidence)
    confidence = jnp.where(jnp.isnan(confidence), -jnp.inf, confidence)
    if unread is not None:
        return _best_but(confidence, allowed.any(axis=1), unread)
    if jax.default_backend() == "cpu" or len(confidence) <= UNROLLED:
        return _running_maximum(confidence, allowed)
    masked = jnp.where(allowed[:, :, None, None], confidence, -jnp.inf)
    best = jnp.argmax(masked, axis=1).astype(jnp.int32)
    return jnp.where(masked.max(axis=1) > -jnp.inf, best, NOBODY)


def _running_maximum(
    confidence: Float[Array, "N B m"], allowed: Bool[Array, "k N"]
) -> Int[Array, "k B m"]:
    """`most_confident`, one candidate after another: on CPU this vectorises, an argmax does not."""

    def body(candidate: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        best, index = carry
        value = confidence[candidate][None]
        better = allowed[:, candidate][:, None, None] & (value > best)
        return jnp.where(better, value, best), jnp.where(better, candidate, index)

    shape = (len(allowed), *confidence.shape[1:])
    start = (jnp.full(shape, -jnp.inf, confidence.dtype), jnp.full(shape, NOBODY, jnp.int32))
    return over_columns(len(confidence), body, start)[1]


def _best_but(
    confidence: Float[Array, "N B m"], connected: Bool[Array, " k"], unread: Int[Array, "k u"]
) -> Int[Array, "k B m"]:
    """`most_confident` where a student may read all but the u candidates in its row of `unread`."""
    place = jnp.arange(len(confidence), dtype=jnp.int32)[:, None, None]
    found = jnp.full((len(unread), *confidence.shape[1:]), NOBODY, jnp.int32)
    left = jnp.ones(confidence.shape, bool)
    for _ in range(min(unread.shape[1] + 1, len(confidence))):
        rest = jnp.where(left, confidence, -jnp.inf)
        best = jnp.argmax(rest, axis=0).astype(jnp.int32)
        may = (unread[:, :, None, None] != best).all(axis=1) & (rest.max(axis=0) > -jnp.inf)
        found = jnp.where((found < 0) & may, best, found)
        left &= place != best
    return jnp.where(connected[:, None, None], found, NOBODY)


def random_candidate(
    keys: Key[Array, "k B"], allowed: Bool[Array, "k N"], num_ranks: int
) -> Int[Array, "k B m"]:
    """A fresh uniform choice among the allowed candidates for every sample and rank."""
    count = allowed.sum(axis=1)[:, None, None]
    draw = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (num_ranks,))))
    nth = jnp.minimum((draw(keys) * count).astype(jnp.int32), count - 1)
    order = jnp.argsort(~allowed, axis=1, stable=True).astype(jnp.int32)  # allowed ones first
    chosen = jnp.take_along_axis(order[:, None, :], jnp.maximum(nth, 0), axis=2)
    return jnp.where(count > 0, chosen, -1)


def sample_keys(keys: Key[Array, " k"], positions: Int[Array, " B"]) -> Key[Array, "k B"]:
    """One key per student and sample, by the sample's place in the whole public batch."""
    return jax.vmap(rng.each, in_axes=(0, None))(keys, positions)


def select_teachers(
    log_probs: Float[Array, "K B H C"],
    below: Bool[Array, "k K"],
    same: Bool[Array, "k K"] | None = None,
    *,
    confidence: str = "max_prob",
    key: Key[Array, ""] | Key[Array, " k"] | None = None,
) -> Teachers:
    """Chooses, sample by sample, the teacher of every aux head.

    Args:
      log_probs: published log-probabilities [K, B, H, C].
      below: `below[i, j]`: may student i's head of rank r learn from client j's head of rank
        r - 1. The caller adds the diagonal for `include_self`.
      same: likewise for client j's head of the same rank r; None for none.
      confidence: a name in `CONFIDENCES`, or "random" for a fresh random choice per sample.
      key: for "random" only: one typed key, or one per student [k].

    Returns:
      `Teachers` of shape [k, B, m]. Ties go to the lower rank, then to the lowest client.

    Raises:
      ConfigError: unknown confidence.
      ValueError: "random" without a key.
    """
    num_clients, num_samples, num_heads, _ = log_probs.shape
    candidates = chain_candidates(log_probs, below, same)
    if confidence == "random":
        if key is None:
            raise ValueError('confidence="random" needs a key')
        keys = key if key.ndim else jax.random.split(key, below.shape[0])
        drawn = sample_keys(keys, jnp.arange(num_samples))
        index = random_candidate(drawn, candidates.allowed, num_heads - 1)
    else:
        certainty = candidates.by_rank(confidence_of(confidence, log_probs))
        index = most_confident(certainty, candidates.allowed)
    rank = jnp.arange(1, num_heads, dtype=jnp.int32)
    head = jnp.where(index < num_clients, rank - 1, rank)
    return Teachers(
        client=jnp.where(index < 0, -1, index % num_clients), head=jnp.where(index < 0, -1, head)
    )
