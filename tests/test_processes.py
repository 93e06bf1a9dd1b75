# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Runs of two processes on one machine: the same numbers, private data apart, one that dies."""

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

from mhd_jax import processes, train
from mhd_jax.errors import ConfigError
from tests import small

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"parallel__client_devices": 0, "train__steps_per_call": 1, "control": False}
LONG = {**SETTINGS, "train__steps": 10**6, "train__log_every": 50, "train__checkpoint_every": 50,
        "train__eval_every": 10**6}  # fmt: skip

WORKER = """
import os, sys
import numpy as np
from absl import app
from mhd_jax import experiment as experiment_lib, processes, train
from mhd_jax.errors import WorkdirError
from tests import small

workdir, changes = sys.argv[1], eval(sys.argv[2])
built, decoded = [], []
build = experiment_lib.build

def note(config):
    from mhd_jax.data import sources
    source = sources.source

    def noted(settings):
        found = source(settings)
        images = type(found.train).images
        type(found.train).images = lambda split, at: (
            decoded.append(np.asarray(at)) if split is found.train else None, images(split, at))[1]
        return found

    sources.source = noted
    built.append(build(config))
    return built[-1]

experiment_lib.build = note
try:
    train.train_and_evaluate(small.config(**changes), workdir)
except (train.Interrupted, WorkdirError) as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(143)

import jax
(experiment,) = built
fed, (images, labels) = experiment.federations[0], experiment.feed.data["private"][0]
owners = {device.process_index for device in experiment.layout.mesh.devices.flat}
assert owners == {0, 1} and jax.local_device_count() == 2, owners
mine = [row for shard in images.addressable_shards
        for row in range(*shard.index[1].indices(images.shape[1]))]
assert mine == [[0, 1], [2, 3]][jax.process_index()], mine
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
def _workers(workdir: Path, changes: dict, count: int = 2) -> Iterator[list[subprocess.Popen]]:
    """Processes of two devices each that share a run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(workdir), repr(changes)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "JAX_NUM_CPU_DEVICES": "2",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            },
        )  # fmt: skip
        for index in range(count)
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


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    expected = train.train_and_evaluate(small.config(**SETTINGS), tmp_path / "one")
    with _workers(tmp_path / "two", SETTINGS) as workers:
        said = [worker.communicate(timeout=450) for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], said
    assert "done [0, 1]" in said[0][0] and "done [2, 3]" in said[1][0]
    found = json.loads((tmp_path / "two" / "summary.json").read_text())
    for name in ("shared_accuracy", "private_accuracy", "class_accuracy", "partition_hash"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert "2 processes" in found["mesh"]
    # Only process 0 speaks and writes: no line twice.
    steps = [json.loads(line)["step"] for line in
             (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]  # fmt: skip
    assert steps == [0, 3, 6, 6]
    assert "β_sh" in said[0][0] and "β_sh" not in said[1][0]
    assert (tmp_path / "two" / "report.html").exists()


@pytest.mark.slow
def test_one_dies_the_other_ends_and_both_go_on(tmp_path):
    with _workers(tmp_path, LONG) as workers:
        _wait_for_step(tmp_path, 50, workers)
        workers[1].kill()
        begin = time.monotonic()
        out, err = workers[0].communicate(timeout=60)
        assert time.monotonic() - begin < 60
        assert workers[0].returncode == processes.LOST_STATUS, (out, err)
        assert "ProcessLost: process 0 of 2 lost another one" in err
        assert "Start the same command on all hosts again" in err
    before = _steps(tmp_path)[-1]
    # The same command goes on; SIGTERM to one of them saves and ends both at the same step.
    with _workers(tmp_path, LONG) as workers:
        _wait_for_step(tmp_path, before + 50, workers)
        workers[1].send_signal(signal.SIGTERM)
        said = [worker.communicate(timeout=240) for worker in workers]
        assert [worker.returncode for worker in workers] == [143, 143], said
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
