# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The command line: errors before any work, in one line, with what would be accepted."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mhd_jax import command, main

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
        ("--config.train.steps=many", "train.steps = 'many': expected a whole number like 1500"),
        ("--config.isolated_baseline=so", "isolated_baseline = 'so': expected True or False"),
        ("--config=configs/digits.py:smok", "digits.py = 'smok': expected no variant or one of"),
        ("--config=digits:smok", "digits.py = 'smok': expected no variant or one of"),
        ("--config=digit", "--config = 'digit': expected a file, or one of cifar10, cifar100, "),
        ("--plan", "--plan = '': expected its new name, --estimate"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how absl loads a config
def test_a_mistyped_setting_ends_in_one_line(argument, message, capsys, monkeypatch):
    words = ["main", "--config=configs/digits.py", argument]
    monkeypatch.setattr(sys, "argv", words)  # where a config's flag looks for its settings
    with pytest.raises(SystemExit, match="^1$"):
        command.parse_flags(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ConfigError: {message}")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGINT, "KeyboardInterrupt: stopped\n"),
        (signal.SIGTERM, "Interrupted: SIGTERM: stopped\n"),
    ],
    indirect=["number"],
)
def test_a_signal_ends_in_one_line(number, message):
    text = f"""
        import signal
        from mhd_jax import command
        with command.told_in_one_line("stopped"):
            try:
                signal.raise_signal({int(number)})
            except Exception:  # as libraries do
                pass
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (128 + number, message)


@pytest.mark.parametrize(
    ("assigned", "hint"),
    [
        ("replicas", "which is now called num_seeds"),
        ("distill.warmup_steps", "which is now called distill.fade_in"),
        ("replica", "which is none"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_file_that_assigns_to_an_unknown_setting_ends_in_one_line(
    assigned, hint, tmp_path, capsys
):
    file = tmp_path / "mine.py"
    file.write_text(
        "from mhd_jax.config import default_config\n\n\ndef get_config():\n"
        f"    config = default_config()\n    config.{assigned} = 3\n    return config\n"
    )
    with pytest.raises(SystemExit, match="^1$"):
        command.parse_flags(["main", f"--config={file}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ConfigError: --config = ") and line.endswith(hint)


def test_every_built_in_config_is_found_by_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = [file.stem for file in sorted((ROOT / "configs").glob("*.py"))]
    assert list(command.built_in()) == names and "digits" in names
    assert command.config_file("tabular:smoke") == f"{ROOT}/configs/tabular.py:smoke"


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("configs/cifar10.py", "runs/cifar10"),
        ("configs/cifar10.py:cpu", "runs/cifar10_cpu"),
        ("digits", "runs/digits"),
    ],
)
def test_the_workdir_is_named_by_the_config(config, workdir):
    assert main.default_workdir(config) == workdir


def test_a_run_without_a_workdir_goes_where_its_config_says(tmp_path):
    shown = [sys.executable, "-c", _SHOW_WORKDIR, "--config=cifar10:cpu"]
    done = subprocess.run(shown, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "runs/cifar10_cpu 6000", done.stderr
    shown[-1] = "--config.train.steps=7"  # without a config, digits
    done = subprocess.run(shown, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "runs/digits 7", done.stderr


_SHOW_WORKDIR = """
from mhd_jax import main, train
train.train_and_evaluate = lambda config, workdir: print(workdir, config.train.steps)
main.run()
"""


def test_a_bad_value_ends_in_one_line(tmp_path):
    workdir = tmp_path / "x"
    done = _run("--config=configs/digits.py", "--config.graph.name=cylce", f"--workdir={workdir}")
    assert done.returncode == 1 and not (workdir / "config.json").exists()
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert "graph.name = 'cylce': expected one of" in done.stderr
    assert "did you mean 'cycle'?" in done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda f: f.stem)
def test_every_config_says_how_to_run_it(file):
    assert f"--config=configs/{file.name}" in file.read_text()
