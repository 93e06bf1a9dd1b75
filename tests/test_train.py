# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Whole runs: what they leave, resuming to the last bit, and how they end badly."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mhd_jax import experiment as experiment_lib
from mhd_jax import methods, train
from mhd_jax import state as state_lib
from mhd_jax.api import Run
from mhd_jax.api.pieces import register
from mhd_jax.errors import DivergedError, Interrupted, WorkdirError
from mhd_jax.evaluator import Evaluator
from mhd_jax.parallel import IN_FLIGHT
from mhd_jax.reporting import report
from mhd_jax.runtime.checkpoints import Checkpoints
from mhd_jax.runtime.workdir import Workdir
from tests import small

ROOT = Path(__file__).resolve().parent.parent


def _final_state(workdir, config):
    experiment = experiment_lib.build(config)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step, state = checkpoints.restore_latest(state_lib.abstract(experiment.init_state()))
    assert step == config.train.steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def _same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of the small config."""
    workdir = tmp_path_factory.mktemp("finished")
    config = small.config(isolated_baseline=True)
    return workdir, config, train.train_and_evaluate(config, workdir)


def test_a_run_leaves_its_record(finished):
    workdir, config, summary = finished
    names = {path.name for path in workdir.iterdir()}
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "report.html",
            "figures"} <= names  # fmt: skip
    written = json.loads((workdir / "summary.json").read_text())
    assert np.shape(written["shared_accuracy"]) == np.shape(written["private_accuracy"]) == (4, 3)
    assert np.shape(written["isolated_baseline"]["shared_accuracy"]) == (4, 1)
    assert np.shape(written["class_accuracy"]) == (4, 3, 10)
    assert set(written) >= {
        "method", "config", "versions", "device", "num_params", "steps", "steps_per_second",
        "compile_seconds", "partition_hash", "bytes_per_step", "seed",
    }  # fmt: skip
    assert written["config"] == json.loads((workdir / "config.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 6]
    assert [line["step"] for line in lines if "shared_accuracy" in line] == [0, 6]
    assert lines[-1]["shared_accuracy"] == written["shared_accuracy"]


def test_one_pooled_model_is_measured_for_every_client(tmp_path):
    config = small.config(method="supervised", train__steps=2, train__eval_every=1)
    summary = train.train_and_evaluate(config, tmp_path, with_report=False)
    assert summary.shared_accuracy.shape == (config.clients.num, 1)
    assert np.ptp(summary.shared_accuracy) == 0 < np.ptp(summary.private_accuracy)
    run, images = Run.load(tmp_path), np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
    everybody = run.predict(images)
    assert everybody.shape == (config.clients.num, 5, 1, 10)
    for client in run.clients:
        np.testing.assert_array_equal(client.predict(images), everybody[0])
        logits, _ = client.model.apply(client.params, images, train=False)
        np.testing.assert_allclose(jax.nn.softmax(logits), everybody[0], atol=1e-5)


def test_the_same_command_again_does_nothing(finished, capsys):
    workdir, config, summary = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()
              and path.name != "run.lock"}  # fmt: skip
    again = train.train_and_evaluate(config, workdir)
    assert "finished" in capsys.readouterr().out
    assert again == summary
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_finished_run_is_noticed_before_anything_is_built(finished, monkeypatch):
    workdir, config, summary = finished
    monkeypatch.setattr(experiment_lib, "build", mock.Mock(side_effect=AssertionError))
    assert train.train_and_evaluate(config, workdir) == summary
    with pytest.raises(WorkdirError, match="seed is 0 there and 1 here"):
        train.train_and_evaluate(small.config(seed=1), workdir)


def test_the_summary_is_the_last_evaluation(tmp_path, monkeypatch):
    evaluate = mock.Mock(wraps=Evaluator.evaluate)
    monkeypatch.setattr(Evaluator, "evaluate", lambda *arguments: evaluate(*arguments))
    config = small.config(train__steps=2, train__log_every=2, train__eval_every=2)
    train.train_and_evaluate(config, tmp_path, with_report=False)
    assert evaluate.call_count == 2  # before the first step and after the last


def test_a_full_disk_ends_in_words_and_the_report_is_made_up_for(tmp_path, monkeypatch, capsys):
    config = small.config()
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(report, "write_report", mock.Mock(side_effect=full))
        with pytest.raises(
            WorkdirError, match="report: No space left on device. .* the same command"
        ):
            train.train_and_evaluate(config, tmp_path)
    assert (tmp_path / "summary.json").exists() and not (tmp_path / "report.html").exists()
    train.train_and_evaluate(config, tmp_path)
    assert "finished" in capsys.readouterr().out and (tmp_path / "report.html").exists()


def test_the_last_state_is_saved_before_the_run_counts_as_finished(tmp_path, monkeypatch):
    calls = []

    def noted(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            result = real(*args, **kwargs)
            calls.append(name)  # once done: saving waits for the save before it
            return result

        monkeypatch.setattr(owner, name, call)

    noted(Checkpoints, "save")
    noted(Checkpoints, "wait")
    noted(Workdir, "write_summary")
    train.train_and_evaluate(small.config(), tmp_path, with_report=False)
    assert calls[calls.index("write_summary") - 2 :][:3] == ["save", "wait", "write_summary"]


def test_another_config_is_refused_and_named(finished):
    workdir, _, _ = finished
    with pytest.raises(WorkdirError, match="distill.nu_aux is 1.0 there and 3.0 here"):
        train.train_and_evaluate(small.config(distill__nu_aux=3.0), workdir)


def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
    workdir, config, summary = finished
    again = train.train_and_evaluate(config, tmp_path, with_report=False)
    np.testing.assert_array_equal(again["shared_accuracy"], summary["shared_accuracy"])
    _same(_final_state(tmp_path, config), _final_state(workdir, config))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(finished, tmp_path, monkeypatch, number):
    workdir, config, summary = finished
    advance = train.Passage._advance

    def interrupted(self, call, step):
        if step == 3:
            signal.raise_signal(number)
            if number == signal.SIGTERM:  # schedulers send it more than once
                signal.raise_signal(number)
        return advance(self, call, step)

    config_often = small.config(train__checkpoint_every=6, train__steps_per_call=1)
    monkeypatch.setattr(train.Passage, "_advance", interrupted)
    with pytest.raises(Interrupted, match="saved step 6|saved step 4") as interrupted_by:
        train.train_and_evaluate(config_often, tmp_path, with_report=False)
    assert interrupted_by.value.status == 128 + number
    monkeypatch.setattr(train.Passage, "_advance", advance)
    asked, init = [], experiment_lib.Experiment.init_state

    def only_shapes(self, abstract=False):
        asked.append(abstract)
        return init(self, abstract)

    monkeypatch.setattr(experiment_lib.Experiment, "init_state", only_shapes)
    again = train.train_and_evaluate(config_often, tmp_path, with_report=False)
    assert asked and all(asked)  # the state is in memory once
    np.testing.assert_allclose(again["shared_accuracy"], summary["shared_accuracy"], atol=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"exchange__mode": "stale", "exchange__pool_size": 2, "exchange__refresh_steps": 4},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"exchange__every": 4, "exchange__encoding": "int4", "exchange__embedding_width": 3},
            marks=pytest.mark.slow,
        ),
        {"exchange__cache": 4, "exchange__encoding": "int8"},
    ],
    ids=["refreshes", "exchanges", "visits"],
)
def test_resuming_between_two_of_every_4_steps_gives_the_same_bits(changes, tmp_path, monkeypatch):
    """The checkpoint of step 6 is gone on from, two steps before the next period begins."""
    config = small.config(
        train__steps=12, train__eval_every=3, isolated_baseline=False, heads__aux=1,
        bytes_to=(0.01, 0.2), **changes,
    )  # fmt: skip
    expected = train.train_and_evaluate(config, tmp_path / "whole", with_report=False)
    advance, begun = train.Passage._advance, []

    def until_6(self, call, step):
        begun.append(step)
        if step >= 6 and begun[0] == 0:
            raise KeyboardInterrupt
        return advance(self, call, step)

    monkeypatch.setattr(train.Passage, "_advance", until_6)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, tmp_path / "cut", with_report=False)
    begun.clear()
    found = train.train_and_evaluate(config, tmp_path / "cut", with_report=False)
    assert begun[0] == 6
    np.testing.assert_array_equal(found["class_accuracy"], expected["class_accuracy"])
    assert found["bytes_to"] == expected["bytes_to"] and found["bytes_to"]["0.01"] == 0
    whole, cut = (_final_state(tmp_path / name, config) for name in ("whole", "cut"))
    _same(cut, whole)


@pytest.fixture
def compilations():
    """The names of all functions that XLA compiles from here on."""
    names, active = [], [True]

    def note(event, seconds, fun_name="", **_):
        if active and event == "/jax/core/compile/backend_compile_duration":
            names.append(re.sub(r"^jit[(_]|\)$", "", fun_name))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    active.clear()


def test_a_graph_that_changes_every_step_is_compiled_once(tmp_path, compilations, monkeypatch):
    """200 steps, 200 graphs, Δ peers drawn and messages lost: the step is compiled once."""
    config = small.config(
        graph__name="erdos_renyi", graph__every=1, graph__peers_per_step=2, graph__drop=0.1,
        train__steps=200, train__log_every=50, train__eval_every=200, train__checkpoint_every=200,
    )  # fmt: skip
    topology = experiment_lib.build(config).topologies[0]
    assert len({topology.at(step).tobytes() for step in range(200)}) > 40
    advance, after = train.Passage._advance, []

    def watched(self, call, step):
        before = len(compilations)
        reached = advance(self, call, step)
        after.extend(compilations[before:])
        return reached

    monkeypatch.setattr(train.Passage, "_advance", watched)
    train.train_and_evaluate(config, tmp_path, with_report=False)
    assert compilations.count("call") == 1
    assert after == []  # nothing at all is compiled while steps are dispatched


def test_a_second_compilation_would_be_counted(compilations):
    @jax.jit
    def call(x):
        return x + 1

    for size in (3, 4, 4):
        call(np.ones(size))
    assert compilations.count("call") == 2


def test_steps_are_dispatched_no_further_ahead_than_devices_can_take():
    """With the wait left out, up to 12 of these 28 calls are unfinished at once."""
    experiment = small.build(
        parallel__client_devices=2, parallel__data_devices=2, train__steps_per_call=1,
        model__width=512, data__batch_size=64, data__public_batch_size=64, train__steps=28,
        train__log_every=28, train__eval_every=28, train__checkpoint_every=28,
    )  # fmt: skip
    stepper, calls, unfinished = train.Stepper(experiment, experiment.init_state(), 0), [], []
    for step in range(28):
        calls.append(stepper.advance(step, step + 1)["loss"][0])
        unfinished.append(sum(not loss.is_ready() for loss in calls))
    assert max(unfinished) <= IN_FLIGHT


def test_inert_rows_stay_where_they_are_and_out_of_the_result(tmp_path, monkeypatch):
    """Three clients on two devices (a row of padding), then on three, then on one."""
    settings = {"clients__num": 3, "train__steps_per_call": 1, "train__checkpoint_every": 2,
                "train__log_every": 6, "heads__aux": 1,
                "distill__alignment_momentum": 0.0}  # fmt: skip
    run = functools.partial(train.train_and_evaluate, with_report=False)
    saved, save, advance = [], Checkpoints.save, train.Passage._advance

    def noted(self, step, state):
        saved.append([(x.shape, x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state)])
        save(self, step, state)

    def interrupted(self, call, step):
        if step in (1, 3):
            signal.raise_signal(signal.SIGTERM)
        return advance(self, call, step)

    monkeypatch.setattr(Checkpoints, "save", noted)
    monkeypatch.setattr(train.Passage, "_advance", interrupted)
    for devices in (2, 3):
        with pytest.raises(Interrupted):
            run(small.config(parallel__client_devices=devices, **settings), tmp_path / "often")
    found = run(small.config(**settings), tmp_path / "often")
    monkeypatch.setattr(train.Passage, "_advance", advance)
    expected = run(small.config(**settings), tmp_path / "once")
    np.testing.assert_array_equal(found["shared_accuracy"], expected["shared_accuracy"])
    final = [_final_state(tmp_path / name, small.config(**settings)) for name in ("often", "once")]
    for ours, theirs in zip(*final, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # Nothing of a client was put on another device for the sake of saving.
    rows = [{(whole[1], part[1]) for whole, part in shapes if len(whole) > 1} for shapes in saved]
    assert rows[:2] == [{(4, 2)}, {(3, 1)}] and all(each == {(3, 3)} for each in rows[2:])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = small.config(
        optimizer__learning_rate=1e30, optimizer__clip_norm=0.0, train__steps=30,
        optimizer__warmup_steps=4, train__checkpoint_every=3,
    )  # fmt: skip
    with pytest.raises(DivergedError, match=r"the loss of client \d is (nan|inf) at step \d+"):
        train.train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    # Every checkpoint that is left can be gone on from.
    experiment = experiment_lib.build(config)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        found = checkpoints.restore_latest(experiment.init_state(abstract=True))
    assert found is None or all(np.isfinite(x).all() for x in small.clients(experiment, found[1]))


@pytest.mark.parametrize("baseline", [False, True])
def test_a_last_update_that_is_not_finite_stops_the_run_before_it_is_saved(
    tmp_path, pieces, baseline
):
    """No loss is computed after it."""

    def spoils_the_last(config: Any) -> optax.GradientTransformation:
        last = config.train.steps - 1
        rate = optax.scale_by_schedule(lambda step: jnp.where(step == last, jnp.inf, 0.01))
        return optax.chain(optax.sgd(1.0), rate)

    register("optimizer.name", "spoils_the_last", spoils_the_last)
    config = small.config(optimizer__name="spoils_the_last", isolated_baseline=baseline)
    said = "parameters of client 0 are NaN or infinite after 6 steps; the checkpoint of step 3 is"
    with pytest.raises(DivergedError, match=said):
        train.train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_pieces_are_asked_for_steps_of_the_run_alone(tmp_path, pieces):
    """A call of 4 steps begins at step 8 of 10."""
    asked = []

    def graph(step: int) -> np.ndarray:
        asked.append(step)
        return np.roll(np.eye(4, dtype=bool), 1 + step % 3, axis=0)

    def when(steps: np.ndarray) -> np.ndarray:
        asked.extend(steps.tolist())
        return np.ones((len(steps), 2), np.float32)

    register("graph.name", "asks", graph)
    register("method", "asks", lambda _: methods.Method(methods.Distillation(), when=when))
    config = small.config(
        method="asks", graph__name="asks", train__steps=10, train__log_every=4,
        train__eval_every=10, train__checkpoint_every=10,
    )  # fmt: skip
    train.train_and_evaluate(config, tmp_path, with_report=False)
    (tmp_path / "summary.json").unlink()
    train.train_and_evaluate(config, tmp_path, with_report=False)  # with no step left
    assert set(asked) == set(range(10))


COMMAND = """
import sys
sys.path.insert(0, {root!r})
from tests import small
from mhd_jax import methods, train
train.train_and_evaluate(small.config(train__steps={steps}, train__eval_every={steps}),
    sys.argv[1], with_report=False)
"""


@pytest.mark.parametrize(
    ("kills", "steps"),
    [((9,), 24), pytest.param((10, 40), 60, marks=pytest.mark.slow)],
    ids=["1", "2"],
)
def test_killed_at_random_and_restarted_gives_the_same_bits(tmp_path, kills, steps):
    """SIGKILLs at points spread over the run, then the run as if nothing had happened."""
    command = [sys.executable, "-c", COMMAND.format(root=str(ROOT), steps=steps)]
    config = small.config(train__steps=steps, train__eval_every=steps)
    expected = train.train_and_evaluate(config, tmp_path / "whole", with_report=False)
    killed = tmp_path / "killed"
    for wanted in kills:
        process = subprocess.Popen([*command, str(killed)], env=os.environ,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if any(int(p.name) >= wanted for p in (killed / "checkpoints").glob("[0-9]*")
                   if p.name.isdigit()):  # fmt: skip
                break
            time.sleep(0.01)
        process.kill()
        process.wait()
    train.train_and_evaluate(config, killed, with_report=False)
    found = json.loads((killed / "summary.json").read_text())
    for name in ("shared_accuracy", "private_accuracy", "class_accuracy"):
        np.testing.assert_array_equal(found[name], expected[name])
    _same(_final_state(killed, config), _final_state(tmp_path / "whole", config))
    steps = [json.loads(x)["step"] for x in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_graph_of_ones_own_may_be_made_with_jax() -> None:
    """Inputs of later calls are made while nothing else may move to the devices."""

    def inputs(start: int, stop: int, rows: int) -> jax.Array:
        assert rows == 2
        return jax.random.bernoulli(jax.random.key(start), shape=(stop - start, 4, 4))

    stepper = object.__new__(train.Stepper)
    parts = SimpleNamespace(steps_per_call=2)
    stepper.experiment = SimpleNamespace(
        schedule=SimpleNamespace(inputs=inputs), parts=parts, config=small.config(train__steps=10)
    )
    with jax.transfer_guard("disallow"):
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
            inputs(7, 9, 2)
        assert stepper._inputs(7).shape == (2, 4, 4)


def test_parameters_are_unreadable_in_steps_that_average_alone():
    """Of six steps the third and the sixth average; the first client's are dropped in one."""
    method = methods.build(small.config(method="fedavg", average__every=3))
    dropped = np.zeros((6, 1, 2))
    dropped[2, 0, 0] = 1
    collected = [{"distils": np.zeros(6, bool), "here": np.ones((6, 1, 2), bool),
                  "unreadable_parameters": dropped}]  # fmt: skip
    assert train._means(collected, method, 6)["unreadable_parameters"].tolist() == [0.5, 0]
    assert train._means(collected, method, 8)["unreadable_parameters"].tolist() == [0, 0]  # 2 to 7
