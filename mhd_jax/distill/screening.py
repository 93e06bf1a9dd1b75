# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Screening: whose predictions go together with one's own, beyond what chance explains.

Somebody who sees the images and somebody who does not differ in a way that needs no labels: where
a client's own predictions are alike for two images, those of an honest peer tend to be alike too,
whatever classes each of them knows. Lies that are made without looking go with nothing.

Letters: k students, N publishers, B public samples of n on all devices, h published heads,
C classes, w numbers a prediction is compared by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mhd_jax import rng
from mhd_jax.distill.candidates import Candidates
from mhd_jax.edges import UNROLLED, over_columns

FLOOR = 1e-3
"""Probabilities below this count as alike: how small they are is noise."""

SAME = 1e-8
"""Predictions of smaller variance than this (nats squared, over all classes) do not vary."""

WIDEST = 32
"""Classes beyond which a fixed random projection to so many dimensions is compared."""

MARGIN = 2.0
"""Who could not reach this many times the threshold even with itself cannot judge others."""

AcrossDevices = Callable[[Array], Array]
"""The mean of an array over the devices that share a public batch."""


def compared_width(num_classes: int) -> int:
    """In how many numbers predictions of so many classes are compared."""
    return min(num_classes, WIDEST)


class Views(NamedTuple):
    """Predictions of a batch in the form in which they are compared.

    Attributes:
      values: of mean 0 and mean squared length 1 over the batch; 0 where all are the same.
      concentration: 1 over the effective number of dimensions in which they vary.
    """

    values: Float[Array, "... B w"]
    concentration: Float[Array, ...]


def views(log_probs: Float[Array, "*N B C"], across: AcrossDevices) -> Views:
    """Predictions as `relation` compares them.

    Args:
      log_probs: of any heads of any clients.
      across: see `AcrossDevices`.
    """
    values = jnp.maximum(log_probs, math.log(FLOOR))
    classes, width = values.shape[-1], compared_width(values.shape[-1])
    if width < classes:
        draw = rng.generator(0, "screening", classes)
        values = values @ draw.normal(size=(classes, width)).astype(np.float32)
    values = values - across(values.mean(axis=-2, keepdims=True))
    power = across((values**2).sum(axis=-1).mean(axis=-1))
    values = values * jax.lax.rsqrt(jnp.maximum(power, SAME))[..., None, None]
    return Views(values, overlap(values, values, across))


def overlap(
    x: Float[Array, "*N B v"], y: Float[Array, "*N B w"], across: AcrossDevices
) -> Float[Array, "*N"]:
    """||X^T Y / n||^2, the unnormalised RV coefficient, of values of `Views`."""
    moment = across(jnp.einsum("...bv,...bw->...vw", x, y) / x.shape[-2])
    return (moment**2).sum(axis=(-2, -1))


def relation(
    overlapping: Float[Array, "*shape"],
    mine: Float[Array, "*shape"],
    theirs: Float[Array, "*shape"],
    samples: float,
) -> Float[Array, "*shape"]:
    """How far two sets of predictions go together beyond chance, in standard deviations.

    With X and Y [n, w] both sides' predictions, centred, the statistic is

        R = (n - 1) ||X^T Y||^2 / (||X||^2 ||Y||^2),

    the RV coefficient (P. Robert and Y. Escoufier, 1976, https://doi.org/10.2307/2347233; linear
    CKA in https://arxiv.org/abs/1905.00414) over what it is on average when one side's images are
    shuffled. Then nu R is close to chi-squared with nu = d_X d_Y degrees of freedom, d the
    effective dimensions ||X||^4 / ||X^T X||^2 (F. Satterthwaite, 1946), whose cube root is close
    to normal (E. Wilson and M. Hilferty, 1931, https://doi.org/10.1073/pnas.17.12.684).

    Args:
      overlapping: their `overlap`.
      mine: their concentration, 1 / d_X.
      theirs: 1 / d_Y.
      samples: n.
    """
    variance = jnp.maximum(2 / 9 * mine * theirs, 1e-12)
    return (jnp.cbrt((samples - 1) * overlapping) - (1 - variance)) * jax.lax.rsqrt(variance)


def heard(
    candidates: Candidates,
    threshold: float,
    *,
    logits: bool = False,
    across: AcrossDevices = lambda x: x,
    devices: int = 1,
    repeats: float = 1.0,
) -> Bool[Array, "k n"]:
    """Whom each student takes for somebody who looks at the images, for each of its K or L peers.

    A peer is heard where its main head goes together with the student's own, and each of its other
    published heads with its own main head, at least as far as the threshold says. A student hears
    everybody where the batch is too small for it to tell: where even its own predictions, compared
    with themselves, would stay below `MARGIN` times the threshold. Peers that always say the same
    are not heard.

    Args:
      candidates: what is published, and `own`, what students say themselves.
      threshold: of `relation`.
      logits: scores are logits.
      across: see `AcrossDevices`.
      devices: among which a public batch is shared.
      repeats: see `mhd_jax.data.batches.repeats`. What is said of one image counts once, however
        often a batch holds it; or else any answer that is fixed for each image seems related to
        any other.
    """
    assert candidates.own is not None
    plain = jax.nn.log_softmax if logits else lambda x: x
    scores = jax.lax.stop_gradient(plain(candidates.published))
    own = jax.lax.stop_gradient(plain(candidates.own))
    samples = scores.shape[1] * devices / repeats
    said = views(jnp.moveaxis(scores, 2, 1), across)
    theirs = jax.tree.map(lambda x: x[:, 0], said)
    mine = views(own[:, :, 0], across)
    consistent = _consistent(said, threshold, samples, across)
    cannot_judge = _at_most(mine.concentration, samples) < MARGIN * threshold
    rows = candidates.rows
    found = _with_all(mine, theirs, across) if rows is None else _along(mine, theirs, rows, across)
    at = slice(None) if rows is None else jnp.maximum(rows, 0)
    related = relation(found, mine.concentration[:, None], theirs.concentration[at], samples)
    return (related >= threshold) & consistent[at] | cannot_judge[:, None]


def _at_most(concentration: Float[Array, "*N"], samples: float) -> Float[Array, "*N"]:
    """The relation of predictions with themselves."""
    return relation(concentration, concentration, concentration, samples)


def _consistent(
    said: Views, threshold: float, samples: float, across: AcrossDevices
) -> Bool[Array, " N"]:
    """Whose other heads, [N, h, B, w], go together with the first, as far as that can be told."""
    main = jax.tree.map(lambda x: x[:, :1], said)
    others = jax.tree.map(lambda x: x[:, 1:], said)
    found = overlap(main.values, others.values, across)
    related = relation(found, main.concentration, others.concentration, samples)
    cannot_tell = _at_most(main.concentration[:, 0], samples) < MARGIN * threshold
    return (related >= threshold).all(axis=1) | cannot_tell


def _with_all(mine: Views, theirs: Views, across: AcrossDevices) -> Float[Array, "k N"]:
    """Overlaps of all pairs, some publishers at a time; nothing of size k N B is built."""

    def one(values: Float[Array, "B w"]) -> Float[Array, " k"]:
        return overlap(mine.values, values, across)

    return jax.lax.map(one, theirs.values, batch_size=UNROLLED).T


def _along(mine: Views, theirs: Views, rows: Array, across: AcrossDevices) -> Float[Array, "k L"]:
    """Overlaps with the publishers in each student's row."""

    def body(column: Any, found: Array) -> Array:
        values = theirs.values[jnp.maximum(rows[:, column], 0)]
        return found.at[:, column].set(overlap(mine.values, values, across))

    start = jnp.zeros(rows.shape, mine.values.dtype)
    return over_columns(rows.shape[1], body, start)


def screened(candidates: Candidates, hears: Bool[Array, "k n"]) -> Candidates:
    """The same candidates, of whom students learn from those alone whom they hear."""
    allowed = candidates.allowed & jnp.tile(hears, (1, candidates.blocks))
    return candidates.replace(allowed=allowed, unread=None)
