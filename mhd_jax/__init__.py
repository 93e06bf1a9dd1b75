# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Decentralized learning with multi-headed distillation, on JAX."""

__version__ = "0.1.0"
