# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Runs are named by what changes their results, and isolated clients are shared between cells."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.harness.runs import cell_configs, isolated_configs, run_key
from experiments.harness.study import Cell
from tests import small
from tests.invented import TINY


def test_a_run_is_named_by_what_changes_its_results() -> None:
    key = run_key(TINY.base())
    assert run_key(TINY.base({"train.log_every": 7, "data.feed": "resident"})) == key
    assert run_key(TINY.base({"seed": 1})) != key
    assert run_key(TINY.base({"graph.drop": 0.5})) != key
    for watched in ({"bytes_to": (0.3,)}, {"train.eval_every": 7}):  # when levels were reached
        assert run_key(TINY.base(watched)) != key


def test_cells_that_differ_in_exchange_alone_share_their_isolated_baseline() -> None:
    def key(**changes: Any) -> str:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        (config,) = isolated_configs(TINY, Cell("", "", named))
        return run_key(config)

    assert key() == key(graph__name="cycle", distill__nu_aux=1.0, heads__aux=1, method="fedmd")
    assert key() != key(partition__skew=0.0)
    assert key() != key(model__width=32)


def test_the_isolated_cell_is_the_isolated_baseline_of_the_others() -> None:
    (alone,) = cell_configs(TINY, Cell("", "", {"method": "isolated", "graph.name": "cycle"}))
    (baseline,) = isolated_configs(TINY, Cell("", "", {"heads.aux": 2}))
    assert run_key(alone) == run_key(baseline)


def test_a_cell_may_have_a_config_of_its_own() -> None:
    """Rows of other data and networks; what the preset changes holds for them too."""
    cell = Cell("", "", {"heads.aux": 1}, config="configs/cifar10.py:smoke")
    (config,), (alone,) = cell_configs(TINY, cell), isolated_configs(TINY, cell)
    assert (config.data.name, config.model.name, config.heads.aux) == ("cifar10", "cnn", 1)
    assert config.clients.num == 4 and config.num_seeds == 2
    assert alone.data.name == "cifar10" and alone.method == "isolated"
    plain = Cell("", "", config="configs/cifar10.py:smoke")
    assert run_key(isolated_configs(TINY, plain)[0]) == run_key(alone)


def test_isolated_clients_are_the_baseline_of_a_run_up_to_rounding() -> None:
    """Why a run of them may stand in for the isolated baseline of every run that shares it."""
    together, alone = (
        small.build(heads__aux=1, isolated_baseline=True),
        small.build(method="isolated"),
    )
    state, lonely = (small.run(made, calls=2)[0] for made in (together, alone))
    for baseline, client in zip(
        jax.tree.leaves(state.baseline[0].params), jax.tree.leaves(lonely.clients[0].params),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(baseline, client, rtol=1e-5, atol=1e-8)


def test_seeds_one_by_one_or_stacked() -> None:
    cell = Cell("", "")
    (stacked,) = cell_configs(TINY, cell)
    assert (stacked.seed, stacked.num_seeds, stacked.isolated_baseline) == (0, 2, False)
    single = cell_configs(dataclasses.replace(TINY, num_seeds=1), cell)
    assert [(config.seed, config.num_seeds) for config in single] == [(0, 1), (1, 1)]


def test_the_last_run_stacks_the_seeds_that_are_left() -> None:
    configs = cell_configs(dataclasses.replace(TINY, seeds=5), Cell("", ""))
    assert [(config.seed, config.num_seeds) for config in configs] == [(0, 2), (2, 2), (4, 1)]


def test_nothing_changes_what_a_quick_run_fixes() -> None:
    cell = Cell("", "", {"train.steps": 900, "graph.name": "cycle"})
    (config,) = cell_configs(dataclasses.replace(TINY, seeds=5).quick(), cell)
    assert config.train.steps == 4 and config.num_seeds == 2 and config.graph.name == "cycle"
