# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Tests of the report: complete, well-formed, self-contained, and right in its numbers."""

from __future__ import annotations

import base64
import copy
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from mhd_jax.reporting import report, style
from mhd_jax.results import Spread, Summary, head_rows, of_counted
from tests.synthetic import changed, synthetic_run

# One white pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTjwmwAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "line", "br", "link"}


class Page(HTMLParser):
    """Collects tables, text and addresses, and complains about tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data.strip()

    def table(self, first_cell: str) -> list[list[str]]:
        """The table whose header has a row that begins with `first_cell`."""
        return next(rows for rows in self.tables if any(row[0] == first_cell for row in rows[:2]))


def make_page(**settings: Any) -> tuple[Summary, Page]:
    summary, _ = synthetic_run(**settings)
    return summary, Page(report.render(summary, {}))


def test_write_report_leaves_one_file_that_needs_no_other(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "DPI", 40)  # to be quick
    summary, history = synthetic_run(num_clients=2, num_classes=3, aux=1)
    path = report.write_report(tmp_path, summary, history)
    assert path == tmp_path / "report.html"
    html = path.read_text()
    page = Page(html)
    pictures = sorted((tmp_path / "figures").glob("*.png"))
    assert len(pictures) == len(page.addresses) == 8
    embedded = {address.removeprefix("data:image/png;base64,") for address in page.addresses}
    assert embedded == {base64.b64encode(png.read_bytes()).decode() for png in pictures}
    assert not re.search(r"https?://|@import|url\(|<script|<link", html)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_clients": 1, "aux": 0, "isolated_baseline": False},
        {"num_clients": 3, "replicas": 3},
        {"num_clients": 3, "replicas": 2, "isolated_baseline": False, "aux": 1},
        {"num_clients": 64, "num_classes": 200, "aux": 8},
    ],
)
def test_every_kind_of_run_has_a_well_formed_report(settings: dict[str, Any]) -> None:
    summary, page = make_page(**settings)
    assert summary["partition_hash"] in page.text
    words = " ".join(page.text.split())
    assert ("no isolated baseline" in words) != settings.get("isolated_baseline", True)
    assert not re.search(r"\b(nan|None|inf)\b", words)


def test_the_table_of_heads_has_the_numbers_of_the_terminal() -> None:
    summary, page = make_page(aux=2)
    rows = head_rows(summary)
    table = page.table("head")[2:]
    assert [row[0] for row in table] == ["main", "aux 1", "aux 2", "isolated"]
    for cells, row in zip(table, rows, strict=True):
        expected = [row.shared.mean, row.shared.min, row.shared.max]
        assert cells[1:4] == [f"{value:.3f}" for value in expected]
        assert cells[4] == (report.signed(row.shared_gain) if row.shared_gain else "")
        assert cells[6] == f"{row.private.mean:.3f}"


@pytest.mark.parametrize(
    ("edges", "sequence", "named"),
    [
        (~np.eye(4, dtype=bool), (), "complete"),  # as of methods that hear everybody
        (np.zeros((4, 4), bool), (), "none"),
        (np.eye(4, dtype=bool)[[1, 2, 3, 0]], (), "cycle"),
        (np.eye(4, dtype=bool)[[1, 2, 3, 0]], ("cycle", "star"), "cycle, star"),
    ],
)
def test_the_graph_is_the_one_that_was_used(
    edges: np.ndarray, sequence: tuple[str, ...], named: str
) -> None:
    summary, _ = synthetic_run(num_clients=4, adjacency=edges)
    settings = summary.config["graph"] | {"name": "cycle", "sequence": sequence}
    summary = changed(summary, config=dict(summary.config) | {"graph": settings}, steps=1)
    words = " ".join(Page(report.render(summary, {})).text.split())
    assert f"· graph {named} ·" in words and "· 1 step ·" in words


def test_one_head_has_one_column() -> None:
    _, page = make_page(num_clients=3, aux=0)
    header, first = page.table("client")[1:3]
    assert header.count("main") == 2 and len(header) == len(first)


def test_headline_numbers() -> None:
    summary, page = make_page()
    shared = np.mean(summary["shared_accuracy"], axis=0)[-1]
    isolated = np.mean(summary.isolated_baseline.shared_accuracy)
    words = " ".join(page.text.split())
    assert f"The last auxiliary head (aux 4) reaches a shared accuracy of {shared:.3f}" in words
    assert f"{shared - isolated:.3f} above the isolated baseline ({isolated:.3f})" in words


def test_a_loss_of_accuracy_is_called_so() -> None:
    summary, _ = synthetic_run()
    better = {"shared_accuracy": [[0.99]] * 8, "private_accuracy": [[0.99]] * 8}
    summary = changed(summary, isolated_baseline=better)
    assert "below the isolated baseline" in " ".join(Page(report.render(summary, {})).text.split())


def test_table_of_clients() -> None:
    summary, page = make_page(num_clients=5, num_classes=10, aux=1)
    table = page.table("client")[2:]
    assert len(table) == 5
    for client, cells in enumerate(table):
        labels = np.flatnonzero(summary["primary_labels"][client])
        assert cells[0] == str(client)
        assert cells[1] == str(sum(summary["label_histogram"][client]))
        assert cells[2] == ", ".join(map(str, labels))
        assert cells[3:5] == ["1", "18,123"]
        assert cells[6] == f"{summary['shared_accuracy'][client][-1]:.3f}"
        gain = summary["private_accuracy"][client][0]
        gain -= summary.isolated_baseline.private_accuracy[client][0]
        assert cells[-1] == report.signed(gain)


def test_a_client_without_test_samples_has_a_dash() -> None:
    summary, _ = synthetic_run(num_clients=2, aux=0, isolated_baseline=False)
    summary = changed(summary, own_test_accuracy=[[0.5], [None]])
    table = Page(report.render(summary, {})).table("client")[2:]
    assert [cells[-1] for cells in table] == ["0.500", "–"]


def test_many_primary_labels_are_counted_and_none_is_said() -> None:
    summary, _ = synthetic_run(num_clients=2, num_classes=100)
    assert report.client_rows(summary)[0]["labels"] == "100 labels"
    summary = changed(summary, primary_labels=np.zeros((2, 100), bool))
    assert report.client_rows(summary)[0]["labels"] == "none"


def test_a_pooled_run_has_a_row_for_every_client() -> None:
    summary, history = synthetic_run(num_clients=4, aux=0, isolated_baseline=False)
    summary = changed(
        summary,
        num_params=summary.num_params[:1],
        class_accuracy=summary.class_accuracy[:1],
        bytes_per_step={key: [0.0] for key in summary.bytes_per_step},
    )
    page = Page(report.render(summary, {}))
    assert len(page.table("client")[2:]) == 4
    assert page.table("accounting")[1][-1] == "–"  # no FedAvg to compare with


def test_hop_table_with_the_number_of_pairs() -> None:
    summary, page = make_page(num_clients=4, aux=1)
    table = page.table("hops to the nearest primary client")
    assert [row[0] for row in table[1:]] == ["main", "aux 1", "pairs of client and label"]
    held = np.array(summary["primary_labels"])
    assert table[-1][1] == str(held.sum())
    own = np.array(summary["class_accuracy"])[:, 0][held].mean()
    assert table[1][1] == f"{own:.3f}"
    assert sum(map(int, table[-1][1:])) == 4 * held.any(axis=0).sum()


def test_bytes_beside_those_of_fedavg() -> None:
    summary, _ = synthetic_run(num_clients=2, num_classes=10, aux=1)
    sent = {"predictions": [1000, 3000], "snapshots": [50, 50], "fedavg": [100, 100]}
    summary = changed(  # a third of the steps distil
        summary, bytes_per_step=sent, bytes_sent=4000 * 500, bytes_published=4000 * 500
    )
    page = Page(report.render(summary, {}))
    assert [row[2:] for row in page.table("accounting")[1:]] == [
        ["2 kB (1 kB to 3 kB)", "2 MB", "7.14 ×"],
        ["50 B", "140 kB", "0.5 ×"],
        ["100 B", "280 kB", "1 ×"],  # seven times in 1,500 steps, the last after 1,400
    ]
    assert "really sent 2 MB" in " ".join(page.text.split())


def test_replicas_have_a_table_and_spreads() -> None:
    summary, page = make_page(num_clients=3, aux=1, replicas=3)
    table = page.table("seed")
    assert [row[:2] for row in table[1:]] == [[str(n), f"{n}" * 12] for n in range(3)]
    last = np.array([run["shared_accuracy"] for run in summary["replicas"]])[..., -1]
    assert [row[2] for row in table[1:]] == [f"{mean:.3f}" for mean in last.mean(axis=1)]
    spread = f"{last.mean():.3f} ± {last.mean(axis=1).std(ddof=1):.3f}"
    assert page.table("head")[3][1] == spread


def test_settings_that_differ_from_the_defaults_stand_out() -> None:
    html = report.render(synthetic_run(num_clients=8, aux=2)[0], {})
    assert '<dt>aux</dt><dd class="changed">2</dd>' in html
    assert "<dt>num</dt><dd>8</dd>" in html
    assert html.index("<h3>run</h3>") < html.index("<h3>average</h3>")


def test_what_a_user_types_is_escaped() -> None:
    summary, _ = synthetic_run(num_clients=2)
    config = summary.to_json()["config"]
    config["graph"]["matrix"] = "<script>alert(1)</script>"
    summary = changed(summary, config=config)
    html = report.render(summary, {})
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_a_figure_is_as_wide_as_it_was_drawn() -> None:
    wide = PNG[:16] + (720).to_bytes(4, "big") + PNG[20:]
    html = report.render(synthetic_run(num_clients=2)[0], {"losses": wide})
    assert html.count("<img") == 1 and 'style="width: 50%"' in html


@pytest.mark.parametrize(
    "value, text",
    [
        (0.5, "+0.500"),
        (-0.5, "−0.500"),
        (-0.0001, "0.000"),
        (np.nan, "–"),
        (Spread(0.1, 0, 1, 0.02), "+0.100 ± 0.020"),
    ],
)
def test_signed(value: float | Spread, text: str) -> None:
    assert report.signed(value) == text


def test_save_all_writes_every_figure(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 40)  # to be quick
    summary, history = synthetic_run(num_clients=2, num_classes=3, aux=1)
    before = copy.deepcopy((summary, history))
    paths = report.save_all(summary, history, tmp_path / "run" / "figures")
    assert {path.name for path in paths} == {
        f"{f.__name__}.png" for f in report.ON_SUMMARY + report.ON_HISTORY
    }
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert (summary, history) == before


def test_curves_leave_out_clients_that_lie() -> None:
    summary, history = synthetic_run(num_clients=3)
    lying = changed(summary, liars=[1])
    told = of_counted(history, lying.counted)
    (line,) = [line for line in history if "shared_accuracy" in line][-1:]
    kept = [each for each in told if each["step"] == line["step"] and "shared_accuracy" in each]
    assert kept[0]["shared_accuracy"] == [line["shared_accuracy"][client] for client in (0, 2)]
    shares = [len(each["teaching_share"]) for each in told if "teaching_share" in each]
    assert set(shares) == {3} and of_counted(history, summary.counted) is history
