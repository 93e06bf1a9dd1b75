# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How fast it is: beside what people use today, and beside what the machine can do.

    python -m experiments.benchmarks.step --out=experiments/results/benchmarks

A benchmark is a list of cases (`timing.Benchmark`); every case leaves a record of its own, and the
README's tables are rendered from the records. `--quick` runs tiny sizes to see that all works.
"""
