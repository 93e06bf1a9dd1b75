# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How many bytes clients send, counted both ways: as predictions and as parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mhd_jax.exchange.encodings import Encoding
from mhd_jax.methods import Method
from mhd_jax.participation import Attendance

BLOCK = 100  # steps whose bytes are kept where not everybody takes part


def message_bytes(
    encoding: Encoding, scores_shape: tuple[int, ...], embedding_width: int, energy: bool = False
) -> int:
    """Bytes one client publishes in one step.

    Args:
      encoding: the form predictions travel in.
      scores_shape: [V * B', H, C]; a zero anywhere means that no predictions are published.
      embedding_width: D, or 0 where no embeddings are published.
      energy: a standardised energy travels beside every prediction, as embeddings do.
    """
    total = 0
    if 0 not in scores_shape:
        scores = jax.ShapeDtypeStruct(scores_shape, jnp.float32)
        for part in jax.eval_shape(encoding.encode, scores):
            total += part.size * part.dtype.itemsize
    width = jnp.dtype(encoding.embedding_type).itemsize
    energies = scores_shape[1] if energy else 0
    return total + scores_shape[0] * (embedding_width + energies) * width


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Bytes per client; each array is [K].

    Attributes:
      predictions: published in a step with distillation, as encoded.
      snapshots: the other accounting: shipping one parameter snapshot every `refresh_steps`.
      fedavg: shipping the parameters every `average.every` steps, as FedAvg does: in float32, or
        where the method averages in the type that it sends.
      method: supplies when distillation and averaging happen.
      average_every: steps between two averages.
      once: published a single time, at the start: label distributions, where the method uses them.
      attendance: who takes part in which step; None for everybody in every step.

    A client whom nobody may learn from sends nothing.
    """

    predictions: Float[np.ndarray, " K"]
    snapshots: Float[np.ndarray, " K"]
    fedavg: Float[np.ndarray, " K"]
    method: Method
    average_every: int
    once: Float[np.ndarray, " K"]
    attendance: Attendance | None = None

    def sent(self, step: int) -> float:
        """Bytes that all clients together have really sent in the first `step` steps."""
        return self.published(step) + self._averaged(step)

    def published(self, step: int) -> float:
        """Those of them that were not parameters."""
        if not step:
            return 0.0
        once = float(self.once.sum())
        if self.attendance is None:
            distilling = int(self.method.distils(np.arange(step)).sum())
            return once + float(self.predictions.sum()) * distilling
        whole = step // BLOCK
        blocks = sum(map(self._published_block, range(whole)))
        return once + blocks + self._published_in(np.arange(whole * BLOCK, step))

    def _averaged(self, step: int) -> float:
        if self.method.averaging is None:
            return 0.0
        due = int(self.method.averaging.due(np.arange(step)).sum())
        return float(self.fedavg.sum()) * self.average_every * due

    def _published_block(self, block: int) -> float:
        """Bytes published in `BLOCK` steps."""
        if block not in self._blocks:
            steps = np.arange(block * BLOCK, (block + 1) * BLOCK)
            self._blocks[block] = self._published_in(steps)
        return self._blocks[block]

    @functools.cached_property
    def _blocks(self) -> dict[int, float]:
        return {}

    def _published_in(self, steps: Int[np.ndarray, " n"]) -> float:
        assert self.attendance is not None
        distilling = steps[self.method.distils(steps)].tolist()
        return sum(float(self.predictions[self.attendance.clients(s)].sum()) for s in distilling)

    def until(
        self, levels: Iterable[float], evaluations: Sequence[tuple[int, float]]
    ) -> dict[str, float | None]:
        """Bytes that all clients together have sent when an accuracy is first seen.

        Args:
          levels: accuracies.
          evaluations: (step, accuracy), in the order of steps.

        Returns:
          By level, as "0.9", bytes up to the first evaluation that reaches it; None where none
          does.
        """
        found: dict[str, float | None] = {}
        for level in levels:
            reached = (step for step, accuracy in evaluations if accuracy >= level)
            step = next(reached, None)
            found[f"{level:g}"] = None if step is None else self.sent(step)
        return found

    def record(self) -> dict[str, Float[np.ndarray, " K"]]:
        """Bytes per step and client for the run's record."""
        return {
            "predictions": self.predictions,
            "snapshots": self.snapshots,
            "fedavg": self.fedavg,
        }
