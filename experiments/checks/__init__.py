# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Promises of the package that take longer to check than a test may: resuming, devices, leaks."""
