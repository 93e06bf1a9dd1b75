# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a run leaves, as types: `Summary`, its tables, and the meaning of every key.

K is the number of clients, H of heads, C of classes. Of several seeds, arrays at the top level are
the first seed's. Every field says its shape and unit in its metadata; `describe_fields` lists them
for the documentation, those of `metrics.jsonl` (`LINE_FIELDS`) included.

`summary` and `lines` are the two files, `statistics` and `hops` the tables made of them; `fields`
is what a field knows of itself, and `description` tells it.
"""

from mhd_jax.results.description import describe_fields
from mhd_jax.results.fields import MANY, FieldDoc
from mhd_jax.results.hops import (
    NO_PRIMARY,
    HopTable,
    accuracy_by_hops,
    for_every_client,
    hop_name,
    hop_table,
    label_hops,
)
from mhd_jax.results.lines import LINE_FIELDS, QUANTILES, History, Line, condensed, of_counted
from mhd_jax.results.statistics import (
    ISOLATED,
    HeadRow,
    Spread,
    accuracy_rows,
    epsilon_range,
    head_names,
    head_rows,
)
from mhd_jax.results.summary import VERSION, Accuracies, SeedResult, Summary, counted

__all__ = [
    "ISOLATED",
    "LINE_FIELDS",
    "MANY",
    "NO_PRIMARY",
    "QUANTILES",
    "VERSION",
    "Accuracies",
    "FieldDoc",
    "HeadRow",
    "History",
    "HopTable",
    "Line",
    "SeedResult",
    "Spread",
    "Summary",
    "accuracy_by_hops",
    "accuracy_rows",
    "condensed",
    "counted",
    "describe_fields",
    "epsilon_range",
    "for_every_client",
    "head_names",
    "head_rows",
    "hop_name",
    "hop_table",
    "label_hops",
    "of_counted",
]
