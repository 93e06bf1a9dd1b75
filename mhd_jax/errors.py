# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The errors a user can meet, which name what to change or how to go on."""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
from collections.abc import Iterable, Iterator

LONGEST = 300
"""Characters of a value in a message."""


class ConfigError(ValueError):
    """A setting that cannot work: names the setting, its value and what would be accepted.

    >>> raise ConfigError("partition.skew", -1, "a number >= 0")
    Traceback (most recent call last):
    mhd_jax.errors.ConfigError: partition.skew = -1: expected a number >= 0
    """

    def __init__(self, setting: str, value: object, accepted: str) -> None:
        self.setting = setting
        self.value = value
        self.accepted = accepted
        super().__init__(f"{setting} = {_short(value)}: expected {accepted}")

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        """How it is pickled, as between the processes of a pool."""
        return type(self), (self.setting, self.value, self.accepted)


def _short(value: object) -> str:
    """What a value looks like, on one line; of a long one the beginning."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 4]} ..."


@contextlib.contextmanager
def of_piece(setting: str, value: object, accepted: str) -> Iterator[None]:
    """Whatever goes wrong in the code of a piece becomes a `ConfigError` that names its setting.

    >>> with of_piece("graph.name", "mine", "a graph"):
    ...     None + 1
    Traceback (most recent call last):
    mhd_jax.errors.ConfigError: graph.name = 'mine': expected a graph (TypeError: unsupported
    operand type(s) for +: 'NoneType' and 'int')
    """
    try:
        yield
    except (ConfigError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(setting, value, f"{accepted} ({_reason(error)})") from error


class WorkdirError(RuntimeError):
    """A working directory that this run cannot use; what was in it is left as it was."""


@contextlib.contextmanager
def of_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever goes wrong with the contents of a file becomes a `WorkdirError` that names it.

    >>> with of_file("run/config.json"):
    ...     int("")
    Traceback (most recent call last):
    mhd_jax.errors.WorkdirError: run/config.json: cannot be read (ValueError: invalid literal for
    int() with base 10: '')
    """
    try:
        yield
    except (ConfigError, MemoryError):
        raise
    except Exception as error:
        raise WorkdirError(f"{os.fspath(path)}: cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


class DivergedError(RuntimeError):
    """A loss or parameters became NaN or infinite; names the client and the step."""


class Interrupted(RuntimeError):
    """SIGTERM or SIGINT came; the state is saved and the same command goes on from there.

    Attributes:
      status: with which a command ends.
    """

    def __init__(self, said: str, status: int = 128 + signal.SIGTERM) -> None:
        super().__init__(said)
        self.status = status

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        """How it is pickled."""
        return type(self), (str(self), self.status)


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known name first, then all of them.

    >>> suggest("cylce", ["complete", "cycle"])
    "one of complete, cycle; did you mean 'cycle'?"
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"one of {', '.join(known)}" + (f"; did you mean {near[0]!r}?" if near else "")
