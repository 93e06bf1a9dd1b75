# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Observes distillation without touching training: heads on a fixed sample of the public set.

The probe is a program of its own. It reads the state of a run and changes nothing in it, so that
what it looks at, the true labels of public images included, cannot reach training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from mhd_jax import distill, health
from mhd_jax.edges import NOBODY
from mhd_jax.inputs import StepInputs
from mhd_jax.parallel import CLIENTS, gather_clients, on_mesh
from mhd_jax.schedule import exchange_specs
from mhd_jax.seating import seat
from mhd_jax.state import State, specs
from mhd_jax.step.lessons import peers_of, publishers, screen
from mhd_jax.step.parts import StepParts, student_keys
from mhd_jax.step.program import CPU_OPTIONS
from mhd_jax.step.publishing import (
    Predictions,
    Published,
    pool_predictions,
    public_forward,
    read_published,
)

PROBED = 256
"""Public images that the probe looks at, spread evenly over the public set."""


class Vitals(NamedTuple):
    """What the probe finds of the first seed's clients; students k, clients K, taught heads m.

    Where not everybody takes part in a step, it finds it of those who do, at their places.

    Attributes:
      prediction_entropy: entropy in nats of every head's mean prediction.
      top_class_share: share of images that a head gives to the class it names most.
      teacher_agreement: chance that two clients' published heads of a rank agree; the same for
        all clients.
      teaching_shares: how a client's lessons are divided among all clients.
      ignored: see `health.ignored`.
      teacher_accuracy: how often the chosen teacher is right; NaN where labels are unknown.
    """

    prediction_entropy: Float[Array, "k H"]
    top_class_share: Float[Array, "k H"]
    teacher_agreement: Float[Array, "k h"]
    teaching_shares: Float[Array, "k K"]
    ignored: Float[Array, "k K"]
    teacher_accuracy: Float[Array, "k m"]


def make_probe(
    parts: StepParts, prepare: Callable[[Array], Array]
) -> Callable[..., tuple[Vitals, ...]]:
    """Returns `probe(state, inputs, images, labels, seeds)`, jitted, to `Vitals` per group.

    Args:
      parts: of the step; its method distils predictions.
      prepare: stored images to normalised ones.

    Returns:
      A function of the state, the exchange of one step (`Schedule.exchange`), public images
      [P, ...] as stored, their labels [P] (-1 where unknown) and the seeds [R].
    """

    every = dataclasses.replace(parts, routes=None)  # it compares all clients

    def probe(
        state: State, inputs: StepInputs, images: Array, labels: Array, seeds: Array
    ) -> tuple[Vitals, ...]:
        per_seed = (state.clients, state.baseline, state.pool, state.marginals)  # no cache
        first = State(state.step, *jax.tree.map(lambda x: x[0], per_seed))
        if parts.routes is not None:
            first = first.replace(marginals=jax.tree.map(gather_clients, first.marginals))
        now = inputs._replace(
            reads=jax.tree.map(lambda x: x[0, 0], inputs.reads),
            versions=inputs.versions[0, 0],
            label_shares=inputs.label_shares[0, 0],
            seated=inputs.seated[0, 0],
        )
        if not parts.brought:
            first = seat(parts.roster, first, now.seated)
        return _vitals(every, first, now, prepare(images), labels, seeds[0])

    sharded = on_mesh(
        probe,
        parts.layout,
        in_specs=(
            specs(with_publishers=parts.routes is not None),
            exchange_specs(parts.layout),
            P(),
            P(),
            P(),
        ),
        out_specs=P(CLIENTS),
    )
    options = CPU_OPTIONS if jax.default_backend() == "cpu" else None
    return jax.jit(sharded, compiler_options=options)


def _vitals(
    parts: StepParts, state: State, inputs: StepInputs, images: Array, labels: Array, seed: Array
) -> tuple[Vitals, ...]:
    """What one device's clients and those they read say of the images."""
    own = tuple(
        public_forward(parts, model, learners.snapshot, images)
        for model, learners in zip(parts.models, state.clients, strict=True)
    )
    pooled = pool_predictions(parts, state.pool, inputs.versions, images)
    published, _ = read_published(parts, state, own, pooled, images, seed)
    return tuple(
        _group_vitals(parts, group, student, published, inputs, labels, seed, state.step)
        for group, student in enumerate(own)
    )


def _group_vitals(
    parts: StepParts,
    group: int,
    student: Predictions,
    published: Published,
    inputs: StepInputs,
    labels: Int[Array, " P"],
    seed: Array,
    step: Array,
) -> Vitals:
    """Vitals of one group's local clients."""
    chosen = parts.method.distillation
    assert chosen is not None and published.scores is not None
    log_probs = jax.nn.log_softmax(student.scores)  # of log-probabilities: themselves
    peers = peers_of(parts, group, student, published, inputs)
    if group < parts.frozen:  # nobody teaches them
        peers = peers.replace(allowed=jnp.zeros_like(peers.allowed), unread=None)
    # Each device has all of the samples, each of them once.
    candidates = screen(parts, peers, devices=1, repeats=1.0)
    rows, samples = log_probs.shape[:2]
    keys = student_keys(parts, group, inputs, jnp.arange(samples), seed, step)
    choice = distill.choose(
        candidates, keys, rule=chosen.rule, confidence=chosen.confidence,
        on_logits=chosen.mixes_logits,
    )  # fmt: skip
    target = distill.targets(candidates, choice, lambda scores: scores)
    clients, ids = parts.places.num_clients, parts.roster.own(group)
    in_front = candidates.published.shape[0] - published.scores.shape[0]
    said = len(published.scores)
    present = _present(parts, inputs, said)
    agreement = health.agreement(published.scores, present, versions=said // clients)
    return Vitals(
        prediction_entropy=health.prediction_entropy(log_probs),
        top_class_share=health.top_class_share(log_probs),
        teacher_agreement=jnp.broadcast_to(agreement, (rows, *agreement.shape)),
        teaching_shares=health.taught_shares(choice, candidates, clients, ids, in_front),
        ignored=health.ignored(peers, candidates, clients, ids, in_front),
        teacher_accuracy=jnp.where(labels[0] < 0, jnp.nan, health.teacher_accuracy(target, labels)),
    )


def _present(parts: StepParts, inputs: StepInputs, count: int) -> Bool[Array, " N"]:
    """Which of `count` published predictions are a client's: a place nobody takes has some too."""
    ids = publishers(parts, inputs, count)
    return jnp.ones(count, bool) if ids is None else ids != NOBODY
