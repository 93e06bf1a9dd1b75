# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The summary of a run: types, files, statistics over clients, accuracy by distance."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhd_jax import results, train
from mhd_jax.reporting import terminal
from mhd_jax.results import Summary
from tests import small
from tests.synthetic import changed, synthetic_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds, with a further metric and a graph that changes."""
    folder = tmp_path_factory.mktemp("run")
    config = small.config(num_seeds=2, metrics=("worst_class",), train__steps=4,
                          isolated_baseline=True,
                          train__log_every=2, train__eval_every=2, graph__every=1,
                          bytes_to=(0.01, 0.12, 1.0),
                          graph__sequence=("cycle", "star"))  # fmt: skip
    train.train_and_evaluate(config, folder, with_report=False)
    return folder


# --- The files ------------------------------------------------------------------------------------


def test_the_file_is_read_back_to_the_bit(run: Path) -> None:
    values = json.loads((run / "summary.json").read_text())
    summary = Summary.from_json(values)
    assert summary.to_json() == values and summary == values
    assert summary["shared_accuracy"] is summary.shared_accuracy
    assert [seed.seed for seed in summary.seeds] == [0, 1]
    assert summary.isolated_baseline is not None
    assert summary.isolated_baseline["shared_accuracy"].shape == (4, 1)
    with pytest.raises(KeyError):
        summary["control"]


def test_every_key_of_the_files_is_described(run: Path) -> None:
    docs = {file: {doc.key for doc in docs} for file, docs in results.describe_fields().items()}
    written = json.loads((run / "summary.json").read_text())
    assert written.keys() == {key for key in docs["summary.json"] if "." not in key}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = {re.sub("^metrics/.*", "metrics/<name>", key) for line in lines for key in line}
    own = {"own_test_accuracy", "control_own_test_accuracy"}  # where clients have test samples
    dropped = {"unreadable", "unreadable_parameters"}  # where messages are
    assert keys == docs["metrics.jsonl"] - own - dropped


@pytest.mark.parametrize("file", results.describe_fields())
def test_shapes_units_and_sentences_are_complete(file: str) -> None:
    for doc in results.describe_fields()[file]:
        assert doc.shape and doc.unit and doc.about.strip().endswith((".", ":")), doc


def test_shapes_are_as_described(run: Path) -> None:
    summary = Summary.from_json(json.loads((run / "summary.json").read_text()))
    sizes = {"K": 4, "H": 3, "C": 10, "2": 2, "channels": 1, "n": 0}
    for doc in results.describe_fields()["summary.json"]:
        if doc.shape.startswith("[") and "." not in doc.key and " or " not in doc.shape:
            named = [sizes[axis] for axis in doc.shape.strip("[]").split(", ")]
            assert np.shape(summary[doc.key]) == tuple(named), doc.key


def test_bytes_to_an_accuracy_are_those_of_the_evaluations(run: Path) -> None:
    """By hand from the lines, of each of both seeds."""
    summary = Summary.from_json(json.loads((run / "summary.json").read_text()))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [
        (line["step"], line["last_head_accuracy"]) for line in lines if "shared_accuracy" in line
    ]
    assert [step for step, _ in seen] == [0, 2, 4]
    for index, seed in enumerate(summary.seeds):
        assert seed.bytes_to.keys() == {"0.01", "0.12", "1"}
        assert seed.shared_accuracy[:, -1].mean() == pytest.approx(seen[-1][1][index])
        for level, found in seed.bytes_to.items():
            steps = [step for step, accuracy in seen if accuracy[index] >= float(level)]
            assert found == (steps[0] * summary.bytes_sent / 4 if steps else None)
    assert summary.bytes_to == summary.seeds[0].bytes_to


def test_another_version_is_refused() -> None:
    values = synthetic_run()[0].to_json()
    with pytest.raises(ValueError, match="expected version 1 of its keys, not 7"):
        Summary.from_json(values | {"version": 7})
    del values["steps"]
    with pytest.raises(ValueError, match="has no steps"):
        Summary.from_json(values)


def test_the_union_of_a_changing_graph_is_recorded(run: Path) -> None:
    summary = Summary.from_json(json.loads((run / "summary.json").read_text()))
    star = np.zeros((4, 4), bool)
    star[0, 1:] = star[1:, 0] = True
    np.testing.assert_array_equal(summary.adjacency_union, summary.adjacency | star)


# --- Statistics over clients ----------------------------------------------------------------------


def test_gains_are_taken_client_by_client() -> None:
    main, _, isolated = results.accuracy_rows(
        np.array([[[0.4, 0.8], [0.5, 0.9]]]), np.array([[[0.9, 0.7], [1.0, 0.8]]]),
        np.array([[[0.3], [0.5]]]), np.array([[[0.95], [0.97]]]),
    )  # fmt: skip
    assert main.shared_gain is not None and main.private_gain is not None
    assert (main.shared_gain.min, main.shared_gain.max) == pytest.approx((0.0, 0.1))
    assert (main.private_gain.min, main.private_gain.max) == pytest.approx((-0.05, 0.03))
    assert isolated.name == "isolated" and isolated.shared_gain is None


def test_rows_of_several_seeds() -> None:
    summary, _ = synthetic_run(replicas=3)
    row = results.head_rows(summary)[0]
    means = [seed.shared_accuracy[:, 0].mean() for seed in summary.seeds]
    assert row.shared.mean == pytest.approx(np.mean(means))
    assert row.shared.std == pytest.approx(np.std(means, ddof=1))


# --- Accuracy by distance -------------------------------------------------------------------------


def _table(adjacency: Any, primary: Any, accuracy: Any) -> results.HopTable:
    return results.accuracy_by_hops(np.array(accuracy), results.label_hops(primary, adjacency))


def test_hop_table_by_hand() -> None:
    table = _table(
        # 0 learns from 1, 1 learns from 2; nobody is primary for label 3.
        [[0, 1, 0], [0, 0, 1], [0, 0, 0]],
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]],
        [[[0.9, 0.5, 0.1, 0.7]], [[0.0, 0.8, 0.3, 0.7]], [[0.2, 0.6, 1.0, 0.7]]],
    )
    assert (table.heads, table.distances) == (["main"], [0, 1, 2, -1])
    assert table.names == ["0", "1", "2", "none"]
    # own labels; (0, 1) and (1, 2); (0, 2); label 0 for clients 1 and 2
    np.testing.assert_allclose(
        table.accuracy, [[(0.9 + 0.8 + 0.6 + 1.0) / 4, (0.5 + 0.3) / 2, 0.1, (0.0 + 0.2) / 2]]
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
    made = results.accuracy_by_hops(accuracy, results.label_hops(primary, adjacency))
    distances, table = made.distances, made.accuracy
    assert made.pairs == [len(found[distance]) for distance in distances]
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
    table = results.hop_table(changed(summary, primary_labels=np.zeros((8, 10), bool)))
    assert table.distances == [] and table.accuracy.shape == (5, 0)


def test_hops_of_a_changing_graph_count_along_its_union() -> None:
    """A clock that runs either way: nobody is further than 4 hops from a label, not 7."""
    summary, _ = synthetic_run()
    both = changed(summary, adjacency_union=summary.adjacency | summary.adjacency.T)
    assert max(results.hop_table(summary).distances) > 4
    assert max(results.hop_table(both).distances) <= 4


def test_liars_are_kept_and_left_out_of_the_means() -> None:
    summary, _ = synthetic_run(num_clients=4, replicas=2)
    replicas = [seed.to_json() | {"liars": [1]} for seed in summary.seeds]
    told = changed(summary, liars=[1], replicas=replicas)
    assert Summary.from_json(told.to_json()).liars == [1]
    honest = np.stack([seed.shared_accuracy for seed in told.seeds])[:, [0, 2, 3]]
    (first, *_) = results.head_rows(told)
    assert first.shared.mean == pytest.approx(honest[..., 0].mean())
    assert first.shared.max == honest[..., 0].max()
    assert first.shared_gain is not None
    assert "over 3 clients that do not lie" in terminal.final_table(told)
    everybody, without = results.hop_table(summary), results.hop_table(told)
    assert sum(without.pairs) < sum(everybody.pairs)
    hops = results.label_hops(summary.primary_labels, summary.adjacency_union)[[0, 2, 3]]
    expected = results.accuracy_by_hops(summary.class_accuracy[[0, 2, 3]], hops)
    np.testing.assert_array_equal(without.accuracy, expected.accuracy)


def test_a_class_without_test_samples_is_in_no_hop_table() -> None:
    summary, _ = synthetic_run()
    accuracy = summary.class_accuracy.copy()
    accuracy[:, :, 3] = np.nan
    found = results.hop_table(changed(summary, class_accuracy=accuracy))
    assert np.isfinite(found.accuracy).all()
    left = np.delete(summary.class_accuracy, 3, axis=2), np.delete(summary.primary_labels, 3, 1)
    hops = results.label_hops(left[1], summary.adjacency_union)
    assert found.pairs == results.accuracy_by_hops(left[0], hops).pairs
    told = changed(summary, class_accuracy=accuracy)
    kept = json.loads(json.dumps(told.to_json(), allow_nan=False))
    np.testing.assert_array_equal(Summary.from_json(kept).class_accuracy, accuracy)
