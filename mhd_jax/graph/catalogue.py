# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The communication graphs by name, and matrices from files.

`A[i, j]` is True when client i distils from client j (row reads column); the diagonal is False.
K is the number of clients throughout.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from typing import TypeAlias

import networkx as nx
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Bool

from mhd_jax.errors import ConfigError
from mhd_jax.registry import Registry

Adjacency: TypeAlias = Bool[np.ndarray, "K K"]

# (num_clients, rng, **all settings of `graph`) -> adjacency. A random graph takes its randomness
# from `rng` alone; settings that do not concern a graph are swallowed by its last parameter. Or,
# for a graph that changes as its author likes, a pure function of one parameter named `step`.
GRAPHS: Registry[Callable[..., Adjacency]] = Registry("graph.name")

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

# ------------------------------------------------------------------------- the graphs by name


@GRAPHS.register("none")
def none(num_clients: int, rng: np.random.Generator, **_: object) -> Adjacency:
    """No edges: every client learns alone."""
    return _adjacency(nx.empty_graph(num_clients))


@GRAPHS.register("complete")
def complete(num_clients: int, rng: np.random.Generator, **_: object) -> Adjacency:
    """Everybody reads everybody else."""
    return ~np.eye(num_clients, dtype=bool)


@GRAPHS.register("cycle")
def cycle(num_clients: int, rng: np.random.Generator, **_: object) -> Adjacency:
    """The directed ring: client i reads client i - 1 (mod K) and nobody else.

    >>> cycle(3, np.random.default_rng(0)).astype(int)
    array([[0, 0, 1],
           [1, 0, 0],
           [0, 1, 0]])
    """
    return _adjacency(nx.cycle_graph(num_clients, create_using=nx.DiGraph))


@GRAPHS.register("undirected_cycle")
def undirected_cycle(num_clients: int, rng: np.random.Generator, **_: object) -> Adjacency:
    """The ring in both directions: client i reads clients i - 1 and i + 1 (mod K)."""
    return _adjacency(nx.cycle_graph(num_clients))


@GRAPHS.register("chain")
def chain(num_clients: int, rng: np.random.Generator, **_: object) -> Adjacency:
    """The undirected ring without the edge between the first and the last client."""
    return _adjacency(nx.path_graph(num_clients))


@GRAPHS.register("star")
def star(num_clients: int, rng: np.random.Generator, **_: object) -> Adjacency:
    """Client 0 reads all the others, and each of them reads client 0 only."""
    return _adjacency(nx.star_graph(num_clients - 1))


@GRAPHS.register("islands")
def islands(
    num_clients: int, rng: np.random.Generator, *, islands: int, bridges: int, **_: object
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
    num_clients: int, rng: np.random.Generator, *, degree: int, **_: object
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
    num_clients: int, rng: np.random.Generator, *, probability: float, **_: object
) -> Adjacency:
    """Every pair of clients reads each other with `probability`, independently of all others.

    Source: Gilbert, Random graphs, Annals of Mathematical Statistics 30, 1959 (the model called
    G(n, p)). In NumPy because a fresh one may be wanted in every step.
    """
    upper = np.triu(rng.random((num_clients, num_clients)) < probability, k=1)
    return upper | upper.T


@GRAPHS.register("small_world")
def small_world(
    num_clients: int, rng: np.random.Generator, *, degree: int, probability: float, **_: object
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
def grid(num_clients: int, rng: np.random.Generator, **_: object) -> Adjacency:
    """The undirected grid of rows x columns = K clients, row by row, as square as K allows.

    A prime K allows one row only, which is a chain; a warning says so.
    """
    rows = max(n for n in range(1, math.isqrt(num_clients) + 1) if num_clients % n == 0)
    if rows == 1 and num_clients > 3:
        logging.warning("graph.name = 'grid': %d clients make one row, a chain", num_clients)
    return _adjacency(nx.grid_2d_graph(rows, num_clients // rows))


@GRAPHS.register("matrix")
def from_matrix(
    num_clients: int, rng: np.random.Generator, *, matrix: object, **_: object
) -> Adjacency:
    """The matrix in the file `graph.matrix`, or given there as an array or nested lists.

    Raises:
      ConfigError: no matrix, an unreadable file, or no adjacency matrix of K clients.
    """
    if not given(matrix):
        accepted = "a file or a matrix, for graph.name = 'matrix'"
        raise ConfigError("graph.matrix", matrix, accepted)
    if isinstance(matrix, str | os.PathLike):
        loaded = read_matrix(matrix, num_clients)
        return check_adjacency(loaded, num_clients, value=os.fspath(matrix))
    return check_adjacency(matrix, num_clients)


def given(matrix: object) -> bool:
    """Whether `graph.matrix` says anything."""
    return matrix is not None and not (isinstance(matrix, str) and not matrix)


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


def read_matrix(
    path: str | os.PathLike[str],
    num_clients: int,
    *,
    setting: str = "graph.matrix",
    edge_lists: bool = True,
) -> np.ndarray:
    """Reads a matrix, such as an adjacency, from a file; checking it is for the caller to do.

    The suffix decides: `.npy`; `.json`, a list of rows; `.csv` or `.txt`, a row per line, entries
    separated by commas or blanks; `.edges`, an edge per line as two client numbers, first the
    reader, then the teacher. In the text formats `#` begins a comment.

    Args:
      path: the file.
      num_clients: K, the size of the matrix that an edge list fills.
      setting: name of the setting that an error blames.
      edge_lists: whether `.edges` is a suffix that means something here.

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
            case ".edges" if edge_lists:
                return _read_edges(file, num_clients)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(setting, str(file), f"a readable file: {error}") from error
    suffixes = ".npy, .csv, .txt, .json or .edges" if edge_lists else ".npy, .csv, .txt or .json"
    raise ConfigError(setting, str(file), f"a file {suffixes}")


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
