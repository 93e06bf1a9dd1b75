# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a person sees of a run: terminal, charts and the report."""
