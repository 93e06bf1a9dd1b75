# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every cell runs once, cells share what they have in common, a killed sweep goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import abstract, digits_claims, plots, sweep, tables, topology
from experiments.all import STUDIES
from experiments.presets import PRESETS, ROOT, Preset, preset
from experiments.sweep import Cell, Study, Sweep, cell_configs, run_key, yardstick_configs
from mhd_jax import train
from mhd_jax.config import validate
from mhd_jax.errors import ConfigError, DivergedError
from tests import small

TINY = Preset(
    "tiny", "configs/digits.py:smoke", seeds=2, replicas=2, changes={"clients.num": 4}
)  # fmt: skip
STUDY = Study(
    "example",
    "Example",
    lambda chosen: [
        Cell("mhd", "MHD"),
        Cell("cycle", "cycle", {"graph.name": "cycle"}, per_class=True),
        Cell("fedavg", "FedAvg", {"method": "fedavg"}),
    ],
)


def summary(config: Any) -> dict[str, Any]:
    """What a run leaves, with invented accuracies."""
    heads = config.heads.aux + 1 if config.method == "mhd" else 1
    draw = np.random.default_rng(len(config.method))
    replicas = [
        {
            "seed": config.seed + r,
            "partition_hash": f"hash {config.seed + r}",
            "shared_accuracy": draw.random((4, heads)),
            "private_accuracy": draw.random((4, heads)),
            "class_accuracy": draw.random((4, heads, 10)),
            "label_histogram": np.ones((4, 10)),
            "primary_labels": np.eye(4, 10, dtype=bool),
            "adjacency": np.roll(np.eye(4, dtype=bool), -1, axis=1),
        }
        for r in range(config.num_seeds)
    ]
    return {
        **replicas[0],
        "replicas": replicas,
        "config": config.to_dict(),
        "steps": config.train.steps,
        "steps_per_second": 10.0,
        "compile_seconds": 1.0,
        "bytes_sent": 0.0 if config.method == "isolated" else 1e4,
        "bytes_per_step": {"predictions": [1.0, 3.0]},
        "versions": {"jax": "0"},
        "device": "cpu",
        "num_params": [5],
    }


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for training; the methods of the runs, in order."""
    made: list[str] = []

    def fake(config: Any, workdir: Path, with_report: bool) -> None:
        assert not with_report
        if len(made) == 2 and config.method == "mhd":
            made.append("killed")
            raise KeyboardInterrupt
        made.append(config.method)
        workdir.mkdir(parents=True)
        (workdir / "summary.json").write_text(sweep.to_json(summary(config)))

    monkeypatch.setattr(train, "train_and_evaluate", fake)
    return made


def test_a_killed_sweep_goes_on_and_nothing_runs_twice(runs: list[str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Sweep(TINY, tmp_path, [STUDY]).run()
    folder = tmp_path / "tiny" / "example"
    assert [file.name for file in folder.glob("*.json")] == ["mhd.json"]
    Sweep(TINY, tmp_path, [STUDY]).run()
    assert runs == ["isolated", "mhd", "killed", "mhd", "fedavg"]  # one yardstick for all
    before = (folder / "mhd.json").read_text()
    Sweep(TINY, tmp_path, [STUDY]).run()
    assert len(runs) == 5 and (folder / "mhd.json").read_text() == before
    names = {file.name for file in folder.iterdir()}
    assert names >= {"mhd.json", "cycle.json", "table.md", "table.csv", "figure.png"}
    assert "finished" in Sweep(TINY, tmp_path, [STUDY]).plan()


def test_only_the_cells_asked_for(runs: list[str], tmp_path: Path) -> None:
    runs.extend(["", ""])
    Sweep(TINY, tmp_path, [STUDY], "fed*").run()
    assert runs[2:] == ["isolated", "fedavg"]
    assert [file.name for file in (tmp_path / "tiny" / "example").glob("*.json")] == ["fedavg.json"]


def test_records_and_tables(runs: list[str], tmp_path: Path) -> None:
    runs.extend(["", ""])  # beyond the run that is killed
    Sweep(TINY, tmp_path, [STUDY]).run()
    folder = tmp_path / "tiny" / "example"
    cycle, mhd = (json.loads((folder / f"{n}.json").read_text()) for n in ("cycle", "mhd"))
    assert np.shape(cycle["results"]["class_accuracy"]) == (2, 4, 5, 10)
    assert "class_accuracy" not in mhd["results"]
    assert mhd["results"]["bytes_per_client_and_step"] == 1e4 / (4 * 20)
    assert mhd["config"]["graph"]["name"] == "complete" and mhd["seconds_per_step"] == 0.1
    last = np.array(mhd["results"]["shared_accuracy"])[..., -1]
    alone = np.array(mhd["results"]["control_shared_accuracy"])[..., 0]
    gain = (last - alone).mean(axis=1)
    table = (folder / "table.md").read_text()
    assert f"{gain.mean():+.3f} ± {gain.std(ddof=1):.3f}" in table
    assert (folder / "table.csv").read_text().count("\n") == 1 + 6 + 6 + 2


def test_the_hop_picture_is_a_table_too() -> None:
    """Two seeds on a ring; in the second every label is everybody's own: no hops at all."""
    ring = np.roll(np.eye(3), -1, axis=1)
    accuracy = np.stack([np.full((3, 2, 3), 0.25), np.full((3, 2, 3), 0.75)])
    record = {
        "label": "ring",
        "results": {
            "class_accuracy": accuracy,
            "primary_labels": [np.eye(3), np.ones((3, 3))],
            "adjacency": [ring, ring],
        },
    }
    lines = topology.hop_picture([record, {"results": {}}]).splitlines()
    assert lines[2] == "| ring: hops | 0 | 1 | 2 |"
    assert lines[4] == "| main | 0.500 ± 0.354 | 0.250 | 0.250 |"
    assert lines[6] == "| seeds with such a label | 2 | 1 | 1 |"


def test_divergence_is_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise DivergedError("the loss of client 3 is nan at step 7")

    monkeypatch.setattr(train, "train_and_evaluate", diverge)
    Sweep(TINY, tmp_path, [STUDY]).run()
    record = json.loads((tmp_path / "tiny" / "example" / "mhd.json").read_text())
    assert "client 3" in record["results"]["diverged"]
    assert "diverged" in (tmp_path / "tiny" / "example" / "table.md").read_text()


def test_other_data_than_the_yardstick_is_refused() -> None:
    run = summary(TINY.base())
    other = summary(TINY.base({"seed": 7}))
    with pytest.raises(ValueError, match="other data"):
        sweep.results([run], [other], per_class=False)


def test_a_run_is_named_by_what_changes_its_results() -> None:
    key = run_key(TINY.base())
    assert run_key(TINY.base({"train.log_every": 7, "data.feed": "resident"})) == key
    assert run_key(TINY.base({"seed": 1})) != key
    assert run_key(TINY.base({"graph.drop": 0.5})) != key


def test_cells_that_differ_in_exchange_alone_share_their_yardstick() -> None:
    def key(**changes: Any) -> str:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        (config,) = yardstick_configs(TINY, Cell("", "", named))
        return run_key(config)

    assert key() == key(graph__name="cycle", distill__nu_aux=1.0, heads__aux=1, method="fedmd")
    assert key() != key(partition__skew=0.0)
    assert key() != key(model__width=32)


def test_isolated_clients_are_the_control_of_the_run_up_to_rounding() -> None:
    """Why a yardstick may stand in for the control group of every run that shares it."""
    together, alone = (
        small.build(heads__aux=1),
        small.build(method="isolated", isolated_baseline=False),
    )
    state, lonely = (small.run(made, calls=2)[0] for made in (together, alone))
    for control, client in zip(
        jax.tree.leaves(state.baseline[0].params), jax.tree.leaves(lonely.clients[0].params),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(control, client, rtol=1e-5, atol=1e-8)


def test_seeds_one_by_one_or_stacked() -> None:
    cell = Cell("", "")
    (stacked,) = cell_configs(TINY, cell)
    assert (stacked.seed, stacked.num_seeds, stacked.isolated_baseline) == (0, 2, False)
    single = cell_configs(dataclasses.replace(TINY, replicas=1), cell)
    assert [(config.seed, config.num_seeds) for config in single] == [(0, 1), (1, 1)]


@pytest.mark.parametrize("name", PRESETS)
def test_every_cell_of_every_study_is_a_legal_setting(name: str) -> None:
    if not (ROOT / PRESETS[name].config.partition(":")[0]).exists():
        pytest.skip(f"{PRESETS[name].config} is not there")
    for study in STUDIES:
        cells = study.cells(preset(name))
        assert len({cell.name for cell in cells}) == len(cells), study.name
        for cell in cells:
            validate(cell_configs(preset(name), cell)[0])


def test_unknown_preset_is_told_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        preset("digit")


def test_command_line_lists_and_tells_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.main(STUDY, argv=["--preset=smoke", "--list"])
    assert capsys.readouterr().out.split() == ["example/mhd", "example/cycle", "example/fedavg"]
    sweep.main(STUDY, argv=["--preset=smoke", "--plan", f"--workdir={tmp_path}"])
    assert "4 runs, 80 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        sweep.main(STUDY, argv=["--preset=digit"])
    assert "ConfigError: preset = 'digit'" in capsys.readouterr().err


def claims_record(cell: str, shared: list[float], private: float = 0.9) -> dict[str, Any]:
    """A record of two seeds and three clients with these accuracies by head."""
    values = np.broadcast_to(np.array(shared), (2, 3, len(shared))).tolist()
    alone = np.full((2, 3, 1), 0.4).tolist()
    return {
        "cell": cell,
        "results": {
            "shared_accuracy": values,
            "private_accuracy": np.full((2, 3, len(shared)), private).tolist(),
            "control_shared_accuracy": alone,
            "control_private_accuracy": np.full((2, 3, 1), 0.9).tolist(),
        },
    }


def test_claims_pass_and_fail() -> None:
    good = [
        claims_record("complete", [0.4, 0.8, 0.8, 0.8]),
        claims_record("cycle", [0.4, 0.5, 0.6, 0.7]),
        claims_record("islands", [0.4, 0.6, 0.6, 0.6]),
        claims_record("random", [0.4, 0.6, 0.6, 0.6]),
    ]
    verdicts = digits_claims.verdicts(good)
    assert len(verdicts) == 6 and all(verdict.holds for verdict in verdicts)
    bad = [
        claims_record("complete", [0.4, 0.7, 0.7, 0.7], private=0.87),
        claims_record("cycle", [0.4, 0.7, 0.6, 0.5]),
        claims_record("islands", [0.4, 0.8, 0.8, 0.8]),
        claims_record("random", [0.4, 0.8, 0.8, 0.8]),
    ]
    verdicts = digits_claims.verdicts(bad)
    assert len(verdicts) == 6 and not any(verdict.holds for verdict in verdicts)
    assert "FAIL" in digits_claims.verdict_table(bad) and len(digits_claims.verdicts(bad[1:2])) == 2


def test_a_claim_without_its_cells_is_not_measured() -> None:
    assert abstract.table({}).count("not measured yet") == len(abstract.CLAIMS)
    record = claims_record("complete", [0.4, 0.8])
    assert "+0.400" in abstract.table({"digits_claims/complete": record})


def test_figures_of_the_same_records_have_the_same_bytes(tmp_path: Path) -> None:
    records = [
        {**claims_record("a", [0.4, 0.8]), "label": "a", "group": ""},
        {**claims_record("b", [0.5]), "label": "b", "group": "g"},
    ]
    for name in ("one", "two"):
        plots.save(plots.dots(records), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_lists_of_numbers_stay_on_one_line() -> None:
    text = tables.to_compact_json({"a": [[1, 2], [3, 4]], "b": {"c": ["x"]}})
    assert json.loads(text) == {"a": [[1, 2], [3, 4]], "b": {"c": ["x"]}}
    assert "[1,2]" in text
