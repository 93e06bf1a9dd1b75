# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Means and ranges over clients and seeds, head by head."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from mhd_jax.results.summary import SeedResult


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number per client, summarised.

    Attributes:
      mean: over clients (and over seeds where there are several).
      min: the lowest client's, of all seeds.
      max: the highest client's, of all seeds.
      std: sample standard deviation of the seeds' means; None for a single seed.
    """

    mean: float
    min: float
    max: float
    std: float | None = None

    @classmethod
    def of(cls, values: Float[np.ndarray, "R K"]) -> Spread:
        """Summarises one number per seed and client.

        >>> Spread.of(np.array([[0.0, 1.0]]))
        Spread(mean=0.5, min=0.0, max=1.0, std=None)
        """
        means = values.mean(axis=1)
        std = float(means.std(ddof=1)) if len(means) > 1 else None
        return cls(float(means.mean()), float(values.min()), float(values.max()), std)

    def text(self, signed: bool = False) -> str:
        """Mean ± standard deviation over seeds, the latter where there are several.

        >>> Spread(0.5, 0.25, 0.75).text(), Spread(0.5, 0.25, 0.75, 0.125).text(signed=True)
        ('0.500', '+0.500 ± 0.125')
        """
        mean = f"{self.mean:+.3f}" if signed else f"{self.mean:.3f}"
        return mean if self.std is None else f"{mean} ± {self.std:.3f}"


@dataclasses.dataclass(frozen=True)
class HeadRow:
    """One line of the results: a head's accuracies, and its gain over the isolated baseline."""

    name: str
    shared: Spread
    private: Spread
    shared_gain: Spread | None = None
    private_gain: Spread | None = None


ISOLATED = "isolated"
"""The name of the isolated baseline's row."""


def head_names(num_heads: int) -> list[str]:
    """The heads' names in the order of their ranks.

    >>> head_names(3)
    ['main', 'aux 1', 'aux 2']
    """
    return ["main", *(f"aux {rank}" for rank in range(1, num_heads))]


def head_rows(result: SeedResult) -> list[HeadRow]:
    """The results of a run, a row per head and one for the isolated baseline where there is one.

    Over those clients alone that learn and do not lie.

    Args:
      result: a summary, or the results of one of its seeds.

    Returns:
      Rows in the order of the ranks, the isolated baseline last.
    """
    baselines = [seed.isolated_baseline for seed in result.seeds]
    found = [baseline for baseline in baselines if baseline is not None]

    def stack(values: Iterable[np.ndarray]) -> Float[np.ndarray, "R K H"]:
        return np.compress(result.counted, np.stack(list(values)), axis=1)

    return accuracy_rows(
        stack(seed.shared_accuracy for seed in result.seeds),
        stack(seed.private_accuracy for seed in result.seeds),
        stack(one.shared_accuracy for one in found) if len(found) == len(baselines) else None,
        stack(one.private_accuracy for one in found) if len(found) == len(baselines) else None,
    )


def accuracy_rows(
    shared: Float[np.ndarray, "R K H"],
    private: Float[np.ndarray, "R K H"],
    baseline_shared: Float[np.ndarray, "R K 1"] | None = None,
    baseline_private: Float[np.ndarray, "R K 1"] | None = None,
) -> list[HeadRow]:
    """`head_rows` from the accuracies of R seeds.

    Gains are taken client by client against the isolated baseline, which has the same data, the
    same initial parameters and one head.
    """
    spread = Spread.of
    rows = []
    for head, name in enumerate(head_names(shared.shape[-1])):
        gains = []
        if baseline_shared is not None and baseline_private is not None:
            gains = [
                spread(shared[..., head] - baseline_shared[..., 0]),
                spread(private[..., head] - baseline_private[..., 0]),
            ]
        rows.append(HeadRow(name, spread(shared[..., head]), spread(private[..., head]), *gains))
    if baseline_shared is not None and baseline_private is not None:
        alone = spread(baseline_shared[..., 0]), spread(baseline_private[..., 0])
        rows.append(HeadRow(ISOLATED, *alone))
    return rows


def epsilon_range(found: Float[np.ndarray, " K"]) -> str:
    """Smallest and largest epsilon, NaN left out.

    >>> epsilon_range(np.array([2.0, np.nan]))
    '2.00'
    """
    low, high = f"{np.nanmin(found):.2f}", f"{np.nanmax(found):.2f}"
    return low if low == high else f"{low} to {high}"
