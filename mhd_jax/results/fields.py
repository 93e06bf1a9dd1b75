# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Dataclasses that say of every field what it is, and become JSON and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Bool

MANY = 512
"""Clients up to which every number of every client is written down for every step."""

GRAPHS = ("adjacency", "adjacency_union")
"""Fields that are matrices of all pairs: of more than `MANY` clients lists of peers are kept."""


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


def field(shape: str, unit: str, about: str, *, dtype: type | None = None, **options: Any) -> Any:
    """A dataclass field that says what it is; arrays have a `dtype`."""
    metadata = {"shape": shape, "unit": unit, "about": about, "dtype": dtype}
    return dataclasses.field(metadata=metadata, **options)


class Record(Mapping[str, Any]):
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
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return as_lists(value) if isinstance(value, np.ndarray | np.generic) else value


def as_lists(array: np.ndarray | np.generic) -> Any:
    """The numbers of an array in nested lists, None for NaN: JSON has no other word for it.

    >>> as_lists(np.array([0.5, np.nan]))
    [0.5, None]
    """
    if np.issubdtype(array.dtype, np.floating) and (missing := np.isnan(array)).any():
        known = np.array(array, object)
        known[missing] = None
        return known.tolist()
    return array.tolist()


def _typed(about: Mapping[str, Any], value: Any) -> Any:
    """A value of JSON as its field has it."""
    if about["dtype"] is None or value is None:
        return value
    if issubclass(about["dtype"], Record):
        several = isinstance(value, tuple | list)
        make = about["dtype"].from_json
        return tuple(map(make, value)) if several else make(value)
    if isinstance(value, Mapping):
        return {name: np.asarray(part, about["dtype"]) for name, part in value.items()}
    return np.asarray(value, about["dtype"])
