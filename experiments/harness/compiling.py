# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How to compile where much is compiled and little computed: in tests and in quick trials."""

from __future__ import annotations

import os
from importlib import metadata


def quick_flags() -> str:
    """What `XLA_FLAGS` has to say."""
    # Splitting a program up to compile its parts at once costs a fifth more in all.
    flags = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    if metadata.version("jaxlib").startswith("0.10."):
        # Kernels from the older emitter compile in a third of the time; 0.11 has no choice.
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags


def compile_quickly() -> None:
    """Sets `XLA_FLAGS` unless they are set; has to come before JAX makes its first array."""
    os.environ.setdefault("XLA_FLAGS", quick_flags())
