# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Clients as they are: each with samples of its own, a common public pool and a test set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Int, Shaped

from mhd_jax.data.sources.arrays import (
    ALIKE,
    ArraySplit,
    Where,
    array_split,
    as_names,
    as_pair,
    as_samples,
    check_columns,
)
from mhd_jax.data.sources.interface import (
    FEWEST,
    JoinedSplit,
    Silos,
    Source,
    Split,
    SubSplit,
    check_source,
    warn_of_channels_first,
)
from mhd_jax.errors import ConfigError, of_piece

Pair = tuple[Shaped[np.ndarray, "N ..."], Int[np.ndarray, " N"]]
"""Samples and their labels."""

Clients = Mapping[str, Pair] | Iterable[tuple[str, Pair]]
"""Samples and labels of every client, by name."""


def from_clients(
    clients: Clients,
    *,
    public: Shaped[np.ndarray, "P ..."],
    test: Pair,
    client_test: Mapping[str, Pair] | None = None,
    class_names: Sequence[str] = (),
    name: str = "clients",
) -> Source:
    """A data set whose clients are given, for `fit(source=...)`.

    Args:
      clients: samples and labels of every client by its name, in the order of the client axis;
        see `as_samples` for what samples may be.
      public: the samples that everybody sees, without labels.
      test: samples and labels that everybody is evaluated on, with every class.
      client_test: test samples and labels of every client, for its private accuracy; None to
        have only the private accuracy that weighs the classes of `test`.
      class_names: one per class; numbers by default, up to the largest label.
      name: what `data.name` calls the data set.

    Returns:
      The data set; with it as `source`, `fit` sets `partition.name` to "by_key" and
      `clients.num` to the number of clients.

    Raises:
      ConfigError: naming the client, or the part, and what is wrong with it.

    >>> draw = np.random.default_rng(0)
    >>> table = lambda rows: (draw.normal(size=(rows, 5)), np.arange(rows) % 2)
    >>> mine = from_clients(
    ...     {"north": table(40), "south": table(30)}, public=draw.normal(size=(20, 5)),
    ...     test=table(10))
    >>> mine.silos.names, mine.image_shape, len(mine.train)
    (('north', 'south'), (5,), 70)
    """
    pairs = _named(clients)
    if isinstance(public, tuple):
        raise ConfigError("public", f"{len(public)} arrays", "samples alone: nobody has labels")
    columns = _columns(pairs, public, test, client_test)
    parts = {who: array_split(("clients", who), *_pair(("clients", who), pair))
             for who, pair in pairs}  # fmt: skip
    pool = as_samples(_with_shape("public", public), public)
    samples, labels = as_pair(("test", type(test).__name__), test)
    held_out = array_split(_with_shape("test", samples), samples, labels)
    own = _own_tests(list(parts), client_test)
    _check_alike(parts, held_out, own, pool)
    names = _class_names(class_names, [*parts.values(), held_out, *own])
    _check_labels(parts, held_out, own, names)
    _warn_of_shared_rows(parts, held_out, pool)
    train, owner = _joined(list(parts.values()))
    silos = Silos(tuple(parts), owner, *(_joined(own) if own else ()))
    source = Source(
        name, names, train, held_out, silos=silos, public=ArraySplit(pool, np.full(len(pool), -1)),
        columns=columns,
    )  # fmt: skip
    check_source(source, name)
    warn_of_channels_first(source)
    return source


def with_client(
    known: Source,
    owned: Sequence[Int[np.ndarray, " n"]],
    names: Sequence[str],
    new: str,
    pair: Pair,
    test: Pair | None = None,
) -> Source:
    """A data set with one client more, the last.

    Args:
      known: the data set, with its public pool, mean and standard deviation.
      owned: the training samples of every client that there is.
      names: of these clients.
      new: the new client's name.
      pair: its samples and labels.
      test: test samples and labels of its own.

    Raises:
      ConfigError: naming the new client and what is wrong with it.
    """  # fmt: skip
    new = _named([(name, pair) for name in (*names, new)])[-1][0]
    where = ("clients", new)
    columns = check_columns([(where, pair), (("client_test", new), test)], known.columns)
    part = array_split(where, *_pair(where, pair))
    others = SubSplit(known.train, np.concatenate(owned))
    own = [] if test is None else [_own_test(new, test)]
    for split in (part, *own):
        _check_alike({"of the run": others, new: split}, known.test, [], None)
        _check_labels({new: split}, known.test, [], known.class_names, complete=False)
    before = known.silos if known.silos and known.silos.test is not None else None
    tests = ([before.test] if before and before.test else []) + own
    silos = Silos(
        (*names, new),
        np.repeat(np.arange(len(names) + 1), [*map(len, owned), len(part)]),
        JoinedSplit(tests) if tests else None,
        np.concatenate(
            [before.test_owner if before else [], *(np.full(len(one), len(names)) for one in own)]
        ).astype(np.int64),
    )
    name = f"{known.name}_with_{new}"
    return dataclasses.replace(
        known, name=name, train=JoinedSplit([others, part]), silos=silos, columns=columns
    )


def _named(clients: Clients) -> list[tuple[str, Pair]]:
    """Names and samples; every name once, every client with a few samples."""
    accepted = "samples and labels of every client by its name, such as {'north': (x, y)}"
    with of_piece("clients", type(clients).__name__, accepted):
        given = clients.items() if isinstance(clients, Mapping) else clients
        pairs = [(name, pair) for name, pair in given]
    if any(np.ndim(name) for name, _ in pairs):
        raise ConfigError("clients", type(clients).__name__, accepted)
    if not pairs:
        raise ConfigError("clients", {}, "at least one client, with a name")
    names = [str(name) for name, _ in pairs]
    for who in names:
        if names.count(who) > 1:
            accepted = f"a name of its own for every client, not the same for {names.count(who)}"
            raise ConfigError("clients", who, accepted)
    return list(zip(names, (pair for _, pair in pairs), strict=True))


def _pair(where: tuple[str, object], pair: Pair) -> Pair:
    """A client's samples and labels.

    Raises:
      ConfigError: something else than these two, or too few samples.
    """
    samples, labels = as_pair(where, pair)
    with of_piece(*where, ALIKE):
        few = np.ndim(samples) and len(samples) < FEWEST
    if few:
        raise ConfigError(*where, f"at least {FEWEST} samples, not {len(samples)}")
    return samples, labels


def _with_shape(part: str, samples: Any) -> Where:
    """What an error says of samples: which they are, and their shape."""
    with of_piece(part, type(samples).__name__, ALIKE):
        return part, np.shape(samples)


def _columns(
    pairs: Sequence[tuple[str, Pair]],
    public: Shaped[np.ndarray, "P ..."],
    test: Pair,
    client_test: Mapping[str, Pair] | None,
) -> tuple[str, ...]:
    """The columns that all tables have; raises `ConfigError` as `check_columns` does."""
    own = client_test.items() if isinstance(client_test, Mapping) else ()
    return check_columns([
        *((("clients", who), pair) for who, pair in pairs),
        (_with_shape("public", public), [public]),
        (("test", type(test).__name__), test),
        *((("client_test", who), pair) for who, pair in own),
    ])  # fmt: skip


def _own_tests(names: list[str], tests: Mapping[str, Pair] | None) -> list[ArraySplit]:
    """The clients' own test samples in client order; none where none are given."""
    if tests is None:
        return []
    if not isinstance(tests, Mapping):
        accepted = "a mapping from the name of every client to its samples and labels"
        raise ConfigError("client_test", type(tests).__name__, accepted)
    named = {str(who): pair for who, pair in tests.items()}  # as those of the clients are
    if named and set(named) != set(names):
        accepted = "test samples of every client and of nobody else: " + ", ".join(names)
        raise ConfigError("client_test", list(named), accepted)
    return [_own_test(who, named[who]) for who in names if named]


def _own_test(who: str, pair: Pair) -> ArraySplit:
    """Test samples of one client, checked."""
    where = ("client_test", who)
    return array_split(where, *as_pair(where, pair))


def _check_alike(
    parts: Mapping[str, Split],
    test: Split,
    own: list[ArraySplit],
    public: Shaped[np.ndarray, "P ..."] | None,
) -> None:
    """Raises `ConfigError` where samples differ in shape or type from the first client's."""
    first, model = next(iter(parts.items()))
    others: list[tuple[Where, tuple[int, ...], np.dtype]] = [
        *((("clients", who), split.image_shape, split.dtype) for who, split in parts.items()),
        *(
            (("client_test", who), split.image_shape, split.dtype)
            for who, split in zip(parts, own, strict=bool(own))
        ),
        (("test", test.image_shape), test.image_shape, test.dtype),
        *(() if public is None else [(("public", public.shape), public.shape[1:], public.dtype)]),
    ]
    for where, shape, dtype in others:
        if shape != model.image_shape:
            accepted = f"samples of shape {model.image_shape} as client {first!r} has, not {shape}"
            raise ConfigError(*where, accepted)
        if dtype != model.dtype:
            accepted = f"samples of type {model.dtype} as client {first!r} has, not {dtype}"
            raise ConfigError(*where, accepted)


def _class_names(given: Sequence[str], splits: Iterable[ArraySplit]) -> tuple[str, ...]:
    most = max(int(split.labels.max()) for split in splits)
    return as_names(given, most + 1)


def _check_labels(
    parts: Mapping[str, Split],
    test: Split,
    own: list[ArraySplit],
    names: tuple[str, ...],
    complete: bool = True,
) -> None:
    """Raises `ConfigError` for labels outside the classes and, if `complete`, missing classes."""
    named = [
        *((("clients", who), split) for who, split in parts.items()),
        *((("client_test", who), split) for who, split in zip(parts, own, strict=bool(own))),
        (("test", test.image_shape), test),
    ]
    for where, split in named:
        outside = np.flatnonzero((split.labels < 0) | (split.labels >= len(names)))
        if len(outside):
            accepted = f"labels from 0 to {len(names) - 1}, as there are {len(names)} classes, but "
            raise ConfigError(*where, f"{accepted}row {outside[0]} has {split.labels[outside[0]]}")
    for label, name in enumerate(names if complete else ()):
        if not any((split.labels == label).any() for split in parts.values()):
            accepted = f"a client with samples of class {name!r} (label {label}); none has any"
            accepted += "" if label else "; are labels counted from 0?"
            raise ConfigError("clients", list(parts), accepted)
        if not (test.labels == label).any():
            accepted = f"a sample of every class, but class {name!r} (label {label}) has none"
            raise ConfigError("test", f"{len(test)} samples", accepted)


def _warn_of_shared_rows(
    parts: Mapping[str, ArraySplit], test: ArraySplit, public: Shaped[np.ndarray, "P ..."]
) -> None:
    """Warns of public rows that are also private or test rows: accuracies would flatter."""
    pool = _rows(public)
    private = [(f"private rows of client {who!r}", split) for who, split in parts.items()]
    for what, split in [*private, ("test rows", test)]:
        shared = _isin(pool, _rows(split.images(np.arange(len(split)))))
        if shared.any():
            logging.warning("%d of %d public rows are also %s", shared.sum(), len(pool), what)


def _rows(samples: Shaped[np.ndarray, "N ..."]) -> list[bytes]:
    return [row.tobytes() for row in samples]


def _isin(rows: list[bytes], others: list[bytes]) -> Bool[np.ndarray, " N"]:
    known = set(others)
    return np.array([row in known for row in rows])


def _joined(splits: list[ArraySplit]) -> tuple[ArraySplit, Int[np.ndarray, " N"]]:
    """The samples of several clients, one after another, and the client of each."""
    samples = [split.images(np.arange(len(split))) for split in splits]
    joined = ArraySplit(np.concatenate(samples), np.concatenate([s.labels for s in splits]))
    return joined, np.repeat(np.arange(len(splits)), [len(split) for split in splits])
