# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Commands of other programs: shown before they run, or shown and not run at all."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NoReturn

_LINES = 5  # of what a failed command said that its error repeats


class CommandError(RuntimeError):
    """A command that ended with an error.

    Attributes:
      command: as typed.
      status: its exit status; 127 where there is no such program.
      said: what it wrote to the standard error stream, where that was kept.
    """

    def __init__(self, command: str, status: int, said: str) -> None:
        self.command, self.status, self.said = command, status, said.strip()
        last = "\n".join(self.said.splitlines()[-_LINES:])
        super().__init__(f"status {status} from: {command}" + (f"\n{last}" if last else ""))


class LaunchError(RuntimeError):
    """Something that a person has to look at: what happened, and what to do about it."""


def _print(line: str) -> None:
    """Prints a line; what is still to be done does not depend on a terminal that may be closed."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


@dataclasses.dataclass(frozen=True)
class Shell:
    """Where commands go.

    Attributes:
      dry_run: commands are printed and not run.
      show: prints a line.
      sleep: waits for some seconds.
    """

    dry_run: bool = False
    show: Callable[[str], None] = _print
    sleep: Callable[[float], None] = time.sleep

    def run(self, *words: str, stdin: str = "") -> None:
        """Runs a command; what it says goes to the terminal.

        Args:
          words: the program and its arguments.
          stdin: text for its standard input.

        Raises:
          CommandError: its status is not 0, or there is no such program.
        """
        self.show(f"$ {typed(words)}")
        for line in stdin.splitlines():
            self.show(f"  {line}")
        if not self.dry_run:
            _execute(words, stdin, keep=False)

    def ask(self, *words: str, assumed: str = "") -> str:
        """What a command prints, without the white space around it.

        Args:
          words: the program and its arguments.
          assumed: the answer with which a dry run goes on.

        Raises:
          CommandError: as for `run`.
        """
        self.show(f"$ {typed(words)}")
        return assumed if self.dry_run else _execute(words, "", keep=True)

    def wait(self, seconds: float) -> None:
        """Sleeps, but not in a dry run."""
        if not self.dry_run:
            self.sleep(seconds)


def typed(words: tuple[str, ...]) -> str:
    """A command as one would type it.

    >>> typed(("echo", "two words"))
    "echo 'two words'"
    """
    return shlex.join(words)


def _execute(words: tuple[str, ...], stdin: str, keep: bool) -> str:
    """Runs a command, keeping what it prints or letting it through."""
    kept = subprocess.PIPE if keep else None
    try:
        done = subprocess.run(words, input=stdin, text=True, stdout=kept, stderr=kept, check=False)
    except FileNotFoundError:
        raise CommandError(typed(words), 127, f"{words[0]}: there is no such program") from None
    if done.returncode:
        raise CommandError(typed(words), done.returncode, done.stderr or "")
    return (done.stdout or "").strip()


def stop(error: Exception) -> NoReturn:
    """Ends the program with an error in words and status 1."""
    sys.exit(f"{type(error).__name__}: {error}")
