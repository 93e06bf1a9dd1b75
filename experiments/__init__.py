# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""One script per table: ``python -m experiments.topology --preset=digits --workdir=runs/sweep``."""
