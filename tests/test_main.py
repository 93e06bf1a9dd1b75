# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The command line: errors before any work, in one line, with what would be accepted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mhd_jax.main", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_mistyped_setting_is_refused_with_a_suggestion(tmp_path):
    done = _run("--config=configs/digits.py", "--config.distill.nu_au=1", f"--workdir={tmp_path}/x")
    assert done.returncode != 0
    assert "nu_aux" in done.stderr + done.stdout
    assert not (tmp_path / "x").exists()


def test_a_bad_value_ends_in_one_line(tmp_path):
    done = _run("--config=configs/digits.py", "--config.graph.name=cylce", f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "graph.name = 'cylce': expected one of" in done.stderr
    assert "did you mean 'cycle'?" in done.stderr


def test_the_smoke_config_ends_with_the_table(tmp_path):
    done = _run("--config=configs/digits.py:smoke", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "shared accuracy" in done.stdout and "isolated" in done.stdout
    assert (tmp_path / "report.html").exists()
    again = _run("--config=configs/digits.py:smoke", f"--workdir={tmp_path}")
    assert again.returncode == 0 and "finished" in again.stdout


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda f: f.stem)
def test_every_config_says_how_to_run_it(file):
    assert f"--config=configs/{file.name}" in file.read_text()
