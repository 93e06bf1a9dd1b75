# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Losses of predictions against their teachers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from mhd_jax.distill.candidates import Candidates, Teachers
from mhd_jax.distill.confidence import CONFIDENCES, ENERGY
from mhd_jax.distill.rules import RULES, Target, choose, sharpen, targets
from mhd_jax.errors import ConfigError
from mhd_jax.registry import Registry


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


def check_pieces(
    *, rule: str, confidence: str, loss: str, num_classes: int, label_shares: bool = False
) -> None:
    """Calls the named pieces on shapes (k = 2 students, K = 3, B = 5, m = 4), own rules on numbers.

    Args:
      rule: a name in `RULES`.
      confidence: a name in `CONFIDENCES`, or "energy".
      loss: "cross_entropy" or a name in `LOGIT_LOSSES`.
      num_classes: C.
      label_shares: whether clients publish their label shares.

    Raises:
      ConfigError: an unknown name, a rule that needs what clients do not publish, or a result of
        another shape, or other values, than the contract says.
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
    pieces = [RULES.get(rule), *([] if confidence == ENERGY else [CONFIDENCES.get(confidence)])]
    ours = __name__.partition(".")[0] + "."
    if not all(piece.__module__.startswith(ours) for piece in pieces):
        _check_values(rule, confidence, num_classes, label_shares)


def _check_values(rule: str, confidence: str, num_classes: int, label_shares: bool) -> None:
    """Calls a rule on numbers: 2 students, of whom the first may learn from two of 3 clients.

    Raises:
      ConfigError: a confidence that is no number, an index of no candidate that may teach, or
        weights that are not shares.
    """
    keys = jax.random.split(jax.random.key(0), (2, 5))
    scores = jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(1), (3, 5, 4, num_classes)))
    allowed = jnp.array([[False, True, True], [False, False, False]])
    candidates = Candidates(
        scores, allowed, 4, scores[..., 0] if confidence == ENERGY else None,
        jnp.exp(scores[:, 0, 0]) if label_shares else None, own=scores[:2],
    )  # fmt: skip
    if confidence != ENERGY and np.isnan(CONFIDENCES.get(confidence)(scores)).any():
        raise ConfigError("distill.confidence", confidence, "numbers, not NaN, for probabilities")
    choice = choose(candidates, keys, rule=rule, confidence=confidence)
    if isinstance(choice, Target):
        alone = bool(np.asarray(choice.taught)[1].any())
        accepted = "`taught` False for a client without peers" if alone else ""
    elif np.issubdtype(choice.dtype, np.integer):
        accepted = _wrong_indices(np.asarray(choice), np.asarray(allowed))
    else:
        accepted = _wrong_weights(np.asarray(choice), np.asarray(allowed))
    if accepted:
        raise ConfigError("distill.rule", rule, accepted)


def _wrong_indices(found: Int[np.ndarray, "k B m"], allowed: Bool[np.ndarray, "k N"]) -> str:
    """What a rule's indices should have been; "" where they are right."""
    known = allowed.shape[1]
    inside = (found >= -1) & (found < known)
    if not inside.all():
        return f"indices of candidates, 0 to {known - 1}, or -1 for none, not {found[~inside][0]}"
    students = np.arange(len(found))[:, None, None]
    if not (allowed[students, np.maximum(found, 0)] | (found < 0)).all():
        return "candidates that `candidates.allowed` permits, or -1 for none"
    return ""


def _wrong_weights(found: Float[np.ndarray, "k N B m"], allowed: Bool[np.ndarray, "k N"]) -> str:
    """What a rule's weights should have been; "" where they are right."""
    totals = found.sum(axis=1)
    right = np.isclose(totals, 1, atol=1e-3) | (totals == 0)  # NaN is neither
    if not right.all():
        return (
            f"weights of the candidates that add up to 1, or 0 for none, not {totals[~right][0]:g}"
        )
    if found[~allowed].any():
        return "weights of 0 where `candidates.allowed` is False"
    return ""


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
