# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What one call of the training step consumes, and the batch that it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mhd_jax.errors import ConfigError

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


def as_stored(
    setting: str, samples: np.ndarray, shape: Sequence[int], dtype: np.dtype
) -> np.ndarray:
    """Samples as a data set of such samples stores them: pixels in uint8, or numbers in `dtype`.

    Images in floating point lie in 0..1 and may stand for pixels, and pixels for them.

    Args:
      setting: what messages call them.
      samples: [N, ...].
      shape: of one sample.
      dtype: uint8 for pixels, another integer type for ids, floating point for other numbers.

    Raises:
      ConfigError: another shape or type, numbers that are not finite, images that are not in 0..1.
    """
    if samples.ndim != len(shape) + 1 or samples.shape[1:] != tuple(shape):
        accepted = f"[N, {', '.join(map(str, shape))}]"
        raise ConfigError(setting, f"an array of shape {samples.shape}", accepted)
    given, kind, dtype = f"an array of {samples.dtype}", samples.dtype.kind, np.dtype(dtype)
    images = len(shape) == 3
    if dtype.kind in "iu" and dtype != np.uint8:
        if kind not in "iu":
            raise ConfigError(setting, given, "ids, which are integers")
        return samples.astype(dtype)
    if kind not in ("f" if images and samples.dtype != np.uint8 else "fiu"):
        accepted = "uint8 or floating point" if images else f"numbers of type {dtype}"
        raise ConfigError(setting, given, accepted)
    if not np.isfinite(samples).all():
        raise ConfigError(setting, given, "finite numbers, but some are NaN or inf")
    if samples.dtype == np.uint8:
        return samples if dtype == np.uint8 else samples.astype(dtype) / (255 if images else 1)
    if images and len(samples) and not 0 <= samples.min() <= samples.max() <= 1:
        accepted = f"images in 0..1, not {samples.min():g}..{samples.max():g}"
        raise ConfigError(setting, given, accepted)
    return samples.astype(np.float32)


class StepInputs(NamedTuple):
    """What the host decides about n steps; R replicas, axes as the step sees them.

    Attributes:
      private: per group, what `Feed.load` needs of every client's batch, [n, R, K, B].
      public: what it needs of the public batch, [n, R, B'].
      reads: per group, who reads whom: `Edges` [n, R, K].
      versions: pool slots read, int [n, R, V].
      write: pool slot written after the step or -1, int [n].
      weights: of the private and of the distillation loss, [n, 2].
      average: whether the step ends with an average, bool [n].
      mixing: rows of the averaging matrix, [n, R, K, K], or [n, R, 0, 0] without averaging.
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
