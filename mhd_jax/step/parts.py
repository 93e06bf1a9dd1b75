# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What the step is compiled from, and what all of its parts use: keys, means, pauses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from mhd_jax import distill, rng
from mhd_jax import privacy as privacy_lib
from mhd_jax.attacks import Attackers
from mhd_jax.data.batches import Visits
from mhd_jax.exchange import Encoding
from mhd_jax.inputs import Batch, StepInputs
from mhd_jax.methods import Method
from mhd_jax.models.classifier import MultiHeadClassifier
from mhd_jax.parallel import DATA, Layout
from mhd_jax.participation import Roster
from mhd_jax.routes import Routes
from mhd_jax.trees import PyTree

Metrics = dict[str, tuple[Array, ...]]  # per group
T = TypeVar("T")
Load = Callable[[PyTree, StepInputs, Array, Array], Batch]


@dataclasses.dataclass(frozen=True)
class StepParts:
    """The fixed parts of a run that the step is compiled from.

    Attributes:
      roster: who owns which client, and who takes part in a step.
      method: what is distilled, what is averaged, when.
      models: one per group.
      baseline_models: one per group, with a main head only; () without an isolated baseline.
      paces: how much further batch statistics move in a step than their layers say, per group, see
        `mhd_jax.models.statistics`; () where all keep up by themselves.
      baseline_paces: the same of the isolated baseline.
      optimizer: of one client.
      encoding: the form in which predictions travel.
      load: (data, inputs of one step, seed, step) to a `Batch`.
      num_classes: C.
      replicas: R.
      steps_per_call: most steps one call can do; 1 means no loop in the program at all.
      convolutional: whether a network has convolutions.
      pauses: some steps of the run have no distillation, and leave it out.
      rests: some have no private training, and leave that out.
      embedding_width: numbers in which an embedding travels; 0 for all it has.
      frozen: groups, the first ones, whose clients publish but never learn.
      visits: how often what was sent of a public sample is read.
      repeats: how often a public batch holds the same sample, see `mhd_jax.data.batches.repeats`.
      routes: which messages go to which device; None where all go to all.
      attackers: who lies and how; None where nobody does, and then nothing of it is compiled.
      privacy: what happens to private gradients; None for nothing.
      brought: the host brings the state of those who take part; the others' is not on the devices.
    """

    roster: Roster
    method: Method
    models: tuple[MultiHeadClassifier, ...]
    baseline_models: tuple[MultiHeadClassifier, ...]
    optimizer: optax.GradientTransformation
    encoding: Encoding
    load: Load
    num_classes: int
    replicas: int
    steps_per_call: int
    convolutional: bool = False
    pauses: bool = False
    rests: bool = False
    embedding_width: int = 0
    frozen: int = 0
    visits: Visits = Visits()
    repeats: float = 1.0
    routes: Routes | None = None
    attackers: Attackers | None = None
    privacy: privacy_lib.Privacy | None = None
    brought: bool = False
    paces: tuple[PyTree, ...] = ()
    baseline_paces: tuple[PyTree, ...] = ()

    @property
    def layout(self) -> Layout:
        """Who owns which client."""
        return self.roster.layout

    @property
    def places(self) -> Layout:
        """The clients of one step: all of them, or a place for each that takes part."""
        return self.roster.places


def own_messages(parts: StepParts, group: int) -> Int[Array, " k"]:
    """Where the messages of the local clients of a group stand among those that arrive here."""
    return parts.roster.own(group) if parts.routes is None else parts.routes.own()


def _client_keys(parts: StepParts, inputs: StepInputs, base: Array) -> tuple[Array, ...]:
    """Keys [k] of the client at every local place, per group; the same wherever it sits."""
    groups = range(len(parts.models))
    return tuple(rng.each(base, parts.roster.ids(group, inputs.seated)) for group in groups)


def noise_keys(
    parts: StepParts, inputs: StepInputs, seed: Array, step: Array, purpose: str
) -> tuple[Array, ...]:
    """Keys [k] of every group for the noise on private gradients; () without privacy."""
    if parts.privacy is None:
        return ()
    return _client_keys(parts, inputs, rng.stream(seed, f"{purpose} noise", step))


def network_keys(
    parts: StepParts, inputs: StepInputs, seed: Array, step: Array
) -> tuple[Array, ...]:
    """Keys [k] for what networks draw in training, such as dropout, per group.

    A client draws the same on any device, and so does its isolated baseline. Devices that share a
    batch draw for their own part of it.
    """
    base = rng.stream(seed, "network", step)
    if parts.layout.data_devices > 1:
        base = jax.random.fold_in(base, jax.lax.axis_index(DATA))
    return _client_keys(parts, inputs, base)


def student_keys(
    parts: StepParts,
    group: int,
    inputs: StepInputs,
    samples: Int[Array, " B"],
    seed: Array,
    step: Array,
) -> Array:
    """Keys [k, B] for teacher rules that draw; the same however clients and batches are split.

    Args:
      parts: of the step.
      group: of the students.
      inputs: of the step.
      samples: where the samples stand in the public batch.
      seed: of the replica.
      step: the step.
    """
    base = rng.stream(seed, "teachers", step)
    return distill.sample_keys(_client_keys(parts, inputs, base)[group], samples)


def mean_over_data(parts: StepParts, tree: PyTree) -> PyTree:
    """Means over the devices that share a client's batch; the identity where it has only one."""
    if parts.layout.data_devices == 1:
        return tree
    return jax.lax.pmean(tree, DATA)


def distils(inputs: StepInputs) -> Bool[Array, ""]:
    """Whether distillation has weight in this step."""
    distils: Array = inputs.weights[1] > 0
    return distils


def where_due(pauses: bool, due: Bool[Array, ""], compute: Callable[[], T], **kept: object) -> T:
    """`compute()`; in steps where it is not due, zeros in its place.

    Args:
      pauses: whether there are such steps; if not, there is no branch either.
      due: whether this step needs it.
      compute: gradients and what comes with them.
      **kept: fields that are not zeros then.
    """
    if not pauses:
        return compute()

    def rest() -> T:
        zeros: Any = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute))
        made: T = zeros._replace(**kept) if kept else zeros
        return made

    return jax.lax.cond(due, compute, rest)
