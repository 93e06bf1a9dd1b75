# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Several runs at once, each in a process of its own on its share of the processor cores.

A worker reads a run from a line of its standard input, makes it, and answers with a line; its own
output goes to a log. It stops when its input ends, a run under way after saving its state.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import ml_collections

from experiments.harness import runs
from experiments.harness.presets import ROOT
from mhd_jax import errors
from mhd_jax.config import from_json
from mhd_jax.runtime.workdir import to_json

Wanted = Mapping[str, tuple[ml_collections.ConfigDict, Path]]  # config and folder by run key


class WorkerError(RuntimeError):
    """A worker failed in a way that no setting explains; names its log."""


def shares(count: int) -> list[set[int]]:
    """The cores of each of `count` workers; several share one where there are too few.

    Returns nothing where a process cannot choose its cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[i % len(cores) :: count]) for i in range(count)]


# --- This side ------------------------------------------------------------------------------------


class Workers:
    """Processes that make runs, each started when it is first needed.

    Args:
      count: how many runs to make at once.
      logs: folder for what they print.
      environment: of the processes, added to this one's.
    """

    def __init__(self, count: int, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs, self._environment = logs, {**os.environ, **environment}
        self._shares, self._numbers = shares(count), itertools.count()
        self._mine = threading.local()
        self._processes: list[subprocess.Popen[str]] = []
        self._threads = futures.ThreadPoolExecutor(count, initializer=self._start)

    def make(
        self, wanted: Wanted
    ) -> Generator[tuple[str, errors.DivergedError | None], None, None]:
        """Makes all runs; the key of each as it ends, with the error where it diverged.

        Raises:
          ConfigError, WorkdirError, Interrupted: the first that a run has met; the runs under way
            save their state before they stop.
          WorkerError: a worker failed.
        """
        asked = {self._threads.submit(self._make, *run): key for key, run in wanted.items()}
        for future in futures.as_completed(asked):
            try:
                future.result()
            except errors.DivergedError as error:
                yield asked[future], error
            else:
                yield asked[future], None

    def close(self) -> None:
        """Starts no other run and waits until those under way have saved their state."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.terminate()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.communicate()

    def _start(self) -> None:
        """A thread's process: what is started from a thread has the thread's cores."""
        number = next(self._numbers)
        if self._shares:
            os.sched_setaffinity(0, self._shares[number])
        self._logs.mkdir(parents=True, exist_ok=True)
        self._mine.log = self._logs / f"worker_{number}.log"
        with self._mine.log.open("a") as log:
            self._mine.process = subprocess.Popen(
                [sys.executable, "-m", "experiments.harness.workers"], cwd=ROOT, text=True,
                env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True,  # Ctrl-C is for the sweep, which passes it on
            )  # fmt: skip
        self._processes.append(self._mine.process)

    def _make(self, config: ml_collections.ConfigDict, folder: Path) -> None:
        process, log = self._mine.process, self._mine.log
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps({"config": to_json(config), "folder": str(folder)}))
            process.stdin.write("\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise WorkerError(f"a worker ended with status {process.wait()}; see {log}")
        _raise(json.loads(answer), log)


def _raise(answer: Mapping[str, Any], log: Path) -> None:
    """Raises what the worker met, if anything."""
    if not answer:
        return
    known = {kind.__name__: kind for kind in (errors.WorkdirError, errors.DivergedError)}
    if answer["kind"] == "ConfigError":
        raise errors.ConfigError(*answer["arguments"])
    if answer["kind"] == "Interrupted":
        raise errors.Interrupted(answer["said"])
    raise known.get(answer["kind"], WorkerError)(f"{answer['said']} (see {log})")


# --- The other side -------------------------------------------------------------------------------


def work() -> None:
    """Makes the runs of standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a run prints goes to the log
    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while line := asked.get():
        run = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            runs.make(from_json(run["config"]), Path(run["folder"]))
        except Exception as error:
            traceback.print_exc()
            answer = {"kind": type(error).__name__, "said": str(error)}
            if isinstance(error, errors.ConfigError):
                answer["arguments"] = [error.setting, error.value, error.accepted]
        print(json.dumps(answer, default=str), file=answers, flush=True)


def _listen(asked: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        asked.put(line)
    asked.put("")
    os.kill(os.getpid(), signal.SIGTERM)  # nobody waits for an answer: saves a run under way


if __name__ == "__main__":
    work()
