# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The one training step, for every method.

Inside `shard_map` a device holds k of the K clients; arrays below carry k, and only what is
published is gathered to K. The step consumes arrays (batches, who reads whom, weights) that the
host computed as functions of (seed, step), so nothing that changes during a run recompiles it.

`program` is the step: `private` (gradients of the private loss), `lessons` (gradients of
distillation, from what `publishing` lets clients see), then the snapshot and `averaging`. `parts`
is what all of them are compiled from.
"""

from mhd_jax.step.parts import Metrics, StepParts
from mhd_jax.step.program import make_step, warm_up
from mhd_jax.step.publishing import cache_shapes

__all__ = ["Metrics", "StepParts", "cache_shapes", "make_step", "warm_up"]
