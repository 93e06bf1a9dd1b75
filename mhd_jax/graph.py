# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who distils from whom: communication graphs, fixed or changing, as boolean matrices.

`A[i, j]` is True when client i distils from client j (row reads column); the diagonal is False.
A graph that changes, peers drawn at random and lost messages are all arrays computed on the host
as a pure function of (seed, step), so the compiled training step never sees a new shape.
K is the number of clients throughout.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import json
import math
import numbers
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import networkx as nx
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Bool, Float64, Int
from ml_collections import ConfigDict
from scipy.sparse import csgraph

from mhd_jax.errors import ConfigError, suggest
from mhd_jax.registry import Registry
from mhd_jax.rng import generator

Adjacency: TypeAlias = Bool[np.ndarray, "K K"]

# (num_clients, rng, **all settings of `graph`) -> adjacency. A random graph takes its randomness
# from `rng` alone; settings that do not concern a graph are swallowed by its last parameter. Or,
# for a graph that changes as its author likes, a pure function of one parameter named `step`.
GRAPHS: Registry[Callable[..., Adjacency]] = Registry("graph.name")

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "name": "complete",
        "degree": 2,
        "islands": 2,
        "bridges": 0,
        "probability": 0.3,
        "matrix": "",
        "peers_per_step": 0,
        "every": 0,
        "sequence": (),
        "drop": 0.0,
    }
)

# Graphs without randomness: built once, whatever `graph.every` says. Any other is drawn afresh.
FIXED = frozenset(
    {
        "none",
        "complete",
        "cycle",
        "undirected_cycle",
        "chain",
        "star",
        "islands",
        "grid",
        "matrix",
    }
)

# Graphs of earlier periods kept at hand, for readers that look back (a pool of old snapshots).
PERIODS_CACHED = 32

# Graphs of a changing sequence that the warnings at the start of a run are about.
TURNS_LOOKED_AT = 100


# ------------------------------------------------------------------------- the graphs by name


@GRAPHS.register("none")
def none(num_clients: int, rng: np.random.Generator, **_: Any) -> Adjacency:
    """No edges: every client learns alone."""
    return _adjacency(nx.empty_graph(num_clients))


@GRAPHS.register("complete")
def complete(num_clients: int, rng: np.random.Generator, **_: Any) -> Adjacency:
    """Everybody reads everybody else."""
    return _adjacency(nx.complete_graph(num_clients))


@GRAPHS.register("cycle")
def cycle(num_clients: int, rng: np.random.Generator, **_: Any) -> Adjacency:
    """The directed ring: client i reads client i - 1 (mod K) and nobody else.

    >>> cycle(3, np.random.default_rng(0)).astype(int)
    array([[0, 0, 1],
           [1, 0, 0],
           [0, 1, 0]])
    """
    return _adjacency(nx.cycle_graph(num_clients, create_using=nx.DiGraph))


@GRAPHS.register("undirected_cycle")
def undirected_cycle(num_clients: int, rng: np.random.Generator, **_: Any) -> Adjacency:
    """The ring in both directions: client i reads clients i - 1 and i + 1 (mod K)."""
    return _adjacency(nx.cycle_graph(num_clients))


@GRAPHS.register("chain")
def chain(num_clients: int, rng: np.random.Generator, **_: Any) -> Adjacency:
    """The undirected ring without the edge between the first and the last client."""
    return _adjacency(nx.path_graph(num_clients))


@GRAPHS.register("star")
def star(num_clients: int, rng: np.random.Generator, **_: Any) -> Adjacency:
    """Client 0 reads all the others, and each of them reads client 0 only."""
    return _adjacency(nx.star_graph(num_clients - 1))


@GRAPHS.register("islands")
def islands(
    num_clients: int, rng: np.random.Generator, *, islands: int, bridges: int, **_: Any
) -> Adjacency:
    """`islands` complete graphs of K / islands consecutive clients, in a row.

    `bridges` undirected edges join each island to the next: the last client of an island to the
    first of the next, then the last but one to the second, and so on.

    >>> islands(4, np.random.default_rng(0), islands=2, bridges=1).astype(int)
    array([[0, 1, 0, 0],
           [1, 0, 1, 0],
           [0, 1, 0, 1],
           [0, 0, 1, 0]])

    Raises:
      ConfigError: `islands` does not divide K, or an island has fewer clients than `bridges`.
    """
    if num_clients % islands:
        divisors = [str(n) for n in range(1, num_clients + 1) if num_clients % n == 0]
        accepted = f"a divisor of clients.num = {num_clients}: {', '.join(divisors)}"
        raise ConfigError("graph.islands", islands, accepted)
    size = num_clients // islands
    if bridges > size:
        accepted = f"at most {size}, the number of clients on an island"
        raise ConfigError("graph.bridges", bridges, accepted)
    graph = nx.disjoint_union_all([nx.complete_graph(size) for _ in range(islands)])
    for shore in range(size, num_clients, size):
        graph.add_edges_from((shore - 1 - bridge, shore + bridge) for bridge in range(bridges))
    return _adjacency(graph)


@GRAPHS.register("random_regular")
def random_regular(
    num_clients: int, rng: np.random.Generator, *, degree: int, **_: Any
) -> Adjacency:
    """A random undirected graph in which every client has `degree` peers; maybe disconnected.

    Source: Kim and Vu, Generating random regular graphs, STOC 2003, as in
    `networkx.random_regular_graph`.

    Raises:
      ConfigError: degree >= K, or degree * K odd: there is no such graph.
    """
    _check_degree(degree, num_clients)
    if degree * num_clients % 2:
        accepted = f"an even number, because clients.num = {num_clients} is odd"
        raise ConfigError("graph.degree", degree, accepted)
    # Drawing a dense one edge by edge hardly ever ends well; its complement is sparse.
    dense = 2 * degree >= num_clients
    drawn = num_clients - 1 - degree if dense else degree
    adjacency = _adjacency(nx.random_regular_graph(drawn, num_clients, seed=_seed(rng)))
    return ~adjacency & ~np.eye(num_clients, dtype=bool) if dense else adjacency


@GRAPHS.register("erdos_renyi")
def erdos_renyi(
    num_clients: int, rng: np.random.Generator, *, probability: float, **_: Any
) -> Adjacency:
    """Every pair of clients reads each other with `probability`, independently of all others.

    Source: Gilbert, Random graphs, Annals of Mathematical Statistics 30, 1959 (the model called
    G(n, p)). In NumPy because a fresh one may be wanted in every step.
    """
    upper = np.triu(rng.random((num_clients, num_clients)) < probability, k=1)
    return upper | upper.T


@GRAPHS.register("small_world")
def small_world(
    num_clients: int, rng: np.random.Generator, *, degree: int, probability: float, **_: Any
) -> Adjacency:
    """A ring of `degree` nearest peers, one end of each edge moved at random with `probability`.

    Source: Watts and Strogatz, Collective dynamics of small-world networks, Nature 393, 1998, as
    in `networkx.watts_strogatz_graph`. Undirected; the mean number of peers is `degree`.

    Raises:
      ConfigError: degree >= K, or odd (half of the nearest peers lie on either side).
    """
    _check_degree(degree, num_clients)
    if degree % 2:
        raise ConfigError("graph.degree", degree, "an even number for a small world")
    graph = nx.watts_strogatz_graph(num_clients, degree, probability, seed=_seed(rng))
    return _adjacency(graph)


@GRAPHS.register("grid")
def grid(num_clients: int, rng: np.random.Generator, **_: Any) -> Adjacency:
    """The undirected grid of rows x columns = K clients, row by row, as square as K allows.

    A prime K allows one row only, which is a chain; a warning says so.
    """
    rows = max(n for n in range(1, math.isqrt(num_clients) + 1) if num_clients % n == 0)
    if rows == 1 and num_clients > 3:
        logging.warning("graph.name = 'grid': %d clients make one row, a chain", num_clients)
    return _adjacency(nx.grid_2d_graph(rows, num_clients // rows))


@GRAPHS.register("matrix")
def from_matrix(
    num_clients: int, rng: np.random.Generator, *, matrix: object, **_: Any
) -> Adjacency:
    """The matrix in the file `graph.matrix`, or given there as an array or nested lists.

    Raises:
      ConfigError: no matrix, an unreadable file, or no adjacency matrix of K clients.
    """
    if not _given(matrix):
        accepted = "a file, a matrix or a function of the step, for graph.name = 'matrix'"
        raise ConfigError("graph.matrix", matrix, accepted)
    if isinstance(matrix, str | os.PathLike):
        loaded = read_matrix(matrix, num_clients)
        return check_adjacency(loaded, num_clients, value=os.fspath(matrix))
    return check_adjacency(matrix, num_clients)


def _adjacency(graph: nx.Graph) -> Adjacency:
    """The matrix of a networkx graph, whose directed edges point from teacher to reader."""
    teaches = nx.to_numpy_array(graph, nodelist=sorted(graph), dtype=bool, weight=None)
    np.fill_diagonal(teaches, False)
    return np.ascontiguousarray(teaches.T)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))


def _check_degree(degree: int, num_clients: int) -> None:
    if degree >= num_clients:
        accepted = f"a whole number below clients.num = {num_clients}"
        raise ConfigError("graph.degree", degree, accepted)


# ------------------------------------------------------------------------- matrices from files


def read_matrix(path: str | os.PathLike[str], num_clients: int) -> np.ndarray:
    """Reads an adjacency matrix from a file; `check_adjacency` is for the caller to do.

    The suffix decides: `.npy`; `.json`, a list of rows; `.csv` or `.txt`, a row per line, entries
    separated by commas or blanks; `.edges`, an edge per line as two client numbers, first the
    reader, then the teacher. In the text formats `#` begins a comment.

    Args:
      path: the file.
      num_clients: K, the size of the matrix that an edge list fills.

    Raises:
      ConfigError: an unknown suffix, an unreadable file, or an edge to a client outside 0..K-1.
    """
    file = epath.Path(path).expanduser()
    try:
        match file.suffix:
            case ".npy":
                return np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
            case ".json":
                return np.asarray(json.loads(file.read_bytes().decode()))
            case ".csv" | ".txt":
                return np.array([[float(word) for word in row] for _, row in _rows(file)])
            case ".edges":
                return _read_edges(file, num_clients)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError("graph.matrix", str(file), f"a readable file: {error}") from error
    raise ConfigError("graph.matrix", str(file), "a file .npy, .csv, .txt, .json or .edges")


def _rows(path: epath.Path) -> list[tuple[int, list[str]]]:
    """The words of every line that has any, with its number."""
    lines = path.read_bytes().decode().splitlines()
    words = [line.partition("#")[0].replace(",", " ").split() for line in lines]
    return [(number, row) for number, row in enumerate(words, start=1) if row]


def _read_edges(path: epath.Path, num_clients: int) -> Adjacency:
    adjacency = np.zeros((num_clients, num_clients), dtype=bool)
    clients = {str(client): client for client in range(num_clients)}
    for number, row in _rows(path):
        if len(row) != 2 or not clients.keys() >= set(row):
            line = f"line {number} is {' '.join(row)!r}"
            raise ValueError(f"{line}, not two of the clients 0 to {num_clients - 1}")
        reader, teacher = row
        adjacency[clients[reader], clients[teacher]] = True
    return adjacency


def check_adjacency(
    adjacency: object, num_clients: int, *, setting: str = "graph.matrix", value: object = None
) -> Adjacency:
    """Returns `adjacency` as a new boolean matrix if it is one of K clients.

    >>> check_adjacency([[0, 1], [0, 0]], 2)
    array([[False,  True],
           [False, False]])
    >>> check_adjacency([[0, 1], [0, 1]], 2, value="my.csv")
    Traceback (most recent call last):
    mhd_jax.errors.ConfigError: graph.matrix = 'my.csv': expected a diagonal of 0: client 1 cannot
    distil from itself

    Args:
      adjacency: anything NumPy can make an array of; entries 0 or 1, of a number type or bool.
      num_clients: K.
      setting: name of the setting that an error blames.
      value: the setting's value, for errors; by default the shape and type of the array.

    Raises:
      ConfigError: a shape other than [K, K], an entry other than 0 or 1, a diagonal that is not 0.
    """
    try:
        array = np.asarray(adjacency)
    except ValueError as error:  # rows of unequal length
        shown = adjacency if value is None else value
        raise ConfigError(setting, shown, f"a matrix: {error}") from error
    value = f"array of {array.dtype}, shape {array.shape}" if value is None else value
    shape = (num_clients, num_clients)
    if array.shape != shape:
        accepted = f"shape {shape}, a row and a column for each client, not {array.shape}"
        raise ConfigError(setting, value, accepted)
    if array.dtype.kind not in "biuf":
        raise ConfigError(setting, value, f"entries 0 or 1, not of type {array.dtype}")
    for i, j in np.argwhere((array != 0) & (array != 1)):
        accepted = f"entries 0 or 1, not {array[i, j]} in row {i}, column {j}"
        raise ConfigError(setting, value, accepted)
    for i in np.flatnonzero(array.diagonal()):
        accepted = f"a diagonal of 0: client {i} cannot distil from itself"
        raise ConfigError(setting, value, accepted)
    return array.astype(bool)


# ------------------------------------------------------------------------- graphs over time


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """Who reads whom at every step: a pure function of (seed, step), made by `topology`.

    Attributes:
      num_clients: K.
      seed: of the peers drawn and the messages lost.
      graphs: the graphs that take turns: a matrix, or a function from a step to a matrix.
      every: steps for which a graph stays in force; 0 means that the first one is the only one,
        asked afresh in every step if it is a function.
      peers_per_step: Δ, peers each client reads per step, drawn at random; 0 means all.
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

    def at(self, step: int) -> Adjacency:
        """The graph in force at `step`, before peers are drawn and messages are lost."""
        period = step // self.every if self.every else 0
        graph = self.graphs[period % len(self.graphs)]
        if isinstance(graph, np.ndarray):
            return graph
        return graph(period * self.every if self.every else step)

    def ever(self, steps: int) -> Adjacency:
        """Who reads whom at any time in a run of so many steps, as far as its first graphs tell."""
        most = TURNS_LOOKED_AT if self.changes else 1
        turns = range(0, steps, self.every or 1)[:most]
        return np.logical_or.reduce([self.at(step) for step in turns])

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

    def _read_at(self, step: int) -> Adjacency:
        adjacency = self.at(step)
        if self.peers_per_step:
            rng = generator(self.seed, "peers", step)
            adjacency = sample_peers(adjacency, self.peers_per_step, rng)
        if self.drop:
            chance = generator(self.seed, "drop", step).random(adjacency.shape)
            adjacency = adjacency & (chance >= self.drop)
        return adjacency


def sample_peers(adjacency: Adjacency, count: int, rng: np.random.Generator) -> Adjacency:
    """`count` random peers of each client, all subsets equally likely; all peers if it has fewer.

    >>> sample_peers(np.ones((4, 4), bool), 2, np.random.default_rng(0)).sum(axis=1)
    array([2, 2, 2, 2])
    """
    order = np.where(adjacency, rng.random(adjacency.shape), 2.0).argsort(axis=1)
    sampled = np.zeros_like(adjacency)
    np.put_along_axis(sampled, order[:, :count], True, axis=1)
    return sampled & adjacency


def topology(
    graph_config: Mapping[str, Any] | ConfigDict,
    num_clients: int,
    seed: int,
    *,
    custom: Callable[[int], object] | None = None,
) -> Topology:
    """The topology that the settings `graph.*` describe.

    `graph.name` is one graph for the whole run, or with `graph.every` = n > 0 and a random graph a
    fresh one every n steps. `graph.sequence` names graphs that take turns of `graph.every` steps
    instead (`graph.name` is then unused), random ones afresh at every turn. A function of the
    step, as `custom` or in `graph.matrix`, must be pure; it is asked at every step, or with
    `graph.every` at the first step of every turn.

    >>> settings = {"sequence": ("cycle", "star"), "every": 10}
    >>> ring_or_star = topology(settings, num_clients=4, seed=0)
    >>> [int(ring_or_star.at(step).sum()) for step in (0, 9, 10, 20)]
    [4, 4, 6, 4]

    Args:
      graph_config: settings of the group `graph`; those left out have their value in `DEFAULTS`.
      num_clients: K.
      seed: of random graphs, drawn peers and lost messages.
      custom: step -> [K, K] of 0 and 1; takes the place of `graph.name` and `graph.sequence`.

    Raises:
      ConfigError: settings that cannot work, at once: the first graph of each kind is built here.
        What a function returns later is checked when it does.
    """
    _whole("clients.num", num_clients, 1)
    settings = {**DEFAULTS, **graph_config}
    if custom is not None:
        settings |= {"name": "matrix", "sequence": (), "matrix": custom}
    _check_ranges(settings)
    names = _names(settings)
    return Topology(
        num_clients=num_clients,
        seed=seed,
        graphs=tuple(_source(name, num_clients, seed, settings) for name in names),
        every=int(settings["every"]),
        peers_per_step=int(settings["peers_per_step"]),
        drop=float(settings["drop"]),
    )


def _source(
    name: str, num_clients: int, seed: int, settings: Mapping[str, Any]
) -> Adjacency | Callable[[int], Adjacency]:
    """A graph as a matrix if it never changes, else as a function of the step."""
    piece = settings["matrix"] if name == "matrix" else GRAPHS.get(name)
    called = callable(piece) and (name == "matrix" or _takes_step(piece))

    @functools.lru_cache(maxsize=PERIODS_CACHED)
    def draw(step: int) -> Adjacency:
        if called:
            matrix = piece(step)
            own = "a function" if name == "matrix" else name
            setting = "graph.matrix" if name == "matrix" else "graph.name"
            value = f"{own}, at step {step}"
            adjacency = check_adjacency(matrix, num_clients, setting=setting, value=value)
        else:
            matrix = GRAPHS.get(name)(num_clients, generator(seed, "graph", step), **settings)
            adjacency = check_adjacency(matrix, num_clients, setting="graph.name", value=name)
        adjacency.flags.writeable = False
        return adjacency

    first = draw(0)
    changes = called or (settings["every"] and name not in FIXED)
    return draw if changes else first


def _takes_step(piece: Callable[..., Adjacency]) -> bool:
    """Whether a registered graph is a function of the step alone."""
    return list(inspect.signature(piece).parameters) == ["step"]


def _check_ranges(settings: Mapping[str, Any]) -> None:
    lowest = {"degree": 0, "islands": 1, "bridges": 0, "peers_per_step": 0, "every": 0}
    for name, low in lowest.items():
        _whole(f"graph.{name}", settings[name], low)
    for name in ("probability", "drop"):
        value = settings[name]
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (is_number and 0 <= value <= 1):
            raise ConfigError(f"graph.{name}", value, "a probability from 0 to 1")


def _whole(setting: str, value: object, low: int) -> None:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_whole and value >= low):  # type: ignore[operator]
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
    if _given(settings["matrix"]) and "matrix" not in (sequence or [settings["name"]]):
        setting = "sequence" if sequence else "name"
        accepted = "'matrix', because graph.matrix is given"
        raise ConfigError(f"graph.{setting}", settings[setting], accepted)
    return tuple(sequence) or (settings["name"],)


def _given(matrix: object) -> bool:
    return matrix is not None and not (isinstance(matrix, str) and not matrix)


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
    for turn in range(0 if pool_slots else len(chosen.graphs)):
        degrees = chosen.at(turn * chosen.every).sum(axis=1)
        few.update(np.flatnonzero((0 < degrees) & (degrees < wanted)).tolist())
    if few:
        logging.warning(
            "graph.peers_per_step = %d: clients with fewer peers read all of them (at first: %s)",
            wanted, _listed(few),
        )  # fmt: skip


# ------------------------------------------------------------------------- facts about a graph


def hop_distances(adjacency: Adjacency) -> Int[np.ndarray, "K K"]:
    """Hops over which client i hears from client j: 1 for a peer, 2 for a peer's peer, ...

    >>> hop_distances(cycle(4, np.random.default_rng(0)))[0]
    array([0, 3, 2, 1])

    Returns:
      [K, K], 0 on the diagonal and -1 where i never hears from j.
    """
    # SciPy up to 1.18 gives wrong distances, raising nothing, for arrays in another memory order.
    lengths = np.ascontiguousarray(adjacency, dtype=float)
    hops = csgraph.shortest_path(lengths, unweighted=True)
    return np.where(np.isfinite(hops), hops, -1).astype(np.int64)


def describe(adjacency: Adjacency) -> dict[str, Any]:
    """Statistics of a graph in plain Python numbers, fit for JSON.

    >>> describe(star(3, np.random.default_rng(0)))["hop_counts"]
    [4, 2]

    Returns:
      clients: K.
      edges: directed edges, so that two clients who read each other count twice.
      min_degree, mean_degree, max_degree: peers that a client reads.
      weakly_connected: whether the graph is in one piece if directions are ignored.
      strongly_connected: whether everybody hears from everybody over some number of hops.
      diameter: the most hops between two clients, None unless strongly connected.
      hop_counts: number of pairs (i, j) with i hearing from j over 1, 2, ... hops.
      unheard: clients whom nobody reads.
      without_peers: clients who read nobody.
    """
    adjacency = np.asarray(adjacency, dtype=bool)
    degrees = adjacency.sum(axis=1)
    hops = hop_distances(adjacency)
    connected = bool((hops >= 0).all())
    pieces, _ = csgraph.connected_components(adjacency, directed=True, connection="weak")
    return {
        "clients": len(adjacency),
        "edges": int(adjacency.sum()),
        "min_degree": int(degrees.min()),
        "mean_degree": float(degrees.mean()),
        "max_degree": int(degrees.max()),
        "weakly_connected": bool(pieces == 1),
        "strongly_connected": connected,
        "diameter": int(hops.max()) if connected else None,
        "hop_counts": np.bincount(hops[hops > 0])[1:].tolist(),
        "unheard": np.flatnonzero(~adjacency.any(axis=0)).tolist(),
        "without_peers": np.flatnonzero(degrees == 0).tolist(),
    }


def warn_unreachable(adjacency: Adjacency) -> None:
    """Logs a warning for clients whom nobody reads and one for clients who read nobody.

    Both are legal. For a graph that changes, pass who reads whom at any time, `Topology.ever`. A
    client that is alone in the run is no news.
    """
    if len(adjacency) == 1:
        return
    facts = describe(adjacency)
    if facts["unheard"]:
        logging.warning("nobody distils from client %s", _listed(facts["unheard"]))
    if facts["without_peers"]:
        listed = _listed(facts["without_peers"])
        logging.warning("no peers, private data only: client %s", listed)


def _listed(clients: list[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(clients)))


# ------------------------------------------------------------------------- averaging weights


def metropolis_weights(adjacency: Bool[np.ndarray, "*n K K"]) -> Float64[np.ndarray, "*n K K"]:
    """Weights with which neighbours average: symmetric and doubly stochastic.

    Edges count in both directions. With d_i the number of neighbours of client i,
    ``W[i, j] = 1 / (1 + max(d_i, d_j))`` for neighbours, ``W[i, i] = 1 - sum of the others`` and 0
    elsewhere, so averaging over and over leads every connected client to the mean of all.

    Source: Xiao and Boyd, Fast linear iterations for distributed averaging, Systems & Control
    Letters 53, 2004, for averaging with symmetric weights; Xiao, Boyd and Lall, A scheme for
    robust distributed sensor fusion based on average consensus, IPSN 2005, for these weights,
    which also serve graphs that change.

    >>> metropolis_weights(chain(3, np.random.default_rng(0))).round(2)
    array([[0.67, 0.33, 0.  ],
           [0.33, 0.33, 0.33],
           [0.  , 0.33, 0.67]])

    Args:
      adjacency: one graph, or one for each of n steps.
    """
    neighbours = adjacency | np.swapaxes(adjacency, -1, -2)
    degrees = neighbours.sum(axis=-1)
    larger = np.maximum(degrees[..., :, None], degrees[..., None, :])
    weights = neighbours / (1.0 + larger)
    own = 1.0 - weights.sum(axis=-1)
    return weights + own[..., None] * np.eye(adjacency.shape[-1])


def uniform_weights(num_clients: int) -> Float64[np.ndarray, "K K"]:
    """Weights 1 / K everywhere: every client gets the mean of all."""
    return np.full((num_clients, num_clients), 1.0 / num_clients)
