# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The directory of one run: who owns it, its metrics and its summary.

A run in a directory is named by its config. The same config again goes on where it stopped,
another one is refused, and so is a second run at the same time. Whatever a killed run can leave
half done, the next start puts right by itself.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath

from mhd_jax.config import RENAMED, flatten
from mhd_jax.errors import WorkdirError
from mhd_jax.files import absolute, is_remote
from mhd_jax.results import MANY, Line, Summary
from mhd_jax.results.fields import as_lists
from mhd_jax.runtime import processes

# What may differ when a run is resumed, because the trained clients do not depend on it.
FREE_SETTINGS = (
    "bytes_to",
    "data.dir",
    "data.public_dir",
    "clients.offload",
    "data.feed",
    "data.workers",
    "metrics",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.steps_per_call",
    "parallel.*",
)

_STRING_OR_INFINITY = re.compile(r'("(?:[^"\\]|\\.)*")|Infinity')
_LOCK_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Workdir:
    """The files of one run below `path`, local or any URL that etils.epath can write.

    In a run of several processes all may open it and `claim` it with the same config; only
    process 0 takes the lock and writes metrics and summary.

    >>> import tempfile
    >>> workdir = Workdir(tempfile.mkdtemp())
    >>> workdir.claim(ml_collections.ConfigDict({"seed": 0}))
    >>> workdir.claim(ml_collections.ConfigDict({"seed": 1}))
    Traceback (most recent call last):
    mhd_jax.errors.WorkdirError: /tmp/...: holds a run with other settings: seed is 0 there and 1
    here. Use another workdir, or these settings

    Attributes:
      path: the directory, absolute.
      checkpoints: where `mhd_jax.runtime.checkpoints.Checkpoints` keeps its steps.
      figures: where the figures go.
      report: the report's file.
    """

    def __init__(self, path: epath.PathLike, *, read_only: bool = False) -> None:
        """Creates the directory where it is missing and tries to write in it.

        Args:
          path: the directory.
          read_only: whether it is there already, and nothing will be written.

        Raises:
          WorkdirError: it cannot be created, or nothing can be written in it.
        """
        self.path = absolute(path)
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self._config = self.path / "config.json"
        self._data = self.path / "data.sha256"
        self._files = self.path / "files.sha256"
        self._metrics = self.path / "metrics.jsonl"
        self._summary = self.path / "summary.json"
        self._is_new = False
        if read_only:
            return
        with self._explained("cannot be used as workdir"):
            self._is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable.{_process_name()}"
            probe.write_text("")
            probe.unlink()

    def check_shared(self) -> None:
        """Finds out whether all processes of the run see this directory; all of them call it.

        Raises:
          WorkdirError: on all of them, where some do not.
        """
        if jax.process_count() == 1:
            return
        mark = self.path / ".shared"
        with self._explained("cannot be used as workdir"):
            if jax.process_index() == 0:
                mark.write_text(f"{_process_name()} {time.time_ns()}")
            processes.anywhere(False)  # by now it is there
            same = processes.alike(mark.read_text() if mark.exists() else "")
            if jax.process_index() == 0:
                mark.unlink()
        if not same:
            raise WorkdirError(
                f"{self.path}: is not the same directory for all {jax.process_count()} processes. "
                "Use one that all hosts see, such as a bucket's"
            )

    def claim(self, config: ml_collections.ConfigDict, data: str = "") -> None:
        """Makes this the directory of the run with `config`, or checks that it is.

        Settings in `FREE_SETTINGS` may differ; `config.json` keeps the first run's.

        Args:
          config: of the run.
          data: by which its data are known again; "" where they have not been read.

        Raises:
          WorkdirError: the directory holds a run with other settings (each is named with both
            values), other contents of the files they name or other data, or files of a run whose
            config cannot be read.
        """
        self._claim_settings(config)
        self._claim_files(config)
        if data and not self._data.exists():
            self._write(self._data, data + "\n")
        elif data:
            self.check_data(config.data.name, data)

    def check_data(self, name: str, data: str) -> None:
        """Raises `WorkdirError` where the run here is on other data of that name."""
        if self._data.exists() and self._data.read_text().strip() != data:
            raise WorkdirError(
                f"{self.path}: holds a run on other data of the same name, {name}. "
                "Use another workdir, or these data"
            )

    def _claim_settings(self, config: ml_collections.ConfigDict) -> None:
        wanted = json.loads(to_json(config))
        if not self._config.exists():
            self._check_unclaimed()
            self._write(self._config, to_json(wanted, indent=2) + "\n")
            return
        there, here = flatten(self._read(self._config)), flatten(wanted)
        self._refuse_renamed(there)
        differing = {
            name: f"{name} is {_shown(there, name)} there and {_shown(here, name)} here"
            for name in sorted(there.keys() | here.keys())
            if _shown(there, name) != _shown(here, name)
        }
        free = [told for name, told in differing.items() if _is_free(name)]
        refused = [told for name, told in differing.items() if not _is_free(name)]
        if refused:
            raise WorkdirError(
                f"{self.path}: holds a run with other settings: {'; '.join(refused)}. "
                "Use another workdir, or these settings"
            )
        if free:
            logging.info("%s: going on with other settings: %s", self.path, "; ".join(free))

    def _claim_files(self, config: ml_collections.ConfigDict) -> None:
        here = {
            str(path): hashlib.sha256(absolute(path).read_bytes()).hexdigest()
            for path in _files_read(config)
            if absolute(path).exists()  # it may be gone when the run is finished
        }
        if here and not self._files.exists() and not self._summary.exists():
            self._write(self._files, "".join(f"{sha}  {path}\n" for path, sha in here.items()))
        lines = self._files.read_text().splitlines() if self._files.exists() else ()
        there = dict(reversed(line.split("  ", 1)) for line in lines)
        for path, digest in here.items():
            if there.get(path, digest) != digest:
                raise WorkdirError(
                    f"{self.path}: holds a run with other contents of {path}. Use another workdir, "
                    "or the file as it was"
                )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other runs out of this directory while the context lasts.

        The lock is `flock(2)` on `run.lock`: it ends with the process however that ends, so a
        killed run leaves none behind. Remote paths and file systems without it have no lock.

        Raises:
          WorkdirError: another run holds it; names its process and host.
        """
        if is_remote(self.path):
            logging.info("%s: remote, so a second run here would not be noticed", self.path)
            yield
            return
        with self._explained("cannot be locked"):
            file = open(self.path / "run.lock", "a+")
        with file:
            self._lock_file(file.fileno())
            file.truncate(0)
            since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            file.write(f"process {os.getpid()} on {socket.gethostname()}, started {since}")
            file.flush()
            yield

    def append_metrics(self, metrics: Line) -> None:
        """Adds one line to `metrics.jsonl`, handed to the operating system on return.

        Args:
          metrics: by name, `step` among them; arrays become lists.

        Raises:
          WorkdirError: it could not be written.
        """
        line = to_json(metrics) + "\n"
        with self._explained("could not add to metrics.jsonl"):
            if is_remote(self.path):  # object stores cannot append
                before = self._metrics.read_text() if self._metrics.exists() else ""
                self._metrics.write_text(before + line)
                return
            with self._metrics.open("a") as file:
                file.write(line)

    def truncate_metrics(self, step: int) -> None:
        """Drops the lines after `step`, and a half-written one, before a run goes on from there.

        A step's lines have to be written before its checkpoint for the resumed file to have all
        the steps of an uninterrupted one.

        Args:
          step: the step restored; -1 when starting from the beginning.
        """
        if not self._metrics.exists():
            return
        with self._explained("could not read metrics.jsonl"):
            text = self._metrics.read_bytes().decode(errors="replace")
        lines = _parse(text)
        kept = [line for line, metrics in lines if metrics and metrics.get("step", np.inf) <= step]
        shorter = "".join(line + "\n" for line in kept)
        if shorter != text:
            dropped = len(lines) - len(kept)
            logging.info("%s: dropped %d lines after step %d", self._metrics, dropped, step)
            self._write(self._metrics, shorter)

    def read_metrics(self) -> list[Line]:
        """The lines of `metrics.jsonl`, without a last one that is still being written."""
        if not self._metrics.exists():
            return []
        with self._explained("could not read metrics.jsonl"):
            text = self._metrics.read_bytes().decode(errors="replace")
        return [metrics for _, metrics in _parse(text) if metrics]

    def write_summary(self, summary: Summary) -> None:
        """Writes `summary.json`, all or nothing; arrays become lists, floats keep every digit."""
        indent = 1 if len(summary.label_histogram) <= MANY else None
        self._write(self._summary, to_json(summary.to_json(), indent=indent) + "\n")

    def read_summary(self) -> Summary:
        """The contents of `summary.json`; raises `WorkdirError` when there is none to read."""
        if self._config.exists() and not self._summary.exists():
            step = self.newest_step()
            there = f"its last checkpoint is of step {step}" if step else "it has no checkpoint"
            raise WorkdirError(
                f"{self.path}: the run is not finished ({there}); the command that began it goes on"
            )
        values = self._read(self._summary)
        with self._explained("cannot read summary.json"):
            return Summary.from_json(values)

    def finished(self) -> bool:
        """Whether the run has come to its end, which is when its summary is written."""
        if not self._summary.exists():
            return False
        try:
            self.read_summary()
        except WorkdirError as error:
            logging.warning("%s; the end of the run is done again", error)
            return False
        return True

    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self.newest_step() is not None

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        folder = self.checkpoints
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=None)

    def leave(self) -> None:
        """Removes the directory where it was made for a run that claimed nothing in it."""
        if self._is_new and not is_remote(self.path) and not self._config.exists():
            (self.path / "run.lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # somebody else has put something there
                self.path.rmdir()

    def _refuse_renamed(self, settings: Mapping[str, Any]) -> None:
        """A run of an earlier version is refused rather than taken for one with other settings."""
        for old in sorted(settings.keys() & RENAMED.keys()):
            raise WorkdirError(
                f"{self.path}: holds a run of an earlier version: its setting {old} is now called "
                f"{RENAMED[old]}. Use another workdir"
            )

    def _check_unclaimed(self) -> None:
        left = [path.name for path in (self._metrics, self._summary) if path.exists()]
        if self.checkpoints.exists() and not self.checkpoints.is_dir():
            raise WorkdirError(f"{self.checkpoints}: expected a directory, not a file")
        if self.checkpoints.exists() and any(self.checkpoints.iterdir()):
            left.append(self.checkpoints.name)
        if left:
            raise WorkdirError(
                f"{self.path}: has {', '.join(left)} of a run but no config.json that says which. "
                "Put it back, or use another workdir"
            )

    def _lock_file(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (self.path / "run.lock").read_text() or "a process that has just started"
            raise WorkdirError(
                f"{self.path}: another run is at work here ({holder}). Wait for it, stop it, or "
                "use another workdir"
            ) from error
        except OSError as error:
            if error.errno not in _LOCK_UNSUPPORTED:
                raise
            logging.warning("%s: no file locks here, a second run goes unnoticed", self.path)

    def _write(self, path: epath.Path, text: str) -> None:
        """Replaces a file at once: whoever reads it sees the old text or the new one."""
        temporary = path.with_name(f".{path.name}.{_process_name()}")
        with self._explained(f"could not write {path.name}"):
            try:
                with temporary.open("w") as file:
                    file.write(text)
                    file.flush()
                    if not is_remote(path):
                        os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def _read(self, path: epath.Path) -> dict[str, Any]:
        with self._explained(f"cannot read {path.name}"):
            contents = json.loads(path.read_text())
            if not isinstance(contents, dict):
                raise ValueError(f"expected a JSON object, not {type(contents).__name__}")
        return contents

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        # ImportError: no package for this kind of URL is installed.
        except (OSError, ValueError, ImportError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise WorkdirError(f"{self.path}: {what}: {reason}") from error


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON with NumPy and JAX arrays as lists and floats that read back as the same bits.

    NaN in an array is null: JSON has no other word for it.

    >>> to_json({"loss": np.float32([0.1, 2])})
    '{"loss": [0.10000000149011612, 2.0]}'
    """
    return without_infinity(json.dumps(value, default=_for_json, indent=indent))


def without_infinity(text: str) -> str:
    """The same JSON with a number in place of Python's `Infinity`, which is not valid JSON.

    The number is too large for 64 bits. Python, and most other readers, take it as infinity.

    >>> without_infinity('{"skew": Infinity, "said": "Infinity"}')
    '{"skew": 1e999, "said": "Infinity"}'
    """
    if "Infinity" not in text:
        return text
    return _STRING_OR_INFINITY.sub(lambda found: found[1] or "1e999", text)


def _for_json(value: Any) -> Any:
    if isinstance(value, ml_collections.ConfigDict):
        return value.to_dict()
    if hasattr(value, "__array__"):
        return as_lists(np.asarray(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def _parse(text: str) -> list[tuple[str, dict[str, Any] | None]]:
    """Each line and what it says; None for one that is no JSON object."""
    parsed: list[tuple[str, dict[str, Any] | None]] = []
    for line in text.removesuffix("\n").split("\n") if text else ():
        try:
            metrics = json.loads(line)
        except ValueError:
            metrics = None
        parsed.append((line, metrics if isinstance(metrics, dict) else None))
    broken = [number for number, (_, metrics) in enumerate(parsed, 1) if metrics is None]
    if broken and broken != [len(parsed)]:
        logging.warning("metrics.jsonl: left out unreadable lines %s", broken)
    return parsed


def _files_read(config: ml_collections.ConfigDict) -> list[str]:
    """Files whose contents are as much part of a run as its settings.

    What clients start from is not: a run that goes on does not read it.
    """
    settings = flatten(config)
    graphs = (settings.get("graph.name"), *settings.get("graph.sequence", ()))
    read = [settings.get("clients.trace")]
    read += [settings.get("graph.matrix")] if "matrix" in graphs else []
    return [path for path in read if isinstance(path, str) and path]


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "not a setting"


def _is_free(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in FREE_SETTINGS)


def _process_name() -> str:
    return f"{socket.gethostname()}.{os.getpid()}"
