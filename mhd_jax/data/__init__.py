# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Data: sources, who owns which samples, batches, augmentation, and how they reach the devices."""
