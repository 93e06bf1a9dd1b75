# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Membership inference: the score finds what is there and nothing that is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import membership
from experiments.harness import render
from mhd_jax.config import validate

R, K, N = 8, 4, 3000


def _scores(shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores N(d_x, 1) of other clients' samples and N(d_x + shift, 1) of members."""
    draw = np.random.default_rng(0)
    owner = draw.integers(K, size=(R, N))
    member = owner[:, None] == np.arange(K)[:, None]
    compared = member | (draw.random((R, K, N)) < 0.5)
    difficulty = 5 * draw.normal(size=N)
    return difficulty + shift * member + draw.normal(size=(R, K, N)), member, compared


def test_the_likelihood_ratio_finds_a_known_shift() -> None:
    scores, member, compared = _scores(2.0)
    ratios = membership.likelihood_ratios(scores, member, compared)
    assert np.isnan(ratios[~compared]).all() and np.isfinite(ratios[compared]).mean() > 0.9
    found = membership.success(ratios, member)
    best = stats.norm.cdf(2 / np.sqrt(2))  # with means that are known
    assert best - 0.03 < found["auc"] < best and len(found["auc_by_seed"]) == R
    plain = membership.success(np.where(np.isnan(ratios), np.nan, scores), member)
    assert plain["auc"] < found["auc"] - 0.2  # samples differ more than membership does
    assert found["tpr_at_0.001"] < found["tpr_at_0.01"] < stats.norm.sf(2.33 - 2) + 0.02
    assert found["tpr_at_0.01"] > 0.15
    assert found["members"] + found["others"] == np.isfinite(ratios).sum()


def test_nothing_is_found_where_nothing_is() -> None:
    scores, member, compared = _scores(0.0)
    found = membership.success(membership.likelihood_ratios(scores, member, compared), member)
    assert abs(found["auc"] - 0.5) < 0.02 and found["tpr_at_0.01"] < 0.02


def test_a_target_is_no_shadow_of_itself() -> None:
    """The means around a seed do not change with what that seed's clients score."""
    scores, member, compared = _scores(1.0)
    before = membership.likelihood_ratios(scores, member, compared)[0]
    scores[0, 0] += 100.0
    after = membership.likelihood_ratios(scores, member, compared)[0]
    np.testing.assert_array_equal(before[1:], after[1:])


def test_confidence_is_scaled_by_what_is_left() -> None:
    logits = np.array([[[3.0, 1.0, -2.0], [0.0, 50.0, 0.0]]])
    labels = np.array([2, 1])
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    found = membership.scaled_confidence(logits, labels)
    own = probs[0, 0, 2]
    assert found[0, 0] == pytest.approx(np.log(own / (1 - own)))
    assert found[0, 1] == pytest.approx(50 - np.log(2))  # where 1 - p is 0 in floating point


@pytest.mark.parametrize("case", membership.CASES)
def test_every_case_is_a_legal_setting(case: str) -> None:
    validate(membership.made_config(case))


def _record(case: str) -> dict:
    read = {"step": 490, "auc": 0.6123, "auc_by_seed": [0.6, 0.62], "auc_without_shadows": 0.55,
            "tpr_at_0.01": 0.034, "tpr_at_0.001": 0.0056, "members": 5, "others": 6}  # fmt: skip
    epsilon = [2.5, 3.25] if "noise" in case else None
    accuracy = [[0.3, 0.4], [0.34, 0.44]]
    return {"case": case, "reading": {"predictions": [read]}, "epsilon": epsilon,
            "shared_accuracy": accuracy, "private_accuracy": accuracy}  # fmt: skip


def test_records_become_tables(tmp_path: Path) -> None:
    assert membership.block(tmp_path) == "Not run yet.\n"
    for case in ("mhd_noise_1", "mhd"):
        (tmp_path / f"{case}.json").write_text(json.dumps(_record(case)))
    seconds = {"1": {"compile": 10.0, "step": [0.1]}, "8": {"compile": 12.0, "step": [0.2]}}
    (tmp_path / "cost.json").write_text(json.dumps({"processor_seconds": seconds}))
    text = membership.block(tmp_path)
    assert "| `mhd`, noise 1 | 2.50 to 3.25 | 0.320 ± 0.028 | 0.420 ± 0.028 |" in text
    assert "| `mhd` | predictions | 490 | 0.612 ± 0.014 | 0.550 | 3.40 % | 0.56 % |" in text
    assert "112 s of processor time" in text and "separate runs 480 s" in text


def test_a_command_that_is_stopped_keeps_finished_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = iter([{"case": "mhd"}])

    def one_then_stopped(case: str, quick: bool) -> dict:
        for made in results:
            return made
        raise KeyboardInterrupt

    monkeypatch.setattr(membership, "run", one_then_stopped)
    with pytest.raises(SystemExit) as ended:
        membership.main([f"--out={tmp_path}", "--cases", "mhd", "fedavg"])
    assert ended.value.code == 130
    assert capsys.readouterr().err.startswith("KeyboardInterrupt: stopped; the cases")
    assert [file.name for file in tmp_path.iterdir()] == ["mhd.json"]
    with pytest.raises(SystemExit):
        membership.main(["--cases", "fedawg"])
    assert "invalid choice: 'fedawg'" in capsys.readouterr().err


def test_the_page_shows_what_is_committed() -> None:
    page = render.ROOT / "docs" / "privacy.md"
    assert "cifar10_cpu/membership" in render.places(page.read_text())
    assert render.render(page) == page.read_text()
