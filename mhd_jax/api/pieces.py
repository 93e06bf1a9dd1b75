# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Pieces of one's own: each goes into the registry of its setting under a name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from mhd_jax import aggregation, optimizer
from mhd_jax import config as config_lib
from mhd_jax.attacks import ATTACKS
from mhd_jax.data.augment import AUGMENTS
from mhd_jax.data.partition import BY_KEY, PARTITIONS
from mhd_jax.data.sources import SOURCES, Silos, Source
from mhd_jax.data.streaming import HOST_AUGMENTS
from mhd_jax.distill import CONFIDENCES, LOGIT_LOSSES, RULES, losses
from mhd_jax.errors import ConfigError, of_piece, suggest
from mhd_jax.evaluate import METRICS
from mhd_jax.exchange import ENCODINGS
from mhd_jax.graph import GRAPHS
from mhd_jax.methods import METHODS
from mhd_jax.models import HEADS, MODELS
from mhd_jax.registry import Registry, is_ours

T = TypeVar("T")

Piece = str | Callable[..., object] | nn.Module
"""The name of a registered piece, or an object that becomes one."""

PIECES: dict[str, Registry[Any]] = {
    "head": HEADS,
    "model": MODELS,
    "confidence": CONFIDENCES,
    "rule": RULES,
    "graph": GRAPHS,
    "partition": PARTITIONS,
    "source": SOURCES,
    "method": METHODS,
    "encoding": ENCODINGS,
    "metric": METRICS,
    "attack": ATTACKS,
    "augment": AUGMENTS,
    "optimizer": optimizer.OPTIMIZERS,
    "aggregator": aggregation.AGGREGATORS,
    "loss": LOGIT_LOSSES,
}
"""Every extension point: the argument of `fit` that takes such a piece, and its registry."""


def register(setting: str, name: str, piece: T) -> T:
    """Files a piece under a name that a config may use, and returns it.

    A name may be used again for a newer version of one's own piece (a notebook cell run twice),
    but not for one that this package brings.

    >>> register("distill.confidence", "always_example", lambda log_probs: 0 * log_probs[..., 0])
    <function ...>
    >>> register("distill.confidence", "max_prob", max)
    Traceback (most recent call last):
    mhd_jax.errors.ConfigError: distill.confidence = 'max_prob': expected a name that no piece of
    mhd_jax has

    Args:
      setting: what picks such pieces in a config, such as "heads.name" or "graph.name".
      name: the name.
      piece: see `fit` for what each setting wants.

    Raises:
      ConfigError: no such setting, no name, or one that is taken.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError("name", name, f"what {setting} calls the piece")
    registries = {registry.setting: registry for registry in PIECES.values()}
    if setting not in registries:
        raise ConfigError("setting", setting, suggest(setting, registries))
    registry = registries[setting]
    if registry is AUGMENTS and name in HOST_AUGMENTS:  # two kinds answer to one setting
        raise ConfigError(setting, name, "a name that no augmentation of the host has")
    ours = (setting, name) not in _YOURS and name in registry
    if ours and is_ours(registry.get(name)):
        if registry.get(name) != piece:
            raise ConfigError(setting, name, "a name that no piece of mhd_jax has")
        return piece
    _YOURS.add((setting, name))
    return registry.register(name)(piece)


_YOURS: set[tuple[str, str]] = set()
"""Settings and names under which users have registered pieces: theirs to use again."""


def use(config: ml_collections.ConfigDict, pieces: Mapping[str, object]) -> None:
    """Writes the names of the given pieces into the config, registering objects."""
    for argument, piece in pieces.items():
        if piece is None:
            continue
        setting = PIECES[argument].setting
        if argument == "graph" and not isinstance(piece, str) and not callable(piece):
            _use_matrix(config, piece)
        elif argument == "metric":
            several = piece if isinstance(piece, tuple | list) else [piece]
            names = [_name_of(argument, setting, one) for one in several]
            config.metrics = tuple(dict.fromkeys([*config.metrics, *names]))
        else:
            config_lib.update(config, {setting: _name_of(argument, setting, piece)})
        if isinstance(piece, Source):
            _warn_of_settings_for_reading(config, piece)
        if isinstance(piece, Source) and piece.silos and pieces.get("partition") is None:
            _keep_clients(config, piece.name, piece.silos)


class Pieces:
    """All pieces as they are now, whatever is registered under their names later.

    Data sources are left out, as they may be large.
    """

    def __init__(self) -> None:
        self._kept = {
            argument: registry.here() for argument, registry in PIECES.items()
            if registry is not SOURCES
        }  # fmt: skip

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """With them under their names."""
        with contextlib.ExitStack() as stack:
            for argument, kept in self._kept.items():
                stack.enter_context(PIECES[argument].as_it_was(kept))
            yield


def _warn_of_settings_for_reading(config: ml_collections.ConfigDict, source: Source) -> None:
    """Names settings that say how data are read, and mean nothing to samples that are here."""
    usual = config_lib.default_config().data
    idle = ["image_size", "split", *(["public_fraction"] if source.public is not None else [])]
    for name in idle:
        if config.data[name] != usual[name]:
            logging.warning(
                "data.%s = %s: has no effect on samples given as %s",
                name, config.data[name], source.name,
            )  # fmt: skip


def _keep_clients(config: ml_collections.ConfigDict, source: str, silos: Silos) -> None:
    """Writes into the config that clients are those of the data, and warns of other settings."""
    clients = {"partition.name": BY_KEY, "clients.num": len(silos.names)}
    given, usual = map(config_lib.flatten, (config, config_lib.default_config()))
    for setting, value in clients.items():
        if given[setting] not in (value, usual[setting]):
            logging.warning(
                "%s = %s: taken as %s, as %s comes with its clients; fit(partition=...) divides "
                "its samples anew", setting, given[setting], value, source,
            )  # fmt: skip
    config_lib.update(config, clients)


def _use_matrix(config: ml_collections.ConfigDict, matrix: object) -> None:
    """A matrix stands in the config itself, as rows of 0 and 1."""
    with of_piece("graph", matrix, "a matrix [K, K], or a function"):
        array = np.asarray(matrix)
    rows = array.astype(int) if array.dtype == bool else array
    config.graph.name = "matrix"
    with config.graph.ignore_type():
        config.graph.matrix = tuple(map(tuple, rows.tolist())) if rows.ndim == 2 else rows.tolist()


def _name_of(argument: str, setting: str, piece: object) -> str:
    """The name of a piece: itself if it is one, else the name it is now registered under."""
    if isinstance(piece, str):
        return piece
    if argument == "source" and isinstance(piece, Source):
        found = piece
        register(setting, found.name, lambda directory, split, shape: found)
        return found.name
    name = _own_name(piece)
    if not callable(piece) or name is None or not name.isidentifier():
        raise ConfigError(
            setting, _shown(piece), f"a name, or {_WANTED[argument]}. An object without a name of "
            f'its own gets one by mhd_jax.register("{setting}", "a_name", ...)',
        )  # fmt: skip
    register(setting, name, piece)
    return name


def _shown(piece: object) -> object:
    """What an error shows: of samples the type alone."""
    arrays = isinstance(piece, np.ndarray | tuple | list) or hasattr(piece, "__array__")
    return type(piece).__name__ if arrays else piece


def _own_name(piece: object) -> str | None:
    """What a piece is called: a class or function by its name, a Linen module by its class's."""
    piece = getattr(piece, "func", piece)  # what `functools.partial` gives arguments to
    named = type(piece) if isinstance(piece, nn.Module | nnx.Module) else piece
    return getattr(named, "__name__", None)


_WANTED = {
    "head": "a Linen module class with the fields num_classes and num_heads",
    "model": "a Linen module or its class, an NNX class, or a function from ModelSettings to one",
    "confidence": "a function from log-probabilities [..., C] to confidences [...]",
    "rule": "a function (candidates, confidence, keys) to an index [k, B, m] or weights "
    "[k, N, B, m], or to a Target",
    "graph": "a matrix [K, K], or a function that returns one",
    "partition": "a function that returns Owners",
    "source": "a Source, such as from_arrays and from_clients make, or a function that returns one",
    "method": "a function from the config to a Method",
    "encoding": "a function from the config to an Encoding",
    "attack": "a function (honest [N, B, h, C], view) to the same shape",
    "metric": "a function (correct [K, H, C], count [C], owned [K, C]) to [K, H]",
    "augment": "a function (key, sample [...]) to a sample of the same shape and type",
    "optimizer": optimizer.WANTED,
    "aggregator": aggregation.WANTED,
    "loss": losses.WANTED,
}
