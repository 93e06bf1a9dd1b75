# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The errors a user can meet, all of them naming what to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
        super().__init__(f"{setting} = {value!r}: expected {accepted}")


class WorkdirError(RuntimeError):
    """A working directory that this run cannot use; what was in it is left as it was."""


class DivergedError(RuntimeError):
    """A loss became NaN or infinite; names the client and the step."""


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known name first, then all of them.

    >>> suggest("cylce", ["complete", "cycle"])
    "one of complete, cycle; did you mean 'cycle'?"
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"one of {', '.join(known)}" + (f"; did you mean {near[0]!r}?" if near else "")
