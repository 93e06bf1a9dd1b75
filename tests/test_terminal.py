# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Tests of what a run says on the terminal."""

from __future__ import annotations

import io
import sys
import types
from typing import Any

import numpy as np
import pytest

from mhd_jax import graph
from mhd_jax.config import default_config, update
from mhd_jax.methods import METHODS
from mhd_jax.reporting import terminal
from mhd_jax.results import Summary
from tests.synthetic import changed, synthetic_run


def make_summary(**changes: Any) -> Summary:
    """Two clients with two heads each, and their isolated baseline."""
    values = {
        "shared_accuracy": [[0.4, 0.8], [0.5, 0.9]],
        "private_accuracy": [[0.9, 0.7], [1.0, 0.8]],
        "isolated_baseline": {
            "shared_accuracy": [[0.3], [0.5]],
            "private_accuracy": [[0.95], [0.97]],
        },
    }
    return changed(synthetic_run(num_clients=2, aux=1)[0], **(values | changes))


def test_final_table() -> None:
    assert terminal.final_table(make_summary()).splitlines() == [
        "            ----- shared accuracy -----    ----- private accuracy ----",
        "head         mean    min    max    gain     mean    min    max    gain",
        "----------------------------------------------------------------------",
        "main        0.450  0.400  0.500  +0.050    0.950  0.900  1.000  -0.010",
        "aux 1       0.850  0.800  0.900  +0.450    0.750  0.700  0.800  -0.210",
        "isolated    0.400  0.300  0.500            0.960  0.950  0.970",
        "",
        "mean, min and max over 2 clients; gain over the isolated baseline",
    ]


def test_final_table_without_a_baseline_has_no_gains() -> None:
    table = terminal.final_table(make_summary(isolated_baseline=None))
    assert "gain" not in table and "isolated" not in table
    assert table.splitlines()[3].split() == "main 0.450 0.400 0.500 0.950 0.900 1.000".split()


def test_final_table_of_one_client_with_one_head() -> None:
    one = {"shared_accuracy": [[0.25]], "private_accuracy": [[0.5]]}
    table = terminal.final_table(make_summary(**one, isolated_baseline=None)).splitlines()
    assert table[3].split() == "main 0.250 0.250 0.250 0.500 0.500 0.500".split()
    assert table[-1] == "mean, min and max over 1 client"


def test_final_table_of_replicas() -> None:
    other = make_summary(shared_accuracy=[[0.5, 0.7], [0.6, 0.8]])
    both = make_summary(replicas=[make_summary().to_json(), other.to_json()])
    table = terminal.final_table(both).splitlines()
    # Means 0.45 and 0.55: sample standard deviation 0.1 / sqrt(2).
    assert table[3].split()[:7] == ["main", "0.500", "±", "0.071", "0.400", "0.600", "+0.100"]
    assert len({len(line) for line in table[:5]} - {len(table[3])}) == 0
    assert "2 clients and 2 seeds (± std of the seeds' means)" in table[-1]


def own_tests(main: list[float | None], isolated: list[float | None]) -> dict[str, Any]:
    """What `make_summary` says of two clients' own test samples."""
    baseline = {"shared_accuracy": [[0.3], [0.5]], "private_accuracy": [[0.95], [0.97]]}
    return {
        "own_test_accuracy": [[value, value] for value in main],
        "isolated_baseline": baseline | {"own_test_accuracy": [[value] for value in isolated]},
    }


def test_a_client_without_test_samples_has_a_dash() -> None:
    summary = make_summary(**own_tests([0.75, None], [0.5, None]))
    assert terminal.final_table(summary).splitlines()[-3:] == [
        "on the client's own test samples (private accuracy above is re-weighted):",
        "  0  main 0.750  isolated 0.500",
        "  1  main     –  isolated     –",
    ]


def test_own_test_samples_are_those_of_all_seeds() -> None:
    first = make_summary(**own_tests([0.5, None], [0.4, None]))
    other = make_summary(**own_tests([0.7, None], [0.6, None]))
    both = changed(first, replicas=[first.to_json(), other.to_json()])
    title, *lines = terminal.final_table(both).splitlines()[-3:]
    assert title.endswith("(private accuracy above is re-weighted), mean over 2 seeds:")
    assert lines == ["  0  main 0.600  isolated 0.500", "  1  main     –  isolated     –"]


# ----------------------------------------------------------------------------- progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A clock that moves when told to."""
    now = {"time": 0.0}
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now["time"])
    return now


def test_plain_lines_where_nobody_watches(
    clock: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.Progress(total=100) as progress:
        progress.update(0, {"β_sh main": 0.1})
        clock["time"] = 2.0
        progress.update(20)  # too soon, and nothing new
        progress.update(20, {"β_sh main": 0.25})
        clock["time"] += terminal.SECONDS_BETWEEN_LINES
        progress.update(80)
        progress.message("saved")
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "step 0/100 · β_sh main 0.10",
        "step 20/100 · 10 steps/s · ETA 0:00:08 · β_sh main 0.25",
        "step 80/100 · 2.5 steps/s · ETA 0:00:08 · β_sh main 0.25",
        "saved",
    ]


@pytest.mark.parametrize(("config", "bar"), [({"IPKernelApp": {}}, True), ({}, False)])
def test_a_bar_in_a_notebook_only(
    config: dict[str, Any], bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = types.SimpleNamespace(config=config)
    ipython = types.SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert terminal._watched() is bar


def test_the_rate_of_a_resumed_run_counts_its_own_steps(
    clock: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = terminal.Progress(total=1000, initial=900)
    progress.update(910, {"loss": 1.0})
    clock["time"] = 5.0
    progress.update(960, {"loss": 0.5})
    assert "960/1000 · 10 steps/s · ETA 0:00:04 · loss 0.50" in capsys.readouterr().err


def test_silent_when_not_enabled(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.Progress(total=10, enabled=False) as progress:
        progress.update(10, {"loss": 1.0})
        progress.message("never seen")
    assert capsys.readouterr() == ("", "")


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "120")
    progress = terminal.Progress(total=200, initial=50)
    progress.update(100, {"β_sh main": 0.36, "β_sh aux": 0.78, "β_priv": 0.97})
    progress.message("saved")
    progress.update(150)  # keeps the values
    progress.close()
    progress.close()
    written = screen.getvalue()
    assert "saved\n" in written
    last = written.split("\r")[-1]
    assert " 75%|" in last and "150/200" in last and "steps/s" in last and "ETA" in last
    assert "β_sh main 0.36 aux 0.78 · β_priv 0.97" in last


@pytest.mark.parametrize("columns", ["0", "80"])
def test_a_narrow_terminal_shows_all_values(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", columns)
    with terminal.Progress(total=1500, initial=990) as progress:
        progress.update(1000, {"β_sh main": 0.36, "β_sh aux": 0.78, "β_priv": 0.97})
    last = screen.getvalue().split("\r")[-1].rstrip()
    assert last.startswith("1000/1500") and last.endswith("β_sh main 0.36 aux 0.78 · β_priv 0.97")
    assert len(last) <= 80


def test_values_of_one_kind_stand_together() -> None:
    values = {"β_sh main": 0.5, "loss": 1.0, "β_sh aux 4": 0.75}
    assert terminal.format_values(values) == "β_sh main 0.50 aux 4 0.75 · loss 1.00"


# ----------------------------------------------------------------------------- the header


def describe(adjacency: np.ndarray, **changes: Any) -> list[str]:
    config = default_config()
    update(config, {"clients.num": len(adjacency)} | changes)
    primary = config.partition.name == "primary_labels"
    return terminal.describe_run(
        config,
        private_samples=[98, 1181],
        public_samples=130,
        test_samples=500,
        primary_labels=np.eye(len(adjacency), 10, dtype=bool) & primary,
        partition_hash="33ee8a01f78d55aa",
        graph=graph.describe(adjacency) | {"changes": bool(config.graph.every)},
        num_params=[20_210] * len(adjacency),
        num_heads=METHODS.get(config.method)(config).num_heads(config.heads.aux),
        device="1 x cpu",
        feed="resident",
    ).splitlines()


def test_header() -> None:
    assert describe(~np.eye(3, dtype=bool)) == [
        "mhd, 3 clients, 1,500 steps",
        "  data       digits, 10 classes: 1,279 private, 130 public, 500 test samples",
        "  partition  primary_labels: 98 to 1,181 samples and 1 primary labels a client "
        "(hash 33ee8a01f78d)",
        "  graph      complete: 6 edges, 2 peers a client, "
        "everybody hears from everybody within 1 hop",
        "  model      mlp: 20,210 parameters a client, main head and 4 auxiliary heads",
        "  device     1 x cpu",
        "  samples    resident",
    ]


@pytest.mark.parametrize(
    "adjacency, text",
    [
        ([[0]], "no edges"),
        ([[0, 1], [0, 0]], "1 edge, 0 to 1 peer a client, not everybody hears from everybody"),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], "in several pieces"),
        (np.roll(np.eye(5), 1, axis=1), "everybody hears from everybody within 4 hops"),
    ],
)
def test_header_says_how_far_the_graph_reaches(adjacency: Any, text: str) -> None:
    assert text in describe(np.array(adjacency, dtype=bool))[3]


def test_header_without_primary_labels() -> None:
    lines = describe(~np.eye(3, dtype=bool), **{"partition.name": "dirichlet"})
    assert lines[2] == "  partition  dirichlet: 98 to 1,181 samples a client (hash 33ee8a01f78d)"


def test_header_says_that_a_graph_changes() -> None:
    ring = np.roll(np.eye(5, dtype=bool), 1, axis=1)
    lines = describe(ring, **{"graph.sequence": ("cycle", "star"), "graph.every": 10})
    assert "graph      cycle, star: changes; at first 5 edges, 1 peer a client" in lines[3]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "main head and 4 auxiliary heads"),
        ({"heads.aux": 1}, "main head and 1 auxiliary head"),
        ({"method": "fedavg"}, "one head"),
    ],
)
def test_header_counts_the_heads_that_there_are(changes: dict[str, Any], text: str) -> None:
    assert describe(~np.eye(3, dtype=bool), **changes)[4].endswith(f"a client, {text}")


def test_header_names_the_architectures() -> None:
    models = (("mlp_small", 2), ("mlp_large", 1))
    lines = describe(~np.eye(3, dtype=bool), **{"clients.models": models})
    assert "2 x mlp_small, 1 x mlp_large: 20,210 parameters" in lines[4]


def test_the_header_fits_a_narrow_terminal_and_stays_whole_in_a_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = (
        "mhd, 2 clients\n  partition  primary_labels: 91 to 210 samples and 2 to 3 primary labels"
    )
    assert terminal.fitted(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "50")
    first, second, third = terminal.fitted(text).splitlines()
    assert first == "mhd, 2 clients"
    assert second == "  partition  primary_labels: 91 to 210 samples and"
    assert third == " " * 13 + "2 to 3 primary labels"
