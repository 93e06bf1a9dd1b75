# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who owns which samples of a replica, and in which order steps read those of all replicas."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mhd_jax.data import batches
from mhd_jax.data.batches import Visits
from mhd_jax.data.partition import Partition
from mhd_jax.data.sources import Source, Split, fingerprint
from mhd_jax.parallel import Layout
from mhd_jax.participation import Roster


@dataclasses.dataclass(frozen=True)
class Federation:
    """One replica's data: who owns which samples.

    Attributes:
      seed: the replica's seed.
      source: private training set, test set and normalisation.
      partition: the private samples of every client.
      public: the split public images come from; its labels never reach training.
      public_indices: the public set within that split.
      mean: per channel or feature, subtracted before a sample enters a network; () for ids.
      std: per channel or feature, the divisor after that.
    """

    seed: int
    source: Source
    partition: Partition
    public: Split
    public_indices: Int[np.ndarray, " P"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @functools.cached_property
    def histogram(self) -> Int[np.ndarray, "K C"]:
        """Private samples of each class that each client holds."""
        return self.partition.histogram(self.source.train.labels, self.source.num_classes)

    @property
    def fingerprint(self) -> str:
        """Hash by which a resumed run recognises its data."""
        return fingerprint(self.source, self.public, self.public_indices)


@dataclasses.dataclass(frozen=True)
class SampleOrder:
    """The order of samples of all replicas and clients.

    Attributes:
      federations: one per replica.
      roster: who owns which client, and who takes part in a step.
      batch_size: private samples per client and step; expected ones where they are Poisson.
      public_batch_size: public samples per step.
      visits: how long these stay.
      poisson_places: of a Poisson batch; 0 for a walk through shuffled epochs.
    """

    federations: Sequence[Federation]
    roster: Roster
    batch_size: int
    public_batch_size: int
    visits: Visits = Visits()
    poisson_places: int = 0

    @property
    def layout(self) -> Layout:
        """Who owns which client."""
        return self.roster.layout

    def private(self, start: int, stop: int) -> tuple[Int[np.ndarray, "n R K B"], ...]:
        """Positions among the own samples of each client, or of that at each place, per group.

        Rows of clients that do not exist are padding; -1 stands for no sample.
        """
        seated = self.roster.seated(start, stop, len(self.federations)).swapaxes(0, 1)
        walks = [
            self._walk(fed, who, start, stop)
            for fed, who in zip(self.federations, seated, strict=True)
        ]
        return self.roster.places.split(np.stack(walks, axis=1), axis=2)

    def _walk(
        self, fed: Federation, seated: Int[np.ndarray, "n N"], start: int, stop: int
    ) -> Int[np.ndarray, "n K B"]:
        """Positions in one replica; K is the number of places where not everybody takes part."""
        seed, sizes, size = fed.seed, fed.partition.sizes, self.batch_size
        if self.poisson_places:
            return batches.poisson(seed, sizes, size, self.poisson_places, start, stop)
        if self.roster.attendances:
            return batches.walks_of(seed, "private", sizes, size, start, seated)
        return batches.walks(seed, "private", sizes, size, start, stop)

    def public(self, start: int, stop: int) -> Int[np.ndarray, "n R P"]:
        """Positions within each replica's public set."""
        walks = [
            batches.public_indices(
                fed.seed, len(fed.public_indices), self.public_batch_size, self.visits, start, stop
            )
            for fed in self.federations
        ]
        return np.stack(walks, axis=1)
