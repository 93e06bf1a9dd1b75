# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Tables from the records of a study: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mhd_jax.results import HeadRow, Spread, accuracy_rows, head_names

if TYPE_CHECKING:
    from experiments.sweep import Study

Record = Mapping[str, Any]


def to_compact_json(record: Record) -> str:
    """Indented, but with every list of numbers on one line: small, and readable in a diff."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: re.sub(r"\s+", "", found[0]), text) + "\n"


def accuracy(record: Record, kind: str) -> Float[np.ndarray, "R K H"]:
    """Accuracy by seed, client and head; kind is "shared", "private", "control_shared", ..."""
    return np.array(record["results"][f"{kind}_accuracy"], float)


def rows(record: Record) -> list[HeadRow]:
    """A row per head, then the control; of a pooled model, the same for all clients."""
    shared, private = accuracy(record, "shared"), accuracy(record, "private")
    alone = accuracy(record, "control_shared"), accuracy(record, "control_private")
    return accuracy_rows(shared, private, *alone)


def number(spread: Spread | None, signed: bool = False) -> str:
    """Mean ± standard deviation over seeds of the mean over clients.

    >>> number(Spread(0.5, 0.25, 0.75, 0.125))
    '0.500 ± 0.125'
    """
    if spread is None:
        return ""
    text = f"{spread.mean:+.3f}" if signed else f"{spread.mean:.3f}"
    return text if spread.std is None else f"{text} ± {spread.std:.3f}"


def short(number: float) -> str:
    """Three digits, thousands apart.

    >>> short(4.8372), short(1374.2), short(0)
    ('4.84', '1,370', '0')
    """
    return f"{float(f'{number:.3g}'):,g}"


def kilobytes(record: Record) -> str:
    """Kilobytes that a client sends in a step, averages over the run included."""
    count = record["results"]["bytes_per_client_and_step"]
    return short(count / 1000)


def speed(record: Record) -> str:
    """Steps a second of one system, all seeds of the cell counted."""
    seconds = record["seconds_per_step"]
    return short(record["config"]["num_seeds"] / seconds) if seconds else ""


def markdown(study: Study, records: Sequence[Record]) -> str:
    """The table of a study, with the facts that belong to it."""
    parts = [_table(study, records), _facts(records)]
    if study.definitions:
        parts.append("What is defined here: " + " ".join(study.definitions))
    if study.extra is not None:
        parts.insert(1, study.extra([r for r in records if "diverged" not in r["results"]]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(study: Study, records: Sequence[Record]) -> str:
    grouped = any(record["group"] for record in records)
    most = max((accuracy(r, "shared").shape[-1] for r in records if _finished(r)), default=1)
    ranks = [f"β_sh {name}" for name in head_names(most)[1:]] if study.all_heads else []
    ranks = ranks or ["β_sh last head"]
    header = [
        *(["group"] if grouped else []), "setting", "β_sh main", *ranks, "lowest client",
        "β_sh isolated", "gain", "β_priv main", "β_priv isolated", "kB", "steps/s",
    ]  # fmt: skip
    lines = [header, ["---"] * len(header)]
    before = None
    for record in records:
        group = record["group"] if record["group"] != before else ""
        before = record["group"]
        start = [*([group] if grouped else []), record["label"]]
        lines.append([*start, *_cells(record, len(ranks), len(header) - len(start))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(record: Record, ranks: int, width: int) -> list[str]:
    if not _finished(record):
        return ["diverged", *[""] * (width - 1)]
    *heads, control = rows(record)
    main, last, aux = heads[0], heads[-1], heads[1:]
    shown = [last] if ranks == 1 else [*aux, *[None] * (ranks - len(aux))]
    return [
        number(main.shared),
        *(number(head.shared) if head and len(heads) > 1 else "–" for head in shown),
        f"{last.shared.min:.3f}",
        number(control.shared),
        number(last.shared_gain, signed=True),
        number(main.private),
        number(control.private),
        kilobytes(record),
        speed(record),
    ]


def _finished(record: Record) -> bool:
    return "diverged" not in record["results"]


def _facts(records: Sequence[Record]) -> str:
    first = records[0]
    config = first["config"]
    seeds = first["results"].get("seeds") or [config["seed"]]
    minutes = sum(record["wall_seconds"] for record in records) / 60
    steps = sorted({record["config"]["train"]["steps"] for record in records})
    clients = {record["config"]["clients"]["num"] for record in records}
    facts = [
        config["data"]["name"],
        f"{clients.pop()} clients" if len(clients) == 1 else "as many clients as a row says",
        f"{' and '.join(f'{s:,}' for s in steps)} steps",
        f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}",
        " and ".join(dict.fromkeys(f"{r['hardware']} ({r['device']})" for r in records)),
        f"{minutes:.0f} minutes for these rows",
    ]
    return (
        "Mean ± standard deviation over seeds of the mean over clients; the lowest client is that "
        "of the last head over all seeds; gain is the last head over the same clients in "
        "isolation; kB are sent per client and step. "
        + "; ".join(facts)
        + f". `{first['command']}`"
    )


def csv_text(records: Sequence[Record]) -> str:
    """A line for every cell and head, the control included."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["study", "cell", "group", "label", "head"]
        + [
            f"{kind}_{part}"
            for kind in ("shared", "private", "shared_gain")
            for part in ("mean", "std", "min", "max")
        ]
        + ["bytes_per_client_and_step", "seconds_per_step"]
    )
    for record in filter(_finished, records):
        start = [record[name] for name in ("study", "cell", "group", "label")]
        end = [record["results"]["bytes_per_client_and_step"], record["seconds_per_step"]]
        for row in rows(record):
            spreads = [row.shared, row.private, row.shared_gain]
            parts = [value for spread in spreads for value in _parts(spread)]
            writer.writerow([*start, row.name, *parts, *end])
    return out.getvalue()


def _parts(spread: Spread | None) -> list[str]:
    if spread is None:
        return [""] * 4
    values = (spread.mean, spread.std, spread.min, spread.max)
    return ["" if value is None else f"{value:.4f}" for value in values]
