# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Runs of several processes, one per host: joining, agreeing, being preempted, losing one.

The engine is `jax.distributed`: its service introduces the processes to each other, passes on
SIGTERM, and notices the dead. Source: https://docs.jax.dev/en/latest/multi_process.html.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from mhd_jax.errors import ConfigError, WorkdirError

# Seconds without a sign of life after which a process counts as dead. A process that is killed is
# usually noticed at once, by its closed connections; this is for hosts that vanish.
HEARTBEAT_SECONDS = 30
LOST_STATUS = 75  # EX_TEMPFAIL of sysexits.h: starting again may help
WAIT_SECONDS = 20  # for other processes before that is said
LEAVE_SECONDS = 10  # that a process which has failed waits for the others at its exit

# How Gloo, NCCL and JAX's own service put it that somebody no longer answers.
_LOST = re.compile(
    r"gloo|nccl|connection|socket|heartbeat|coordination|unavailable|deadline|peer", re.IGNORECASE
)
# JAX passes on some of it as `ValueError`, which many other things are.
_COLLECTIVE = re.compile(r"(gloo|nccl) .*failed", re.IGNORECASE)

# JAX stops the processes at the number after the highest that any has passed, so none may be left
# out, and all count alike.
_DISPATCHES = itertools.count(1)

_ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(setting: str) -> None:
    """Joins the other processes of the run; to be called before any use of a device.

    Where JAX recognises the cluster (TPU pod slices, Slurm, Open MPI, Kubernetes) nothing else is
    needed. Elsewhere three environment variables say it: JAX_COORDINATOR_ADDRESS (host:port of
    process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Args:
      setting: `parallel.distributed`: "off"; "on", it is an error if there is no cluster; or
        "auto", one process where there is none.

    Raises:
      ConfigError: "on" without a cluster, or with JAX already in use; processes that have unlike
        numbers of devices.
    """
    if setting == "off" or jax.distributed.is_initialized():
        return
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        with _telling_that_it_waits():
            jax.distributed.initialize(
                **_from_environment(),
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
    except (ValueError, RuntimeError) as error:
        alone = "should be defined" in str(error) or "must be called before" in str(error)
        if not alone:
            raise
        if setting == "on":
            raise ConfigError(
                "parallel.distributed", "on",
                f"a cluster that JAX knows or {', '.join(_ENVIRONMENT)} in the environment, and "
                f"JAX not yet in use ({error})",
            ) from error  # fmt: skip
        logging.info("parallel.distributed = auto: no cluster, one process (%s)", error)
        return
    logging.info(
        "process %d of %d, %d of %d devices",
        jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(),
    )  # fmt: skip
    sys.excepthook = functools.partial(_fail, sys.excepthook)
    _check_even([device.process_index for device in jax.devices()])


@contextlib.contextmanager
def _telling_that_it_waits() -> Iterator[None]:
    """Prints a line if the other processes have not joined after `WAIT_SECONDS`.

    JAX itself waits for five minutes without a word.
    """
    there = ", ".join(f"{name}={os.environ[name]}" for name in _ENVIRONMENT if name in os.environ)
    said = f"waiting for the other processes of the run{f' ({there})' if there else ''}"
    timer = threading.Timer(WAIT_SECONDS, print, [said], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_even(owners: Sequence[int]) -> None:
    """Raises `ConfigError` unless all processes own as many devices: JAX gathers no others."""
    counts = [owners.count(process) for process in sorted(set(owners))]
    if len(set(counts)) > 1:
        raise ConfigError(
            "parallel.distributed", counts,
            "processes with the same number of devices each; these are the numbers they have",
        )  # fmt: skip


def _from_environment() -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize`; none where the variables are not all set."""
    values = [os.environ.get(name) for name in _ENVIRONMENT]
    if not any(values):
        return {}
    if not all(values):
        raise ConfigError(
            "parallel.distributed", dict(zip(_ENVIRONMENT, values, strict=True)),
            f"all of {', '.join(_ENVIRONMENT)} in the environment, or none",
        )  # fmt: skip
    address, count, index = values
    try:
        return {"coordinator_address": address, "num_processes": int(count or 0),
                "process_id": int(index or 0)}  # fmt: skip
    except ValueError as error:
        raise ConfigError("parallel.distributed", values[1:], "whole numbers") from error


def anywhere(flag: bool) -> bool:
    """Whether `flag` is set on any process; all processes get the same answer."""
    if jax.process_count() == 1:
        return flag
    with jax.transfer_guard("allow"):
        return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def alike(text: str) -> bool:
    """Whether `text` is the same on all processes; all processes get the same answer."""
    if jax.process_count() == 1:
        return True
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    with jax.transfer_guard("allow"):
        return bool((multihost_utils.process_allgather(digest) == digest).all())


def exit_soon(status: int) -> None:
    """To be called by a process that ends with an error, alone or like the others.

    At its exit JAX waits for all of them, for minutes where the others in turn wait for this one in
    a collective. So where they do not come it ends without them, and they notice.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    timer = threading.Timer(LEAVE_SECONDS, os._exit, [status])
    timer.daemon = True
    timer.start()


def _fail(before: Callable[..., object], *error: Any) -> None:
    """What Python calls for an exception that nobody has caught."""
    before(*error)
    exit_soon(1)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """A function `told()`, to be called after every dispatch: a signal to save and stop, or 0.

    With one process that is once SIGTERM or SIGINT (Ctrl-C) has come; only the main thread can
    listen, and a second Ctrl-C stops at once. With several processes JAX has SIGTERM, whichever
    process got it, and names a dispatch that none has passed yet.
    """
    if jax.process_count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda: signal.SIGTERM if reached(next(_DISPATCHES)) else 0
        return
    came: list[int] = []
    before: dict[int, Any] = {}

    def take(number: int, frame: object) -> None:
        del frame
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.getsignal(number)
            signal.signal(number, take)
    except ValueError:  # not the main thread
        yield lambda: 0
        return
    try:
        yield lambda: came[0] if came else 0
    finally:
        for listened, handler in before.items():
            signal.signal(listened, handler)


def _is_loss(error: BaseException | None) -> bool:
    """Whether a collective failed; where a checkpoint was written or read it is the cause."""
    if isinstance(error, WorkdirError):
        return _is_loss(error.__cause__)
    if isinstance(error, jax.errors.JaxRuntimeError):
        return bool(_LOST.search(str(error)))
    return isinstance(error, ValueError) and bool(_COLLECTIVE.search(str(error)))


@contextlib.contextmanager
def losing_one(saved: Callable[[], int | None]) -> Iterator[None]:
    """Ends this process, with a message, when a collective fails because another one has ended.

    There is nothing to clean up with: closing checkpoints and JAX's own exit both wait for all
    processes, hence `os._exit`.

    Args:
      saved: the step of the newest checkpoint.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, WorkdirError) as error:
        if jax.process_count() == 1 or not _is_loss(error):
            raise
        reason = " ".join(str(error).split())[:300]
        step = saved()
        left = "there is no checkpoint yet" if step is None else f"checkpoint {step} is there"
        print(
            f"ProcessLost: process {jax.process_index()} of {jax.process_count()} lost another "
            f"one ({reason}); {left}. Start the same command on all hosts again",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        sys.stdout.flush()
        os._exit(LOST_STATUS)
