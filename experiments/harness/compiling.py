# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How to compile where much is compiled and little computed: in tests and in quick trials."""

from __future__ import annotations

import os
import sys
from importlib import metadata


def quick_flags() -> str:
    """What `XLA_FLAGS` has to say."""
    # Splitting a program up to compile its parts at once costs a fifth more in all.
    flags = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    if metadata.version("jaxlib").startswith("0.10."):
        # Kernels from the older emitter compile in a third of the time; 0.11 has no choice.
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


def quick_environment() -> dict[str, str]:
    """The variables of a process that compiles quickly.

    Operations do not say in which line they were written: that is a tenth of the time to trace and
    lower a program.
    """
    return {"XLA_FLAGS": quick_flags(), "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0"}


def compile_quickly() -> None:
    """Sets these variables unless they are set; has to come before JAX makes its first array."""
    for name, value in quick_environment().items():
        os.environ.setdefault(name, value)
    if "jax" in sys.modules:  # which reads its own variables when it is imported
        import jax

        limit = int(os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"])
        jax.config.update("jax_traceback_in_locations_limit", limit)
