# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Runs of two and four processes on one machine: the same numbers, private data apart, one dies.

Every process is a program of its own, and the programs find each other on the loopback device.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from mhd_jax import train
from mhd_jax.errors import ConfigError
from mhd_jax.runtime import processes
from mhd_jax.runtime.checkpoints import Checkpoints
from tests import small

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"parallel__client_devices": 0, "train__steps_per_call": 1, "isolated_baseline": False}
LONG = {**SETTINGS, "train__steps": 10**6, "train__log_every": 50, "train__checkpoint_every": 50,
        "train__eval_every": 10**6, "train__steps_per_call": 20}  # fmt: skip

WORKER = """
import os, signal, sys
import jax
import numpy as np
from mhd_jax import experiment as experiment_lib, train
from mhd_jax.data import sources
from mhd_jax.errors import Interrupted, WorkdirError
from tests import small

workdir, changes, dies = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3])
built, decoded = [], []
build, source, advance = experiment_lib.build, sources.source, train.Passage._advance

def noted_source(settings):
    found = source(settings)
    images = type(found.train).images
    type(found.train).images = lambda split, at: (
        decoded.append(np.asarray(at)) if split is found.train else None, images(split, at))[1]
    return found

def noted_build(config):
    built.append(build(config))
    return built[-1]

def advance_or_die(run, call, step):
    if step == dies:
        run.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return advance(run, call, step)

sources.source, experiment_lib.build = noted_source, noted_build
train.Passage._advance = advance_or_die
try:
    train.train_and_evaluate(small.config(**changes), workdir)
except (Interrupted, WorkdirError) as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(143)

(experiment,) = built
fed, (images, labels) = experiment.federations[0], experiment.feed.data["private"][0]
count, local, me = jax.process_count(), jax.local_device_count(), jax.process_index()
owners = [device.process_index for device in experiment.layout.mesh.devices.flat]
assert owners == sorted(list(range(count)) * local) and count * local == 4, owners
mine = [row for shard in images.addressable_shards
        for row in range(*shard.index[1].indices(images.shape[1]))]
assert mine == list(range(4))[me * local : (me + 1) * local], mine
for array in (images, labels, *jax.tree.leaves(experiment.init_state().clients)):
    assert not array.is_fully_addressable
    try:
        np.asarray(array)
    except RuntimeError as error:
        assert "non-addressable" in str(error), error
    else:
        raise AssertionError("read the private data of another process")
allowed = {0, *fed.public_indices.tolist(), *(i for k in mine for i in fed.partition.indices[k])}
assert set(np.concatenate(decoded).tolist()) <= allowed
print("done", mine, flush=True)
"""


@contextlib.contextmanager
def _workers(
    workdir: Path, changes: dict, count: int, dies: int = -1
) -> Iterator[list[subprocess.Popen]]:
    """`count` processes with four devices in all that share a run.

    The last of them kills itself before step `dies`, when the checkpoint before is complete.
    """

    def arguments(index: int) -> list[str]:
        return [str(workdir), repr(changes), str(dies if index == count - 1 else -1)]

    with _started(WORKER, [arguments(index) for index in range(count)]) as started:
        yield started


@contextlib.contextmanager
def _started(program: str, arguments: list[list[str]]) -> Iterator[list[subprocess.Popen]]:
    """A process with each of these arguments, that share a run and four devices."""
    count = len(arguments)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *given],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "JAX_NUM_CPU_DEVICES": str(4 // count),
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            },
        )  # fmt: skip
        for index, given in enumerate(arguments)
    ]
    try:
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.communicate()


def _wait_for_step(workdir: Path, step: int, workers: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 420
    while not any(p.name.isdigit() and int(p.name) >= step
                  for p in (workdir / "checkpoints").glob("*")):  # fmt: skip
        for worker in workers:
            assert worker.poll() is None, worker.communicate()
        assert time.monotonic() < deadline, "no checkpoint in seven minutes"
        time.sleep(0.1)


def _steps(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The folder of the same run by one process of four devices."""
    workdir = tmp_path_factory.mktemp("one")
    train.train_and_evaluate(small.config(**SETTINGS), workdir, with_report=False)
    return workdir


def _parameters(workdir: Path) -> list[np.ndarray]:
    """What the last checkpoint holds, read by this process."""
    abstract = small.build(**SETTINGS).init_state(abstract=True)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step, state = checkpoints.restore_latest(abstract)
    assert step == small.config().train.steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def _finish_as(alone: Path, workdir: Path, count: int) -> list[tuple[str, str]]:
    """Runs `count` processes to the end of what one process did; what each of them said."""
    with _workers(workdir, SETTINGS, count) as workers:
        said = [worker.communicate(timeout=450) for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * count, said
    _same_end(alone, workdir, f"{count} processes")
    return said


def _same_end(alone: Path, workdir: Path, mesh: str) -> None:
    """The run in `workdir` ended with the numbers of the run of one process."""
    expected, found = (json.loads((path / "summary.json").read_text()) for path in (alone, workdir))
    for name in ("shared_accuracy", "private_accuracy", "class_accuracy", "partition_hash"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert mesh in found["mesh"]
    for ours, theirs in zip(_parameters(workdir), _parameters(alone), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_many_processes_are_one_run(alone, tmp_path, count):
    (first, *others) = _finish_as(alone, tmp_path, count)
    clients = np.split(np.arange(4), count)
    for mine, (out, _) in zip(clients, (first, *others), strict=True):
        assert f"done {mine.tolist()}" in out
    # Only process 0 speaks and writes: no line twice.
    steps = [json.loads(line)["step"] for line in
             (tmp_path / "metrics.jsonl").read_text().splitlines()]  # fmt: skip
    assert steps == [0, 3, 6, 6]
    assert "mean, min and max over 4 clients" in first[0] and "β_sh main" in first[1]
    for out, err in others:
        assert "mean, min" not in out and "β_sh" not in err
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_one_of_two_dies_and_another_number_goes_on_to_the_same_end(alone, tmp_path, count):
    with _workers(tmp_path, SETTINGS, 2, dies=4) as workers:
        assert workers[1].wait(timeout=240) == -signal.SIGKILL, workers[1].communicate()
        out, err = workers[0].communicate(timeout=60)
        assert workers[0].returncode == processes.LOST_STATUS, (out, err)
    assert "ProcessLost: process 0 of 2 lost another one" in err
    assert "checkpoint 3 is there. Start the same command on all hosts again" in err
    assert _steps(tmp_path) == [3]
    if count > 1:
        _finish_as(alone, tmp_path, count)
    else:
        train.train_and_evaluate(small.config(**SETTINGS), tmp_path, with_report=False)
        _same_end(alone, tmp_path, "cpu devices")


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_killed_and_stopped_at_any_moment(tmp_path, count):
    with _workers(tmp_path, LONG, count) as workers:
        _wait_for_step(tmp_path, 50, workers)
        workers[-1].kill()
        begin = time.monotonic()
        for index, worker in enumerate(workers[:-1]):
            out, err = worker.communicate(timeout=60)
            assert time.monotonic() - begin < 60
            assert worker.returncode == processes.LOST_STATUS, (out, err)
            assert f"ProcessLost: process {index} of {count} lost another one" in err
            assert "Start the same command on all hosts again" in err
    before = _steps(tmp_path)[-1]
    # The same command goes on; SIGTERM to one of them saves and ends all at the same step.
    with _workers(tmp_path, LONG, count) as workers:
        _wait_for_step(tmp_path, before + 50, workers)
        workers[-1].send_signal(signal.SIGTERM)
        said = [worker.communicate(timeout=240) for worker in workers]
        assert [worker.returncode for worker in workers] == [143] * count, said
    saved = f"saved step {_steps(tmp_path)[-1]};"
    assert all(saved in out for out, _ in said), said


def test_no_cluster_is_one_process(monkeypatch):
    for name in processes._ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    jax.devices()
    processes.join("auto")
    processes.join("off")
    assert jax.process_count() == 1 and not jax.distributed.is_initialized()
    with pytest.raises(ConfigError, match="parallel.distributed = 'on'"):
        processes.join("on")


@pytest.mark.parametrize(
    "values", [{"JAX_NUM_PROCESSES": "2"}, dict.fromkeys(processes._ENVIRONMENT, "x")]
)
def test_half_a_description_of_a_cluster_is_refused(monkeypatch, values):
    for name in processes._ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="parallel.distributed"):
        processes.join("auto")


def test_processes_with_unlike_numbers_of_devices_are_refused():
    processes._check_even([0, 0, 1, 1])
    with pytest.raises(ConfigError, match=r"= \[1, 2\]: expected processes with the same number"):
        processes._check_even([0, 1, 1])


def test_processes_stop_at_the_dispatch_after_the_highest_of_all(monkeypatch):
    """However many steps a dispatch has: JAX compares for equality with that number plus one."""
    passed = []

    def reached(number: int) -> bool:
        passed.append(number)
        return number == passed[0] + 3  # the notice came after the third

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    with processes.stop_signals() as told:
        assert [told() for _ in range(5)] == [0, 0, 0, signal.SIGTERM, 0]
    with processes.stop_signals() as told:  # of another run
        told()
    assert passed[-1] == passed[0] + 5


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: Read error: Connection reset by peer"), 75),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), 75),
        (ConfigError("graph.peers_per_step", -1, "a number of peers"), None),
    ],
)
def test_a_lost_process_is_told_from_a_mistake(error, status, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit if status else ConfigError), processes.losing_one(lambda: 50):
        raise error
    said = capsys.readouterr().err
    assert ("checkpoint 50 is there. Start the same command" in said) == bool(status)


def test_a_process_that_waits_says_for_what(monkeypatch, capsys):
    monkeypatch.setattr(processes, "WAIT_SECONDS", 0)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host0:1234")
    with processes._telling_that_it_waits():
        time.sleep(0.2)
    assert "waiting for the other processes of the run (JAX_COORD" in capsys.readouterr().err


FAILING = """
import os, sys
from mhd_jax import command, train
from mhd_jax.errors import ConfigError, WorkdirError
from mhd_jax.runtime import processes
from tests import small

workdir, *cases = sys.argv[1:]
second = os.environ["JAX_PROCESS_ID"] == "1"
processes.LEAVE_SECONDS = 1
for case in cases:
    changes = {"seed": 5 if second and case == "settings" else 0, "parallel__client_devices": 0}
    if second and case == "alone":
        train.experiment_lib.build = lambda config: processes.nothing  # raises what nobody expects
    other = "2" if second and case == "workdir" else ""
    try:
        train.train_and_evaluate(small.config(**changes), workdir + other)
    except (ConfigError, WorkdirError) as error:
        if case == cases[-1]:
            command.end(error)
        print(error, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("cases", "statuses", "said"),
    [
        (
            ["workdir", "settings"],  # the first of them is caught, the second ends the processes
            {1},
            [
                "is not the same directory for all 2 processes",
                "some were started with others than this one",
            ],
        ),
        (["alone"], {1, processes.LOST_STATUS}, ["AttributeError"]),
    ],
    ids=["two mistakes", "alone"],
)
def test_what_one_of_two_does_otherwise_ends_both(tmp_path, cases, statuses, said):
    with _started(FAILING, [[str(tmp_path / "run"), *cases]] * 2) as workers:
        texts = [worker.communicate(timeout=120) for worker in workers]
        assert {worker.returncode for worker in workers} == statuses, texts
    for text in said:
        assert text in texts[1][1]
        assert cases == ["alone"] or text in texts[0][1]
