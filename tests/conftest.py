# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What every test relies on: four CPU devices, a shared compilation cache, prepared data.

The environment is set while this file is imported, which is before anything imports JAX. Worker
processes of pytest-xdist and programs that a test starts inherit it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from experiments.harness.compiling import compile_quickly
from tests.garbage import collect_rarely

ROOT = Path(__file__).resolve().parent.parent


def _set_environment() -> None:
    if "jax" in sys.modules:
        raise pytest.UsageError("JAX was imported before tests/conftest.py could configure it")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
    os.environ.setdefault("MPLBACKEND", "agg")
    compile_quickly()  # what the compiler does with arrays stays as it is
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # One fresh folder for the whole session: nothing compiled by older code can be reused.
        folder = tempfile.mkdtemp(prefix="mhd_jax_tests_")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


_set_environment()

# Compiling inside an example makes times meaningless, hence no deadline. Continuous integration
# draws the same examples every time; elsewhere they differ, and failures are remembered.
hypothesis.settings.register_profile(
    "mhd_jax",
    deadline=None,
    max_examples=25,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("mhd_jax")


def pytest_collection_finish() -> None:
    """Modules and tests are there by now, and stay."""
    collect_rarely()


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """The folder of prepared TFDS datasets; a test that asks for it is skipped without one."""
    folder = Path(os.environ.get("TFDS_DATA_DIR") or ROOT.parent / "shared" / "tfds")
    if not folder.is_dir():
        pytest.skip(f"no prepared datasets at {folder} (set TFDS_DATA_DIR to their folder)")
    return folder


@pytest.fixture(scope="module")
def pieces() -> Iterator[None]:
    """Whatever a module registers is forgotten after its last test."""
    from mhd_jax import api

    before = {kind: dict(registry._pieces) for kind, registry in api.PIECES.items()}
    yield
    for kind, registry in api.PIECES.items():
        registry._pieces = before[kind]


@pytest.fixture
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal that is not ignored, as SIGHUP is under `nohup` and SIGINT in the background."""
    usual = signal.default_int_handler if request.param == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(request.param, usual)
    yield request.param
    signal.signal(request.param, before)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    """A gs:// directory held in memory, so that the code for URLs runs without a network."""

    class Bucket(MemoryFileSystem):
        protocol = ("gs", "gcs")
        store: dict[str, Any] = {}
        pseudo_dirs = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("gs://").strip("/")

    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: Bucket())
    return epath.Path("gs://bucket/run")
