# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Losses of predictions against their teachers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from mhd_jax.distill.candidates import Candidates, Teachers
from mhd_jax.distill.rules import choose, sharpen, targets
from mhd_jax.errors import ConfigError, of_piece
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

WANTED = "a function (student [..., C], target [..., C]), both logits, to losses [...]"


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
        return _taught_mean(functools.partial(logit_loss, loss), student, target, taught)
    return _taught_mean(soft_cross_entropy, student, sharpen(target, temperature), taught)


def logit_loss(
    name: str, student: Float[Array, "*shape C"], target: Float[Array, "*shape C"]
) -> Float[Array, "*shape"]:
    """The named loss; `ConfigError` for one of another shape or type."""
    with of_piece("distill.loss", name, WANTED):
        losses = LOGIT_LOSSES.get(name)(student, target)
        shape, dtype = jnp.shape(losses), jnp.result_type(losses)
    if shape != student.shape[:-1]:
        accepted = f"{WANTED}, of shape {student.shape[:-1]}, not {shape}"
        raise ConfigError("distill.loss", name, accepted)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError("distill.loss", name, f"{WANTED}, of floating point, not {dtype}")
    return losses


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
