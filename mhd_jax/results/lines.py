# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""`metrics.jsonl`: what a run writes down while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from mhd_jax.results.fields import MANY, FieldDoc

Line = Mapping[str, Any]
"""One object of `metrics.jsonl`; its keys are those of `LINE_FIELDS`."""

History = Sequence[Line]

QUANTILES = 101
"""Numbers that stand for those of more than `MANY` clients in a line of `metrics.jsonl`."""


LINE_FIELDS = (
    FieldDoc("step", "int", "steps", "Steps done."),
    FieldDoc("seconds", "float", "s", "Since the last start of the run."),
    FieldDoc("steps_per_second", "float", "steps/s", "Since the last start."),
    FieldDoc("loss", "[K]", "nats", "The whole objective; this and what follows up to "
             "`bytes_sent` every `train.log_every` steps, means over the steps since (the last "
             "line, or the last start) in which the client took part, null where there are none. "
             "With more than 512 clients, every [K] here and below becomes 101 quantiles over "
             "the clients, from the least to the greatest."),
    FieldDoc("private_loss", "[K]", "nats", "Cross-entropy of the main head on private data. With "
             "batch normalisation and distillation, half of it is measured in a batch with public "
             "samples, `control_loss` in the private batch alone."),
    FieldDoc("embedding_loss", "[K]", "1", "Embedding distillation, before its weight."),
    FieldDoc("head_losses", "[K, m]", "nats", "Prediction distillation of each head that is "
             "taught, before its weight: the auxiliary heads, or the main head. This and "
             "`embedding_loss` are means over the steps that distil, left out where none does."),
    FieldDoc("control_loss", "[K]", "nats", "Loss of the isolated baseline."),
    FieldDoc("private_gradient", "[K]", "nats", "Norm of the private loss's gradient on the "
             "embedding network."),
    FieldDoc("distillation_gradient", "[K]", "nats", "Norm of the distillation losses' gradient "
             "on the embedding network."),
    FieldDoc("gradient_cosine", "[K]", "1", "Of the angle between both gradients; below 0 they "
             "pull against each other."),
    FieldDoc("prediction_entropy", "[K, H]", "nats", "Of every head's mean prediction on public "
             "images: 0 where it names one class only."),
    FieldDoc("top_class_share", "[K, H]", "1", "Share of public images to which a head gives the "
             "class that it names most."),
    FieldDoc("teacher_agreement", "[h]", "1", "Chance that two clients' published heads of a rank "
             "name the same class, both as their readers see them (aligned)."),
    FieldDoc("teaching_share", "[K]", "1", "Share of all lessons that a client gives."),
    FieldDoc("ignored_by", "[K]", "1", "Share of a client's readers that do not hear it: what it "
             "says of public images does not go together with what they say (screening)."),
    FieldDoc("teacher_accuracy", "[K, m]", "1", "How often the chosen teacher is right, where "
             "labels of public images are known; of a mixture, the label of its larger part."),
    FieldDoc("unreadable", "[K]", "1", "Share of steps in which a client's message was dropped "
             "because it was not finite or did not hold probabilities; left out where none was."),
    FieldDoc("unreadable_parameters", "[K]", "1", "The same of its parameters, in "
             "steps that average."),
    FieldDoc("bytes_sent", "float", "bytes", "Sent by all clients so far."),
    FieldDoc("shared_accuracy", "[K, H]", "1", "As in `summary.json`; this and what follows every "
             "`train.eval_every` steps."),
    FieldDoc("private_accuracy", "[K, H]", "1", "As in `summary.json`."),
    FieldDoc("last_head_accuracy", "[R]", "1", "Shared accuracy of the last head of every seed, "
             "mean over clients that learn and do not lie."),
    FieldDoc("own_test_accuracy", "[K, H]", "1", "As in `summary.json`; only where clients have "
             "test samples of their own."),
    FieldDoc("control_shared_accuracy", "[K, 1]", "1", "Of the isolated baseline."),
    FieldDoc("control_private_accuracy", "[K, 1]", "1", "Of the isolated baseline."),
    FieldDoc("control_own_test_accuracy", "[K, 1]", "1", "Of the isolated baseline."),
    FieldDoc("metrics/<name>", "[K, H]", "–", "The further metrics of the setting `metrics`."),
)  # fmt: skip
"""The keys of the lines of `metrics.jsonl`; of several seeds (R) the first's, unless said."""


def condensed(values: Line) -> dict[str, Any]:
    """A line of `metrics.jsonl`; quantiles in place of the numbers of many clients.

    The least comes first, the greatest last, the others lie evenly between them, so that mean and
    range over them are those over the clients; those who took no part are left out, and of one
    head's numbers those that are not known.
    """
    return {
        name: _quantiles(np.asarray(value)) if _by_client(name) and len(value) > MANY else value
        for name, value in values.items()
    }


def of_counted(history: History, counted: Bool[np.ndarray, " K"]) -> History:
    """The lines without the rows of clients that do not count, those that lie or are frozen.

    What is said of all teachers stays whole. So do lines of more than `MANY` clients, whose
    quantiles do not say whose they are.

    >>> of_counted([{"step": 1, "loss": [0.1, 9.0]}], np.array([True, False]))
    [{'step': 1, 'loss': [0.1]}]
    """
    if counted.all() or len(counted) > MANY:
        return history
    told = np.flatnonzero(counted).tolist()
    return [
        {
            name: [value[client] for client in told] if _of_learner(name) else value
            for name, value in line.items()
        }
        for line in history
    ]


def _of_learner(name: str) -> bool:
    return _by_client(name) and name not in ("teaching_share", "ignored_by")


def _by_client(name: str) -> bool:
    """Whether a key has a row for every client."""
    return name.startswith("metrics/") or name in _PER_CLIENT


_PER_CLIENT = {doc.key for doc in LINE_FIELDS if doc.shape.startswith("[K")}


def _quantiles(values: Float[np.ndarray, "K ..."]) -> Float[np.ndarray, "q ..."]:
    """Over those that are known, number by number; NaN where none is."""
    columns = values.reshape(len(values), -1).T
    found = [_spread(column[np.isfinite(column)]) for column in columns]
    return np.stack(found, axis=-1).reshape(QUANTILES, *values.shape[1:])


def _spread(known: Float[np.ndarray, " n"]) -> Float[np.ndarray, " q"]:
    if not known.size:
        return np.full(QUANTILES, np.nan)
    found: np.ndarray = np.quantile(known, np.linspace(0, 1, QUANTILES))
    return found
