# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Settings: locked names, and a clear error for every value that cannot work."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from mhd_jax import command
from mhd_jax import config as config_lib
from mhd_jax.errors import ConfigError, WorkdirError
from mhd_jax.runtime.workdir import Workdir


def _config(**changes):
    config = config_lib.default_config()
    config_lib.update(config, {name.replace("__", "."): value for name, value in changes.items()})
    return config


def test_defaults_are_valid_and_locked():
    config = config_lib.default_config()
    config_lib.validate(config)
    with pytest.raises(AttributeError, match="learning_rate"):
        config.optimizer.learning_rat = 1.0


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("clients.num", 0, "at least 1"),
        ("num_seeds", 0, "at least 1"),
        ("data.public_fraction", 0.0, "inside (0, 1)"),
        ("data.public_fraction", 1.0, "inside (0, 1)"),
        ("data.batch_size", 0, "at least 1"),
        ("heads.aux", -1, "0 or more"),
        ("distill.nu_aux", -0.5, "0 or more"),
        ("distill.nu_emb", math.nan, "a finite number"),
        ("distill.alignment", math.inf, "a finite number"),
        ("distill.screening", math.inf, "a finite number"),
        ("optimizer.weight_decay", math.inf, "a finite number"),
        ("partition.skew", math.nan, "a number"),
        ("partition.skew", -1.0, "0 or more"),
        ("partition.primary_labels", -1, "0 or more"),
        ("partition.alpha", 0.0, "above 0"),
        ("partition.min_size", 0, "at least 1"),
        ("partition.shards_per_client", 0, "at least 1"),
        ("partition.classes_per_client", 0, "at least 1"),
        ("distill.class_frequencies", (math.nan, 1.0), "finite numbers of 0 or more"),
        ("distill.class_frequencies", (0.0, 0.0), "not all of them 0"),
        ("distill.class_frequencies", ("a", "b"), "finite numbers of 0 or more"),
        ("distill.temperature", 0.0, "above 0"),
        ("optimizer.learning_rate", 0.0, "above 0"),
        ("optimizer.momentum", 1.0, "[0, 1)"),
        ("exchange.mode", "stail", "did you mean 'stale'"),
        ("exchange.every", 0, "at least 1"),
        ("exchange.cache", 0, "at least 1"),
        ("exchange.embedding_width", -1, "0 or more"),
        ("bytes_to", (0.5, 1.5), "above 0, at most 1"),
        ("bytes_to", ("half",), "above 0, at most 1"),
        ("exchange.pool_size", 0, "at least 1"),
        ("exchange.refresh_steps", 0, "at least 1"),
        ("train.steps", 0, "at least 1"),
        ("seed", -1, "0 or more"),
        ("seed", 2**32, "at most 2**32 - 1"),
    ],
)
def test_bad_values_name_setting_value_and_what_is_accepted(setting, value, expected):
    config = config_lib.default_config()
    config_lib.update(config, {setting: value})
    with pytest.raises(ConfigError) as caught:
        config_lib.validate(config)
    assert str(caught.value).startswith(f"{setting} = {value!r}: expected ")
    assert expected in str(caught.value)


def test_mistyped_names_suggest_the_nearest():
    with pytest.raises(ConfigError, match=r"graph\.nam = 'cycle'.*did you mean graph\.name"):
        config_lib.update(config_lib.default_config(), {"graph.nam": "cycle"})


def test_a_value_of_another_type_is_refused():
    for setting, value, expected in (
        ("graph.name", 3, "a string like 'complete'"),
        ("heads.aux", None, "a whole number like 4"),
        ("clients.num", 4.5, "a whole number like 8"),
        ("seed", True, "a whole number like 0"),
        ("isolated_baseline", 1, "True or False"),
    ):
        with pytest.raises(ConfigError) as caught:
            config_lib.update(config_lib.default_config(), {setting: value})
        assert str(caught.value) == f"{setting} = {value!r}: expected {expected}"


def test_numbers_of_numpy_are_numbers():
    config = config_lib.default_config()
    config_lib.update(config, {"clients.num": np.int64(4), "data.public_fraction": np.float32(0.5)})
    assert (config.clients.num, config.data.public_fraction) == (4, 0.5)
    assert type(config.clients.num) is int


def test_so_are_those_in_tuples_and_arrays():
    config = config_lib.default_config()
    settings = {
        "attack.clients": tuple(np.array([5, 7])),
        "clients.models": (("mlp", np.int64(5)), ("mlp_small", np.int64(3))),
        "distill.class_frequencies": np.ones(3),
    }
    config_lib.update(config, settings)
    assert [type(one) for one in config.attack.clients] == [int, int]
    assert config_lib.client_models(config) == (("mlp", 5), ("mlp_small", 3))
    assert config.distill.class_frequencies == (1.0, 1.0, 1.0)


def test_cohorts_in_client_order():
    assert config_lib.client_models(_config()) == (("mlp", 8),)
    pairs = (("mlp_small", 5), ("mlp_large", 3))
    assert config_lib.client_models(_config(clients__models=pairs)) == pairs


@pytest.mark.parametrize(
    "pairs",
    [(("mlp", 5), ("mlp", 2)), (("mlp", 0), ("mlp", 8)), ("mlp", 8), (("mlp", 8.0),)],
    ids=["do not add up", "empty cohort", "not pairs", "fractional"],
)
def test_cohorts_that_cannot_be(pairs):
    with pytest.raises(ConfigError, match=r"^clients\.models = "):
        config_lib.client_models(_config(clients__models=pairs))


@pytest.mark.parametrize(("old", "new"), sorted(config_lib.RENAMED.items()))
def test_an_old_name_is_refused_with_the_new_one(old, new, tmp_path):
    config = config_lib.default_config()
    value = config_lib.flatten(config)[new]
    message = f"^{re.escape(old)} = .*: expected its new name, {re.escape(new)}$"
    with pytest.raises(ConfigError, match=message):
        config_lib.update(config, {old: value})
    saved = config.to_dict()
    group = saved
    for part in old.split(".")[:-1]:
        group = group[part]
    group[old.split(".")[-1]] = value
    with pytest.raises(ConfigError, match=message):
        config_lib.from_json(json.dumps(saved))
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(WorkdirError, match=f"{re.escape(old)} is now called {re.escape(new)}"):
        Workdir(tmp_path).claim(config)
    with pytest.raises(SystemExit):
        command.parse_flags(["main", f"--config.{old}={value}"])
