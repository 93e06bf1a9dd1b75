# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Stand-ins for programs that are not here: they write down what they were asked, and answer.

`install` puts an executable of each name into a folder for PATH. Answers are given by rules: a
pattern of the command line, and what to print, to complain and to return, one answer after another;
the last one is repeated. Where several rules fit, the last one counts. Without a rule a command
prints nothing and succeeds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """#!{python}
import json, pathlib, re, sys
folder = pathlib.Path({folder!r})
asked = " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
given = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
with open(folder / "asked.jsonl", "a") as file:
    file.write(json.dumps([asked, given]) + "\\n")
rules = json.loads((folder / "rules.json").read_text())
for index, (pattern, answers) in reversed(list(enumerate(rules))):
    if re.search(pattern, asked):
        counter = folder / f"count{{index}}"
        done = int(counter.read_text()) if counter.exists() else 0
        counter.write_text(str(done + 1))
        out, error, status = answers[min(done, len(answers) - 1)]
        print(out)
        print(error, file=sys.stderr)
        sys.exit(status)
"""


class StandIns:
    """The programs in `folder`, ahead of all others on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answer(self, rules: dict[str, Sequence[Any]]) -> None:
        """Sets the rules; an answer is a text, or (text, complaint, status)."""
        listed = [
            (pattern, [(a, "", 0) if isinstance(a, str) else a for a in answers])
            for pattern, answers in rules.items()
        ]
        (self.folder / "rules.json").write_text(json.dumps(listed))

    @property
    def calls(self) -> list[list[str]]:
        """[command line, standard input] of every call so far."""
        file = self.folder / "asked.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def asked(self) -> list[str]:
        """The command lines."""
        return [command for command, _ in self.calls]


def install(folder: Path, names: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Makes the programs; PATH is put back after the test."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        program = folder / name
        program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)
    made = StandIns(folder)
    made.answer({})
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"])
    return made
