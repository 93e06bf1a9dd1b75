# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Words and series of public packages, and the networks that read them."""

from __future__ import annotations

import gzip

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from experiments import sequences as study
from experiments.harness import sequence_networks, sequences
from experiments.harness.presets import PRESETS
from mhd_jax.config import default_config, update
from mhd_jax.data import sources
from mhd_jax.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """Ten words of each language, one that all know, and some that do not count; six series."""
    for i, language in enumerate(sequences.LANGUAGES):
        own = [chr(ord("a") + i) * n for n in range(3, 13)]
        ranks = [{"format": "cB"}, [], ["everywhere", "ab", "x" * 13], [*own, "it's"], own[:1]]
        packed = gzip.compress(msgpack.packb(ranks))
        (tmp_path / f"small_{language}.msgpack.gz").write_bytes(packed)
    for part, lines in {"TRAIN": 4, "TEST": 2}.items():
        rows = [f"{i},{i},{i}:{i},1,2:{'b' if i % 2 else 'a'}" for i in range(lines)]
        text = "\n".join(["#made up", "@equalLength true", "@data", *rows, ""])
        (tmp_path / f"JapaneseVowels_eq_{part}.ts").write_text(text)
    return tmp_path


def load(name, folder):
    config = default_config()
    update(config, {"data.name": name, "data.dir": str(folder)})
    return sources.source(config.data)


def everything(source):
    parts = [
        (part.images(np.arange(len(part))), part.labels) for part in (source.train, source.test)
    ]
    return (np.concatenate(both) for both in zip(*parts, strict=True))


def test_words_are_those_of_one_language_alone_as_ids(folder):
    source = load("words", folder)
    samples, labels = everything(source)
    assert source.class_names == sequences.LANGUAGES
    assert samples.shape == (130, 12)
    assert samples.dtype == np.int32
    assert np.bincount(labels).tolist() == [10] * 13
    lengths = (samples > 0).sum(axis=1)
    assert np.bincount(lengths).tolist() == [0, 0, 0] + [13] * 10
    np.testing.assert_array_equal(samples[:, 0], labels + 1)  # each language has its letter
    assert (samples == np.where(np.arange(12) < lengths[:, None], labels[:, None] + 1, 0)).all()


def test_the_most_frequent_words_are_taken(folder, monkeypatch):
    monkeypatch.setattr(sequences, "WORDS_EACH", 2)
    samples, _ = everything(load("words", folder))
    assert np.bincount((samples > 0).sum(axis=1)).tolist() == [0, 0, 0, 13, 13]


def test_series_are_those_of_both_parts_with_features_last(folder):
    source = load("series_japanese_vowels", folder)
    samples, labels = everything(source)
    assert (len(source.train), len(source.test)) == (5, 1)
    assert sorted(samples[:, 0, 0]) == [0, 0, 1, 1, 2, 3]
    assert samples.shape == (6, 3, 2)
    np.testing.assert_array_equal(samples[:, 1:, 1], [[1, 2]] * 6)
    np.testing.assert_array_equal(samples[:, 0, 0] % 2, labels)


def test_what_is_not_there_is_named(folder, monkeypatch):
    with pytest.raises(ConfigError, match=r"data\.dir.*a folder with ItalyPowerDemand_TRAIN\.ts"):
        load("series_italy_power_demand", folder)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps aeon"):
        load("series_italy_power_demand", "")
    with pytest.raises(ConfigError, match="pip install --no-deps wordfreq"):
        load("words", "")


def test_more_letters_than_networks_know_are_refused():
    with pytest.raises(ValueError, match="130 letters, where networks know 127"):
        sequences.letters([chr(1000 + i) for i in range(130)])


@pytest.mark.parametrize("network", sequence_networks.NETWORKS)
@pytest.mark.parametrize("sample", [np.ones((2, 7), np.int32), np.ones((2, 7, 3), np.float32)])
def test_networks_read_ids_and_series(network, sample):
    module = sequence_networks.NETWORKS[network]()
    flag = {"train": False} if network == "transformer" else {}
    found, _ = module.init_with_output(jax.random.key(0), jnp.asarray(sample), **flag)
    assert found.ndim == 2
    assert len(found) == 2


def test_every_row_names_data_and_networks_that_there_are():
    cells = study.cells(PRESETS["held_out"])
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.changes["data.name"] in sources.SOURCES.names()
        assert cell.changes["model.name"].removeprefix("sequence_") in sequence_networks.NETWORKS
    classes = {sequences.series_name(file): count for file, (_, count) in sequences.SERIES.items()}
    assert {cell.changes["data.name"]: cell.changes["data.num_classes"] for cell in cells} == {
        "words": len(sequences.LANGUAGES), **classes,
    }  # fmt: skip
