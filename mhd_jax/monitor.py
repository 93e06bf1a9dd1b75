# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Takes the pulse of a run at every log point and says, once per kind, what has gone wrong."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mhd_jax import health
from mhd_jax.data.sources import at_most
from mhd_jax.evaluator import Evaluation
from mhd_jax.experiment import Experiment
from mhd_jax.federation import preparation
from mhd_jax.probe import PROBED, Vitals, make_probe
from mhd_jax.state import State

PATIENCE = 0.3  # of the run, or as long as distillation fades in: before that nobody is judged


@dataclasses.dataclass
class Monitor:
    """The probe of a run and the watch over what it finds.

    Attributes:
      experiment: the run.
    """

    experiment: Experiment

    @functools.cached_property
    def watch(self) -> health.Watch:
        """What has been said so far."""
        config = self.experiment.config
        patience = round(max(PATIENCE, config.distill.fade_in) * config.train.steps)
        chosen = self.experiment.parts.method.distillation
        aligned = chosen is not None and chosen.aligns
        count = self.experiment.evaluator.histograms[0].sum(axis=0)
        largest = float(count.max() / max(count.sum(), 1))
        return health.Watch(patience, self.experiment.client_names, aligned, largest)

    @property
    def works(self) -> bool:
        """Whether there is anything to look at: heads that learn from published predictions."""
        chosen = self.experiment.parts.method.distillation
        return chosen is not None and bool(chosen.nu_pred)

    def look(self, state: State, step: int) -> tuple[dict[str, np.ndarray], list[str]]:
        """Numbers for the record of a step, of the first seed, and lines for people."""
        if not self.works:
            return {}, []
        experiment = self.experiment
        exchange = experiment.schedule.exchange(max(step - 1, 0))
        here = experiment.seat(state, max(step - 1, 0))
        probed = self._probe(here, exchange, *self._images, experiment.seed_array)
        roster, places = experiment.parts.roster, experiment.parts.places
        host = places.fetch(probed)
        joined = [places.join(parts, axis=0) for parts in zip(*host, strict=True)]
        found = dict(zip(Vitals._fields, joined, strict=True))
        shares = found.pop("teaching_shares")
        ignored = found.pop("ignored")
        known = ~np.isnan(ignored)
        ignored_by = np.nansum(ignored, axis=0) / np.maximum(known.sum(axis=0), 1)
        seated = roster.seated(max(step - 1, 0), max(step, 1), 1)[0, 0]
        agreement = found.pop("teacher_agreement")[0]
        given = health.of_all_lessons(shares)
        by_client = {**found, "teaching_share": given, "ignored_by": ignored_by}
        values = {name: roster.spread(value, seated) for name, value in by_client.items()}
        values["teacher_agreement"] = agreement
        if np.isnan(values["teacher_accuracy"]).all():
            del values["teacher_accuracy"]
        reads = experiment.topologies[0].at(max(step - 1, 0))
        clients = np.arange(len(reads))
        if roster.attendances:
            taken = seated >= 0
            clients, shares = seated[taken], shares[np.ix_(taken, taken)]
        lines = self.watch.look(
            step,
            top_share=values["top_class_share"][clients],
            shares=shares,
            reads=reads[np.ix_(clients, clients)],
            ignored_by=values["ignored_by"][clients],
            clients=clients,
        )
        return values, lines

    def compare(self, step: int, found: Evaluation) -> list[str]:
        """Lines for people where heads fall behind the isolated baseline."""
        if not self.works or found.baseline is None:
            return []
        counted = self.experiment.counted
        (shared, private), (alone, kept) = (
            (pair[0][0], pair[1][0]) for pair in ((found.shared, found.private), found.baseline)
        )
        lines = self.watch.compare(step, private[:, 0], kept[:, 0], counted)
        if step == self.experiment.config.train.steps and shared.shape[1] > 1:
            lines += self.watch.at_end(step, shared[:, -1], alone[:, 0], counted)
        return lines

    @functools.cached_property
    def _probe(self) -> Callable[..., Any]:
        experiment = self.experiment
        prepare = preparation(experiment.config, experiment.federations).test
        return make_probe(experiment.parts, prepare)

    @functools.cached_property
    def _images(self) -> tuple[jax.Array, jax.Array]:
        """Public images to look at and their labels, -1 where they are another data set's."""
        federation, layout = self.experiment.federations[0], self.experiment.layout
        chosen = at_most(federation.public_indices, PROBED)
        known = federation.public is federation.source.train
        labels = federation.public.labels[chosen] if known else np.full(len(chosen), -1)
        images = federation.public.images(chosen)
        return layout.put(images), layout.put(labels.astype(np.int32))
