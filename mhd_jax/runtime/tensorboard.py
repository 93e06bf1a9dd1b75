# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""TensorBoard, for those who have it: means over clients of whatever the run logs.

`clu.metric_writers` needs TensorFlow, which takes seconds to import and which accelerator
machines may lack; so it is an extra, ``pip install 'mhd-jax[tensorboard]'``, and without it the
same numbers are in `metrics.jsonl`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float

from mhd_jax.results import LINE_FIELDS


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Flattens logged values to one number a name: means over clients, a name per head.

    Of several seeds the first's.

    >>> scalars({"loss": np.array([1.0, 3.0]), "shared_accuracy": np.array([[0.5, 1.0]])})
    {'loss': 2.0, 'shared_accuracy/head_0': 0.5, 'shared_accuracy/head_1': 1.0}
    """
    flat: dict[str, float] = {}
    for name, value in values.items():
        array = np.asarray(value, np.float64)
        if name in _PER_SEED:
            array = array[0]
        if array.ndim < 2 and name not in _PER_HEAD:
            flat[name] = _mean(array)
        else:
            for head, column in enumerate(array.T):
                flat[f"{name}/head_{head}"] = _mean(column)
    return flat


_PER_SEED = {doc.key for doc in LINE_FIELDS if doc.shape == "[R]"}
_PER_HEAD = {doc.key for doc in LINE_FIELDS if doc.shape == "[h]"}
"""What has no axis of clients."""


def _mean(values: Float[np.ndarray, "*n"]) -> float:
    """Over those that are known: clients may have taken no part."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


class TensorBoard:
    """Writes scalars where TensorBoard finds them; silently nothing without the extra."""

    def __init__(self, directory: str | os.PathLike[str], *, enabled: bool = True) -> None:
        needed = ("tensorflow", "tensorboard")
        self._writer = None
        if enabled and all(importlib.util.find_spec(name) for name in needed):
            from clu import metric_writers  # imports TensorFlow

            self._writer = metric_writers.SummaryWriter(os.fspath(directory))
            logging.info("writing TensorBoard events to %s", directory)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes `scalars(values)` for one step."""
        if self._writer is not None:
            self._writer.write_scalars(step, scalars(values))
            self._writer.flush()
