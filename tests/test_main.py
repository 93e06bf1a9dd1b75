# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The command line: errors before any work, in one line, with what would be accepted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mhd_jax import main

ROOT = Path(__file__).resolve().parent.parent


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mhd_jax.main", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.distill.nu_aus=3", "distill.nu_aus = '3': expected a known setting; did you "),
        ("--config.replicas=3", "replicas = '3': expected its new name, num_seeds"),
        ("--config=configs/digits.py:smok", "digits.py = 'smok': expected no variant or one of"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how absl loads a config
def test_a_mistyped_setting_ends_in_one_line(argument, message, capsys):
    with pytest.raises(SystemExit, match="^1$"):
        main.parse_flags(["main", "--config=configs/digits.py", argument])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ConfigError: {message}")


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("configs/cifar10.py", "runs/cifar10"),
        ("configs/cifar10.py:cpu", "runs/cifar10_cpu"),
        ("", "runs/digits"),
    ],
)
def test_the_workdir_is_named_by_the_config(config, workdir):
    assert main.default_workdir(config) == workdir


def test_a_run_without_a_workdir_goes_where_its_config_says(tmp_path, monkeypatch):
    shown = [sys.executable, "-c", _SHOW_WORKDIR, f"--config={ROOT}/configs/cifar10.py:cpu"]
    done = subprocess.run(shown, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "runs/cifar10_cpu", done.stderr


_SHOW_WORKDIR = """
from mhd_jax import main, train
train.train_and_evaluate = lambda config, workdir: print(workdir)
main.run()
"""


def test_a_bad_value_ends_in_one_line(tmp_path):
    workdir = tmp_path / "x"
    done = _run("--config=configs/digits.py", "--config.graph.name=cylce", f"--workdir={workdir}")
    assert done.returncode == 1 and not workdir.exists()
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert "graph.name = 'cylce': expected one of" in done.stderr
    assert "did you mean 'cycle'?" in done.stderr


def test_the_smoke_config_ends_with_the_table(tmp_path):
    done = _run("--config=configs/digits.py:smoke", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "shared accuracy" in done.stdout and "isolated" in done.stdout
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda f: f.stem)
def test_every_config_says_how_to_run_it(file):
    assert f"--config=configs/{file.name}" in file.read_text()
