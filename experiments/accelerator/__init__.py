# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Everything that wants an accelerator, in one command and in slices of a short booking."""
