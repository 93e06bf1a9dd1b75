# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What one call of the training step consumes, and the batch that it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

Sample = Sequence[int] | jax.ShapeDtypeStruct
"""One sample as a network sees it: its shape, and its type where that is not float32."""


def network_input(sample: Sample, rows: int = 1) -> jax.ShapeDtypeStruct:
    """Shape and type of a batch of samples.

    >>> network_input((8, 8, 1), rows=2).shape
    (2, 8, 8, 1)
    """
    if isinstance(sample, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((rows, *sample.shape), sample.dtype)
    return jax.ShapeDtypeStruct((rows, *sample), jnp.float32)


class StepInputs(NamedTuple):
    """What the host decides about n steps; R replicas, axes as the step sees them.

    Attributes:
      private: per group, what `Feed.load` needs of every client's batch, [n, R, K, B].
      public: what it needs of the public batch, [n, R, B'].
      reads: per group, who reads whom: `Edges` [n, R, K].
      versions: pool slots read, int [n, R, V].
      write: pool slot written after the step or -1, int [n].
      weights: of the private and of the distillation loss, [n, 2].
      average: which averaging matrix the step ends with, -1 for no average, int [n].
      mixing: rows of these matrices, [m, R, K, K]; or [1, R, 0, 0] where weights are uniform, and
        without averaging. The step sees its own one, [R, K, K].
      label_shares: label distributions that clients publish, [n, R, K, C], or [n, R, 0, 0].
      seated: the client at every place of the step, [n, R, N], -1 for nobody; or [n, R, 0] where
        everybody takes part. In all others K then stands for the places.
    """

    private: Any
    public: Any
    reads: Any
    versions: Any
    write: Any
    weights: Any
    average: Any
    mixing: Any
    label_shares: Any
    seated: Any


class Batch(NamedTuple):
    """One step's samples on one device: augmented and normalised, and private labels.

    Attributes:
      images: per group, [k, B, ...].
      labels: per group, [k, B].
      public: [B', ...], the same for all clients.
      weights: per group, what each sample counts in the mean of the losses, [k, B]; () where all
        count 1. Places that a random batch leaves empty count 0.
    """

    images: tuple[Array, ...]
    labels: tuple[Array, ...]
    public: Array
    weights: tuple[Array, ...] = ()
