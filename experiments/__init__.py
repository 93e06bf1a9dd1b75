# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""One script per table: ``python -m experiments.topology --preset=digits --workdir=runs/digits``.

The scripts beside this file are the studies; `harness` runs them and renders what they find,
`benchmarks` measures speed, `checks` measures promises of the package, `colab` holds notebooks.
"""
