# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Where a run lives: its directory, checkpoints, processes and TensorBoard."""
