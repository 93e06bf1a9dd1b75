# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every config's step lowers for TPU and for CUDA on a machine that has neither."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import pytest

from mhd_jax import audit
from mhd_jax import experiment as experiment_lib
from mhd_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_the_step_lowers_for_tpu_and_cuda(path, request):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    if config.data.name != "digits":
        config.data.dir = str(request.getfixturevalue("tfds_dir"))
    config.parallel.conv = "grouped"  # what accelerators use; "auto" looks at this machine
    try:
        experiment = experiment_lib.build(config)
    except ConfigError as error:
        if error.setting in ("data.name", "data.dir"):
            pytest.skip(f"its data is not here: {error}")
        raise
    arguments = audit.abstract_arguments(experiment)
    exported = jax.export.export(experiment.step, platforms=("tpu", "cuda"))(*arguments)
    assert set(exported.platforms) == {"tpu", "cuda"}
    assert exported.nr_devices == experiment.layout.mesh.size
    if experiment.layout.client_devices > 1:
        assert "all_gather" in exported.mlir_module()
