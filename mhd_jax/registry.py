# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Named pieces (models, graphs, partitions, ...) that a config picks by name."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Generic, TypeVar

from mhd_jax.errors import ConfigError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """A dictionary of pieces of one kind, filled by decorators and by installed packages.

    A package outside this one adds a piece without importing us first by declaring an entry
    point in the group ``mhd_jax.<setting>``, for example ``mhd_jax.graph.name``. Where pieces of
    two kinds answer to one setting, each kind has a group of its own.

    >>> shapes = Registry("shape.name")
    >>> @shapes.register("square")
    ... def square() -> int:
    ...     return 4
    >>> shapes.get("square")()
    4
    """

    def __init__(self, setting: str, *, group: str = "") -> None:
        self.setting = setting
        self._group = f"mhd_jax.{group or setting}"
        self._pieces: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that files the decorated piece under `name`."""

        def decorate(piece: T) -> T:
            self._pieces[name] = piece
            return piece

        return decorate

    def names(self) -> list[str]:
        """All names a config may use, our own first."""
        outside = [entry.name for entry in self._entry_points()]
        return list(dict.fromkeys([*self._pieces, *outside]))

    def get(self, name: str) -> T:
        """The piece called `name`; raises `ConfigError` with the nearest known name."""
        if name not in self._pieces:
            for entry in self._entry_points():
                if entry.name == name:
                    self._pieces[name] = entry.load()
        if name not in self._pieces:
            raise ConfigError(self.setting, name, suggest(str(name), self.names()))
        return self._pieces[name]

    @contextlib.contextmanager
    def as_it_was(self, pieces: Mapping[str, T]) -> Iterator[None]:
        """With these pieces under their names, in place of what has come to stand there since."""
        now = dict(self._pieces)
        self._pieces.update(pieces)
        try:
            yield
        finally:
            self._pieces.clear()
            self._pieces.update(now)

    def here(self) -> dict[str, T]:
        """All pieces by their names, but those of packages that nobody has asked for yet."""
        return dict(self._pieces)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        # Our own first: looking through all installed packages takes milliseconds.
        return name in self._pieces or name in self.names()

    def _entry_points(self) -> metadata.EntryPoints:
        return metadata.entry_points(group=self._group)


def is_ours(piece: object) -> bool:
    """Whether this package brings the piece, possibly wrapped in `functools.partial`.

    >>> is_ours(functools.partial(suggest, "circle")), is_ours(max)
    (True, False)
    """
    made = piece.func if isinstance(piece, functools.partial) else piece
    module = getattr(made, "__module__", None) or ""  # None where it was made by `exec`
    return str(module).partition(".")[0] == "mhd_jax"


def whole_batch(piece: T) -> T:
    """Marks a function that compares the samples of a batch with each other.

    Devices that share a client's batches would each compare their own part, so none are shared
    where such a piece is used, unless `parallel.data_devices` asks for it.
    """
    piece.whole_batch = True  # type: ignore[attr-defined]
    return piece


def takes_whole_batch(piece: object) -> bool:
    """Whether `piece` is so marked."""
    return bool(getattr(piece, "whole_batch", False))
