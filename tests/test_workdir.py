# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from mhd_jax import train
from mhd_jax.errors import ConfigError, WorkdirError
from mhd_jax.runtime.workdir import FREE_SETTINGS, Workdir, to_json
from tests import small
from tests.synthetic import changed, synthetic_run

SUMMARY = synthetic_run(num_clients=1, aux=0)[0]


def config(**changed: object) -> ml_collections.ConfigDict:
    made = ml_collections.ConfigDict(
        {
            "seed": 0,
            "clients": {"models": (("mlp_small", 5), ("mlp_large", 3)), "trace": ""},
            "graph": {"name": "complete", "degree": 2, "matrix": ""},
            "partition": {"skew": float("inf")},
            "train": {"steps": 100, "log_every": 10, "checkpoint_every": 50},
            "parallel": {"client_devices": 0, "conv_lowering": "auto"},
        }
    )
    made.update_from_flattened_dict({name.replace("__", "."): v for name, v in changed.items()})
    return made


# --- Opening and claiming ------------------------------------------------------------------------


def test_makes_the_directory_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "runs" / "one")
    assert workdir.path.is_dir() and not list(workdir.path.iterdir())
    assert not workdir.finished() and workdir.read_metrics() == []


def test_relative_and_home_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(Workdir("runs").path) == str(tmp_path / "runs")
    assert os.fspath(Workdir("~/runs").path) == str(tmp_path / "runs")


@pytest.mark.parametrize("path", ["/proc/run", "/dev/null/run"])
def test_unwritable_places_are_refused_with_path_and_reason(path: str) -> None:
    with pytest.raises(WorkdirError, match=rf"{path}: cannot be used as workdir: \w+"):
        Workdir(path)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a directory")
    with pytest.raises(WorkdirError, match="run: cannot be used as workdir: File exists"):
        Workdir(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "not a directory"


def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
    elif subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path]).returncode:
        pytest.skip("root here may not mount, and permissions do not stop root")
    try:
        with pytest.raises(WorkdirError, match="(Read-only file system|Permission denied)"):
            Workdir(tmp_path)
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", tmp_path], check=True)


def test_the_same_config_claims_again(tmp_path: Path) -> None:
    Workdir(tmp_path).claim(config())
    before = (tmp_path / "config.json").read_text()
    Workdir(tmp_path).claim(config())
    assert (tmp_path / "config.json").read_text() == before
    assert json.loads(before)["clients"]["models"] == [["mlp_small", 5], ["mlp_large", 3]]


def test_another_config_is_refused_naming_every_difference(tmp_path: Path) -> None:
    Workdir(tmp_path).claim(config())
    other = config(seed=1, graph__name="cycle", partition__skew=10.0, train__log_every=20)
    other.new = True
    with pytest.raises(WorkdirError) as refused:
        Workdir(tmp_path).claim(other)
    assert str(refused.value) == (
        f"{tmp_path}: holds a run with other settings: "
        "graph.name is 'complete' there and 'cycle' here; "
        "new is not a setting there and True here; "
        "partition.skew is inf there and 10.0 here; "
        "seed is 0 there and 1 here. Use another workdir, or these settings"
    )
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_free_settings_may_differ(tmp_path: Path) -> None:
    Workdir(tmp_path).claim(config())
    Workdir(tmp_path).claim(
        config(train__log_every=7, train__checkpoint_every=1, parallel__client_devices=4)
    )


def test_free_settings_exist() -> None:
    from mhd_jax.config import default_config, flatten

    known = flatten(default_config())
    for name in FREE_SETTINGS:
        assert any(setting.startswith(name.removesuffix("*")) for setting in known), name


def test_a_file_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    edges, trace = tmp_path / "peers.edges", tmp_path / "trace.csv"
    edges.write_text("0 1\n1 0\n")
    trace.write_text("1,0\n0,1\n")
    read = config(graph__name="matrix", graph__matrix=str(edges), clients__trace=str(trace))
    run = tmp_path / "run"
    Workdir(run).claim(read)
    Workdir(run).claim(read)
    trace.write_text("1,1\n0,1\n")
    with pytest.raises(WorkdirError, match=r"other contents of .*trace\.csv\. Use"):
        Workdir(run).claim(read)
    trace.unlink()  # as of a run that is finished
    Workdir(run).claim(read)
    edges.write_text("0 1\n")
    with pytest.raises(WorkdirError, match=r"other contents of .*peers\.edges"):
        Workdir(run).claim(read)
    unread = config(graph__matrix=str(edges))  # the graph is complete
    Workdir(tmp_path / "other").claim(unread)
    edges.write_text("1 0\n")
    Workdir(tmp_path / "other").claim(unread)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0\0"])
def test_a_broken_config_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"cannot read config\.json: \w+"):
        Workdir(tmp_path).claim(config())
    assert (tmp_path / "config.json").read_text() == content


def test_files_of_an_unknown_run_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(WorkdirError, match=r"has metrics\.jsonl, checkpoints of a run but no conf"):
        Workdir(tmp_path).claim(config())


# --- Two runs at once ----------------------------------------------------------------------------


HOLDER = """
import sys, time
from mhd_jax.runtime.workdir import Workdir
with Workdir(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True, cwd=root
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "locked\n"
        with pytest.raises(WorkdirError, match=f"another run is .*process {first.pid} on .*start"):
            with Workdir(tmp_path).lock():
                pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    with Workdir(tmp_path).lock():
        assert f"process {os.getpid()} on " in (tmp_path / "run.lock").read_text()


def test_the_lock_holds_within_a_process_and_ends_with_its_context(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    with workdir.lock():
        with pytest.raises(WorkdirError, match="another run is at work here"):
            with Workdir(tmp_path).lock():
                pass
    with pytest.raises(KeyError):
        with workdir.lock():
            raise KeyError
    with workdir.lock():
        pass


# --- Metrics and summary -------------------------------------------------------------------------


def test_metrics_are_one_exact_object_a_line(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    loss = np.random.default_rng(0).normal(size=4)
    accuracy = np.array([[0.1, 0.2]], np.float32)
    workdir.append_metrics({"step": 1, "loss": loss, "accuracy": jnp.asarray(accuracy)})
    workdir.append_metrics({"step": np.int64(2), "loss": jnp.bfloat16(0.5), "text": "one\u2028two"})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    first, second = workdir.read_metrics()
    np.testing.assert_array_equal(first["loss"], loss)
    np.testing.assert_array_equal(np.array(first["accuracy"], np.float32), accuracy)
    assert second == {"step": 2, "loss": 0.5, "text": "one\u2028two"}


@settings(max_examples=60, deadline=None)
@given(st.floats(allow_nan=False), st.floats(width=32, allow_nan=False))
def test_floats_keep_every_bit(double: float, single: float) -> None:
    read = json.loads(to_json({"double": double, "single": np.float32(single)}))
    assert np.float64(read["double"]).tobytes() == np.float64(double).tobytes()
    assert np.float32(read["single"]).tobytes() == np.float32(single).tobytes()


def test_infinity_is_json_that_every_reader_takes_and_reads_back() -> None:
    def refused(word: str) -> float:
        raise ValueError(word)

    written = {"skew": np.inf, "rates": [np.float32(-np.inf)], 'say "Infinity': 'is "Infinity'}
    read = json.loads(to_json(written), parse_constant=refused)
    assert read == {"skew": np.inf, "rates": [-np.inf], 'say "Infinity': 'is "Infinity'}


def test_what_has_no_json_form_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="set has no JSON form"):
        Workdir(tmp_path).append_metrics({"step": {1, 2}})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_killed_and_resumed_run_has_the_lines_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def go(workdir: Workdir, start: int, stop: int) -> None:
        for step in range(start, stop):
            workdir.append_metrics({"step": step, "loss": step / 3})
            if step % 2:
                workdir.append_metrics({"step": step, "shared_accuracy": [[step / 7]]})

    whole, killed = Workdir(tmp_path / "whole"), Workdir(tmp_path / "killed")
    whole.truncate_metrics(-1)
    go(whole, 0, 10)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for size in range(0, len(lines), 17):  # killed after any number of bytes
        (tmp_path / "killed" / "metrics.jsonl").write_bytes(lines[:size])
        steps = [line["step"] for line in killed.read_metrics()]
        # The newest checkpoint is of a step all of whose lines are written.
        restored = max(steps) - 1 if steps else -1
        killed.truncate_metrics(restored)
        go(killed, restored + 1, 10)
        assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == lines


def test_starting_over_drops_all_lines(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.append_metrics({"step": 0})
    workdir.truncate_metrics(-1)
    assert workdir.read_metrics() == []


def test_garbage_among_the_metrics_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\0 garbage\n[3]\n{"step": 2}\n{"st')
    workdir = Workdir(tmp_path)
    assert [line["step"] for line in workdir.read_metrics()] == [1, 2]
    assert "unreadable lines [2, 3, 5]" in caplog.text
    workdir.truncate_metrics(2)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_summary_ends_a_run(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    with pytest.raises(WorkdirError, match=r"cannot read summary\.json: No such file"):
        workdir.read_summary()
    workdir.claim(config())
    with pytest.raises(WorkdirError, match=r"not finished \(it has no checkpoint\); the command"):
        workdir.read_summary()
    (tmp_path / "checkpoints" / "40").mkdir(parents=True)
    with pytest.raises(WorkdirError, match=r"not finished \(its last checkpoint is of step 40\)"):
        workdir.read_summary()
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "config.json").unlink()
    accuracy = np.array([[0.1]], np.float32)
    summary = changed(SUMMARY, shared_accuracy=accuracy.tolist(), config=config().to_dict())
    workdir.write_summary(summary)
    assert workdir.finished() and os.listdir(tmp_path) == ["summary.json"]
    read = workdir.read_summary()
    assert read.shared_accuracy.tolist() == [[float(np.float32(0.1))]]
    assert read.config["graph"] == {"name": "complete", "degree": 2, "matrix": ""}


def test_a_summary_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = Workdir(tmp_path)
    workdir.write_summary(changed(SUMMARY, steps=1))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkdirError, match=r"could not write summary\.json: No space left"):
        workdir.write_summary(changed(SUMMARY, steps=2))
    assert workdir.read_summary().steps == 1 and os.listdir(tmp_path) == ["summary.json"]


def test_a_broken_summary_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "summary.json").write_text('{"steps": 15')
    assert not Workdir(tmp_path).finished()
    assert "cannot read summary.json" in caplog.text


def test_a_summary_of_another_version_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY.to_json() | {"version": 0}))
    assert not Workdir(tmp_path).finished()
    assert "expected version 1 of its keys, not 0" in caplog.text


def test_a_remote_workdir(remote: epath.Path) -> None:
    workdir = Workdir(remote)
    workdir.claim(config())
    Workdir(remote).claim(config())
    with pytest.raises(WorkdirError, match="gs://bucket/run: holds a run with other .*: seed"):
        Workdir(remote).claim(config(seed=1))
    with workdir.lock():
        for step in range(3):
            workdir.append_metrics({"step": step})
        workdir.truncate_metrics(1)
        workdir.write_summary(changed(SUMMARY, steps=3))
    assert [line["step"] for line in workdir.read_metrics()] == [0, 1]
    assert workdir.finished() and workdir.read_summary().steps == 3


def test_a_url_without_its_package_is_reported() -> None:
    if importlib.util.find_spec("gcsfs") or importlib.util.find_spec("tensorflow"):
        pytest.skip("gs:// works here")
    with pytest.raises(WorkdirError, match="gs://bucket/run: cannot be used as .*gcsfs"):
        Workdir("gs://bucket/run")


def test_a_refused_run_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        train.train_and_evaluate(small.config(graph__name="cylce"), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError):
        train.train_and_evaluate(small.config(graph__name="cylce"), tmp_path / "mine")
    assert (tmp_path / "mine").exists()


def test_a_file_in_place_of_the_checkpoints_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(WorkdirError, match="checkpoints: expected a directory, not a file"):
        train.train_and_evaluate(small.config(), tmp_path)
