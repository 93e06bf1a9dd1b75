# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The meaning of every key, for the documentation."""

from __future__ import annotations

import dataclasses

from mhd_jax.results.fields import FieldDoc, Record
from mhd_jax.results.lines import LINE_FIELDS
from mhd_jax.results.summary import Accuracies, Summary


def describe_fields() -> dict[str, list[FieldDoc]]:
    """Every key of `summary.json` and of the lines of `metrics.jsonl`, with shape and unit."""
    return {"summary.json": _documented(Summary, ""), "metrics.jsonl": list(LINE_FIELDS)}


def _documented(kind: type[Record], prefix: str) -> list[FieldDoc]:
    docs = []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        about = field.metadata
        docs.append(FieldDoc(prefix + field.name, about["shape"], about["unit"], about["about"]))
        if about["dtype"] is Accuracies:
            docs += _documented(Accuracies, f"{prefix}{field.name}.")
    return docs
