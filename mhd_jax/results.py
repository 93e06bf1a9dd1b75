# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a run leaves, as types: `Summary`, its tables, and the meaning of every key.

K is the number of clients, H of heads, C of classes. Of several seeds, arrays at the top level are
the first seed's. Every field says its shape and unit in its metadata; `describe_fields` lists them
for the documentation, those of `metrics.jsonl` (`LINE_FIELDS`) included.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int

from mhd_jax import graph

VERSION = 1
"""Of the keys of `summary.json`; a file of another version is refused."""

Line = Mapping[str, Any]
"""One object of `metrics.jsonl`; its keys are those of `LINE_FIELDS`."""

History = Sequence[Line]

MANY = 512
"""Clients up to which every number of every client is written down for every step."""

QUANTILES = 101
"""Numbers that stand for those of more clients in a line of `metrics.jsonl`."""

NO_PRIMARY = -2
"""In `label_hops`: a label that is nobody's primary label."""


@dataclasses.dataclass(frozen=True)
class FieldDoc:
    """What a key of a file means.

    Attributes:
      key: the key; those inside others after a dot.
      shape: of the array, or the type of what is no array.
      unit: "1" for numbers without one.
      about: one sentence.
    """

    key: str
    shape: str
    unit: str
    about: str


def _field(shape: str, unit: str, about: str, *, dtype: type | None = None, **options: Any) -> Any:
    """A dataclass field that says what it is; arrays have a `dtype`."""
    metadata = {"shape": shape, "unit": unit, "about": about, "dtype": dtype}
    return dataclasses.field(metadata=metadata, **options)


class _Record(Mapping[str, Any]):
    """A dataclass that can also be read by key: ``summary["steps"]`` is ``summary.steps``."""

    def __getitem__(self, key: str) -> Any:
        if key not in self._keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and _plain(self) == _plain(other)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def _keys(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """The same as plain Python values: numbers, lists and dicts."""
        return {
            name: _peers(value) if name in GRAPHS and len(value) > MANY else _plain(value)
            for name, value in self.items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
          ValueError: a key is missing.
        """
        made: dict[str, Any] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.name in values:
                kept, graph_field = values[field.name], field.name in GRAPHS
                made[field.name] = _matrix(kept) if graph_field else _typed(field.metadata, kept)
            elif field.default is dataclasses.MISSING:
                if field.default_factory is dataclasses.MISSING:
                    raise ValueError(f"has no {field.name}")
        return cls(**made)


GRAPHS = ("adjacency", "adjacency_union")
"""Fields that are matrices of all pairs: of more than `MANY` clients lists of peers are kept."""


def _peers(adjacency: Bool[np.ndarray, "K K"]) -> list[list[int]]:
    """Whom each client learns from."""
    return [np.flatnonzero(row).tolist() for row in adjacency]


def _matrix(rows: Sequence[Sequence[Any]]) -> Bool[np.ndarray, "K K"]:
    """A graph from its rows, or from lists of peers."""
    if all(isinstance(x, bool) for row in rows for x in row[:1]) and any(map(len, rows)):
        return np.asarray(rows, bool)
    out = np.zeros((len(rows), len(rows)), bool)
    for client, peers in enumerate(rows):
        out[client, list(peers)] = True
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, _Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _typed(about: Mapping[str, Any], value: Any) -> Any:
    """A value of JSON as its field has it."""
    if about["dtype"] is None or value is None:
        return value
    if issubclass(about["dtype"], _Record):
        several = isinstance(value, tuple | list)
        make = about["dtype"].from_json
        return tuple(map(make, value)) if several else make(value)
    if isinstance(value, Mapping):
        return {name: np.asarray(part, about["dtype"]) for name, part in value.items()}
    return np.asarray(value, about["dtype"])


# --- The summary ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Accuracies(_Record):
    """Both accuracies of some clients; what each field is stands in its metadata."""

    shared_accuracy: Float[np.ndarray, "K H"] = _field(
        "[K, H]", "1", "Test accuracy of every head, all classes counted alike.", dtype=float
    )
    private_accuracy: Float[np.ndarray, "K H"] = _field(
        "[K, H]", "1", "Test accuracy of every head, classes weighted as in the client's own data.",
        dtype=float,
    )  # fmt: skip
    own_test_accuracy: Float[np.ndarray, "K H"] | None = _field(
        "[K, H] or null", "1",
        "Accuracy of every head on the client's own test samples; null where clients have none.",
        dtype=float, default=None,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SeedResult(Accuracies):
    """What came out for one seed; what each field is stands in its metadata."""

    seed: int = _field("int", "1", "Seed of data, initial parameters and everything drawn.")
    partition_hash: str = _field("str", "–", "Names the assignment of samples to clients.")
    normalization: Float[np.ndarray, "2 C"] = _field(
        "[2, channels]", "1", "Mean and standard deviation that images are normalised with, of "
        "values in 0..1: published ones, or those of the public images.", dtype=float,
    )  # fmt: skip
    isolated_baseline: Accuracies | None = _field(
        "object or null", "–",
        "The same clients trained without peers, one head each: same data, same initial values.",
        dtype=Accuracies, default=None,
    )  # fmt: skip
    metrics: Mapping[str, Float[np.ndarray, "K H"]] = _field(
        "name: [K, H]", "–", "The further metrics that the setting `metrics` names.",
        dtype=float, default_factory=dict,
    )  # fmt: skip
    class_accuracy: Float[np.ndarray, "K H C"] = _field(
        "[K, H, C]", "1", "Test accuracy by class; 0 for a class without a test sample.",
        dtype=float,
    )  # fmt: skip
    label_histogram: Int[np.ndarray, "K C"] = _field(
        "[K, C]", "samples", "Private samples of every class.", dtype=int
    )
    primary_labels: Bool[np.ndarray, "K C"] = _field(
        "[K, C]", "bool", "Which labels are primary labels of a client.", dtype=bool
    )
    adjacency: Bool[np.ndarray, "K K"] = _field(
        "[K, K]", "bool", "Row i, column j: client i learns from client j; at the first step. Of "
        "more than 512 clients instead the list of those that client i learns from.",
        dtype=bool,
    )  # fmt: skip
    adjacency_union: Bool[np.ndarray, "K K"] = _field(
        "[K, K]", "bool", "The same at any step of the run; `adjacency` unless the graph changes.",
        dtype=bool,
    )  # fmt: skip

    liars: Sequence[int] = _field(
        "[n]", "–", "Clients that lie (`attack.clients`); everything per client is there for them "
        "too, but tables and means leave them out.", default=(),
    )  # fmt: skip
    bytes_to: Mapping[str, float | None] = _field(
        "name: float or null", "bytes",
        "Sent by all clients until the first evaluation at which the shared accuracy of the last "
        "head, mean over clients, reached each level of the setting `bytes_to`; null where none "
        "did.",
        default_factory=dict,
    )  # fmt: skip
    epsilon: Float[np.ndarray, " K"] | None = _field(
        "[K] or null", "1",
        "Of the differential privacy of one private sample of each client, at `privacy.delta`, "
        "after all steps; null without a claim.",
        dtype=float, default=None,
    )  # fmt: skip

    @property
    def honest(self) -> Bool[np.ndarray, " K"]:
        """Which clients do not lie; one for all where one pooled model stands for all."""
        return ~np.isin(np.arange(len(self.shared_accuracy)), self.liars)

    @property
    def seeds(self) -> tuple[SeedResult, ...]:
        """All seeds that are summarised here."""
        return (self,)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Summary(SeedResult):
    """The contents of `summary.json`; what each field is stands in its metadata.

    >>> [doc.unit for doc in describe_fields()["summary.json"] if doc.key == "bytes_sent"]
    ['bytes']
    """

    version: int = _field("int", "1", "Of these keys.", default=VERSION)
    method: str = _field("str", "–", "The setting `method`.")
    config: Mapping[str, Any] = _field("object", "–", "All settings.")
    versions: Mapping[str, str] = _field("name: str", "–", "Of Python and packages.")
    device: str = _field("str", "–", "Number, kind and platform of the devices.")
    mesh: str = _field("str", "–", "How clients and batches lie on the devices.")
    client_names: Sequence[str] = _field(
        "[K] or []", "–", "Of clients that the data set comes with; empty where they are numbered.",
        default=(),
    )  # fmt: skip
    num_params: Sequence[int] = _field("[K]", "parameters", "Trainable parameters of a client.")
    num_classes: int = _field("int", "1", "C.")
    steps: int = _field("int", "steps", "Training steps.")
    steps_per_second: float = _field(
        "float", "steps/s",
        "Since the last start, without compiling and evaluating; 0 if no step was left.",
    )  # fmt: skip
    compile_seconds: float = _field("float", "s", "Compiling the training step.")
    bytes_per_step: Mapping[str, Float[np.ndarray, " K"]] = _field(
        "name: [K]", "bytes/step",
        "Sent by a client: `predictions` in a step that distils; for comparison `snapshots` of "
        "its parameters, and parameters as `fedavg` sends them, spread over the steps between.",
        dtype=float,
    )  # fmt: skip
    bytes_sent: float = _field("float", "bytes", "Sent by all clients of one seed in the run.")
    bytes_published: float = _field(
        "float", "bytes", "Those of them that were not parameters.", default=0.0
    )
    replicas: tuple[SeedResult, ...] = _field(
        "list of objects", "–", "One for each seed, the first included; only with several seeds.",
        dtype=SeedResult, default=(),
    )  # fmt: skip

    @property
    def names(self) -> list[str]:
        """What the clients are called: their names, or their numbers."""
        return client_labels(self.client_names, len(self.label_histogram))

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


LINE_FIELDS = (
    FieldDoc("step", "int", "steps", "Steps done."),
    FieldDoc("seconds", "float", "s", "Since the last start of the run."),
    FieldDoc("steps_per_second", "float", "steps/s", "Since the last start."),
    FieldDoc("loss", "[K]", "nats", "The whole objective; this and what follows up to "
             "`bytes_sent` every `train.log_every` steps, means over the steps since in which the "
             "client took part, null where there are none. Of more than 512 clients [K] stands "
             "here and below for 101 quantiles over the clients, from the least to the greatest."),
    FieldDoc("private_loss", "[K]", "nats", "Cross-entropy of the main head on private data."),
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
             "name the same class."),
    FieldDoc("teaching_share", "[K]", "1", "Share of all lessons that a client gives."),
    FieldDoc("ignored_by", "[K]", "1", "Share of a client's readers that do not hear it: what it "
             "says of public images does not go together with what they say (screening)."),
    FieldDoc("teacher_accuracy", "[K, m]", "1", "How often the chosen teacher is right, where "
             "labels of public images are known; of a mixture, the label of its larger part."),
    FieldDoc("unreadable", "[K]", "1", "Share of steps in which a client's message was dropped, as "
             "it was not finite or no probabilities; left out where none was."),
    FieldDoc("unreadable_parameters", "[K]", "1", "The same of its parameters."),
    FieldDoc("bytes_sent", "float", "bytes", "Sent by all clients so far."),
    FieldDoc("shared_accuracy", "[K, H]", "1", "As in `summary.json`; this and what follows every "
             "`train.eval_every` steps."),
    FieldDoc("private_accuracy", "[K, H]", "1", "As in `summary.json`."),
    FieldDoc("last_head_accuracy", "[R]", "1", "Shared accuracy of the last head of every seed, "
             "mean over clients that do not lie."),
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
    range over them are those over the clients; those who took no part are left out.
    """
    per_client = {doc.key for doc in LINE_FIELDS if doc.shape.startswith("[K")}
    return {
        name: _quantiles(np.asarray(value))
        if (name in per_client or name.startswith("metrics/")) and len(value) > MANY
        else value
        for name, value in values.items()
    }


def _quantiles(values: Float[np.ndarray, "K ..."]) -> Float[np.ndarray, "q ..."]:
    known = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if not known.any():
        return np.full((QUANTILES, *values.shape[1:]), np.nan)
    found: np.ndarray = np.quantile(values[known], np.linspace(0, 1, QUANTILES), axis=0)
    return found


def describe_fields() -> dict[str, list[FieldDoc]]:
    """Every key of `summary.json` and of the lines of `metrics.jsonl`, with shape and unit."""
    return {"summary.json": _documented(Summary, ""), "metrics.jsonl": list(LINE_FIELDS)}


def _documented(kind: type[_Record], prefix: str) -> list[FieldDoc]:
    docs = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        about = field.metadata
        docs.append(FieldDoc(prefix + field.name, about["shape"], about["unit"], about["about"]))
        if about["dtype"] is Accuracies:
            docs += _documented(Accuracies, f"{prefix}{field.name}.")
    return docs


def epsilon_range(found: Float[np.ndarray, " K"]) -> str:
    """Smallest and largest epsilon.

    >>> epsilon_range(np.array([2.0, 2.0]))
    '2.00'
    """
    low, high = f"{found.min():.2f}", f"{found.max():.2f}"
    return low if low == high else f"{low} to {high}"


def client_labels(names: Sequence[str], num_clients: int) -> list[str]:
    """What clients are called: their names, or their numbers where they have none.

    >>> client_labels((), 2), client_labels(("north", "south"), 2)
    (['0', '1'], ['north', 'south'])
    """
    return list(names) or [str(index) for index in range(num_clients)]


# --- Statistics over clients ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number per client, summarised.

    Attributes:
      mean: over clients (and over seeds where there are several).
      min: the lowest client's, of all seeds.
      max: the highest client's, of all seeds.
      std: sample standard deviation of the seeds' means; None for a single seed.
    """

    mean: float
    min: float
    max: float
    std: float | None = None

    @classmethod
    def of(cls, values: Float[np.ndarray, "R K"]) -> Spread:
        """Summarises one number per seed and client.

        >>> Spread.of(np.array([[0.0, 1.0]]))
        Spread(mean=0.5, min=0.0, max=1.0, std=None)
        """
        means = values.mean(axis=1)
        std = float(means.std(ddof=1)) if len(means) > 1 else None
        return cls(float(means.mean()), float(values.min()), float(values.max()), std)


@dataclasses.dataclass(frozen=True)
class HeadRow:
    """One line of the results: a head's accuracies, and its gain over the isolated baseline."""

    name: str
    shared: Spread
    private: Spread
    shared_gain: Spread | None = None
    private_gain: Spread | None = None


ISOLATED = "isolated"
"""The name of the isolated baseline's row."""


def head_names(num_heads: int) -> list[str]:
    """The heads' names in the order of their ranks.

    >>> head_names(3)
    ['main', 'aux 1', 'aux 2']
    """
    return ["main", *(f"aux {rank}" for rank in range(1, num_heads))]


def head_rows(result: SeedResult) -> list[HeadRow]:
    """The results of a run, a row per head and one for the isolated baseline where there is one.

    Over those clients alone that do not lie.

    Args:
      result: a summary, or the results of one of its seeds.

    Returns:
      Rows in the order of the ranks, the isolated baseline last.
    """
    baselines = [seed.isolated_baseline for seed in result.seeds]
    found = [baseline for baseline in baselines if baseline is not None]

    def stack(values: Iterable[np.ndarray]) -> Float[np.ndarray, "R K H"]:
        return np.compress(result.honest, np.stack(list(values)), axis=1)

    return accuracy_rows(
        stack(seed.shared_accuracy for seed in result.seeds),
        stack(seed.private_accuracy for seed in result.seeds),
        stack(one.shared_accuracy for one in found) if len(found) == len(baselines) else None,
        stack(one.private_accuracy for one in found) if len(found) == len(baselines) else None,
    )


def accuracy_rows(
    shared: Float[np.ndarray, "R K H"],
    private: Float[np.ndarray, "R K H"],
    baseline_shared: Float[np.ndarray, "R K 1"] | None = None,
    baseline_private: Float[np.ndarray, "R K 1"] | None = None,
) -> list[HeadRow]:
    """`head_rows` from the accuracies of R seeds.

    Gains are taken client by client against the isolated baseline, which has the same data, the
    same initial parameters and one head.
    """
    spread = Spread.of
    rows = []
    for head, name in enumerate(head_names(shared.shape[-1])):
        gains = []
        if baseline_shared is not None and baseline_private is not None:
            gains = [
                spread(shared[..., head] - baseline_shared[..., 0]),
                spread(private[..., head] - baseline_private[..., 0]),
            ]
        rows.append(HeadRow(name, spread(shared[..., head]), spread(private[..., head]), *gains))
    if baseline_shared is not None and baseline_private is not None:
        alone = spread(baseline_shared[..., 0]), spread(baseline_private[..., 0])
        rows.append(HeadRow(ISOLATED, *alone))
    return rows


# --- Accuracy by distance -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HopTable:
    """Accuracy on labels by how far away, in hops, their nearest primary client is.

    Attributes:
      heads: the heads' names, [H].
      distances: that occur, in ascending order, with -1 (nobody who holds the label can be heard)
        last; empty where no label has a primary client, [D].
      accuracy: mean over all pairs of a client and a label at that distance, [H, D].
      pairs: how many pairs that are, [D].
    """

    heads: list[str]
    distances: list[int]
    accuracy: Float[np.ndarray, "H D"]
    pairs: list[int]

    @functools.cached_property
    def names(self) -> list[str]:
        """How the distances are written."""
        return [hop_name(distance) for distance in self.distances]


def hop_name(distance: int) -> str:
    """How a distance of the hop table is written: -1 is 'none', nobody who knows is heard."""
    return "none" if distance < 0 else str(distance)


def hop_table(result: SeedResult) -> HopTable:
    """Accuracy by distance along the graph; where the graph changes, along all its graphs at once.

    A client is 0 hops from its own primary labels, 1 hop from those of the clients it learns
    from, and so on. A label with several primary clients counts with the nearest; labels without
    a primary client are left out.
    """
    return accuracy_by_hops(
        result.class_accuracy, label_hops(result.primary_labels, result.adjacency_union)
    )


def accuracy_by_hops(
    class_accuracy: Float[np.ndarray, "K H C"], hops: Int[np.ndarray, "K C"]
) -> HopTable:
    """`hop_table` from accuracies and `label_hops`."""
    accuracy = for_every_client(class_accuracy, len(hops))
    distances = sorted({int(d) for d in np.unique(hops)} - {NO_PRIMARY})
    distances.sort(key=lambda d: (d == -1, d))
    table = np.empty((accuracy.shape[1], len(distances)))
    pairs = []
    for column, distance in enumerate(distances):
        client, label = np.nonzero(hops == distance)
        table[:, column] = np.nanmean(accuracy[client, :, label], axis=0)
        pairs.append(len(client))
    return HopTable(head_names(accuracy.shape[1]), distances, table, pairs)


def label_hops(
    primary_labels: Bool[np.ndarray, "K C"], adjacency: Bool[np.ndarray, "K K"]
) -> Int[np.ndarray, "K C"]:
    """Hops from every client to the nearest primary client of every label.

    Returns:
      [K, C], -1 where no primary client can be heard and `NO_PRIMARY` for labels that have none.
    """
    primary = np.asarray(primary_labels, dtype=bool)
    hops = graph.hop_distances(np.asarray(adjacency, dtype=bool))
    far = len(hops) + 1
    reach = np.where(hops < 0, far, hops)
    # Label by label: [K, K, C] at once would be large for many clients and classes.
    nearest = np.stack([reach[:, own].min(axis=1, initial=far) for own in primary.T], axis=1)
    nearest = np.where(nearest == far, -1, nearest)
    return np.where(primary.any(axis=0), nearest, NO_PRIMARY)


def for_every_client(
    values: Float[np.ndarray, "k ..."], num_clients: int
) -> Float[np.ndarray, "K ..."]:
    """`values`, for every client the same where one pooled model stands for all."""
    array = np.asarray(values, dtype=float)
    return np.broadcast_to(array, (num_clients, *array.shape[1:]))
