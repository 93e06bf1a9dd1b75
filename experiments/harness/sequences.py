# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Real words and series that the defaults were not chosen on.

    pip install --no-deps aeon==1.6.0 wordfreq==3.1.1  # 63 MB

Words are frequent ones of thirteen languages, and the task is to name the language. Source: R.
Speer, wordfreq, https://github.com/rspeer/wordfreq. Series come with aeon, a toolkit for them:
M. Middlehurst et al., aeon: a Python toolkit for learning from time series, JMLR 2024.
"""

from __future__ import annotations

import collections
import functools
import gzip
import itertools
from collections.abc import Sequence
from pathlib import Path

import msgpack
import numpy as np
from jaxtyping import Float, Int

from experiments.harness import packages
from mhd_jax.data import sources

WORDFREQ = packages.Package("wordfreq", "wordfreq==3.1.1", Path("data"))
AEON = packages.Package("aeon", "aeon==1.6.0", Path("datasets", "data"))

WORDS = "words"
LANGUAGES = ("ca", "cs", "de", "en", "es", "fi", "fr", "it", "nb", "nl", "pl", "pt", "sv")
"""All with Latin letters of which the package has a large list."""

WORDS_EACH = 1000
LENGTHS = range(3, 13)
"""Letters of a word; shorter ones are filled up with 0."""

VOCABULARY = 128
"""More than there are letters."""

SERIES = {
    "JapaneseVowels_eq": ("japanese_vowels", 9),
    "ItalyPowerDemand": ("italy_power_demand", 2),
}
"""Files of all in the package with classes, equal lengths of at most 100 steps and at least 400
series: what `data.name` calls them after "series_", and classes."""


# --- Words ----------------------------------------------------------------------------------------


@sources.SOURCES.register(WORDS)
def load_words(directory: str, split: str, shape: sources.Shape) -> sources.Source:
    """Words of `LANGUAGES`, those left out that several have, as ids of letters [N, 12].

    Args:
      directory: with `small_<language>.msgpack.gz`; "" for that of the installed package.
      split: "" or "train" for all but the fifth for testing.
      shape: not used.

    Raises:
      ConfigError: a file is not there, or another part is asked for.
    """
    del shape
    lists = [
        frequent(WORDFREQ.find(WORDS, directory, f"small_{name}.msgpack.gz")) for name in LANGUAGES
    ]
    known = collections.Counter(itertools.chain.from_iterable(lists))
    chosen = [[word for word in words if known[word] == 1][:WORDS_EACH] for words in lists]
    labels = np.repeat(np.arange(len(LANGUAGES)), [len(words) for words in chosen])
    samples = letters(list(itertools.chain.from_iterable(chosen)))
    return packages.divided(WORDS, split, samples, labels, list(LANGUAGES))


def frequent(path: Path) -> list[str]:
    """Different words of a list, the most frequent first, that are letters alone and fit."""
    _, *ranks = msgpack.loads(gzip.decompress(path.read_bytes()))
    words = dict.fromkeys(itertools.chain.from_iterable(ranks))
    return [word for word in words if word.isalpha() and len(word) in LENGTHS]


def letters(words: Sequence[str]) -> Int[np.ndarray, "N T"]:
    """Ids of letters, from 1 on in alphabetical order, and 0 after the end of a word.

    >>> letters(["abba", "cab"])[:, :5].tolist()
    [[1, 2, 2, 1, 0], [3, 1, 2, 0, 0]]
    """
    ids = {letter: 1 + i for i, letter in enumerate(sorted(set().union(*words)))}
    if len(ids) >= VOCABULARY:
        raise ValueError(f"{len(ids)} letters, where networks know {VOCABULARY - 1}")
    samples = np.zeros((len(words), LENGTHS[-1]), np.int32)
    for row, word in zip(samples, words, strict=True):
        row[: len(word)] = [ids[letter] for letter in word]
    return samples


# --- Series ---------------------------------------------------------------------------------------


def load_series(file: str, directory: str, split: str, shape: sources.Shape) -> sources.Source:
    """The series of both parts of a set [N, T, F], divided anew.

    Args:
      file: a key of `SERIES`.
      directory: with `<file>_TRAIN.ts` and `<file>_TEST.ts`; "" for the installed package.
      split: "" or "train" for all but the fifth for testing.
      shape: not used.

    Raises:
      ConfigError: a file is not there, or another part is asked for.
    """
    del shape
    name, folder = series_name(file), file.removesuffix("_eq")
    found = [
        AEON.find(name, directory, f"{'' if directory else f'{folder}/'}{file}_{part}.ts")
        for part in ("TRAIN", "TEST")
    ]
    samples, labels, names = parse("\n".join(path.read_text(encoding="utf-8") for path in found))
    return packages.divided(name, split, samples, labels, names)


def series_name(file: str) -> str:
    """What `data.name` calls a set.

    >>> series_name("ItalyPowerDemand")
    'series_italy_power_demand'
    """
    return f"series_{SERIES[file][0]}"


def parse(text: str) -> tuple[Float[np.ndarray, "N T F"], np.ndarray, list[str]]:
    """Series, labels and the names of the classes, from the lines of `.ts` files.

    A line has the values of each feature over time, separated by colons, and the class.

    >>> series, labels, names = parse("@data\\n1,2,3:4,5,6:up\\n0,0,0:0,0,0:down")
    >>> series[0].tolist(), labels.tolist(), names
    ([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], [1, 0], ['down', 'up'])
    """
    lines = [line.split(":") for line in text.splitlines() if line and line[0] not in "#@"]
    names, labels = np.unique([line[-1].strip() for line in lines], return_inverse=True)
    series = [[np.fromstring(part, np.float32, sep=",") for part in line[:-1]] for line in lines]
    return np.array(series).swapaxes(1, 2), labels, list(map(str, names))


CLASSES = {WORDS: len(LANGUAGES), **{series_name(file): SERIES[file][1] for file in SERIES}}
"""How many classes there are, by what `data.name` calls the data."""

for _file in SERIES:
    sources.SOURCES.register(series_name(_file))(functools.partial(load_series, _file))
