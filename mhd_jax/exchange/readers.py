# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Whose predictions a client learns from in a step, and of which of their states.

Fresh readers see their peers' predictions of this very step. Stale readers see predictions of
earlier states: the peer itself keeps its last snapshots and publishes what they predict, so that
stale teachers need no exchange of parameters either.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import ml_collections
import numpy as np
from jaxtyping import Bool, Int

from mhd_jax import edges, rng
from mhd_jax.edges import Edges, Extent, Form
from mhd_jax.graph import Topology
from mhd_jax.methods import Method, Rounds
from mhd_jax.participation import Attendance


class Reading(NamedTuple):
    """The exchange of n steps, as arrays the step consumes.

    Attributes:
      reads: [n, K] in the reader's form; candidate j * V + v is version v of client j. Where not
        everybody takes part, K stands for the places of a step and j for one of them.
      versions: [n, V], the pool slot of every version read (empty when fresh, where V = 1).
      write: [n], the pool slot that gets the state after the step, -1 for none.
    """

    reads: Edges
    versions: Int[np.ndarray, "n V"]
    write: Int[np.ndarray, " n"]


class Reader(Protocol):
    """Who reads whom: a pure function of the step range."""

    @property
    def form(self) -> Form:
        """How it is written down."""
        ...

    def extent(self, steps: int) -> Extent:
        """How much clients read at most and at least in a run of `steps` steps."""
        ...

    @property
    def pool_slots(self) -> int:
        """Snapshots each client keeps of itself; 0 where nobody reads the past."""
        ...

    def __call__(self, start: int, stop: int) -> Reading:
        """The exchange of steps start..stop - 1."""
        ...


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Peers' predictions of this very step, along the edges in force."""

    topology: Topology
    form: Form
    attendance: Attendance | None = None
    pool_slots: int = 0

    def extent(self, steps: int) -> Extent:
        """See `Reader`; of a client's peers at least all take part but those who stay away."""
        least, most = self.topology.degrees(steps)
        clients, who = self.topology.num_clients, self.attendance
        if who is None:
            return Extent(most, least, clients)
        least = max(least + who.fewest - clients, 1)
        return Extent(min(most, who.num_places - 1), least, who.num_places)

    def __call__(self, start: int, stop: int) -> Reading:
        """No pool: versions are empty and nothing is written."""
        n, listed = stop - start, self.form.kind == "lists"
        if self.topology.static and self.attendance is None:
            reads = edges.repeat(self._always, n)
        elif self.attendance is None and (listed or self.topology.peers_per_step):
            peers = (self.topology.peers(step) for step in range(start, stop))
            reads = edges.stack([edges.from_lists(ids, self.form) for ids in peers])
        else:
            graphs = (self._graph(step) for step in range(start, stop))
            reads = edges.stack([edges.from_mask(graph, self.form) for graph in graphs])
        return Reading(reads, np.zeros((n, 0), np.int32), np.full(n, -1, np.int32))

    @functools.cached_property
    def _always(self) -> Edges:
        """The graph where it stays as it is."""
        return edges.from_mask(self.topology.at(0), self.form)

    def _graph(self, step: int) -> Bool[np.ndarray, "K K"]:
        if self.attendance is None:
            return self.topology.reads(step, step + 1)[0]
        clients, taken = _seated(self.attendance, step)
        mask = np.zeros((len(taken), len(taken)), bool)
        mask[np.ix_(taken, taken)] = self.topology.among(step, clients)
        return mask


def _seated(who: Attendance, step: int) -> tuple[Int[np.ndarray, " a"], Bool[np.ndarray, " N"]]:
    """Who takes part in a step, and which places they take."""
    places = who.places(step)
    taken = places != edges.NOBODY
    return places[taken], taken


@dataclasses.dataclass(frozen=True)
class Stale:
    """A rolling pool of N_P snapshots of peers per client, one replaced every S_P steps.

    At the end of every S_P-th step each client draws a random peer along the edges then in force
    and puts that peer's state (after the step) into its oldest slot; the pool starts with initial
    states of random peers. All clients refresh the same slot at the same time, so a slot is one
    moment in the past, and every client needs to keep only its own N_P past states.

    With `peers_per_step` = Δ > 0, Δ slots are drawn per step, the same for all clients, each of
    which finds its own peers in them. Memory: N_P parameter copies per client. Time: min(Δ, N_P)
    extra forward passes on the public batch per client and step (N_P for Δ = 0), whatever N_P is.

    Lost messages (`graph.drop`) leave the slot empty until it is next replaced. A client that takes
    no part in a step publishes nothing in it, and one that takes none in the step of a refresh
    keeps the snapshot that it has in that slot.
    """

    topology: Topology
    form: Form
    seed: int
    pool_slots: int
    refresh_steps: int
    slots_per_step: int = 0
    drop: float = 0.0
    attendance: Attendance | None = None

    @property
    def slots_read(self) -> int:
        """V."""
        return min(self.slots_per_step or self.pool_slots, self.pool_slots)

    def extent(self, steps: int) -> Extent:
        """See `Reader`: one snapshot a slot."""
        who = self.attendance
        publishers = self.topology.num_clients if who is None else who.num_places
        return Extent(self.slots_read, 1, publishers * self.slots_read)

    def __call__(self, start: int, stop: int) -> Reading:
        """The reading of steps start..stop - 1."""
        steps = range(start, stop)
        versions = np.stack([self._versions(step) for step in steps])
        reads = edges.stack([self._reads(step, versions[step - start]) for step in steps])
        return Reading(reads, versions, self._write(np.arange(start, stop)))

    def _write(self, steps: np.ndarray) -> Int[np.ndarray, " n"]:
        event = (steps + 1) // self.refresh_steps
        due = (steps + 1) % self.refresh_steps == 0
        return np.where(due, (event - 1) % self.pool_slots, -1).astype(np.int32)

    def _versions(self, step: int) -> Int[np.ndarray, " V"]:
        if self.slots_read == self.pool_slots:
            return np.arange(self.pool_slots, dtype=np.int32)
        draw = rng.generator(self.seed, "pool versions", step)
        chosen = draw.choice(self.pool_slots, self.slots_per_step, replace=False)
        return np.sort(chosen).astype(np.int32)

    def _reads(self, step: int, versions: np.ndarray) -> Edges:
        peers = np.stack([self.peers_in_slot(step, int(slot)) for slot in versions], axis=1)
        if self.attendance is not None:
            clients, taken = _seated(self.attendance, step)
            place = np.full(len(peers) + 1, edges.NOBODY)  # the last one is that of nobody
            place[clients] = np.flatnonzero(taken)
            seated = np.full((len(taken), len(versions)), edges.NOBODY)
            seated[taken] = place[peers[clients]]
            peers = seated
        columns = peers * len(versions) + np.arange(len(versions))
        return edges.from_lists(np.where(peers < 0, edges.NOBODY, columns), self.form)

    def peers_in_slot(self, step: int, slot: int) -> Int[np.ndarray, " K"]:
        """Whose snapshot each client has in `slot` when step begins; -1 for an empty slot."""
        event = step // self.refresh_steps  # refreshes so far; event e wrote slot (e - 1) % N_P
        last = event - (event - 1 - slot) % self.pool_slots
        last, drop = (last, self.drop) if last >= 1 else (0, 0.0)
        step = max(last * self.refresh_steps - 1, 0)
        return _drawn_peers(self.topology, self.seed, step, last, slot, drop)


@functools.lru_cache(maxsize=256)
def _drawn_peers(
    topology: Topology, seed: int, step: int, event: int, slot: int, drop: float
) -> Int[np.ndarray, " K"]:
    """A random peer of every client along the edges of `step`; -1 for none, or a lost one."""
    adjacency = topology.at(step)
    draw = rng.generator(seed, "pool peers", event, slot)
    score = np.where(adjacency, draw.random(adjacency.shape), -1.0)
    lost = draw.random(len(adjacency)) < drop
    peers = np.where(adjacency.any(axis=1) & ~lost, score.argmax(axis=1), edges.NOBODY)
    peers.flags.writeable = False  # cached, so shared
    return peers


@dataclasses.dataclass(frozen=True)
class RoundStart:
    """Everybody's state at the end of the private part of a round, for everybody (FedMD).

    Who is alone reads nobody: there is nothing to learn from oneself.
    """

    num_clients: int
    form: Form
    rounds: Rounds
    attendance: Attendance | None = None
    pool_slots: int = 1

    def extent(self, steps: int) -> Extent:
        """See `Reader`: everybody reads everybody."""
        if self.attendance is None:
            most = self.num_clients if self.num_clients > 1 else 0
            return Extent(most, self.num_clients, self.num_clients)
        places = self.attendance.num_places
        return Extent(places, self.attendance.fewest, places)

    def __call__(self, start: int, stop: int) -> Reading:
        """One slot, written when a round's scoring is due, read by all, oneself included."""
        steps = np.arange(start, stop)
        if self.attendance is None:
            everybody = _all_of(np.ones(self.num_clients, bool))
            reads = edges.repeat(edges.from_mask(everybody, self.form), len(steps))
        else:
            taken = [_seated(self.attendance, step)[1] for step in range(start, stop)]
            reads = edges.stack([edges.from_mask(_all_of(among), self.form) for among in taken])
        write = np.where(self.rounds.scoring(steps), 0, -1).astype(np.int32)
        return Reading(reads, np.zeros((len(steps), 1), np.int32), write)


def _all_of(there: Bool[np.ndarray, " N"]) -> Bool[np.ndarray, "N N"]:
    """All who are there read all of them, themselves included, if there are several."""
    return there[:, None] & there & (there.sum() > 1)


def make_readers(
    config: ml_collections.ConfigDict,
    method: Method,
    topologies: Sequence[Topology],
    seeds: Sequence[int],
    steps: int,
    attendances: Sequence[Attendance] = (),
) -> list[Reader]:
    """The readers that method and settings ask for, one a seed, in one form for all `steps`.

    Args:
      config: see `mhd_jax.config.default_config`.
      method: of the run.
      topologies: one per seed.
      seeds: of the run.
      steps: that the readers will be asked for.
      attendances: one per seed; () where everybody takes part in every step.
    """
    pairs = Form("pairs", config.clients.num, config.clients.num)
    readers = [
        _reader(config, method, topology, seed, pairs)
        for topology, seed in zip(topologies, seeds, strict=True)
    ]
    if attendances:
        readers = [
            dataclasses.replace(reader, attendance=who)
            for reader, who in zip(readers, attendances, strict=True)
        ]
    form = edges.choose_form([reader.extent(steps) for reader in readers])
    return [dataclasses.replace(reader, form=form) for reader in readers]


def _reader(
    config: ml_collections.ConfigDict, method: Method, topology: Topology, seed: int, form: Form
) -> Fresh | Stale | RoundStart:
    if method.snapshot_rounds and isinstance(method.when, Rounds):
        return RoundStart(config.clients.num, form, method.when)
    if config.exchange.mode == "fresh" or method.distillation is None:
        return Fresh(topology, form)
    return Stale(
        topology,
        form,
        seed,
        pool_slots=config.exchange.pool_size,
        refresh_steps=config.exchange.refresh_steps,
        slots_per_step=topology.peers_per_step,
        drop=config.graph.drop,
    )
