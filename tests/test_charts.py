# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Tests of the figures, on runs made up by `synthetic_run`."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyArrowPatch

from mhd_jax import graph
from mhd_jax.config import default_config, update
from mhd_jax.reporting import charts

COMPLETE = ~np.eye(3, dtype=bool)
STAR = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)

ON_SUMMARY = [
    charts.accuracy_per_class,
    charts.label_distribution,
    charts.communication_graph,
    charts.hop_picture,
]
ON_HISTORY = [charts.accuracy_over_steps, charts.losses, charts.accuracy_over_bytes]


def cycle(num_clients: int) -> np.ndarray:
    """Every client learns from the next one."""
    return np.roll(np.eye(num_clients, dtype=bool), 1, axis=1) & ~np.eye(num_clients, dtype=bool)


def synthetic_run(
    num_clients: int = 8,
    num_classes: int = 10,
    aux: int = 4,
    adjacency: np.ndarray | None = None,
    isolated_baseline: bool = True,
    replicas: int = 1,
    seed: int = 0,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A made-up summary and history with the shapes and the manners of a real run's."""
    rng = np.random.default_rng(seed)
    adjacency = cycle(num_clients) if adjacency is None else adjacency
    summary = _summary(rng, num_clients, num_classes, aux, adjacency, isolated_baseline)
    history = _history(rng, summary)
    if replicas > 1:
        others = [
            _summary(rng, num_clients, num_classes, aux, adjacency, isolated_baseline)
            for _ in range(replicas - 1)
        ]
        fields = (
            "seed", "partition_hash", "shared_accuracy", "private_accuracy", "isolated_baseline",
            "class_accuracy", "label_histogram", "primary_labels",
        )  # fmt: skip
        summary["replicas"] = [
            {key: run[key] for key in fields} | {"seed": index, "partition_hash": f"{index}" * 20}
            for index, run in enumerate([copy.deepcopy(summary), *others])
        ]
    # Through JSON, as everybody meets them.
    return json.loads(json.dumps(summary)), json.loads(json.dumps(history))


def _summary(
    rng: np.random.Generator,
    clients: int,
    classes: int,
    aux: int,
    adjacency: np.ndarray,
    isolated_baseline: bool,
) -> dict[str, Any]:
    owned = max(1, round(2 * classes / clients))
    primary = np.zeros((clients, classes), dtype=bool)
    for row in primary:
        row[rng.choice(classes, min(owned, classes), replace=False)] = True
    counts = rng.binomial(12, 0.02, primary.shape) + primary * rng.integers(30, 70, primary.shape)
    counts[:, 0] += 1
    hops = np.where(graph.hop_distances(adjacency) < 0, 99, graph.hop_distances(adjacency))
    nearest = np.where(primary[None], hops[:, :, None], 99).min(axis=1)
    rank = np.arange(aux + 1)[None, :, None]
    known = np.exp(-np.maximum(0, nearest[:, None] - rank)) * (0.97 - 0.03 * rank)
    accuracy = np.clip(known - np.abs(rng.normal(0, 0.04, known.shape)), 0, 1)
    mix = counts / counts.sum(axis=1, keepdims=True)
    alone = np.clip(0.97 * primary + 0.02 - np.abs(rng.normal(0, 0.02, primary.shape)), 0, 1)
    return {
        "method": "mhd",
        "seed": 0,
        "config": _config(clients, aux, isolated_baseline),
        "versions": {"python": "3.11.7", "mhd_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
        "device": "cpu (4 devices)",
        "num_params": [18_123] * clients,
        "steps": 1500,
        "steps_per_second": 341.2,
        "compile_seconds": 6.4,
        "partition_hash": "3f2a9c0d7be14c55a1e0",
        "shared_accuracy": accuracy.mean(axis=-1).tolist(),
        "private_accuracy": (accuracy * mix[:, None]).sum(axis=-1).tolist(),
        "isolated_baseline": {
            "shared_accuracy": alone.mean(axis=-1, keepdims=True).tolist(),
            "private_accuracy": (alone * mix).sum(axis=-1, keepdims=True).tolist(),
        }
        if isolated_baseline
        else None,
        "class_accuracy": accuracy.tolist(),
        "label_histogram": counts.tolist(),
        "primary_labels": primary.tolist(),
        "adjacency": adjacency.tolist(),
        "bytes_per_step": {
            "predictions": [64 * ((aux + 1) * classes + 64) * 4] * clients,
            "snapshots": [18_123 * 4 / 200] * clients,
            "fedavg": [18_123 * 4 / 200 * 2] * clients,
        },
    }


def _config(clients: int, aux: int, isolated_baseline: bool) -> dict[str, Any]:
    config = default_config()
    changes = {"clients.num": clients, "heads.aux": aux, "graph.name": "cycle"}
    changes["isolated_baseline"] = isolated_baseline
    update(config, changes)
    return config.to_dict()


def _history(rng: np.random.Generator, summary: dict[str, Any]) -> list[dict[str, Any]]:
    clients, heads = np.shape(summary["shared_accuracy"])
    per_step = sum(summary["bytes_per_step"]["predictions"])
    lines: list[dict[str, Any]] = []
    for step in range(50, 1501, 50):
        decay = np.exp(-step / 300)
        noise = np.abs(rng.normal(1, 0.1, (clients, heads + 2)))
        parts = noise[:, 3:] * (0.5 + 1.8 * decay)
        private, embedding = (0.02 + 2 * decay) * noise[:, 0], (0.1 + 0.8 * decay) * noise[:, 1]
        lines.append(
            {
                "step": step,
                "seconds": step / 341,
                "steps_per_second": 341.2,
                "loss": (private + embedding + 3 * parts.sum(axis=1)).tolist(),
                "private_loss": private.tolist(),
                "embedding_loss": embedding.tolist(),
                "head_losses": parts.tolist(),
                "bytes_sent": per_step * step,
            }
        )
        if step % 100 == 0:
            lines.append({"step": step, "seconds": step / 341} | _evaluation(rng, summary, step))
    return lines


def _evaluation(rng: np.random.Generator, summary: dict[str, Any], step: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    groups = [("", summary), ("control_", summary["isolated_baseline"])]
    for prefix, run in [(prefix, run) for prefix, run in groups if run]:
        for kind in ("shared_accuracy", "private_accuracy"):
            final = np.array(run[kind])
            delay = 150 + 120 * np.arange(final.shape[-1])
            grown = 0.1 + (final - 0.1) * (1 - np.exp(-step / delay))
            noisy = grown + rng.normal(0, 0.01, final.shape)
            values[prefix + kind] = np.clip(noisy, 0, 1).tolist()
    return values


RUNS: dict[str, dict[str, Any]] = {
    "quickstart": {},
    "one client, one head, no baseline": {"num_clients": 1, "aux": 0, "isolated_baseline": False},
    "isolated": {"aux": 0, "adjacency": np.zeros((8, 8), bool), "isolated_baseline": False},
    "two islands": {"adjacency": np.kron(np.eye(2), COMPLETE).astype(bool), "num_clients": 6},
    "a star": {"adjacency": STAR, "num_clients": 4, "aux": 1},
    "many clients": {"num_clients": 40, "num_classes": 25, "aux": 1},
    "many edges": {"num_clients": 30, "adjacency": ~np.eye(30, dtype=bool), "aux": 8},
    "many classes": {"num_clients": 2, "num_classes": 1000, "aux": 2},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_figure_draws_for_every_kind_of_run(name: str) -> None:
    summary, history = synthetic_run(**RUNS[name])
    for draw in ON_SUMMARY:
        _render(draw(summary))
    for trace in ON_HISTORY:
        _render(trace(history))
    assert not pyplot.get_fignums()


def _render(figure: Figure) -> None:
    """Lays the figure out and draws it; pytest makes every warning an error."""
    assert isinstance(figure, Figure)
    figure.set_dpi(40)
    figure.canvas.draw()


@pytest.mark.parametrize("trace", ON_HISTORY)
@pytest.mark.parametrize("history", [[], [{"step": 0, "shared_accuracy": [[0.1]]}]])
def test_a_run_without_records_says_so(trace: Any, history: list[dict[str, Any]]) -> None:
    history = [line | {"private_accuracy": [[0.2]]} for line in history]
    figure = trace(history)
    _render(figure)
    words = [text.get_text() for axis in figure.axes for text in axis.texts]
    if not history:
        assert any("recorded" in word or "nothing was sent" in word for word in words)


def test_heads_keep_their_colours_and_the_control_is_dashed() -> None:
    _, history = synthetic_run(aux=3)
    lines = {line.get_label(): line for line in charts.accuracy_over_steps(history).axes[0].lines}
    assert list(lines) == ["isolated baseline", "main", "aux 1", "aux 2", "aux 3"]
    assert lines["main"].get_color() == charts.MAIN
    assert lines["isolated baseline"].get_color() == charts.BASELINE
    assert lines["isolated baseline"].is_dashed()
    assert not lines["main"].is_dashed()
    hop_lines = charts.hop_picture(synthetic_run(aux=3)[0]).axes[0].lines
    for line in hop_lines:
        assert to_hex(line.get_color()) == to_hex(lines[line.get_label()].get_color())


def test_lines_are_means_and_bands_reach_from_min_to_max() -> None:
    _, history = synthetic_run(num_clients=3, aux=1)
    evaluations = [line for line in history if "shared_accuracy" in line]
    axis = charts.accuracy_over_steps(history).axes[0]
    values = np.array([line["shared_accuracy"] for line in evaluations])[..., 1]
    np.testing.assert_allclose(np.asarray(axis.lines[-1].get_ydata()), values.mean(axis=1))
    band = np.asarray(axis.collections[-1].get_paths()[0].vertices)[:, 1]
    assert band.min() == pytest.approx(values.min())
    assert band.max() == pytest.approx(values.max())


def test_losses_leave_out_what_is_zero() -> None:
    _, history = synthetic_run(aux=0, isolated_baseline=False)
    for line in history:
        if "loss" in line:
            line["embedding_loss"] = [0.0] * 8
    titles = [axis.get_title("left") for axis in charts.losses(history).axes]
    assert titles == ["total loss", "private loss (cross-entropy)"]


def test_a_distilled_main_head_is_called_so() -> None:
    _, history = synthetic_run(aux=0)
    for line in history:
        if "loss" in line:
            line["head_losses"] = [[1.0]] * 8
    axis = charts.losses(history).axes[-1]
    assert [line.get_label() for line in axis.lines] == ["main"]


def test_bytes_are_those_sent_until_the_evaluation() -> None:
    history: list[dict[str, Any]] = [
        {"step": 0, "shared_accuracy": [[0.1, 0.1]]},
        {"step": 10, "bytes_sent": 1000},
        {"step": 15, "shared_accuracy": [[0.2, 0.4]]},
        {"step": 20, "bytes_sent": 2000},
        {"step": 20, "shared_accuracy": [[0.2, 0.5]]},
    ]
    (line,) = charts.accuracy_over_bytes(history).axes[0].lines
    np.testing.assert_allclose(
        np.asarray(line.get_xdata()), [1500, 2000]
    )  # nothing was sent at step 0
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [0.4, 0.5])
    assert line.get_label() == "aux 1"


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (999, "999 B"), (999.9, "1 kB"), (29_160, "29.2 kB"), (3e12, "3 TB")],
)
def test_format_bytes(count: float, text: str) -> None:
    assert charts.format_bytes(count) == text


def test_arrows_point_from_teacher_to_student() -> None:
    summary, _ = synthetic_run(num_clients=3, aux=0)
    summary["adjacency"] = [[False, True, False], [False, False, False], [False, True, False]]
    figure = charts.communication_graph(summary)
    figure.canvas.draw()
    axis = figure.axes[0]
    places = {int(text.get_text()): np.array(text.get_position()) for text in axis.texts}
    arrows = [patch for patch in axis.patches if isinstance(patch, FancyArrowPatch)]
    found = set()
    for arrow in arrows:
        line = np.asarray(arrow.get_path().vertices)[:3]  # the head follows
        start, stop = (min(places, key=lambda n: np.hypot(*(places[n] - p))) for p in line[[0, 2]])
        style: Any = arrow.get_arrowstyle()
        assert style.arrow == "-|>"
        found.add((start, stop))
    assert found == {(1, 0), (1, 2)}


def test_too_many_edges_become_lines_and_say_so() -> None:
    summary, _ = synthetic_run(num_clients=40, adjacency=~np.eye(40, dtype=bool))
    axis = charts.communication_graph(summary).axes[0]
    assert not [patch for patch in axis.patches if isinstance(patch, FancyArrowPatch)]
    assert "780 edges, all of them mutual" in [text.get_text() for text in axis.texts]


def test_cells_carry_the_numbers_of_their_client_and_class() -> None:
    summary, _ = synthetic_run(num_clients=3, num_classes=4, aux=1)
    figure = charts.accuracy_per_class(summary)
    for axis, head in zip(figure.axes, (0, 1), strict=False):
        assert len(axis.texts) == 12
        for text in axis.texts:
            column, row = map(int, text.get_position())
            accuracy = summary["class_accuracy"][row][head][column]
            assert float(text.get_text()) == pytest.approx(accuracy, abs=0.0051)


@pytest.mark.parametrize("draw", [charts.accuracy_per_class, charts.label_distribution])
def test_only_primary_labels_are_orange(draw: Any) -> None:
    summary, _ = synthetic_run(num_clients=4, num_classes=30)
    primary = np.array(summary["primary_labels"])
    order = np.lexsort(~primary[::-1])
    image = next(a for a in draw(summary).axes[0].get_children() if isinstance(a, AxesImage))
    red, _, blue = np.moveaxis(np.asarray(image.get_array())[..., :3], -1, 0)
    empty = (red == 1) & (blue == 1)
    np.testing.assert_array_equal((red > blue)[~empty], primary[:, order][~empty])
    assert not (empty & primary[:, order]).any()


def test_many_classes_are_sorted_by_primary_client_and_not_numbered() -> None:
    summary, _ = synthetic_run(num_clients=4, num_classes=30)
    primary = np.array(summary["primary_labels"])
    axis = charts.label_distribution(summary).axes[0]
    image = next(a for a in axis.get_children() if isinstance(a, AxesImage))
    colours = np.asarray(image.get_array())
    own = colours[0, :, 0] > colours[0, :, 2]
    assert own[: primary[0].sum()].all() and not own[primary[0].sum() :].any()
    assert not axis.xaxis.get_tick_params()["labelbottom"]
    assert not axis.texts


def test_a_pooled_model_stands_for_every_client() -> None:
    summary, _ = synthetic_run(num_clients=4, aux=0)
    summary["class_accuracy"] = summary["class_accuracy"][:1]
    image = charts.accuracy_per_class(summary).axes[0].images[0]
    assert np.asarray(image.get_array()).shape[:2] == (4, 10)
    assert charts.hop_table(summary)[2].shape[0] == 1


# ----------------------------------------------------------------------------- the hop table


def test_hop_table_by_hand() -> None:
    summary = {
        # 0 learns from 1, 1 learns from 2; nobody is primary for label 3.
        "adjacency": [[0, 1, 0], [0, 0, 1], [0, 0, 0]],
        "primary_labels": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]],
        "class_accuracy": [
            [[0.9, 0.5, 0.1, 0.7]],
            [[0.0, 0.8, 0.3, 0.7]],
            [[0.2, 0.6, 1.0, 0.7]],
        ],
    }
    ranks, distances, table = charts.hop_table(summary)
    assert (ranks, distances) == (["main"], [0, 1, 2, -1])
    # own labels; (0, 1) and (1, 2); (0, 2); label 0 for clients 1 and 2
    np.testing.assert_allclose(
        table, [[(0.9 + 0.8 + 0.6 + 1.0) / 4, (0.5 + 0.3) / 2, 0.1, (0.0 + 0.2) / 2]]
    )


@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_hop_table_equals_a_search_by_loops(
    clients: int, classes: int, heads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    adjacency = (rng.random((clients, clients)) < 0.3) & ~np.eye(clients, dtype=bool)
    primary = rng.random((clients, classes)) < 0.3
    accuracy = rng.random((clients, heads, classes))
    found: dict[int, list[np.ndarray]] = {}
    for label in range(classes):
        for client in range(clients):
            if primary[:, label].any():
                distance = _search(adjacency, primary[:, label], client)
                found.setdefault(distance, []).append(accuracy[client, :, label])
    summary = {"adjacency": adjacency, "primary_labels": primary, "class_accuracy": accuracy}
    _, distances, table = charts.hop_table(summary)
    assert distances == sorted(found, key=lambda d: d if d >= 0 else 99)
    for column, distance in enumerate(distances):
        np.testing.assert_allclose(table[:, column], np.mean(found[distance], axis=0))


def _search(adjacency: np.ndarray, owners: np.ndarray, client: int) -> int:
    """Hops from `client` to the nearest owner, -1 for none, going outwards step by step."""
    heard = {client}
    for distance in range(len(owners)):
        if any(owners[j] for j in heard):
            return distance
        heard |= {j for i in heard for j in range(len(owners)) if adjacency[i, j]}
    return -1


def test_a_partition_without_primary_labels_has_no_hop_table() -> None:
    summary, _ = synthetic_run()
    summary["primary_labels"] = np.zeros((8, 10), bool).tolist()
    ranks, distances, table = charts.hop_table(summary)
    assert distances == [] and table.shape == (5, 0)
    for draw in ON_SUMMARY:
        _render(draw(summary))


# ----------------------------------------------------------------------------- files


def test_save_all_writes_every_figure(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "DPI", 40)  # to be quick
    summary, history = synthetic_run(num_clients=2, num_classes=3, aux=1)
    before = copy.deepcopy((summary, history))
    paths = charts.save_all(summary, history, tmp_path / "run" / "figures")
    assert {path.name for path in paths} == {f"{f.__name__}.png" for f in ON_SUMMARY + ON_HISTORY}
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert (summary, history) == before
