# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who can read whom at every step: graphs that change, peers drawn at random, messages lost.

All of it is arrays computed on the host as a pure function of (seed, step), so the compiled
training step never sees a new shape.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from mhd_jax.config import default_config, is_whole
from mhd_jax.edges import NOBODY, to_lists, to_mask
from mhd_jax.errors import ConfigError, of_piece, suggest
from mhd_jax.graph.catalogue import FIXED, GRAPHS, Adjacency, check_adjacency, given
from mhd_jax.rng import generator
from mhd_jax.wording import listed

# Graphs of earlier periods kept at hand, for readers that look back (a pool of old snapshots).
PERIODS_CACHED = 32


# Graphs of a changing sequence whose degrees are counted before the run.
TURNS_COUNTED = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """Who reads whom at every step: a pure function of (seed, step), made by `make_topology`.

    Attributes:
      num_clients: K.
      seed: of the peers drawn and the messages lost.
      graphs: the graphs that take turns: a matrix, or a function from a step to a matrix.
      every: steps for which a graph stays in force; 0 means that the first one is the only one,
        asked afresh in every step if it is a function.
      peers_per_step: Δ, peers each client reads per step, drawn at random; 0 means all. -1
        in the settings is stored as 0; `experiment.traffic` may replace it by the method's own.
      drop: probability that an edge is silent in a step.
    """

    num_clients: int
    seed: int
    graphs: tuple[Adjacency | Callable[[int], Adjacency], ...]
    every: int = 0
    peers_per_step: int = 0
    drop: float = 0.0

    @property
    def changes(self) -> bool:
        """Whether there is more than one graph, peers drawn and messages lost apart."""
        return len(self.graphs) > 1 or not isinstance(self.graphs[0], np.ndarray)

    @property
    def static(self) -> bool:
        """Whether everybody reads the same peers in every step."""
        return not (self.changes or self.peers_per_step or self.drop)

    @functools.cached_property
    def _lists(self) -> Callable[[int], Int[np.ndarray, "K w"]]:
        """The peers of a step as lists, those of the last graph asked for kept at hand."""
        return functools.lru_cache(maxsize=1)(lambda step: to_lists(self.at(step)))

    def peers(self, step: int) -> Int[np.ndarray, "K n"]:
        """Who really reads whom at `step`, what `reads` says, as lists; gaps are `NOBODY`."""
        return self._thinned_lists(step, self._lists(self.turn(step) * (self.every or 1)))

    def turn(self, step: int) -> int:
        """Which graph is in force at `step`: steps of one number have one graph."""
        if not self.changes:
            return 0
        return step // self.every if self.every else step

    def most_turns(self, steps: int) -> int:
        """How many of these numbers so many steps in a row have at most."""
        if not self.changes:
            return 1
        return -(-(steps - 1) // (self.every or 1)) + 1

    def at(self, step: int) -> Adjacency:
        """The graph in force at `step`, before peers are drawn and messages are lost."""
        period = step // self.every if self.every else 0
        graph = self.graphs[period % len(self.graphs)]
        if isinstance(graph, np.ndarray):
            return graph
        return graph(period * self.every if self.every else step)

    def ever(self, steps: int, most: int | None = None) -> Adjacency:
        """Who reads whom at any time in a run of `steps` steps: the union of its graphs.

        Args:
          steps: of the run.
          most: look at so many graphs only, the first ones.
        """
        turns = range(0, steps, self.every or 1)[: most if self.changes else 1]
        if all(isinstance(graph, np.ndarray) for graph in self.graphs):
            turns = turns[: len(self.graphs)]
        union = np.zeros((self.num_clients, self.num_clients), bool)
        for step in turns:
            union |= self.at(step)
            if union.sum() == self.num_clients * (self.num_clients - 1):
                break
        return union

    def without_readers(self, first: int) -> Topology:
        """The same, but the first so many clients read nobody."""
        if not first:
            return self  # graphs of thousands of clients are large, and some are made in every step
        reads = np.arange(self.num_clients)[:, None] >= first

        def cut(graph: Adjacency | Callable[[int], Adjacency]) -> Any:
            return graph & reads if isinstance(graph, np.ndarray) else lambda at: graph(at) & reads

        return dataclasses.replace(self, graphs=tuple(map(cut, self.graphs)))

    def degrees(self, steps: int) -> tuple[int, int]:
        """Fewest peers of a client that reads anybody, and most of any, in a run of `steps` steps.

        Both hold at every step, drawn peers and lost messages counted. Where more than
        `TURNS_COUNTED` different graphs take turns, nobody looks, and they are 1 and K.
        """
        turns = range(0, steps, self.every or 1)[: None if self.changes else 1]
        if all(isinstance(graph, np.ndarray) for graph in self.graphs):
            turns = turns[: len(self.graphs)]
        least, most = self.num_clients, 0
        if len(turns) > TURNS_COUNTED:
            least, most = 1, self.num_clients
            turns = turns[:0]
        for step in turns:
            degrees = self.at(step).sum(axis=1)
            least = min(least, int(degrees[degrees > 0].min(initial=self.num_clients)))
            most = max(most, int(degrees.max(initial=0)))
        if self.peers_per_step:
            least, most = (min(degree, self.peers_per_step) for degree in (least, most))
        return (1 if self.drop else least), most

    def usual_degree(self) -> float:
        """Peers of the median client, in the sparsest of the graphs that take turns."""
        return min(float(np.median(graph.sum(axis=1))) for graph in self.firsts())

    def firsts(self) -> Iterator[Adjacency]:
        """The first graph of each kind that takes turns."""
        return (self.at(turn * self.every) for turn in range(len(self.graphs)))

    def reads(self, start: int, stop: int) -> Bool[np.ndarray, "n K K"]:
        """Who really reads whom in the n steps start..stop - 1; read-only if `static`.

        Peers are drawn first: a client whose Δ messages are all lost hears nobody in that step.
        """
        if self.static:
            shape = (stop - start, self.num_clients, self.num_clients)
            return np.broadcast_to(self.at(start), shape)
        reads = np.empty((stop - start, self.num_clients, self.num_clients), dtype=bool)
        for row, step in enumerate(range(start, stop)):
            reads[row] = self._read_at(step)
        return reads

    def among(self, step: int, clients: Int[np.ndarray, " a"]) -> Bool[np.ndarray, "a a"]:
        """Who of some clients really reads whom of them; peers are drawn among them alone."""
        return self._thinned(step, self.at(step)[np.ix_(clients, clients)])

    def _read_at(self, step: int) -> Adjacency:
        return self._thinned(step, self.at(step))

    def _thinned(self, step: int, adjacency: Adjacency) -> Adjacency:
        """With peers drawn and messages lost."""
        if self.peers_per_step:
            peers = self._thinned_lists(step, to_lists(adjacency))
            return to_mask(peers, adjacency.shape[1])
        if self.drop:
            kept = adjacency.copy()
            kept[adjacency] = ~self._lost(step, int(adjacency.sum()))
            return kept
        return adjacency

    def _thinned_lists(self, step: int, peers: Int[np.ndarray, "K w"]) -> Int[np.ndarray, "K n"]:
        """The same of lists."""
        if self.peers_per_step:
            peers = draw(peers, self.peers_per_step, generator(self.seed, "peers", step))
        if self.drop:
            peers, sent = peers.copy(), peers != NOBODY
            lost = self._lost(step, int(sent.sum()))
            peers[sent] = np.where(lost, NOBODY, peers[sent])
        return peers

    def _lost(self, step: int, sent: int) -> Bool[np.ndarray, " e"]:
        """Which messages are lost of so many that are sent, reader by reader."""
        return generator(self.seed, "drop", step).random(sent) < self.drop


def sample_peers(adjacency: Adjacency, count: int, rng: np.random.Generator) -> Adjacency:
    """`count` random peers of each client, all subsets equally likely; all peers if it has fewer.

    >>> sample_peers(np.ones((4, 4), bool), 2, np.random.default_rng(0)).sum(axis=1)
    array([2, 2, 2, 2])
    """
    return to_mask(draw(to_lists(adjacency), count, rng), adjacency.shape[1])


def draw(
    peers: Int[np.ndarray, "K w"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, "K n"]:
    """`count` of each client's peers, all subsets equally likely, `NOBODY` where it has fewer."""
    if peers.shape[1] <= count:
        return peers
    chance = np.where(peers == NOBODY, 2.0, rng.random(peers.shape))
    return np.take_along_axis(peers, chance.argpartition(count - 1, axis=1)[:, :count], axis=1)


def make_topology(
    graph_config: Mapping[str, Any] | ConfigDict, num_clients: int, seed: int
) -> Topology:
    """The topology that the settings `graph.*` describe.

    `graph.name` is one graph for the whole run, or with `graph.every` = n > 0 and a random graph a
    fresh one every n steps. `graph.sequence` names graphs that take turns of `graph.every` steps
    instead (`graph.name` is then unused), random ones afresh at every turn. A registered function
    of the step must be pure; it is asked at every step, or with `graph.every` at the first step of
    every turn.

    >>> settings = {"sequence": ("cycle", "star"), "every": 10}
    >>> ring_or_star = make_topology(settings, num_clients=4, seed=0)
    >>> [int(ring_or_star.at(step).sum()) for step in (0, 9, 10, 20)]
    [4, 4, 6, 4]

    Args:
      graph_config: settings of the group `graph`; those left out have their default.
      num_clients: K.
      seed: of random graphs, drawn peers and lost messages.

    Raises:
      ConfigError: settings that cannot work, at once: the first graph of each kind is built here.
        What a function returns later is checked when it does.
    """
    _whole("clients.num", num_clients, 1)
    settings = {**default_config().graph, **graph_config}
    _check_ranges(settings)
    names = _names(settings)
    return Topology(
        num_clients=num_clients,
        seed=seed,
        graphs=tuple(_source(name, num_clients, seed, settings) for name in names),
        every=int(settings["every"]),
        peers_per_step=max(int(settings["peers_per_step"]), 0),
        drop=float(settings["drop"]),
    )


def check_settings(graph_config: Mapping[str, Any] | ConfigDict) -> None:
    """The checks of the settings `graph.*` that need no graph.

    Raises:
      ConfigError: an unknown name, or a number that no graph can have.
    """
    settings = {**default_config().graph, **graph_config}
    _check_ranges(settings)
    for name in _names(settings):
        GRAPHS.get(name)


def _source(
    name: str, num_clients: int, seed: int, settings: Mapping[str, Any]
) -> Adjacency | Callable[[int], Adjacency]:
    """A graph as a matrix if it never changes, else as a function of the step."""
    piece = GRAPHS.get(name)
    called = callable(piece) and _takes_step(piece)

    @functools.lru_cache(maxsize=PERIODS_CACHED)
    def draw(step: int) -> Adjacency:
        if called:
            with of_piece("graph.name", name, "a function of the step"):
                matrix = piece(step)
            value = f"{name}, at step {step}"
        else:
            accepted = "a graph (num_clients, rng, **settings), which takes every graph setting"
            with of_piece("graph.name", name, accepted):
                matrix = piece(num_clients, generator(seed, "graph", step), **settings)
            value = name
        adjacency = check_adjacency(matrix, num_clients, setting="graph.name", value=value)
        adjacency.flags.writeable = False
        return adjacency

    first = draw(0)
    changes = called or (settings["every"] and name not in FIXED)
    return draw if changes else first


def _takes_step(piece: Callable[..., Adjacency]) -> bool:
    """Whether a registered graph is a function of the step alone."""
    return list(inspect.signature(piece).parameters) == ["step"]


def _check_ranges(settings: Mapping[str, Any]) -> None:
    lowest = {"degree": 0, "islands": 1, "bridges": 0, "peers_per_step": -1, "every": 0}
    for name, low in lowest.items():
        _whole(f"graph.{name}", settings[name], low)
    for name in ("probability", "drop"):
        value = settings[name]
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (is_number and 0 <= value <= 1):
            raise ConfigError(f"graph.{name}", value, "a probability from 0 to 1")


def _whole(setting: str, value: object, low: int) -> None:
    if not (is_whole(value) and value >= low):
        raise ConfigError(setting, value, f"a whole number >= {low}")


def _names(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the graphs that take turns, one if there is no sequence."""
    sequence = settings["sequence"]
    if not isinstance(sequence, list | tuple):
        example = "names of graphs in turn, such as ('cycle', 'star')"
        raise ConfigError("graph.sequence", sequence, example)
    known = GRAPHS.names() if sequence else []
    for name in sequence:
        if name not in known:
            raise ConfigError("graph.sequence", name, suggest(str(name), known))
    if sequence and not settings["every"]:
        accepted = "the number of steps, >= 1, that each graph of graph.sequence lasts"
        raise ConfigError("graph.every", settings["every"], accepted)
    if given(settings["matrix"]) and "matrix" not in (sequence or [settings["name"]]):
        setting = "sequence" if sequence else "name"
        accepted = "'matrix', because graph.matrix is given"
        raise ConfigError(f"graph.{setting}", settings[setting], accepted)
    return tuple(sequence) or (settings["name"],)


def warn_without_effect(chosen: Topology, pool_slots: int = 0) -> None:
    """Logs a warning for settings that change nothing here; all of them are legal.

    Args:
      chosen: the topology.
      pool_slots: N_P where teachers are old snapshots, of which Δ are drawn instead of peers.
    """
    if chosen.every and not chosen.changes:
        logging.warning("graph.every has no effect: this graph is not random")
    wanted = chosen.peers_per_step
    if pool_slots and wanted > pool_slots:
        logging.warning(
            "graph.peers_per_step = %d: all %d snapshots of exchange.pool_size are read",
            wanted, pool_slots,
        )  # fmt: skip
    few: set[int] = set()
    for graph in () if pool_slots else chosen.firsts():
        degrees = graph.sum(axis=1)
        few.update(np.flatnonzero((0 < degrees) & (degrees < wanted)).tolist())
    if few:
        logging.warning(
            "graph.peers_per_step = %d: clients with fewer peers read all of them (at first: %s)",
            wanted, listed(few),
        )  # fmt: skip
