# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every study is a list of runs that can start, and its claims can fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments import abstract, digits_claims, liars, many_clients
from experiments.all import STUDIES
from experiments.harness import many
from experiments.harness.presets import PRESETS, ROOT, preset
from experiments.harness.runs import cell_configs
from mhd_jax.config import validate
from mhd_jax.data import sources
from mhd_jax.errors import ConfigError
from tests.invented import record


@pytest.mark.parametrize("name", PRESETS)
def test_every_cell_of_every_study_is_a_legal_setting(name: str) -> None:
    if not (ROOT / PRESETS[name].config.partition(":")[0]).exists():
        pytest.skip(f"{PRESETS[name].config} is not there")
    for study in (*STUDIES, liars.STUDY):
        cells = study.cells(preset(name))
        assert len({cell.name for cell in cells}) == len(cells), study.name
        for cell in cells:
            validate(cell_configs(preset(name), cell)[0])


def test_unknown_preset_is_told_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        preset("digit")


def test_claims_pass_and_fail() -> None:
    good = [
        record("complete", [0.4, 0.8, 0.8, 0.8]),
        record("cycle", [0.4, 0.5, 0.6, 0.7]),
        record("islands", [0.4, 0.6, 0.6, 0.6]),
        record("random", [0.4, 0.6, 0.6, 0.6]),
    ]
    verdicts = digits_claims.verdicts(good)
    assert len(verdicts) == 6 and all(verdict.holds for verdict in verdicts)
    bad = [
        record("complete", [0.4, 0.7, 0.7, 0.7], private=0.87),
        record("cycle", [0.4, 0.7, 0.6, 0.5]),
        record("islands", [0.4, 0.8, 0.8, 0.8]),
        record("random", [0.4, 0.8, 0.8, 0.8]),
    ]
    verdicts = digits_claims.verdicts(bad)
    assert len(verdicts) == 6 and not any(verdict.holds for verdict in verdicts)
    assert "FAIL" in digits_claims.verdict_table(bad) and len(digits_claims.verdicts(bad[1:2])) == 2


def test_a_claim_without_its_cells_is_not_measured() -> None:
    assert abstract.table({}).count("not measured yet") == len(abstract.CLAIMS)
    found = record("complete", [0.4, 0.8])
    assert "+0.400" in abstract.table({"main_comparison/aligned_s100": found})


def test_verdicts_follow_the_records() -> None:
    _private, _heads, _topology, _skew = (abstract.CLAIMS[n].decide for n in (1, 2, 5, 4))
    kept, raised, lost = (record("one", [0.4, 0.8], private) for private in (0.9, 0.91, 0.88))
    assert _private(raised, raised, kept).holds == "yes"
    assert _private(kept, raised, lost).holds == "preserved, but not with 4 clients"
    assert _private(raised, lost, raised).holds == "no"
    none, one, four = record("none", [0.3]), record("one", [0.4, 0.7]), record("four", [0.4, 0.8])
    assert _heads(none, one, four).holds == "the first brings most of it"
    assert _heads(none, four, four).holds == "one head does; more add nothing"
    assert _heads(four, one, one).holds == "no"
    few, many = (
        dataclasses.replace(found, group="chain", config={"heads": {"aux": number}})
        for number, found in ((1, one), (6, four))
    )
    sparse = _heads(none, four, four, few, many)
    assert sparse.holds.startswith("yes on sparse graphs") and "chain, 6 minus 1" in sparse.measured
    same = record("same", [0.4, 0.7])
    assert "best minus worst +0.100" in _topology(one, four).measured
    assert _topology(one, four).holds == "yes" and _topology(one, same).holds == "no"
    assert _skew(one, four).holds == "yes" and _skew(four, one).holds == "no"


def test_communication_is_efficient_from_a_size_on() -> None:
    """Both send 100 bytes a step, FedAvg for 5,000 parameters."""
    plain, fedavg = record("float32", [0.4, 0.8]), record("fedavg_200", [0.9])
    fedavg = dataclasses.replace(fedavg, num_params=[5_000] * 3)
    _bytes = abstract.CLAIMS[-1].decide
    found = _bytes(plain, record("small", [0.4, 0.795]), fedavg)
    assert found.holds == "yes, from 5,000 parameters on" and "-0.005" in found.measured
    assert _bytes(plain, record("small", [0.4, 0.7]), fedavg).holds == "not at this accuracy"


def test_many_clients_have_as_much_data_each() -> None:
    chosen, made = preset("many"), []
    for cell in many_clients.STUDY.cells(chosen):
        (config,) = cell_configs(chosen, cell)
        validate(config)
        made.append(config)
    few = sources.source(made[0].data).train
    assert len(few) == 16 * many.EACH + many.PUBLIC
    again = sources.source(made[0].data).train
    np.testing.assert_array_equal(few.images(np.arange(9)), again.images(np.arange(9)))
    held = [round(one.data.public_fraction * float(one.data.split[7:-1])) for one in made]
    assert set(held) == {many.PUBLIC}
    found = dataclasses.replace(
        record("small_world_16", [0.2, 0.5]), config=made[0].to_dict(), group="small world"
    )
    diameter, hops = many_clients.distances(found)
    assert diameter and 1 < hops <= diameter
    assert "small world | 16 |" in many_clients.by_distance([found])
    left, right = many_clients.draw([found]).axes
    assert len(left.lines) == 2 and len(right.lines) == 1
