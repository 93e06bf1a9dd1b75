# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What shows a run of many clients: distributions in place of a row for each of them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from mhd_jax import graph
from mhd_jax.reporting import graph_drawing, report, terminal
from mhd_jax.results import MANY, QUANTILES, Summary, condensed, fields
from mhd_jax.runtime.workdir import to_json
from tests.synthetic import cycle, synthetic_run

CLIENTS = MANY + 88


@pytest.fixture(scope="module")
def many() -> tuple[Summary, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    regular = graph.GRAPHS.get("random_regular")(CLIENTS, rng, degree=4)
    return synthetic_run(CLIENTS, aux=2, adjacency=regular)


def test_a_line_of_many_clients_is_quantiles_over_those_who_took_part(many):
    _, history = many
    line = {name: value for name, value in history[0].items() if value is not None}
    loss, heads = np.array(line["loss"]), np.array(line["head_losses"])
    loss[7], heads[7] = np.nan, np.nan
    found = condensed({**line, "loss": loss, "head_losses": heads})
    assert found["loss"].shape == (QUANTILES,)
    assert found["head_losses"].shape == (QUANTILES, heads.shape[1])
    known = np.delete(heads, 7, axis=0)
    np.testing.assert_array_equal(found["head_losses"][0], known.min(axis=0))
    np.testing.assert_array_equal(found["head_losses"][-1], known.max(axis=0))
    np.testing.assert_allclose(found["head_losses"].mean(axis=0), known.mean(axis=0), rtol=1e-2)
    assert found["step"] == line["step"] and found["bytes_sent"] == line["bytes_sent"]
    few = condensed({"loss": loss[:MANY]})
    assert len(few["loss"]) == MANY
    assert json.loads(to_json(few))["loss"][7] is None  # JSON has no NaN


def test_a_head_that_is_known_of_nobody_does_not_hide_the_others():
    values = np.random.default_rng(0).random((CLIENTS, 2))
    values[7] = np.nan  # took no part
    values[:, 1] = np.nan
    values[3, 1] = 0.5
    found = condensed({"teacher_accuracy": values})["teacher_accuracy"]
    known = np.delete(values[:, 0], 7)
    np.testing.assert_array_equal(found[[0, -1], 0], [known.min(), known.max()])
    np.testing.assert_array_equal(found[:, 1], 0.5)
    values[3, 1] = np.nan
    found = condensed({"teacher_accuracy": values})["teacher_accuracy"]
    assert np.isnan(found[:, 1]).all() and not np.isnan(found[:, 0]).any()


def test_clients_that_lie_are_left_out_of_quantiles_means_and_curves():
    summary, _ = synthetic_run(CLIENTS, aux=1, adjacency=_two_rings(), isolated_baseline=False)
    lying = np.arange(CLIENTS) < 40
    shared = np.where(lying[:, None], 0.0, summary.shared_accuracy)
    summary = dataclasses.replace(
        summary, shared_accuracy=shared, own_test_accuracy=shared, liars=np.flatnonzero(lying)
    )
    rows, honest = report.client_rows(summary), shared[~lying]
    assert rows[0]["shared_main"] == rows[0]["own_main"] == honest[:, 0].min()
    assert rows[2]["shared_last"] == np.median(honest[:, 1])
    page = " ".join(report.render(summary, {}).split())
    assert f"Of {len(honest)} clients that do not lie the least" in page
    last = terminal.final_table(summary).splitlines()[-1]
    assert last.endswith(f"mean of all that do not lie  main {honest[:, 0].mean():.3f}")
    (line,) = graph_drawing.communication_graph(summary).axes[2].lines
    np.testing.assert_array_equal(line.get_xdata(), [2])  # who hears one client lies
    np.testing.assert_allclose(line.get_ydata(), [honest[:, 1].mean()])


def _two_rings() -> np.ndarray:
    """The first 40 clients hear one each, the others two."""
    edges = np.zeros((CLIENTS, CLIENTS), bool)
    edges[:40, :40] = cycle(40)
    edges[40:, 40:] = cycle(CLIENTS - 40) | cycle(CLIENTS - 40).T
    return edges


def test_a_graph_of_many_clients_is_kept_as_lists_of_peers(many):
    summary, _ = many
    kept = json.loads(to_json(summary.to_json()))
    assert all(len(peers) == 4 for peers in kept["adjacency"])
    again = Summary.from_json(kept)
    np.testing.assert_array_equal(again.adjacency, summary.adjacency)
    np.testing.assert_array_equal(again.adjacency_union, summary.adjacency_union)
    alone = fields._matrix([[]] * 3)
    np.testing.assert_array_equal(alone, np.zeros((3, 3), bool))


def test_the_report_of_many_clients_has_quantiles_for_rows(many):
    summary, history = many
    rows = report.client_rows(summary)
    assert [row["client"] for row in rows] == list(report.SHARES)
    assert rows[0]["shared_last"] == summary.shared_accuracy[:, -1].min()
    assert rows[-1]["shared_last"] == summary.shared_accuracy[:, -1].max()
    assert rows[2]["peers"] == 4
    page = report.render(summary, {})
    assert f"Of {CLIENTS} clients the least" in page and len(page) < 100_000
    page = report.render(summary, {"communication_graph": b"\0" * 24})
    assert "Too many clients to draw" in page and "Arrows point" not in page
    assert isinstance(report.charts.losses([condensed(line) for line in history]), Figure)
    assert len(terminal.final_table(summary).splitlines()) < 20


def test_a_graph_of_many_clients_is_shown_in_numbers(many):
    summary, _ = many
    peers, hops, by_peers = graph_drawing.communication_graph(summary).axes
    assert [bar.get_height() for bar in peers.patches] == [CLIENTS]
    counted = graph.describe(summary.adjacency)["hop_counts"]
    assert [bar.get_height() for bar in hops.patches] == counted
    ((mean,),) = [line.get_ydata() for line in by_peers.lines]
    assert mean == pytest.approx(summary.shared_accuracy[:, -1].mean())


@pytest.mark.parametrize("name", ["random_regular", "small_world", "erdos_renyi", "cycle"])
def test_hop_distances_of_more_than_a_word_are_those_of_a_search(name):
    rng = np.random.default_rng(3)
    settings = {"degree": 4, "probability": 0.05}
    adjacency = graph.GRAPHS.get(name)(150, rng, **settings)
    adjacency[17] = False  # who hears nobody
    expected = np.full((150, 150), -1)
    for client in range(150):
        reached, frontier, hop = {client}, {client}, 0
        while frontier:
            expected[client, list(frontier)] = hop
            frontier = {int(j) for i in frontier for j in np.flatnonzero(adjacency[i])} - reached
            reached, hop = reached | frontier, hop + 1
    np.testing.assert_array_equal(graph.hop_distances(adjacency), expected)
    np.testing.assert_array_equal(graph.hop_distances(np.asfortranarray(adjacency)), expected)
