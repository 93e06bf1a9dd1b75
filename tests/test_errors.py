# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The errors name what to change, and keep the parts of their message."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhd_jax.errors import ConfigError, DivergedError, Interrupted, WorkdirError, of_piece, suggest

NAMES = ["complete", "cycle", "chain", "islands"]


def test_config_error_names_setting_value_and_what_is_accepted() -> None:
    error = ConfigError("partition.skew", -1, "a number >= 0")
    assert str(error) == "partition.skew = -1: expected a number >= 0"
    assert (error.setting, error.value, error.accepted) == ("partition.skew", -1, "a number >= 0")


def test_config_error_tells_a_text_from_a_number() -> None:
    assert "clients.num = '8':" in str(ConfigError("clients.num", "8", "an integer"))
    assert "clients.num = 8:" in str(ConfigError("clients.num", 8, "an integer"))


def test_config_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="heads.aux = -1"):
        raise ConfigError("heads.aux", -1, "an integer >= 0")


def test_errors_of_a_run_are_not_mistaken_for_errors_of_a_config() -> None:
    for kind in (WorkdirError, DivergedError, Interrupted):
        assert not issubclass(kind, ValueError)
        assert str(kind("client 3, step 7")) == "client 3, step 7"
        assert str(pickle.loads(pickle.dumps(kind("client 3")))) == "client 3"


def test_errors_survive_a_pool_of_processes() -> None:
    found = pickle.loads(pickle.dumps(ConfigError("clients.num", 0, "an integer >= 1")))
    assert str(found) == "clients.num = 0: expected an integer >= 1"
    assert (found.setting, found.value, found.accepted) == ("clients.num", 0, "an integer >= 1")
    stopped = pickle.loads(pickle.dumps(Interrupted("saved", 130)))
    assert (str(stopped), stopped.status) == ("saved", 130)


@pytest.mark.parametrize(
    ("typed", "meant"), [("cylce", "cycle"), ("complet", "complete"), ("island", "islands")]
)
def test_suggest_names_the_nearest(typed: str, meant: str) -> None:
    hint = suggest(typed, NAMES)
    assert hint.startswith("one of complete, cycle, chain, islands")
    assert hint.endswith(f"did you mean {meant!r}?")


def test_suggest_stays_silent_when_nothing_is_near() -> None:
    assert suggest("zzz", NAMES) == "one of complete, cycle, chain, islands"


def test_suggest_accepts_an_iterator() -> None:
    assert suggest("cycl", iter(NAMES)) == suggest("cycl", NAMES)


@given(st.lists(st.from_regex(r"[a-z_]{1,12}", fullmatch=True), min_size=1, unique=True), st.data())
def test_suggest_lists_every_name_and_finds_an_exact_one(
    names: list[str], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(names))
    hint = suggest(name, names)
    assert hint == f"one of {', '.join(names)}; did you mean {name!r}?"


def test_what_a_piece_raises_names_its_setting() -> None:
    with pytest.raises(
        ConfigError, match=r"^heads\.name = 'mine': expected a head \(KeyError: 3\)"
    ):
        with of_piece("heads.name", "mine", "a head"):
            {}[3]
    with pytest.raises(ConfigError, match=r"^clients\.num = 0: expected more$"):
        with of_piece("heads.name", "mine", "a head"):
            raise ConfigError("clients.num", 0, "more")
