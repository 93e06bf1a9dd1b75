# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import ml_collections
import numpy as np
import pytest
from etils import epath
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mhd_jax import config, edges, graph, rng
from mhd_jax.errors import ConfigError
from mhd_jax.exchange.readers import Fresh
from mhd_jax.graph import topology

UNDIRECTED = (
    "none",
    "complete",
    "undirected_cycle",
    "chain",
    "star",
    "islands",
    "grid",
    "random_regular",
    "erdos_renyi",
    "small_world",
)
RANDOM = ("random_regular", "erdos_renyi", "small_world")
NEEDS_NO_SETTING = ("none", "complete", "cycle", "undirected_cycle", "chain", "star", "grid")


def build(name: str, num_clients: int, seed: int = 0, **changes: Any) -> np.ndarray:
    return graph.make_topology({"name": name, **changes}, num_clients, seed).at(0)


Own = Callable[[Callable[[int], Any]], str]


@pytest.fixture
def ones_own(monkeypatch: pytest.MonkeyPatch) -> Own:
    """Registers a function of the step for as long as a test lasts; returns its name."""
    monkeypatch.setattr(graph.GRAPHS, "_pieces", dict(graph.GRAPHS._pieces))

    def register(function: Callable[[int], Any]) -> str:
        graph.GRAPHS.register("ones_own")(function)
        return "ones_own"

    return register


def random_matrix(num_clients: int, seed: int, density: float = 0.5) -> np.ndarray:
    adjacency = np.random.default_rng(seed).random((num_clients, num_clients)) < density
    np.fill_diagonal(adjacency, False)
    return adjacency


@st.composite
def possible_settings(draw: st.DrawFn, name: str) -> tuple[int, dict[str, Any]]:
    """K and settings with which the graph called `name` exists."""
    num_clients = draw(st.integers(1, 24))
    changes: dict[str, Any] = {"name": name}
    if name == "islands":
        size = draw(st.integers(1, 6))
        changes["islands"] = draw(st.integers(1, 5))
        changes["bridges"] = draw(st.integers(0, size))
        num_clients = size * changes["islands"]
    if name in ("random_regular", "small_world"):
        step = 2 if name == "small_world" or num_clients % 2 else 1
        changes["degree"] = step * draw(st.integers(0, (num_clients - 1) // step))
    if name in ("erdos_renyi", "small_world"):
        changes["probability"] = draw(st.floats(0, 1))
    if name == "matrix":
        changes["matrix"] = random_matrix(num_clients, draw(st.integers(0, 99))).tolist()
    return num_clients, changes


adjacencies = st.builds(
    random_matrix, st.integers(1, 10), st.integers(0, 10_000), st.floats(0.05, 0.9)
)


# ------------------------------------------------------------------------- every graph


@pytest.mark.parametrize("name", graph.GRAPHS.names())
@given(data=st.data(), seed=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_every_graph_keeps_the_contract(name: str, data: st.DataObject, seed: int) -> None:
    num_clients, changes = data.draw(possible_settings(name))
    adjacency = graph.make_topology(changes, num_clients, seed).at(0)
    assert adjacency.shape == (num_clients, num_clients)
    assert adjacency.dtype == bool
    assert not adjacency.diagonal().any()
    if name in UNDIRECTED:
        assert (adjacency == adjacency.T).all()
    again = graph.make_topology(changes, num_clients, seed).at(0)
    assert (adjacency == again).all()


@pytest.mark.parametrize("name", graph.GRAPHS.names())
def test_only_random_graphs_depend_on_the_seed(name: str) -> None:
    changes = {"degree": 4, "matrix": random_matrix(16, 0)} if name == "matrix" else {"degree": 4}
    graphs = {build(name, 16, seed, **changes).tobytes() for seed in range(8)}
    assert len(graphs) > 1 if name in RANDOM else len(graphs) == 1
    assert (name in graph.FIXED) == (name not in RANDOM)


@given(possible_settings("random_regular"), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_random_regular_degree(drawn: tuple[int, dict[str, Any]], seed: int) -> None:
    num_clients, changes = drawn
    adjacency = graph.make_topology(changes, num_clients, seed).at(0)
    assert (adjacency.sum(axis=0) == changes["degree"]).all()
    assert (adjacency.sum(axis=1) == changes["degree"]).all()


def test_random_regular_close_to_complete() -> None:
    assert (build("random_regular", 64, degree=60).sum(axis=1) == 60).all()


@given(possible_settings("small_world"), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_small_world_keeps_the_number_of_edges(
    drawn: tuple[int, dict[str, Any]], seed: int
) -> None:
    num_clients, changes = drawn
    adjacency = graph.make_topology(changes, num_clients, seed).at(0)
    assert adjacency.sum() == num_clients * changes["degree"]


def test_small_world_without_rewiring_is_the_ring_of_nearest_peers() -> None:
    ring = build("small_world", 9, degree=4, probability=0.0)
    distance = np.abs(np.arange(9)[:, None] - np.arange(9))
    assert (ring == np.isin(np.minimum(distance, 9 - distance), (1, 2))).all()


def test_erdos_renyi_probability() -> None:
    assert not build("erdos_renyi", 12, probability=0.0).any()
    assert (build("erdos_renyi", 12, probability=1.0) == build("complete", 12)).all()
    edges = build("erdos_renyi", 100, probability=0.3).sum() / 2
    assert abs(edges / (100 * 99 / 2) - 0.3) < 0.03  # 4.6 standard deviations


def test_directed_cycle_reads_the_client_before() -> None:
    cycle = build("cycle", 5)
    assert [np.flatnonzero(row).tolist() for row in cycle] == [[4], [0], [1], [2], [3]]


def test_small_graphs_by_hand() -> None:
    assert build("chain", 4).astype(int).tolist() == [
        [0, 1, 0, 0],
        [1, 0, 1, 0],
        [0, 1, 0, 1],
        [0, 0, 1, 0],
    ]
    assert build("star", 3).astype(int).tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    undirected = build("undirected_cycle", 5)
    assert (undirected == (build("cycle", 5) | build("cycle", 5).T)).all()
    assert (build("complete", 4) == ~np.eye(4, dtype=bool)).all()
    # 2 rows of 3: 0 1 2 over 3 4 5
    assert [np.flatnonzero(row).tolist() for row in build("grid", 6)] == [
        [1, 3],
        [0, 2, 4],
        [1, 5],
        [0, 4],
        [1, 3, 5],
        [2, 4],
    ]


@given(st.integers(3, 40))
def test_degrees_of_the_graphs_without_randomness(num_clients: int) -> None:
    """Peers that clients read, in ascending order; nobody is read more often than they read."""
    rows = max(n for n in range(1, num_clients) if num_clients % n == 0 and n * n <= num_clients)
    expected = {
        "none": [0] * num_clients,
        "complete": [num_clients - 1] * num_clients,
        "cycle": [1] * num_clients,
        "undirected_cycle": [2] * num_clients,
        "chain": [1, 1] + [2] * (num_clients - 2),
        "star": [1] * (num_clients - 1) + [num_clients - 1],
    }
    for name, degrees in expected.items():
        adjacency = build(name, num_clients)
        assert sorted(adjacency.sum(axis=1)) == sorted(adjacency.sum(axis=0)) == degrees
    grid = build("grid", num_clients).sum(axis=1)
    assert grid.max() <= 4
    assert grid.sum() == 2 * (2 * num_clients - rows - num_clients // rows)


@pytest.mark.parametrize("bridges", [0, 1, 2, 4])
def test_islands_and_bridges(bridges: int) -> None:
    adjacency = build("islands", 12, islands=3, bridges=bridges)
    island = np.arange(12) // 4
    inside = island[:, None] == island
    assert (adjacency[inside].reshape(12, 4).sum(axis=1) == 3).all()
    gap = np.abs(island[:, None] - island)
    assert (adjacency & (gap == 1)).sum() == 2 * 2 * bridges
    assert not (adjacency & (gap > 1)).any()
    assert graph.describe(adjacency)["strongly_connected"] == (bridges > 0)
    bridged = (adjacency & (gap == 1)).sum(axis=1)
    assert bridged[:4].max(initial=0) == min(bridges, 1)


@pytest.mark.parametrize("name", [*NEEDS_NO_SETTING, "erdos_renyi"])
def test_a_single_client_has_no_peers(name: str) -> None:
    chosen = graph.make_topology({"name": name, "peers_per_step": 1, "drop": 0.5}, 1, seed=0)
    assert chosen.reads(0, 3).tolist() == [[[False]]] * 3


def test_a_single_client_where_settings_matter() -> None:
    assert not build("islands", 1, islands=1).any()
    assert not build("random_regular", 1, degree=0).any()
    assert not build("small_world", 1, degree=0).any()
    assert not build("matrix", 1, matrix=[[0]]).any()


def test_a_prime_grid_says_that_it_is_a_chain(caplog: pytest.LogCaptureFixture) -> None:
    assert (build("grid", 7) == build("chain", 7)).all()
    assert "7 clients make one row" in caplog.text


# ------------------------------------------------------------------------- matrices from files

MATRIX = [[0, 1, 1], [0, 0, 0], [1, 0, 0]]


def save_npy(path: pathlib.Path) -> None:
    np.save(path, np.array(MATRIX, dtype=bool))


def save_text(text: str) -> Callable[[pathlib.Path], None]:
    def save(path: pathlib.Path) -> None:
        path.write_text(text)

    return save


@pytest.mark.parametrize(
    "file, save",
    [
        ("m.npy", save_npy),
        ("m.csv", save_text("0,1,1\n0,0,0\n1,0,0\n")),
        ("m.csv", save_text("# reader by teacher\n0, 1, 1\n\n0, 0, 0\n1, 0, 0")),
        ("m.txt", save_text("0 1 1\n0 0 0\n1.0 0 0\n")),
        ("m.json", save_text(json.dumps(MATRIX))),
        ("m.json", save_text(json.dumps([[bool(entry) for entry in row] for row in MATRIX]))),
        ("m.edges", save_text("# reader teacher\n0 1\n2 0  # back\n\n0,2\n0 1\n")),
        ("m.edges", save_text("0\t2\n0\t1\n2\t0")),
    ],
)
def test_matrix_files(
    file: str, save: Callable[[pathlib.Path], None], tmp_path: pathlib.Path
) -> None:
    save(tmp_path / file)
    assert (build("matrix", 3, matrix=str(tmp_path / file)) == np.array(MATRIX, bool)).all()
    assert (build("matrix", 3, matrix=tmp_path / file) == np.array(MATRIX, bool)).all()


@pytest.mark.parametrize("file", ["m.npy", "m.edges"])
def test_a_matrix_in_a_bucket(file: str, tmp_path: pathlib.Path, remote: epath.Path) -> None:
    save_npy(tmp_path / "m.npy")
    (tmp_path / "m.edges").write_text("0 1\n2 0\n0,2\n")
    (remote / file).write_bytes((tmp_path / file).read_bytes())
    assert (build("matrix", 3, matrix=f"{remote}/{file}") == np.array(MATRIX, bool)).all()


def test_a_file_is_read_once(tmp_path: pathlib.Path) -> None:
    save_npy(tmp_path / "m.npy")
    changes = {"sequence": ("matrix", "none"), "every": 1, "matrix": str(tmp_path / "m.npy")}
    chosen = graph.make_topology(changes, 3, seed=0)
    (tmp_path / "m.npy").unlink()
    assert (chosen.at(2) == np.array(MATRIX, bool)).all()


def test_an_empty_edge_list_is_a_graph_without_edges(tmp_path: pathlib.Path) -> None:
    (tmp_path / "m.edges").write_text("# nobody reads anybody\n")
    assert not build("matrix", 3, matrix=str(tmp_path / "m.edges")).any()


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("m.csv", "0,1\n1\n", "readable file"),
        ("m.csv", "0,x\n1,0\n", "could not convert"),
        ("m.csv", "", r"shape \(2, 2\), a row and a column for each client, not \(0,\)"),
        ("m.txt", "0 1 0\n1 0 0\n", r"shape \(2, 2\).* not \(2, 3\)"),
        ("m.txt", "0 1 0\n1 0 0\n0 1 0\n", r"shape \(2, 2\).* not \(3, 3\)"),
        ("m.csv", "0,0.5\n1,0\n", "entries 0 or 1, not 0.5 in row 0, column 1"),
        ("m.csv", "0,nan\n1,0\n", "entries 0 or 1, not nan in row 0, column 1"),
        ("m.csv", "0,1\n-1,0\n", "entries 0 or 1, not -1.0 in row 1, column 0"),
        ("m.csv", "0,1\n1,1\n", "diagonal of 0: client 1 cannot distil from itself"),
        ("m.json", "[[0, 1], [1, 0]", "readable file"),
        ("m.json", "[[0, 1], [1]]", "readable file"),
        ("m.json", '{"0": [1]}', r"shape \(2, 2\)"),
        ("m.json", '[["0", "1"], ["1", "0"]]', "entries 0 or 1, not of type"),
        ("m.npy", "not numpy", "readable file"),
        ("m.npy", "", "readable file"),
        ("m.edges", "0 1\n1 2\n", "line 2 is '1 2', not two of the clients 0 to 1"),
        ("m.edges", "0 -1\n", "line 1 is '0 -1'"),
        ("m.edges", "0 1 1\n", "line 1 is '0 1 1'"),
        ("m.edges", "0\n", "line 1 is '0'"),
        ("m.edges", "0 1.0\n", "line 1 is '0 1.0'"),
        ("m.edges", "1 1\n", "client 1 cannot distil from itself"),
        ("m.xlsx", "", "a file .npy, .csv, .txt, .json or .edges"),
    ],
)
def test_bad_matrix_files(file: str, content: str, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        build("matrix", 2, matrix=str(tmp_path / file))
    assert caught.value.setting == "graph.matrix"
    assert file in str(caught.value)


def test_a_missing_matrix_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.csv.*No such file"):
        build("matrix", 2, matrix=str(tmp_path / "nowhere.csv"))
    with pytest.raises(ConfigError, match="readable file"):
        (tmp_path / "folder.npy").mkdir()
        build("matrix", 2, matrix=str(tmp_path / "folder.npy"))


@pytest.mark.parametrize("empty", ["", None])
def test_no_matrix(empty: str | None) -> None:
    with pytest.raises(ConfigError, match="graph.matrix = .*a file or a matrix, for"):
        build("matrix", 2, matrix=empty)


def test_check_adjacency() -> None:
    checked = graph.check_adjacency(np.array(MATRIX, dtype=np.float32), 3)
    assert checked.dtype == bool
    assert (checked == np.array(MATRIX, bool)).all()
    with pytest.raises(ConfigError, match=r"array of int64, shape \(3, 3\).*shape \(4, 4\)"):
        graph.check_adjacency(np.array(MATRIX), 4)
    with pytest.raises(ConfigError, match=r"not \(1, 3, 3\)"):
        graph.check_adjacency(np.array([MATRIX]), 3)
    with pytest.raises(ConfigError, match="a matrix: "):
        graph.check_adjacency([[0, 1], [1]], 2)
    with pytest.raises(ConfigError, match="not of type complex128"):
        graph.check_adjacency(np.zeros((2, 2), complex), 2)
    source = np.zeros((2, 2), bool)
    graph.check_adjacency(source, 2)[0, 1] = True
    assert not source.any(), "the result must be a new array"


# ------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    "num_clients, changes, setting, message",
    [
        (0, {}, "clients.num", "whole number >= 1"),
        (-3, {}, "clients.num", "whole number >= 1"),
        (2.5, {}, "clients.num", "whole number >= 1"),
        (4, {"name": "cylce"}, "graph.name", "did you mean 'cycle'"),
        (4, {"name": None}, "graph.name", "one of none, complete"),
        (4, {"name": "random_regular", "degree": 4}, "graph.degree", "below clients.num = 4"),
        (5, {"name": "random_regular", "degree": 3}, "graph.degree", "clients.num = 5 is odd"),
        (4, {"name": "small_world", "degree": 6}, "graph.degree", "below clients.num = 4"),
        (8, {"name": "small_world", "degree": 3}, "graph.degree", "even number"),
        (1, {"name": "random_regular"}, "graph.degree", "below clients.num = 1"),
        (8, {"name": "islands", "islands": 3}, "graph.islands", "divisor.* 8: 1, 2, 4, 8"),
        (1, {"name": "islands"}, "graph.islands", "divisor of clients.num = 1: 1"),
        (8, {"name": "islands", "bridges": 5}, "graph.bridges", "at most 4"),
        (8, {"degree": -1}, "graph.degree", ">= 0"),
        (8, {"degree": 2.0}, "graph.degree", "whole number"),
        (8, {"degree": True}, "graph.degree", "whole number"),
        (8, {"islands": 0}, "graph.islands", ">= 1"),
        (8, {"bridges": -1}, "graph.bridges", ">= 0"),
        (8, {"peers_per_step": -2}, "graph.peers_per_step", ">= -1"),
        (8, {"every": -1}, "graph.every", ">= 0"),
        (8, {"probability": 1.01}, "graph.probability", "from 0 to 1"),
        (8, {"probability": "0.3"}, "graph.probability", "from 0 to 1"),
        (8, {"drop": -0.1}, "graph.drop", "from 0 to 1"),
        (8, {"drop": 2}, "graph.drop", "from 0 to 1"),
        (8, {"drop": float("nan")}, "graph.drop", "from 0 to 1"),
        (8, {"sequence": ("cycle", "star")}, "graph.every", ">= 1"),
        (8, {"sequence": ("cycle", "sta"), "every": 1}, "graph.sequence", "mean 'star'"),
        (8, {"sequence": "cycle", "every": 1}, "graph.sequence", "names of graphs in turn"),
        (8, {"matrix": "m.csv"}, "graph.name", "'matrix', because graph.matrix is given"),
        (
            8,
            {"matrix": "m.csv", "sequence": ("cycle",), "every": 2},
            "graph.sequence",
            "'matrix', because graph.matrix is given",
        ),
        (
            8,
            {"sequence": ("cycle", "islands"), "islands": 3, "every": 2},
            "graph.islands",
            "divisor",
        ),
    ],
)
def test_bad_settings(
    num_clients: Any, changes: dict[str, Any], setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        graph.make_topology(changes, num_clients, seed=0)
    assert caught.value.setting == setting


def test_settings_of_other_graphs_do_not_matter() -> None:
    assert build("complete", 3, degree=99, islands=7, bridges=5).sum() == 6


def test_defaults_are_those_of_the_config() -> None:
    defaults = config.default_config()
    chosen = graph.make_topology(defaults.graph, defaults.clients.num, defaults.seed)
    assert chosen.at(0).sum() == 8 * 7
    update = ml_collections.ConfigDict({"name": "star", "peers_per_step": 1})
    assert graph.make_topology(update, 4, seed=0).reads(0, 2).sum() == 2 * 4


# ------------------------------------------------------------------------- graphs over time

CHANGING: dict[str, dict[str, Any]] = {
    "static": {"name": "cycle"},
    "static random": {"name": "erdos_renyi"},
    "fresh": {"name": "erdos_renyi", "every": 1},
    "fresh every 4": {"name": "small_world", "every": 4},
    "sequence": {"sequence": ("cycle", "erdos_renyi", "star"), "every": 3},
    "sampled": {"peers_per_step": 2},
    "lossy": {"drop": 0.4},
    "all": {"sequence": ("complete", "chain"), "every": 2, "peers_per_step": 1, "drop": 0.2},
    "of the step": {"name": "of_the_step", "drop": 0.1},
}


@pytest.fixture(scope="module", autouse=True)
def _of_the_step() -> Iterator[None]:
    """Registers the function of the step that `CHANGING` names, for this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(graph.GRAPHS._pieces, "of_the_step", lambda step: random_matrix(6, step))
        yield


@pytest.mark.parametrize("case", CHANGING)
@given(cuts=st.lists(st.integers(0, 30), min_size=3, max_size=3), seed=st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_reads_is_a_pure_function_of_the_steps(case: str, cuts: list[int], seed: int) -> None:
    first, middle, last = sorted(cuts)
    chosen = graph.make_topology(CHANGING[case], 6, seed)
    whole = chosen.reads(first, last)
    assert whole.shape == (last - first, 6, 6)
    assert whole.dtype == bool
    halves = [chosen.reads(first, middle), chosen.reads(middle, last)]
    assert (whole == np.concatenate(halves)).all()
    resumed = graph.make_topology(CHANGING[case], 6, seed)
    assert (halves[1] == resumed.reads(middle, last)).all()
    for row, step in enumerate(range(first, last)):
        assert not (whole[row] & ~chosen.at(step)).any(), "reads along edges of the graph only"


def test_a_static_graph_is_broadcast() -> None:
    chosen = graph.make_topology({"name": "cycle"}, 4, seed=0)
    assert chosen.static
    reads = chosen.reads(5, 1_000_005)
    assert reads.shape == (1_000_000, 4, 4)
    assert reads.strides[0] == 0
    assert (reads[123] == chosen.at(0)).all()
    with pytest.raises(ValueError, match="read-only"):
        chosen.at(0)[0, 1] = True


@pytest.mark.parametrize("case", [case for case in CHANGING if not case.startswith("static")])
def test_changing_graphs_change(case: str) -> None:
    chosen = graph.make_topology(CHANGING[case], 6, seed=0)
    assert not chosen.static
    reads = chosen.reads(0, 24)
    assert len({read.tobytes() for read in reads}) > 2
    if case not in ("of the step", "sequence"):  # whose only randomness is shared or seldom
        assert (reads != graph.make_topology(CHANGING[case], 6, seed=1).reads(0, 24)).any()


def test_a_random_graph_without_every_is_drawn_once() -> None:
    chosen = graph.make_topology({"name": "erdos_renyi"}, 16, seed=0)
    assert chosen.static
    assert (chosen.at(0) == chosen.at(999)).all()


def test_a_fresh_random_graph_every_n_steps() -> None:
    chosen = graph.make_topology({"name": "erdos_renyi", "every": 5}, 16, seed=0)
    graphs = [chosen.at(step).tobytes() for step in range(50)]
    assert all(graphs[step] == graphs[step - step % 5] for step in range(50))
    assert len(set(graphs)) == 10
    assert graphs[0] == graph.make_topology({"name": "erdos_renyi"}, 16, seed=0).at(0).tobytes()
    assert chosen.at(7).tobytes() == graphs[7], "an earlier step is the same when asked again"


def test_a_sequence_takes_turns() -> None:
    changes = {"name": "none", "sequence": ("cycle", "star"), "every": 3}
    chosen = graph.make_topology(changes, 5, seed=0)
    names = [
        next(name for name in ("cycle", "star") if (chosen.at(step) == build(name, 5)).all())
        for step in range(9)
    ]
    assert names == ["cycle"] * 3 + ["star"] * 3 + ["cycle"] * 3


def test_random_graphs_of_a_sequence_are_fresh_at_every_turn() -> None:
    changes = {"sequence": ("erdos_renyi", "erdos_renyi"), "every": 2}
    chosen = graph.make_topology(changes, 16, seed=0)
    assert len({chosen.at(step).tobytes() for step in range(20)}) == 10


def test_a_function_of_the_step(ones_own: Own) -> None:
    asked: list[int] = []

    def alternate(step: int) -> list[list[int]]:
        asked.append(step)
        return [[0, 1], [0, 0]] if step % 2 else [[0, 0], [1, 0]]

    chosen = graph.make_topology({"name": ones_own(alternate)}, 2, seed=0)
    assert chosen.reads(0, 3)[:, 0, 1].tolist() == [False, True, False]
    assert sorted(set(asked)) == [0, 1, 2]


def test_clients_who_read_nobody(ones_own: Own) -> None:
    """Of a matrix and of a function; whom they would have read has fewer readers."""

    def everybody(step: int) -> np.ndarray:
        return ~np.eye(4, dtype=bool)

    for name in ("complete", ones_own(everybody)):
        whole = graph.make_topology({"name": name}, 4, seed=0)
        cut = whole.without_readers(2)
        assert not cut.at(5)[:2].any() and (cut.at(5)[2:] == whole.at(5)[2:]).all()
        assert (cut.reads(0, 3)[:, 2:] == whole.reads(0, 3)[:, 2:]).all()


def test_a_function_is_asked_at_the_first_step_of_a_turn(ones_own: Own) -> None:
    def growing(step: int) -> np.ndarray:
        return np.arange(36).reshape(6, 6) % 7 * step > 12

    chosen = graph.make_topology({"name": ones_own(growing), "every": 4}, 6, seed=0)
    assert (chosen.at(7) == growing(4)).all()
    assert not chosen.at(3).any()


@pytest.mark.parametrize("bad", [lambda step: np.eye(3), lambda step: np.zeros((2, 3))])
def test_a_bad_function_is_an_error_at_once(
    bad: Callable[[int], np.ndarray], ones_own: Own
) -> None:
    with pytest.raises(ConfigError, match="graph.name = 'ones_own, at step 0'"):
        graph.make_topology({"name": ones_own(bad)}, 3, seed=0)


def test_a_function_that_goes_wrong_later_names_the_step(ones_own: Own) -> None:
    name = ones_own(lambda step: np.eye(3) * (step == 5))
    chosen = graph.make_topology({"name": name}, 3, seed=0)
    chosen.reads(0, 5)
    with pytest.raises(ConfigError, match="at step 5.*client 0 cannot distil from itself"):
        chosen.reads(0, 6)


def test_a_registered_graph_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph.GRAPHS, "_pieces", dict(graph.GRAPHS._pieces))

    @graph.GRAPHS.register("one_teacher")
    def one_teacher(
        num_clients: int, rng: np.random.Generator, *, favourite: int = 0, **_: Any
    ) -> np.ndarray:
        adjacency = np.zeros((num_clients, num_clients), bool)
        adjacency[:, favourite] = True
        return adjacency

    with pytest.raises(ConfigError, match="graph.name = 'one_teacher'.*client 1 cannot"):
        graph.make_topology({"name": "one_teacher", "favourite": 1}, 3, seed=0)


# ------------------------------------------------------------------------- peers and losses


@given(adjacencies, st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_sampled_peers_are_peers(adjacency: np.ndarray, count: int, step: int) -> None:
    sampled = graph.sample_peers(adjacency, count, np.random.default_rng(step))
    assert not (sampled & ~adjacency).any()
    assert (sampled.sum(axis=1) == np.minimum(adjacency.sum(axis=1), count)).all()


@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("peers", [0, 2])
@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("name", ["complete", "star", "random_regular"])
def test_lists_of_peers_say_who_is_read(name: str, every: int, peers: int, drop: float) -> None:
    chosen = graph.make_topology(
        {"name": name, "degree": 4, "every": every, "peers_per_step": peers, "drop": drop},
        7, seed=3,
    )  # fmt: skip
    for step, reads in enumerate(chosen.reads(0, 20)):
        listed = [np.flatnonzero(row).tolist() for row in reads]
        found = [sorted(row[row != edges.NOBODY].tolist()) for row in chosen.peers(step)]
        assert found == listed


def test_sparse_graphs_are_planned_by_their_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 512 clients of 4 peers no step draws a number for every pair, or looks at all pairs."""
    settings = {"name": "random_regular", "degree": 4, "every": 50, "drop": 0.3}
    chosen = graph.make_topology(settings, 512, seed=0)
    reader = Fresh(chosen, edges.Form("lists", 4, 512))
    reader(0, 1)
    drawn = []

    class Counting(np.random.Generator):
        def random(self, size=None, *args, **kwargs):
            drawn.append(int(np.prod(size)))
            return super().random(size, *args, **kwargs)

    monkeypatch.setattr(
        topology, "generator", lambda *key: Counting(rng.generator(*key).bit_generator)
    )
    monkeypatch.setattr(topology.Topology, "at", mock.Mock(side_effect=AssertionError))
    reads = reader(1, 50).reads
    assert drawn == [512 * 4] * 49
    assert abs(reads.count.mean() / 4 - 0.7) < 0.01


def test_all_peers_are_equally_likely() -> None:
    reads = graph.make_topology({"peers_per_step": 2}, 6, seed=0).reads(0, 3000)
    frequency = reads.mean(axis=0)[~np.eye(6, dtype=bool)]
    assert np.abs(frequency - 2 / 5).max() < 0.045  # 5 standard deviations
    # ... and so is each pair of them: 10 pairs per client.
    pairs = reads[:, 0, 1:].astype(float).T @ reads[:, 0, 1:] / 3000
    assert np.abs(pairs[~np.eye(5, dtype=bool)] - 1 / 10).max() < 0.0275


def test_more_peers_than_there_are_is_all_peers_and_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen = graph.make_topology({"name": "star", "peers_per_step": 2}, 5, seed=0)
    graph.warn_without_effect(chosen)
    assert "peers_per_step = 2: clients with fewer peers read all of them" in caplog.text
    assert "1, 2, 3, 4" in caplog.text
    reads = chosen.reads(0, 20)
    assert (reads[:, 1:, 0]).all()
    assert (reads[:, 0].sum(axis=1) == 2).all()
    assert caplog.text.count("peers_per_step") == 1
    caplog.clear()
    for name in ("complete", "none"):
        graph.warn_without_effect(
            graph.make_topology({"name": name, "peers_per_step": 4}, 5, seed=0)
        )
    assert not caplog.records


def test_more_snapshots_than_there_are_is_all_of_them_and_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Stale teachers: Δ counts snapshots, of which there may be more than peers."""
    chosen = graph.make_topology({"name": "cycle", "peers_per_step": 3}, 5, seed=0)
    graph.warn_without_effect(chosen, pool_slots=4)
    assert not caplog.records
    graph.warn_without_effect(chosen, pool_slots=2)
    assert "graph.peers_per_step = 3: all 2 snapshots of exchange.pool_size are read" in caplog.text


def test_every_without_a_random_graph_is_said(caplog: pytest.LogCaptureFixture) -> None:
    graph.warn_without_effect(graph.make_topology({"name": "erdos_renyi", "every": 3}, 5, seed=0))
    assert not caplog.records
    fixed = graph.make_topology({"name": "cycle", "every": 3}, 5, seed=0)
    assert fixed.static
    graph.warn_without_effect(fixed)
    assert "graph.every has no effect: this graph is not random" in caplog.text


def test_lost_messages() -> None:
    complete = ~np.eye(6, dtype=bool)
    lossy = graph.make_topology({"drop": 0.3}, 6, seed=0)
    heard = lossy.reads(0, 3000).mean(axis=0)[complete]
    assert np.abs(heard - 0.7).max() < 0.042  # 5 standard deviations
    reads = lossy.reads(0, 3000)
    both = (reads & reads.swapaxes(1, 2)).mean(axis=0)[complete]
    assert np.abs(both - 0.49).max() < 0.046, "the two directions are lost independently"
    assert not graph.make_topology({"drop": 1.0}, 6, seed=0).reads(0, 9).any()
    assert (lossy.at(3) == complete).all(), "the graph in force knows no losses"


def test_losses_strike_after_peers_are_drawn() -> None:
    drawn = graph.make_topology({"peers_per_step": 2}, 6, seed=0).reads(0, 500)
    both = graph.make_topology({"peers_per_step": 2, "drop": 0.5}, 6, seed=0).reads(0, 500)
    assert not (both & ~drawn).any(), "nobody is heard in place of those who are lost"
    assert abs(both.sum() / drawn.sum() - 0.5) < 0.033
    one = graph.make_topology({"peers_per_step": 1, "drop": 0.5}, 6, seed=0).reads(0, 500)
    assert abs(one.sum() / (500 * 6) - 0.5) < 0.046, "whom is drawn does not decide what is lost"


# ------------------------------------------------------------------------- facts about a graph


@given(adjacencies)
@settings(max_examples=80, deadline=None)
def test_hop_distances_are_those_of_matrix_powers(adjacency: np.ndarray) -> None:
    num_clients = len(adjacency)
    expected = np.full((num_clients, num_clients), -1)
    walks = np.eye(num_clients, dtype=int)
    for length in range(num_clients):
        expected[(walks > 0) & (expected < 0)] = length
        walks = np.minimum(walks @ adjacency.astype(int), 1)
    hops = graph.hop_distances(adjacency)
    assert np.issubdtype(hops.dtype, np.integer)
    assert (hops == expected).all()
    transposed = graph.hop_distances(adjacency.T)
    assert (transposed == expected.T).all(), "the memory order of the array must not matter"


def test_hop_distances_follow_what_is_heard() -> None:
    cycle = graph.hop_distances(build("cycle", 5))
    reader, teacher = np.indices((5, 5))
    assert (cycle == (reader - teacher) % 5).all()
    assert (graph.hop_distances(build("none", 3)) == np.eye(3) - 1).all()


def test_describe() -> None:
    facts = graph.describe(build("cycle", 5))
    assert facts == {
        "clients": 5,
        "edges": 5,
        "min_degree": 1,
        "mean_degree": 1.0,
        "max_degree": 1,
        "weakly_connected": True,
        "strongly_connected": True,
        "diameter": 4,
        "hop_counts": [5, 5, 5, 5],
        "unheard": [],
        "without_peers": [],
    }
    islands = graph.describe(build("islands", 6, islands=2))
    assert not islands["weakly_connected"]
    assert islands["diameter"] is None
    one_way = graph.describe(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], bool))
    assert one_way["weakly_connected"] and not one_way["strongly_connected"]
    assert (one_way["unheard"], one_way["without_peers"]) == ([2], [0])
    assert one_way["hop_counts"] == [2, 1]
    alone = graph.describe(np.zeros((1, 1), bool))
    assert (alone["diameter"], alone["hop_counts"], alone["strongly_connected"]) == (0, [], True)


@given(adjacencies)
@settings(max_examples=25, deadline=None)
def test_describe_is_json(adjacency: np.ndarray) -> None:
    facts = graph.describe(adjacency)
    assert json.loads(json.dumps(facts)) == facts
    assert sum(facts["hop_counts"]) == (graph.hop_distances(adjacency) > 0).sum()


def test_warn_unreachable(caplog: pytest.LogCaptureFixture) -> None:
    graph.warn_unreachable(build("cycle", 4))
    graph.warn_unreachable(build("none", 1))
    assert not caplog.records
    graph.warn_unreachable(np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], bool))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "nobody distils from client 2" in caplog.text
    assert "private data only: client 0" in caplog.text


def test_a_changing_graph_is_judged_by_all_of_its_turns() -> None:
    settings = {"sequence": ("none", "cycle"), "every": 10}
    changing = graph.make_topology(settings, 4, seed=0)
    assert not changing.ever(10).any()
    assert (changing.ever(11) == build("cycle", 4)).all()
    fresh = graph.make_topology({"name": "erdos_renyi", "probability": 0.2, "every": 1}, 6, seed=0)
    assert fresh.ever(200).sum() == 30 > fresh.at(0).sum()
    assert (graph.make_topology({"name": "star"}, 4, seed=0).ever(500) == build("star", 4)).all()


# ------------------------------------------------------------------------- averaging weights


@given(adjacencies)
@settings(max_examples=80, deadline=None)
def test_metropolis_weights(adjacency: np.ndarray) -> None:
    weights = graph.metropolis_weights(adjacency)
    neighbours = adjacency | adjacency.T
    assert weights.dtype == np.float64
    assert (weights == weights.T).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-12)
    assert (weights >= 0).all() and (weights.diagonal() > 0).all()
    off_diagonal = ~np.eye(len(adjacency), dtype=bool)
    assert ((weights > 0) == neighbours)[off_diagonal].all()
    degrees = neighbours.sum(axis=1)
    for i, j in np.argwhere(neighbours):
        assert weights[i, j] == pytest.approx(1 / (1 + max(degrees[i], degrees[j])))


@given(adjacencies)
@settings(max_examples=25, deadline=None)
def test_metropolis_averaging_converges(adjacency: np.ndarray) -> None:
    assume(graph.describe(adjacency)["weakly_connected"])
    many = np.linalg.matrix_power(graph.metropolis_weights(adjacency), 10_000)
    np.testing.assert_allclose(many, np.full(adjacency.shape, 1 / len(adjacency)), atol=1e-6)


@given(arrays.arrays(bool, (3, 5, 5)))
@settings(max_examples=25, deadline=None)
def test_metropolis_weights_of_many_graphs(stack: np.ndarray) -> None:
    stack &= ~np.eye(5, dtype=bool)
    expected = np.stack([graph.metropolis_weights(adjacency) for adjacency in stack])
    assert (graph.metropolis_weights(stack) == expected).all()
