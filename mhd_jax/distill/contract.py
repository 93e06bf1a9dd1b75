# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Checks teacher rules, confidences and losses against their contracts before a run uses them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mhd_jax.distill.candidates import Candidates
from mhd_jax.distill.confidence import CONFIDENCES, ENERGY
from mhd_jax.distill.losses import LOGIT_LOSSES, head_losses, logit_loss
from mhd_jax.distill.rules import RULES, Target, choose
from mhd_jax.errors import ConfigError
from mhd_jax.registry import is_ours


def check_pieces(
    *, rule: str, confidence: str, loss: str, num_classes: int, label_shares: bool = False
) -> None:
    """Calls the named pieces on shapes (k = 2 students, K = 3, B = 5, m = 4), own ones on numbers.

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
    on_logits = loss != "cross_entropy"
    if on_logits and getattr(RULES.get(rule), "of_probabilities", False):
        raise ConfigError("distill.rule", rule, f"a rule that mixes logits, as the loss is {loss}")
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
        return head_losses(student, candidates, keys, rule=rule, confidence=confidence, loss=loss)

    jax.eval_shape(losses, student, scores, allowed, keys)
    if on_logits and not is_ours(LOGIT_LOSSES.get(loss)):
        _check_loss(loss, num_classes)
    pieces = [RULES.get(rule), *([] if confidence == ENERGY else [CONFIDENCES.get(confidence)])]
    if not all(map(is_ours, pieces)):
        _check_values(rule, confidence, num_classes, label_shares, on_logits)


def _check_loss(loss: str, num_classes: int) -> None:
    """Calls a loss on random logits [k = 2, B = 5, m = 4, C]; `ConfigError` where not finite."""
    student, target = 2 * jax.random.normal(jax.random.key(2), (2, 2, 5, 4, num_classes))
    losses = np.asarray(logit_loss(loss, student, target), np.float32)  # of any floating point
    if not np.isfinite(losses).all():
        accepted = f"finite losses of ordinary logits, not {losses[~np.isfinite(losses)][0]:g}"
        raise ConfigError("distill.loss", loss, accepted)


def _check_values(
    rule: str, confidence: str, num_classes: int, label_shares: bool, on_logits: bool
) -> None:
    """Calls a rule on numbers: 2 students, of whom the first may learn from two of 3 clients.

    Raises:
      ConfigError: a confidence that is no number, an index of no candidate that may teach, weights
        that are not shares, or a target that is no probability, or no number.
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
    choice = choose(candidates, keys, rule=rule, confidence=confidence, on_logits=on_logits)
    if isinstance(choice, Target):
        accepted = _wrong_target(np.asarray(choice.scores), np.asarray(choice.taught), on_logits)
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


def _wrong_target(
    scores: Float[np.ndarray, "k B m C"], taught: Bool[np.ndarray, "k B m"], on_logits: bool
) -> str:
    """What a rule's `Target` should have been; "" where it is right."""
    if taught[1].any():
        return "`taught` False for a client without peers"
    read = scores[taught]
    if not np.isfinite(read).all():
        return "finite scores wherever `taught` is True"
    if not on_logits and (read.min(initial=0) < 0 or not np.allclose(read.sum(-1), 1, atol=1e-3)):
        return "probabilities as scores, which add up to 1 over the classes"
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
