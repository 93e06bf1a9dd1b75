# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The equations of multi-headed distillation, as pure functions of published predictions.

Letters: K clients publish, k of them (the rows one device owns) are students, B public samples,
H = m + 1 heads of which m are auxiliary, C classes, D embedding width, N candidate teachers.

Source: A. Zhmoginov et al., "Decentralized Learning with Multi-Headed Distillation", CVPR 2023,
https://arxiv.org/abs/2211.15774.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from mhd_jax import rng
from mhd_jax.edges import NOBODY, UNROLLED, Edges, from_pairs, over_columns
from mhd_jax.errors import ConfigError
from mhd_jax.registry import Registry


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
      published: scores of all clients, log-probabilities or logits.
      allowed: who may learn from whom.
      ranks: number of taught heads m.
      energy: standardised energies, published only where `confidence="energy"` asks for them.
      label_shares: every client's label distribution, where clients publish it.
      rows: the clients of each student's blocks in ascending order; -1 fills up short rows.
      unread: the few candidates that a student with any may not learn from, where that is known
        of a dense graph; -1 fills up.
      ids: which publishers of the whole system these are; None for all of them, in order.
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
        """Place of each publisher in the whole system: its client where teachers are fresh.

        A rule that treats clients by name needs it; -1 for a place that nobody takes.
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


# --- Confidence: how sure a prediction is ---------------------------------------------------------


class Confidence(Protocol):
    """A confidence measure: one number per prediction, larger is surer."""

    def __call__(self, log_probs: Float[Array, "*shape C"]) -> Float[Array, "*shape"]:
        """Log-probabilities [..., C] to confidences [...]."""
        ...


CONFIDENCES: Registry[Confidence] = Registry("distill.confidence")


@CONFIDENCES.register("max_prob")
def max_prob(log_probs: Float[Array, "*shape C"]) -> Float[Array, "*shape"]:
    """Probability of the most likely class, max_c p_c.

    >>> import jax.numpy as jnp
    >>> float(max_prob(jnp.log(jnp.array([0.5, 0.25, 0.25]))))
    0.5
    """
    # Of the probabilities that targets are gathered from: a gather does not vectorise its own.
    return jnp.max(jnp.exp(log_probs), axis=-1)


@CONFIDENCES.register("neg_entropy")
def neg_entropy(log_probs: Float[Array, "*shape C"]) -> Float[Array, "*shape"]:
    """Negative Shannon entropy in nats, sum_c p_c log p_c."""
    return -jnp.sum(jax.scipy.special.entr(jnp.exp(log_probs)), axis=-1)


@CONFIDENCES.register("margin")
def margin(log_probs: Float[Array, "*shape C"]) -> Float[Array, "*shape"]:
    """Largest minus second largest probability (the largest itself when C = 1)."""
    largest = jnp.exp(jax.lax.top_k(log_probs, min(2, log_probs.shape[-1]))[0])
    return largest[..., 0] - (largest[..., 1] if largest.shape[-1] > 1 else 0.0)


ENERGY = "energy"
"""The confidence that needs more than log-probabilities: see `standardized_energy`."""


def standardized_energy(
    logits: Float[Array, "*K B H C"], mean: BatchMean | None = None
) -> Float[Array, "*K B H"]:
    """How far a sample's log-sum-exp lies above its head's average, in standard deviations.

    e = log sum_c exp(logit_c), the negative energy; z = (e - mean_B e) / std_B e for every client
    and head. Log-probabilities have lost e, so a client publishes z beside them: one number more
    per sample and head. Raw energies of different clients do not compare, z does. Source of the
    score: W. Liu et al., 2020, https://arxiv.org/abs/2010.03759; standardising it is ours.

    Args:
      logits: of every head.
      mean: mean over the whole public batch (axis -2), see `BatchMean`.
    """
    mean = mean or batch_mean
    energy = jax.nn.logsumexp(logits, axis=-1)
    centred = energy - mean(energy)
    return centred * jax.lax.rsqrt(mean(centred**2) + 1e-12)


class BatchMean(Protocol):
    """Mean over the samples of a public batch, which several devices may share."""

    def __call__(self, values: Float[Array, "*K B H"]) -> Float[Array, "*K 1 H"]:
        """The mean over the axis before the last, which is kept with size 1."""
        ...


def batch_mean(values: Float[Array, "*K B H"]) -> Float[Array, "*K 1 H"]:
    """The mean over a batch that is all here."""
    return values.mean(axis=-2, keepdims=True)


# --- Messages that cannot be read -----------------------------------------------------------------

NORMALISED = 0.1
"""How far log sum_c p_c of a published prediction may lie from 0: encodings round."""


def readable(scores: Float[Array, "N B h C"], *, logits: bool = False) -> Bool[Array, " N"]:
    """Whose predictions can be read: finite and, where they are log-probabilities, of sum 1.

    A message with one value that is neither is dropped as a whole, in this step: whoever sends it
    teaches nobody and enters no mean, so that NaN stays with the client that has it.

    Args:
      scores: published log-probabilities, or logits.
      logits: which of the two.
    """
    finite = jnp.isfinite(scores).all(axis=(1, 2, 3))
    if logits:
        return finite
    total = jnp.log(jnp.exp(scores).sum(axis=-1))  # what overflows is not normalised either
    return finite & (jnp.abs(total) < NORMALISED).all(axis=(1, 2))


def blank(values: Float[Array, "N ..."], readable: Bool[Array, " N"], fill: float) -> Array:
    """Values of readable publishers; `fill` in place of what the others sent."""
    return jnp.where(readable.reshape(-1, *[1] * (values.ndim - 1)), values, fill)


# --- Alignment: what a teacher says of an image, against what it says of every image -------------

MARGINAL_FLOOR = 1e-6


def mean_prediction(
    scores: Float[Array, "K B H C"], *, logits: bool = False
) -> Float[Array, "K H C"]:
    """p_bar, every published head's mean prediction over the public batch.

    Args:
      scores: published log-probabilities, or logits.
      logits: which of the two.
    """
    log_probs = jax.nn.log_softmax(scores) if logits else scores
    return jnp.exp(log_probs).mean(axis=1)


def align(
    scores: Float[Array, "K B H C"],
    marginal: Float[Array, "K H C"],
    strength: float,
    *,
    frequencies: Sequence[float] = (),
    logits: bool = False,
) -> Float[Array, "K B H C"]:
    """Divides every published prediction by its own head's mean prediction.

    p~(c|x) is proportional to p(c|x) (pi(c) / max(p_bar(c), 1e-6))^tau. A client that knows two
    classes says one of them of every image; divided by how often it says so, it is sure only where
    an image stands out. tau = 0 is the paper's method. Alignment is this project's addition;
    the idea is the distribution alignment of ReMixMatch (D. Berthelot et al., 2020,
    https://arxiv.org/abs/1911.09785), which aligns one model's guesses with a known marginal.

    Args:
      scores: published log-probabilities, or logits.
      marginal: p_bar, from `mean_prediction` or a moving average of it.
      strength: tau.
      frequencies: pi, the classes' frequencies in the public set; () takes them as equal.
      logits: scores are logits, which stay unnormalised.

    >>> says_zero = jnp.log(jnp.array([[[0.9, 0.1]], [[0.6, 0.4]]]))[None]  # K = H = 1, B = 2
    >>> aligned = align(says_zero, mean_prediction(says_zero), 1.0)
    >>> [[round(float(p), 2) for p in row] for row in jnp.exp(aligned[0, :, 0])]
    [[0.75, 0.25], [0.33, 0.67]]
    """
    lift = jnp.log(jnp.maximum(marginal, MARGINAL_FLOOR))
    if len(frequencies):
        lift = lift - jnp.log(jnp.maximum(jnp.asarray(frequencies, jnp.float32), MARGINAL_FLOOR))
    shifted = scores - strength * lift[:, None]
    return shifted if logits else jax.nn.log_softmax(shifted)


# --- The head chain: rank r learns from rank r - 1 ------------------------------------------------


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
    heard = jnp.ones(len(published), bool) if readable is None else readable
    extra = {
        "energy": energy, "label_shares": label_shares, "ids": ids, "readable": readable, "own": own
    }  # fmt: skip
    if below.form.kind == "lists":
        rows = below.ids
        allowed = (rows != NOBODY) & heard[jnp.maximum(rows, 0)]
        if same is not None:
            also = (rows[:, :, None] == same.ids[:, None]).any(axis=2) & allowed
            allowed = jnp.concatenate([allowed, also], axis=1)
        return Candidates(published, allowed, ranks, rows=rows, **extra)
    allowed, unread = below.mask() & heard, None
    if same is not None:
        allowed = jnp.concatenate([allowed, same.mask() & heard], axis=1)
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
    trust: Float[Array, "k N"] | None = None,
) -> Int[Array, "k B m"]:
    """Index of the most confident allowed candidate per sample; -1 where none is allowed.

    No array has an axis for students and one for candidates beside that of the samples. A
    candidate of confidence -inf or NaN is never chosen.

    Args:
      confidence: of every candidate.
      allowed: who may learn from whom.
      unread: all the candidates that a student with any may not learn from, if these are few, but
        for those of confidence -inf; then one of the best u + 1 is the answer for everybody.
      trust: factors by student, of confidences of at least 0; None for 1.
    """
    confidence = jax.lax.stop_gradient(confidence)
    confidence = jnp.where(jnp.isnan(confidence), -jnp.inf, confidence)
    if unread is not None and trust is None:
        return _best_but(confidence, allowed.any(axis=1), unread)
    if jax.default_backend() == "cpu" or len(confidence) <= UNROLLED:
        return _running_maximum(confidence, allowed, trust)
    scores = confidence[None] if trust is None else trust[:, :, None, None] * confidence[None]
    masked = jnp.where(allowed[:, :, None, None], scores, -jnp.inf)
    best = jnp.argmax(masked, axis=1).astype(jnp.int32)
    return jnp.where(masked.max(axis=1) > -jnp.inf, best, NOBODY)


def _running_maximum(
    confidence: Float[Array, "N B m"],
    allowed: Bool[Array, "k N"],
    trust: Float[Array, "k N"] | None = None,
) -> Int[Array, "k B m"]:
    """`most_confident`, one candidate after another: on CPU this vectorises, an argmax does not."""

    def body(candidate: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        best, index = carry
        value = confidence[candidate][None]
        if trust is not None:
            value = value * trust[:, candidate][:, None, None]
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
        certainty = candidates.by_rank(_certainty(confidence, log_probs))
        index = most_confident(certainty, candidates.allowed)
    rank = jnp.arange(1, num_heads, dtype=jnp.int32)
    head = jnp.where(index < num_clients, rank - 1, rank)
    return Teachers(
        client=jnp.where(index < 0, -1, index % num_clients), head=jnp.where(index < 0, -1, head)
    )


# --- Teacher rules: from candidates to targets ----------------------------------------------------


class Target(NamedTuple):
    """What taught heads learn towards, and where there is a teacher at all."""

    scores: Float[Array, "k B m C"]
    taught: Bool[Array, "k B m"]


Choice = Int[Array, "k B m"] | Float[Array, "k N B m"] | Target
"""What a rule returns."""


class TeacherRule(Protocol):
    """Weighs the candidates of every student, sample and rank: the extension point for teachers."""

    def __call__(
        self, candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
    ) -> Choice:
        """Chooses or weighs.

        Args:
          candidates: published scores and who may learn from whom, allowed [k, N].
          confidence: of every candidate.
          keys: one per student and sample, a function of seed, step and client.

        Returns:
          The index of one candidate, int [k, B, m] with -1 for none; or weights, float
          [k, N, B, m], 0 where a candidate is not allowed, with sum 1 over N (0 for no teacher);
          or, for a rule that mixes in another way, the `Target` itself.
        """
        ...


RULES: Registry[TeacherRule] = Registry("distill.rule")


@RULES.register("most_confident")
def most_confident_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Int[Array, "k B m"]:
    """The paper's rule: per sample, the allowed candidate with the largest confidence."""
    del keys
    return most_confident(confidence, candidates.allowed, candidates.unread)


@RULES.register("random")
def random_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Int[Array, "k B m"]:
    """The ablation: per sample, a uniformly random allowed candidate, drawn afresh every step."""
    return random_candidate(keys, candidates.allowed, confidence.shape[-1])


@RULES.register("mean")
def mean_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Float[Array, "k N B m"]:
    """All allowed candidates equally, w_j = 1 / n: the ensemble mean of codistillation.

    Source: R. Anil et al., 2018, https://arxiv.org/abs/1804.03235.
    """
    del keys
    allowed = candidates.allowed
    share = allowed / jnp.maximum(allowed.sum(axis=1, keepdims=True), 1)
    return jnp.broadcast_to(share[:, :, None, None], allowed.shape + confidence.shape[1:])


@RULES.register("entropy_weighted")
def entropy_weighted_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Float[Array, "k N B m"]:
    """Surer candidates count more, w_j proportional to exp(-entropy_j) (entropy in nats).

    The exponential keeps the weights positive and bounded, 1/C for a uniform prediction and 1 for
    a certain one. Weighing an ensemble by certainty is the idea of FedAUX,
    https://arxiv.org/abs/2102.02514; this form is ours.
    """
    del keys, confidence
    return _shares(candidates, jnp.exp(candidates.by_rank(neg_entropy(candidates.published))))


@RULES.register("entropy_power")
def entropy_power_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Float[Array, "k N B m"]:
    """Weights by a power of the entropy, w_j proportional to (entropy_j / log C)^-2.

    Harsher than `entropy_weighted` on the unsure: the weights of two candidates of entropy 0.1 and
    1 nats differ by a factor of 100. The floor of 0.01 keeps a certain candidate's weight finite.
    Entropy weights are those of FedAUX, https://arxiv.org/abs/2102.02514; the power is ours.
    """
    del keys, confidence
    classes = candidates.published.shape[-1]
    entropy = -candidates.by_rank(neg_entropy(candidates.published)) / jnp.log(max(classes, 2))
    return _shares(candidates, jnp.maximum(entropy, 0.01) ** -2)


@RULES.register("class_thresholds")
def class_thresholds_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Int[Array, "k B m"]:
    """The most confident of those candidates that pass their own threshold for the class they name.

    A candidate's threshold for class c is its mean largest probability over the public batch times
    p_bar(c) / max p_bar: lower for classes it names rarely. Where none passes, nobody teaches.
    Source: the self-adaptive thresholds of FreeMatch, Y. Wang et al., 2023,
    https://arxiv.org/abs/2205.07246; here from this batch alone, not from a moving average.
    """
    del keys
    probs = jnp.exp(candidates.published)
    largest, named = probs.max(axis=-1), probs.argmax(axis=-1)
    mean = probs.mean(axis=1, keepdims=True)
    relative = mean / mean.max(axis=-1, keepdims=True)
    at_named = jnp.take_along_axis(
        jnp.broadcast_to(relative, probs.shape), named[..., None], axis=-1
    )[..., 0]
    passes = largest >= largest.mean(axis=1, keepdims=True) * at_named
    passing = jnp.where(candidates.by_rank(passes), confidence, -jnp.inf)
    return most_confident(passing, candidates.allowed, candidates.unread)


@RULES.register("mean_log_prob")
def mean_log_prob_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Target:
    """The normalised geometric mean, p proportional to exp(mean_j log p_j): a product of experts.

    One candidate that excludes a class excludes it for all. Source: G. Hinton, 2002, "Training
    products of experts by minimizing contrastive divergence",
    https://doi.org/10.1162/089976602760128018.
    """
    del keys, confidence
    allowed = candidates.allowed
    share = allowed / jnp.maximum(allowed.sum(axis=1, keepdims=True), 1)
    logits = _mixed(candidates, share, jnp.maximum(candidates.published, jnp.log(1e-12)))
    return _everywhere(jax.nn.softmax(logits), allowed)


@RULES.register("label_share")
def label_share_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Target:
    """A candidate counts for a class as far as its client holds that class.

    p(c) is proportional to sum_j q_j(c) p_j(c) with q_j the label distribution of client j, which
    clients publish once (`distill.publish_label_shares`). Weights per class and client are those
    of DaFKD's and FedGKD's relatives; see J. Zhang et al., 2022, FedLC,
    https://arxiv.org/abs/2209.00189, for label counts as calibration. This form is ours.

    Raises:
      ConfigError: clients do not publish their label shares.
    """
    del keys, confidence
    if candidates.label_shares is None:
        raise ConfigError(
            "distill.rule", "label_share", "distill.publish_label_shares = True beside it"
        )
    probs = jnp.exp(candidates.published) * candidates.label_shares[:, None, None, :]
    mixed = _mixed(candidates, candidates.allowed.astype(probs.dtype), probs)
    total = jnp.maximum(mixed.sum(axis=-1, keepdims=True), 1e-12)
    return _everywhere(mixed / total, candidates.allowed)


def _shares(candidates: Candidates, weights: Float[Array, "N B m"]) -> Float[Array, "k N B m"]:
    """Weights of the allowed candidates, of sum 1 for every student and sample."""
    allowed = jnp.where(candidates.allowed[:, :, None, None], weights[None], 0.0)
    return allowed / jnp.maximum(allowed.sum(axis=1, keepdims=True), 1e-12)


def _mixed(
    candidates: Candidates, share: Float[Array, "k N"], values: Float[Array, "K B H C"]
) -> Float[Array, "k B m C"]:
    """sum_j share_ij values_j for every student; nothing of size k N C is built."""
    return jnp.einsum("kn,nbmc->kbmc", share, candidates.by_rank(values))


def _everywhere(scores: Float[Array, "k B m C"], allowed: Bool[Array, "k N"]) -> Target:
    """A target on every sample of every student that has a candidate."""
    taught = jnp.broadcast_to(allowed.any(axis=1)[:, None, None], scores.shape[:-1])
    return Target(scores, taught)


def sharpen(probs: Float[Array, "*shape C"], temperature: float) -> Float[Array, "*shape C"]:
    """Raises probabilities to the power 1 / temperature and renormalises; below 1 sharpens.

    Source: D. Berthelot et al., MixMatch, 2019, section 3.2, https://arxiv.org/abs/1905.02249.
    """
    if temperature == 1.0:
        return probs
    return jax.nn.softmax(jnp.log(jnp.maximum(probs, 1e-30)) / temperature, axis=-1)


def targets(candidates: Candidates, choice: Choice, link: Callable[[Array], Array]) -> Target:
    """What a rule's choice makes of the candidates' scores, and where there is a teacher at all.

    An index gathers one candidate per sample; weights mix candidates in the space that `link`
    maps scores to: `jnp.exp` takes log-probabilities to probabilities. A `Target` stays as it is.
    """
    if isinstance(choice, Target):
        return choice
    linked = link(candidates.published)
    if jnp.issubdtype(choice.dtype, jnp.integer):
        return Target(candidates.replace(published=linked).take(choice), choice >= 0)
    mix = _mix if candidates.rows is None else _mix_lists
    mixed = sum(
        mix(candidates, choice[:, block * size : (block + 1) * size], linked[:, :, block:stop])
        for size in [candidates.per_block]
        for block, stop in ((b, b + candidates.ranks) for b in range(candidates.blocks))
    )
    return Target(jnp.asarray(mixed), choice.sum(axis=1) > 0)


def _mix(
    candidates: Candidates, weights: Float[Array, "k K B m"], values: Float[Array, "K B m C"]
) -> Float[Array, "k B m C"]:
    """Weighted sums over all clients."""
    del candidates
    return jnp.einsum("knbm,nbmc->kbmc", weights, values)


def _mix_lists(
    candidates: Candidates, weights: Float[Array, "k L B m"], values: Float[Array, "K B m C"]
) -> Float[Array, "k B m C"]:
    """Weighted sums over the clients in each student's row; nothing of size k L B C is built."""
    listed = candidates.rows
    assert listed is not None
    rows, known = jnp.maximum(listed, 0), listed != NOBODY

    def add(column: Any, total: Array) -> Array:
        read = known[:, column][:, None, None, None]
        part = weights[:, column][..., None] * values[rows[:, column]]
        return total + jnp.where(read, part, 0)

    start = jnp.zeros((len(rows), *values.shape[1:]), values.dtype)
    return over_columns(rows.shape[1], add, start)


# --- Losses ---------------------------------------------------------------------------------------


def soft_cross_entropy(
    student_log_probs: Float[Array, "*shape C"], target: Float[Array, "*shape C"]
) -> Float[Array, "*shape"]:
    """-sum_c target_c log p_c with the target under stop-gradient."""
    return -jnp.sum(jax.lax.stop_gradient(target) * student_log_probs, axis=-1)


class HeadLoss(Protocol):
    """The loss of a prediction against its target, which is not differentiated."""

    def __call__(
        self, student: Float[Array, "*shape C"], target: Float[Array, "*shape C"]
    ) -> Float[Array, "*shape"]:
        """Scores [..., C] of student and target to losses [...]."""
        ...


LOGIT_LOSSES: Registry[HeadLoss] = Registry("distill.loss")


@LOGIT_LOSSES.register("mae")
def logit_mae(
    student: Float[Array, "*shape C"], target: Float[Array, "*shape C"]
) -> Float[Array, "*shape"]:
    """Mean absolute difference of logits: FedMD's own choice, https://arxiv.org/abs/1910.03581."""
    return jnp.mean(jnp.abs(student - jax.lax.stop_gradient(target)), axis=-1)


@LOGIT_LOSSES.register("mse")
def logit_mse(
    student: Float[Array, "*shape C"], target: Float[Array, "*shape C"]
) -> Float[Array, "*shape"]:
    """Mean squared difference of logits."""
    return jnp.mean(optax.losses.squared_error(student, jax.lax.stop_gradient(target)), axis=-1)


@LOGIT_LOSSES.register("kl")
def logit_kl(
    student: Float[Array, "*shape C"], target: Float[Array, "*shape C"]
) -> Float[Array, "*shape"]:
    """KL(softmax(target) || softmax(student)) in nats."""
    log_target = jax.nn.log_softmax(jax.lax.stop_gradient(target))
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(student), log_target)


def prediction_loss(
    student_log_probs: Float[Array, "k B H C"],
    log_probs: Float[Array, "K B H C"],
    teachers: Teachers,
) -> Float[Array, "k m"]:
    """Distillation loss of every aux head: mean over samples of CE(teacher, student head).

    L_aux,i,r = mean_x -sum_c p_teacher(c) log p_i^r(c); 0 where nobody may teach.
    """
    sample = jnp.arange(log_probs.shape[1])[None, :, None]
    chosen = log_probs[jnp.maximum(teachers.client, 0), sample, jnp.maximum(teachers.head, 0)]
    return _taught_mean(
        soft_cross_entropy, student_log_probs[:, :, 1:], jnp.exp(chosen), teachers.client >= 0
    )


def head_losses(
    student: Float[Array, "k B m C"],
    candidates: Candidates,
    keys: Key[Array, "k B"],
    *,
    rule: str = "most_confident",
    confidence: str = "max_prob",
    loss: str = "cross_entropy",
    temperature: float = 1.0,
) -> Float[Array, "k m"]:
    """Distillation loss of every taught head under any teacher rule and loss.

    With the defaults this is `prediction_loss` of `select_teachers`.

    Args:
      student: scores of the taught heads, log-probabilities (or logits, see `loss`).
      candidates: scores of the same kind to learn from, and who may learn from whom.
      keys: one per student and sample, for rules that draw.
      rule: a name in `RULES`.
      confidence: a name in `CONFIDENCES`, or "energy" where candidates publish it.
      loss: "cross_entropy" on probabilities, or a name in `LOGIT_LOSSES` on logits.
      temperature: of the targets' probabilities, see `sharpen`.
    """
    on_logits = loss != "cross_entropy"
    choice = choose(candidates, keys, rule=rule, confidence=confidence, on_logits=on_logits)
    link = (lambda logits: logits) if on_logits else jnp.exp
    target, taught = targets(candidates, choice, link)
    if on_logits:
        return _taught_mean(LOGIT_LOSSES.get(loss), student, target, taught)
    return _taught_mean(soft_cross_entropy, student, sharpen(target, temperature), taught)


def choose(
    candidates: Candidates,
    keys: Key[Array, "k B"],
    *,
    rule: str,
    confidence: str,
    on_logits: bool = False,
) -> Choice:
    """What a teacher rule makes of the candidates; see `head_losses` for the arguments."""
    published = candidates.published
    log_probs = jax.nn.log_softmax(published) if on_logits else published
    if confidence == ENERGY:
        if candidates.energy is None:
            raise ConfigError("distill.confidence", ENERGY, "candidates that publish it")
        certainty = candidates.energy
    else:
        certainty = _certainty(confidence, log_probs)
    if candidates.readable is not None:
        certainty = blank(certainty, candidates.readable, -jnp.inf)
    if candidates.rows is None:
        return _choice(rule, candidates, candidates.by_rank(certainty), keys)

    def one(rows: Array, allowed: Array, keys: Array, own: Array | None) -> Choice:
        mine = candidates.of_student(rows, allowed, own)
        read = certainty[jnp.maximum(rows, 0)]
        choice = _choice(rule, mine, mine.by_rank(read), keys[None])
        return jax.tree.map(lambda x: x[0], choice)

    return jax.vmap(one)(candidates.rows, candidates.allowed, keys, candidates.own)


def _certainty(name: str, log_probs: Float[Array, "K B H C"]) -> Float[Array, "K B H"]:
    """The named confidence of every prediction; `ConfigError` for another shape."""
    value = jnp.asarray(CONFIDENCES.get(name)(log_probs))
    if value.shape != log_probs.shape[:-1]:
        accepted = f"confidences of shape [K, B, H] = {log_probs.shape[:-1]}, not {value.shape}"
        raise ConfigError("distill.confidence", name, accepted)
    return value


def _choice(
    name: str, candidates: Candidates, certainty: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Choice:
    """What the named rule makes of the candidates; `ConfigError` for another shape or type."""
    made = RULES.get(name)(candidates, certainty, keys)
    students, (num, *rest) = len(candidates.allowed), certainty.shape
    if isinstance(made, Target):
        shape = (students, *rest, candidates.published.shape[-1])
        if made.scores.shape != shape or made.taught.shape != shape[:-1]:
            accepted = (
                f"a Target with scores [k, B, m, C] = {shape} and taught {shape[:-1]}, not "
                f"{made.scores.shape} and {made.taught.shape}"
            )
            raise ConfigError("distill.rule", name, accepted)
        return made
    choice = jnp.asarray(made)
    index, weights = (students, *rest), (students, num, *rest)
    is_index = jnp.issubdtype(choice.dtype, jnp.integer) and choice.shape == index
    is_weights = jnp.issubdtype(choice.dtype, jnp.floating) and choice.shape == weights
    if not (is_index or is_weights):
        accepted = (
            f"an integer index of shape [k, B, m] = {index} or floating-point weights of shape "
            f"[k, N, B, m] = {weights}, not {choice.dtype} of shape {choice.shape}"
        )
        raise ConfigError("distill.rule", name, accepted)
    return choice


def check_pieces(
    *, rule: str, confidence: str, loss: str, num_classes: int, label_shares: bool = False
) -> None:
    """Calls the named pieces on shapes alone (k = 2 students, K = 3, B = 5, m = 4).

    Args:
      rule: a name in `RULES`.
      confidence: a name in `CONFIDENCES`, or "energy".
      loss: "cross_entropy" or a name in `LOGIT_LOSSES`.
      num_classes: C.
      label_shares: whether clients publish their label shares.

    Raises:
      ConfigError: an unknown name, a rule that needs what clients do not publish, or a result of
        another shape than the contract says.
    """
    students, teachers, samples, ranks = 2, 3, 5, 4
    student = jax.ShapeDtypeStruct((students, samples, ranks, num_classes), jnp.float32)
    scores = jax.ShapeDtypeStruct((teachers, samples, ranks, num_classes), jnp.float32)
    allowed = jax.ShapeDtypeStruct((students, teachers), bool)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (students, samples)))

    def losses(student: Array, scores: Array, allowed: Array, keys: Array) -> Array:
        energy = scores[..., 0] if confidence == ENERGY else None
        shares = scores[:, 0, 0] if label_shares else None
        own = scores[:students]
        candidates = Candidates(scores, allowed, ranks, energy, shares, own=own)
        return head_losses(
            student, candidates, keys, rule=rule, confidence=confidence, loss=loss
        )  # fmt: skip

    found = jax.eval_shape(losses, student, scores, allowed, keys).shape
    if found != (students, ranks):
        raise ConfigError("distill.loss", loss, "losses of shape [k, B, m]")


def _taught_mean(
    loss: Callable[[Array, Array], Array],
    student: Float[Array, "k B m C"],
    target: Float[Array, "k B m C"],
    taught: Bool[Array, "k B m"],
) -> Float[Array, "k m"]:
    """Mean over all samples, those without a teacher counting 0.

    The student is masked too: where the unused target is not finite, a masked loss alone would
    still pass NaN back through 0 * NaN.
    """
    losses = loss(jnp.where(taught[..., None], student, 0.0), target)
    return jnp.where(taught, losses, 0.0).mean(axis=1)


# --- Gradients: how much distillation weighs on the trunk -----------------------------------------


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
    heard = readable.astype(teacher.dtype)
    cross = jnp.einsum("kbd,kbd->kb", student, peers.mean(teacher, first))
    share = peers.mean(heard[first : first + len(teacher)], first)
    own = jnp.sum(student**2, axis=-1) * share[:, None]
    theirs = peers.mean(jnp.sum(teacher**2, axis=-1), first)
    loss = jnp.mean(own + theirs - 2.0 * cross, axis=1)
    every = peers.mean(heard)  # 1 where all peers can be read
    return jnp.where(every > 0, loss / jnp.maximum(every, 1e-6), 0.0)
