# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""`summary.json`: what came out of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from mhd_jax.results.fields import Record, field

VERSION = 1
"""Of the keys of `summary.json`; a file of another version is refused."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Accuracies(Record):
    """Both accuracies of some clients; what each field is stands in its metadata."""

    shared_accuracy: Float[np.ndarray, "K H"] = field(
        "[K, H]", "1", "Test accuracy of every head, all classes counted alike.", dtype=float
    )
    private_accuracy: Float[np.ndarray, "K H"] = field(
        "[K, H]", "1", "Test accuracy of every head, classes weighted as in the client's own data.",
        dtype=float,
    )  # fmt: skip
    own_test_accuracy: Float[np.ndarray, "K H"] | None = field(
        "[K, H] or null", "1",
        "Accuracy of every head on the client's own test samples; null where clients have none.",
        dtype=float, default=None,
    )  # fmt: skip


def counted(num_clients: int, liars: Sequence[int], frozen: int) -> Bool[np.ndarray, " K"]:
    """Which clients tables and means are of: those that learn and do not lie.

    >>> counted(4, liars=[3], frozen=1).tolist()
    [False, True, True, False]
    """
    clients = np.arange(num_clients)
    honest = ~np.isin(clients, liars)
    learning = honest & (clients >= frozen)
    return learning if learning.any() else honest  # somebody has to be told of


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SeedResult(Accuracies):
    """What came out for one seed; what each field is stands in its metadata."""

    seed: int = field("int", "1", "Seed of data, initial parameters and everything drawn.")
    partition_hash: str = field("str", "–", "Names the assignment of samples to clients.")
    normalization: Float[np.ndarray, "2 C"] = field(
        "[2, channels]", "1", "Mean and standard deviation that samples are normalised with, per "
        "channel (of values in 0..1) or feature: published ones, or those of the public samples; "
        "empty for ids.", dtype=float,
    )  # fmt: skip
    isolated_baseline: Accuracies | None = field(
        "object or null", "–",
        "The same clients trained without peers, one head each: same data, same initial values.",
        dtype=Accuracies, default=None,
    )  # fmt: skip
    metrics: Mapping[str, Float[np.ndarray, "K H"]] = field(
        "name: [K, H]", "–", "The further metrics that the setting `metrics` names.",
        dtype=float, default_factory=dict,
    )  # fmt: skip
    class_accuracy: Float[np.ndarray, "K H C"] = field(
        "[K, H, C]", "1", "Test accuracy by class; null for a class without a test sample.",
        dtype=float,
    )  # fmt: skip
    label_histogram: Int[np.ndarray, "K C"] = field(
        "[K, C]", "samples", "Private samples of every class.", dtype=int
    )
    primary_labels: Bool[np.ndarray, "K C"] = field(
        "[K, C]", "bool", "Which labels are primary labels of a client.", dtype=bool
    )
    adjacency: Bool[np.ndarray, "K K"] = field(
        "[K, K]", "bool", "Row i, column j: client i learns from client j; at the first step. "
        "With more than 512 clients: for each client, the list of those it learns from.",
        dtype=bool,
    )  # fmt: skip
    adjacency_union: Bool[np.ndarray, "K K"] = field(
        "[K, K]", "bool", "The same at any step of the run; `adjacency` unless the graph changes.",
        dtype=bool,
    )  # fmt: skip

    liars: Sequence[int] = field(
        "[n]", "–", "Clients that lie (`attack.clients`); everything per client is there for them "
        "too, but tables and means leave them out.", default=(),
    )  # fmt: skip
    frozen: int = field(
        "int", "clients", "The first clients, so many, teach and do not learn (`clients.frozen`). "
        "They have no baseline of their own: it is their main head. Tables and means leave them "
        "out, too.", default=0,
    )  # fmt: skip
    bytes_to: Mapping[str, float | None] = field(
        "name: float or null", "bytes",
        "Sent by all clients until the first evaluation at which the shared accuracy of the last "
        "head, mean over clients, reached each level of the setting `bytes_to`; null where none "
        "did.",
        default_factory=dict,
    )  # fmt: skip
    epsilon: Float[np.ndarray, " K"] | None = field(
        "[K] or null", "1",
        "ε of the differential privacy of one private sample of each client, at `privacy.delta`, "
        "after all steps; null without a claim, and for clients that are frozen.",
        dtype=float, default=None,
    )  # fmt: skip

    @property
    def counted(self) -> Bool[np.ndarray, " K"]:
        """Which clients tables and means are of: those that learn and do not lie."""
        return counted(len(self.shared_accuracy), self.liars, self.frozen)

    @property
    def who_counts(self) -> str:
        """What sets them apart from the others, behind "clients"; empty if all count."""
        one = self.counted.sum() == 1
        learns, lies = ("learns", "does not lie") if one else ("learn", "do not lie")
        found = [*([learns] if self.frozen else []), *([lies] if len(self.liars) else [])]
        return f" that {' and '.join(found)}" if found else ""

    @property
    def seeds(self) -> tuple[SeedResult, ...]:
        """All seeds that are summarised here."""
        return (self,)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Summary(SeedResult):
    """The contents of `summary.json`; what each field is stands in its metadata.

    >>> from mhd_jax.results import describe_fields
    >>> [doc.unit for doc in describe_fields()["summary.json"] if doc.key == "bytes_sent"]
    ['bytes']
    """

    version: int = field("int", "1", "Version of this file's format.", default=VERSION)
    method: str = field("str", "–", "The setting `method`.")
    config: Mapping[str, Any] = field("object", "–", "All settings.")
    versions: Mapping[str, str] = field("name: str", "–", "Of Python and packages.")
    device: str = field("str", "–", "Number, kind and platform of the devices.")
    mesh: str = field("str", "–", "How clients and batches lie on the devices.")
    client_names: Sequence[str] = field(
        "[K] or []", "–", "Of clients that the data set comes with; empty where they are numbered.",
        default=(),
    )  # fmt: skip
    class_names: Sequence[str] = field(
        "[C] or []", "–", "Of classes that have names; empty where they are numbered.", default=()
    )
    num_params: Sequence[int] = field("[K]", "parameters", "Trainable parameters of a client.")
    num_classes: int = field("int", "1", "C.")
    steps: int = field("int", "steps", "Training steps.")
    steps_per_second: float = field(
        "float", "steps/s",
        "Since the last start, without compiling and evaluating; 0 if no step was left.",
    )  # fmt: skip
    compile_seconds: float = field("float", "s", "Compiling the training step.")
    bytes_per_step: Mapping[str, Float[np.ndarray, " K"]] = field(
        "name: [K]", "bytes/step",
        "Sent by a client: `predictions` in a step that distils; for comparison `snapshots` of "
        "its parameters, and parameters as `fedavg` sends them, spread over the steps between.",
        dtype=float,
    )  # fmt: skip
    bytes_sent: float = field("float", "bytes", "Sent by all clients of one seed in the run.")
    bytes_published: float = field(
        "float", "bytes", "Those of them that were not parameters.", default=0.0
    )
    replicas: tuple[SeedResult, ...] = field(
        "list of objects", "–", "One for each seed, the first included; only with several seeds.",
        dtype=SeedResult, default=(),
    )  # fmt: skip

    @property
    def names(self) -> list[str]:
        """What the clients are called: their names, or their numbers."""
        return _names(self.client_names, len(self.label_histogram))

    @property
    def labels(self) -> list[str]:
        """What the classes are called: their names, or their numbers."""
        return _names(self.class_names, self.num_classes)

    @property
    def seeds(self) -> tuple[SeedResult, ...]:
        """The results of every seed."""
        return self.replicas or (self,)

    def to_json(self) -> dict[str, Any]:
        """The contents of the file; `replicas` only where there are several seeds."""
        values = super().to_json()
        if not self.replicas:
            del values["replicas"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The summary in a file.

        Raises:
          ValueError: the file is of another version, or a key is missing.
        """
        if values.get("version") != VERSION:
            found = values.get("version", "none")
            raise ValueError(f"expected version {VERSION} of its keys, not {found}")
        return super().from_json(values)


def _names(names: Sequence[str], count: int) -> list[str]:
    """What clients or classes are called: their names, or their numbers where they have none.

    >>> _names((), 2), _names(("north", "south"), 2)
    (['0', '1'], ['north', 'south'])
    """
    return list(names) or [str(index) for index in range(count)]
