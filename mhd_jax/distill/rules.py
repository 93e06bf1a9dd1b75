# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Teacher rules: from candidates to targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mhd_jax.distill.candidates import Candidates, most_confident, random_candidate
from mhd_jax.distill.confidence import ENERGY, confidence_of, neg_entropy
from mhd_jax.distill.unreadable import blank
from mhd_jax.edges import NOBODY, over_columns
from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.registry import Registry, whole_batch


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


def of_probabilities(rule: TeacherRule) -> TeacherRule:
    """Marks a rule that takes what is published for log-probabilities, not for logits."""
    rule.of_probabilities = True  # type: ignore[attr-defined]
    return rule


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
@of_probabilities
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
@of_probabilities
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
@of_probabilities
@whole_batch
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
@of_probabilities
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
@of_probabilities
def label_share_rule(
    candidates: Candidates, confidence: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Target:
    """A candidate counts for a class as far as its client holds that class.

    p(c) is proportional to sum_j q_j(c) p_j(c) with q_j the label distribution of client j, which
    clients publish once (`distill.publish_label_shares`). Label counts also calibrate logits in
    FedLC (J. Zhang et al., 2022, https://arxiv.org/abs/2209.00189); weighting teachers by label
    shares is ours.

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
    size, ranks = candidates.per_block, candidates.ranks
    mixed: Any = 0
    for block in range(candidates.blocks):
        weights = choice[:, block * size : (block + 1) * size]
        mixed = mixed + mix(candidates, weights, linked[:, :, block : block + ranks])
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
        certainty = confidence_of(confidence, log_probs)
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


def _choice(
    name: str, candidates: Candidates, certainty: Float[Array, "N B m"], keys: Key[Array, "k B"]
) -> Choice:
    """What the named rule makes of the candidates; `ConfigError` for another shape or type."""
    rule = RULES.get(name)
    with of_piece("distill.rule", name, "a rule (candidates, confidence [N, B, m], keys [k, B])"):
        made = rule(candidates, certainty, keys)
        if isinstance(made, Target):
            made = Target(*map(jnp.asarray, made))
        elif isinstance(made, tuple):
            raise ConfigError("distill.rule", name, "a mhd_jax.distill.Target, not a tuple")
        else:
            made = jnp.asarray(made)
    students, (num, *rest) = len(candidates.allowed), certainty.shape
    if isinstance(made, Target):
        _check_target(name, made, (students, *rest, candidates.published.shape[-1]))
        return made
    choice: Array = made
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


def _check_target(name: str, made: Target, shape: tuple[int, ...]) -> None:
    """Raises `ConfigError` for a target of another shape than [k, B, m, C], or another type."""
    accepted = ""
    if made.scores.shape != shape or made.taught.shape != shape[:-1]:
        accepted = (
            f"a Target with scores [k, B, m, C] = {shape} and taught {shape[:-1]}, not "
            f"{made.scores.shape} and {made.taught.shape}"
        )
    elif made.taught.dtype != bool:
        accepted = f"a Target whose `taught` is True or False, not {made.taught.dtype}"
    elif not jnp.issubdtype(made.scores.dtype, jnp.floating):
        accepted = f"a Target whose `scores` are of floating point, not {made.scores.dtype}"
    if accepted:
        raise ConfigError("distill.rule", name, accepted)
