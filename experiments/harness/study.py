# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a study is made of: cells, which are runs to make, and the record that each leaves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from experiments.harness.presets import Preset

Kind = Literal["shared", "private"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of a table, or one column of a row.

    Attributes:
      name: of the record's file.
      label: what the table calls it.
      changes: settings by dotted name.
      group: rows of a group stand together and carry its name.
      per_class: keep the accuracy on every class, which the hop picture needs.
      column: cells of one group and label stand side by side under the names of their columns.
      config: a config file with its variant in place of the preset's, such as
        "configs/cifar10.py:mlp", where rows differ in more than a few settings.
      seeds: seeds 0, 1, ..., all trained in one run; 0 for those of the preset.
    """

    name: str
    label: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    group: str = ""
    per_class: bool = False
    column: str = ""
    config: str = ""
    seeds: int = 0


@dataclasses.dataclass(frozen=True)
class Study:
    """One table and figure.

    Attributes:
      name: of the folder with its records.
      title: one line.
      cells: its rows at a preset.
      draw: its figure, from the records in the order of the cells; None for `plots.dots`.
      all_heads: the table has a column for every head rather than for the first and last.
      definitions: what is defined differently here than a reader may expect, a sentence each.
      extra: further lines below the table, from the records in the order of the cells.
    """

    name: str
    title: str
    cells: Callable[[Preset], list[Cell]]
    draw: Callable[[Sequence[Record]], Figure] | None = None
    all_heads: bool = False
    definitions: tuple[str, ...] = ()
    extra: Callable[[Sequence[Record]], str] | None = None


def slug(words: str) -> str:
    """A name for the file of a record.

    >>> slug("tic-tac-toe s = 100 MHD (no alignment)")
    'tic-tac-toe-s-100-mhd-no-alignment'
    """
    return "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in words.lower()).split())


# --- Records --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PerClass:
    """Accuracy on every class, and who has and hears what.

    Attributes:
      class_accuracy: of every head on every class.
      primary_labels: the labels of which a client has most.
      adjacency: [i, j] where client i learns from client j at any step of the run.
    """

    class_accuracy: Float[np.ndarray, "R K H C"]
    primary_labels: Bool[np.ndarray, "R K C"]
    adjacency: Bool[np.ndarray, "R K K"]


@dataclasses.dataclass(frozen=True)
class Results:
    """What the runs of a cell came to: R seeds, K clients, H heads, C classes.

    Attributes:
      seeds: R seeds.
      partition_hash: of each seed's partition.
      shared_accuracy: of the clients' heads on all classes alike.
      private_accuracy: of the clients' heads, weighted like the client's own labels.
      isolated_shared_accuracy: of the isolated baseline, which has one head.
      isolated_private_accuracy: likewise.
      bytes_per_client_and_step: mean over the run, averages of parameters included.
      bytes_per_step: mean over clients, by what is sent.
      per_class: what the hop picture needs, where the cell keeps it.
      bytes_to: by level, what a client had sent when the last head, mean over clients, was first
        seen to reach that shared accuracy, seed by seed; None in a seed where it never did.
    """

    seeds: list[int]
    partition_hash: list[str]
    shared_accuracy: Float[np.ndarray, "R K H"]
    private_accuracy: Float[np.ndarray, "R K H"]
    isolated_shared_accuracy: Float[np.ndarray, "R K 1"]
    isolated_private_accuracy: Float[np.ndarray, "R K 1"]
    bytes_per_client_and_step: float
    bytes_per_step: Mapping[str, float]
    per_class: PerClass | None = None
    bytes_to: Mapping[str, list[float | None]] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Results:
        """From what `to_json` makes."""
        arrays = {name: np.array(v, float) for name, v in found.items() if "_accuracy" in name}
        kept = {name: arrays.get(name, value) for name, value in found.items()}
        if "class_accuracy" not in kept:
            return cls(**kept)
        accuracy = kept.pop("class_accuracy")
        primary, adjacency = (np.array(kept.pop(n), bool) for n in ("primary_labels", "adjacency"))
        return cls(**kept, per_class=PerClass(accuracy, primary, adjacency))

    def spent_until(self, level: str) -> float | None:
        """Mean over seeds of `bytes_to`; None unless all of them got there."""
        sent = [one for one in self.bytes_to.get(level, ()) if one is not None]
        return float(np.mean(sent)) if len(sent) == len(self.seeds) else None

    def to_json(self) -> dict[str, Any]:
        """Lists and numbers; what was not kept is left out."""
        kept = {**vars(self), **(vars(self.per_class) if self.per_class else {})}
        del kept["per_class"]
        if not self.bytes_to:
            del kept["bytes_to"]
        return {name: _as_lists(value) for name, value in kept.items()}


def _as_lists(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return (value.astype(int) if value.dtype == bool else value).tolist()


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished cell: what was asked for, what came out, and where, when and with what.

    Attributes:
      study: its name.
      cell: its name.
      label: of its row.
      group: of its row, "" for none.
      column: in its row, "" for none.
      preset: at which it was run.
      command: that makes the table.
      changes: settings that differ from the preset's.
      config: all settings of the first run.
      revision: of the code.
      versions: of Python and packages.
      device: as JAX names it.
      hardware: processor and cores.
      num_params: of every client.
      seconds_per_step: mean over the runs, of all their seeds together; None where unknown.
      compile_seconds: sum over the runs.
      wall_seconds: sum over the runs.
      found: the results; None where a run diverged.
      diverged: what was said about that, else "".
    """

    study: str
    cell: str
    label: str
    group: str
    column: str
    preset: str
    command: str
    changes: Mapping[str, Any]
    config: Mapping[str, Any]
    revision: str
    versions: Mapping[str, str]
    device: str
    hardware: str
    num_params: list[int]
    seconds_per_step: float | None
    compile_seconds: float
    wall_seconds: float
    found: Results | None = None
    diverged: str = ""

    @classmethod
    def from_json(cls, made: Mapping[str, Any]) -> Record:
        """From what `to_json` makes."""
        rest = {name: value for name, value in made.items() if name != "results"}
        said = made["results"].get("diverged", "")
        return cls(
            **rest, found=None if said else Results.from_json(made["results"]), diverged=said
        )

    def to_json(self) -> dict[str, Any]:
        """The content of the record's file, from `from_json` back to the same."""
        names = [field.name for field in dataclasses.fields(self)]
        made = {n: getattr(self, n) for n in names if n not in ("found", "diverged")}
        made["results"] = self.found.to_json() if self.found else {"diverged": self.diverged}
        return json.loads(json.dumps(made))

    @property
    def results(self) -> Results:
        """What came out.

        Raises:
          ValueError: a run diverged.
        """
        if self.found is None:
            raise ValueError(f"{self.study}/{self.cell} diverged: {self.diverged}")
        return self.found

    @property
    def honest(self) -> Bool[np.ndarray, " K"]:
        """Which clients do not lie; the only one, of a pooled model."""
        liars = self.config.get("attack", {}).get("clients", ())
        return ~np.isin(np.arange(self.results.shared_accuracy.shape[1]), liars)

    def accuracy(self, kind: Kind) -> Float[np.ndarray, "R K H"]:
        """By seed, client that does not lie, and head."""
        return np.compress(self.honest, getattr(self.results, f"{kind}_accuracy"), axis=1)

    @property
    def last_head(self) -> Float[np.ndarray, " R"]:
        """Shared accuracy of the last head by seed, mean over clients that do not lie."""
        return self.accuracy("shared")[..., -1].mean(axis=1)

    def isolated(self, kind: Kind) -> Float[np.ndarray, "R K"]:
        """Accuracy of the isolated baseline of the same clients, by seed and client."""
        found = getattr(self.results, f"isolated_{kind}_accuracy")[..., 0]
        pooled = found.shape[1] != len(self.honest)
        return found if pooled else np.compress(self.honest, found, axis=1)

    def gain(self, kind: Kind = "shared", head: int = -1) -> Float[np.ndarray, "R K"]:
        """What a head has over the isolated baseline, by seed and client."""
        return self.accuracy(kind)[..., head] - self.isolated(kind)
