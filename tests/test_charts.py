# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Tests of the figures, on made-up runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mhd_jax import results
from mhd_jax.reporting import charts, style
from mhd_jax.reporting.report import ON_HISTORY, ON_SUMMARY
from tests.synthetic import changed, synthetic_run

COMPLETE = ~np.eye(3, dtype=bool)
STAR = np.array([[0, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)


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


def test_names_with_dollars_are_no_formulas() -> None:
    """Drawn after the style's context has ended, as the report does."""
    summary, history = synthetic_run(num_clients=4, num_classes=3)
    dollars = ("$0%-$5%", "$5%-$10%", "$^$")
    summary = changed(summary, class_names=dollars, client_names=(*dollars, "$_{$ at a node"))
    for draw in ON_SUMMARY:
        _render(draw(summary))
    figure = charts.accuracy_per_class(summary)
    _render(figure)
    shown = [tick.get_text() for tick in figure.axes[-3].get_xticklabels()]
    assert shown == list(dollars)
    assert not any(text.get_parse_math() for text in figure.axes[0].get_yticklabels())


def _render(figure: Figure) -> None:
    """Lays the figure out and draws it; pytest makes every warning an error."""
    assert isinstance(figure, Figure)
    figure.set_dpi(40)
    figure.draw_without_rendering()  # the canvas of a figure without pyplot draws nothing


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
    assert lines["main"].get_color() == style.MAIN
    assert lines["isolated baseline"].get_color() == style.BASELINE
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


@pytest.mark.parametrize("steps", [[1], [0, 2], [0, 600, 1500]])
def test_steps_are_whole_numbers(steps: list[int]) -> None:
    figure = charts.losses([{"step": step, "loss": [1.0, 2.0]} for step in steps])
    _render(figure)
    axis = figure.axes[0]
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert ticks and not any(tick % 1 for tick in ticks)


def test_agreement_recorded_once_is_a_dot() -> None:
    figure = charts.health([{"step": 4, "teacher_agreement": [0.4, 0.5]}])
    assert [line.get_marker() for line in figure.axes[1].lines] == ["o", "o"]


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


def test_classes_with_names_carry_them() -> None:
    summary, _ = synthetic_run(num_clients=3, num_classes=3)
    named = changed(summary, class_names=["cat", "dog", "a long name of a bird"])
    bare, slanted = (charts.accuracy_per_class(each) for each in (summary, named))
    for axis in slanted.axes[:2]:
        written = [label.get_text() for label in axis.get_xticklabels()]
        assert written == ["cat", "dog", "a long name o…"]
    assert slanted.get_size_inches()[1] > bare.get_size_inches()[1]


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
    summary = changed(summary, class_accuracy=summary.class_accuracy[:1])
    image = charts.accuracy_per_class(summary).axes[0].images[0]
    assert np.asarray(image.get_array()).shape[:2] == (4, 10)
    assert results.hop_table(summary).accuracy.shape[0] == 1


def test_without_primary_labels_every_figure_draws() -> None:
    summary, _ = synthetic_run()
    summary = changed(summary, primary_labels=np.zeros((8, 10), bool))
    for draw in ON_SUMMARY:
        _render(draw(summary))


def test_the_hop_picture_of_a_changing_graph_says_so() -> None:
    summary, _ = synthetic_run()
    union = summary.adjacency | summary.adjacency.T
    picture = charts.hop_picture(changed(summary, adjacency_union=union))
    assert "all graphs of the run" in picture.axes[0].get_xlabel()
    assert "all graphs" not in charts.hop_picture(summary).axes[0].get_xlabel()
