# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""All benchmarks, in the order in which the README shows them."""

from __future__ import annotations

from experiments.benchmarks import (
    clients,
    convolutions,
    encoding_cost,
    exchange_cost,
    federated,
    feeding,
    growth,
    limits,
    message_sizes,
    quickstart,
    step,
)

BENCHMARKS = (
    step.BENCHMARK,
    convolutions.BENCHMARK,
    growth.BENCHMARK,
    clients.BENCHMARK,
    limits.BENCHMARK,
    feeding.BENCHMARK,
    federated.BENCHMARK,
    exchange_cost.BENCHMARK,
    encoding_cost.BENCHMARK,
    message_sizes.BENCHMARK,
    quickstart.BENCHMARK,
)
