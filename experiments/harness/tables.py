# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Tables from the records of a study: Markdown for people, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from experiments.harness.study import Record, Study
from mhd_jax.results import HeadRow, Spread, accuracy_rows, head_names
from mhd_jax.wording import first_few

DATA_SETS = 4
"""Names of data sets that a note names."""


def grid(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(grid(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    every = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)


def rows(record: Record) -> list[HeadRow]:
    """A row per head, then the isolated baseline; of a pooled model, the same for all clients."""
    alone = [record.isolated(kind)[..., None] for kind in ("shared", "private")]
    return accuracy_rows(record.accuracy("shared"), record.accuracy("private"), *alone)


def over_seeds(values: Float[np.ndarray, " R"], signed: bool = True) -> str:
    """Mean ± standard deviation of one number per seed.

    >>> over_seeds(np.array([0.1, 0.3]))
    '+0.200 ± 0.141'
    """
    return Spread.of(values[:, None]).text(signed)


def short(number: float) -> str:
    """Three digits, thousands apart.

    >>> short(4.8372), short(1374.2), short(0)
    ('4.84', '1,370', '0')
    """
    return f"{float(f'{number:.3g}'):,g}"


def kilobytes(record: Record) -> str:
    """Kilobytes that a client sends in a step, averages over the run included."""
    return short(record.results.bytes_per_client_and_step / 1000)


def speed(record: Record) -> str:
    """Steps a second of one system, all seeds of the cell counted."""
    seconds = record.seconds_per_step
    return short(record.config["num_seeds"] / seconds) if seconds else ""


def in_short(record: Record) -> str:
    """What came out, in a few words for a line on the terminal."""
    if not record.found:
        return record.diverged
    gain = Spread.of(record.gain())
    last = Spread.of(record.accuracy("shared")[..., -1])
    return f"last head {last.text()}, {gain.text(signed=True)} over isolation"


def markdown(study: Study, records: Sequence[Record]) -> str:
    """The table of a study, with the facts that belong to it."""
    wide = any(record.column for record in records)
    parts = [side_by_side(records) if wide else _table(study, records), _facts(records, wide)]
    if study.definitions:
        parts.append("Definitions: " + " ".join(study.definitions))
    if study.extra is not None:
        parts.insert(1, study.extra([record for record in records if record.found]))
    return "\n\n".join(part for part in parts if part) + "\n"


def side_by_side(records: Sequence[Record]) -> str:
    """A row for every group and label, with a few numbers of each of its columns.

    Columns of less than half of the rows have a table of their own, turned round.
    """
    columns = list(dict.fromkeys(record.column for record in records))
    rows = list(dict.fromkeys((record.group, record.label) for record in records))
    found = {(record.group, record.label, record.column): record for record in records}
    count = {column: sum((*row, column) in found for row in rows) for column in columns}
    most = [column for column in columns if 2 * count[column] >= len(rows)]
    header = ["group", "setting"]
    for column in most:
        header += [f"{column}: β_sh last head", "gain", "β_priv gain"]
    lines = [
        [*row, *(part for column in most for part in _gains(found.get((*row, column))))]
        for row in rows
    ]
    rest = [column for column in columns if column not in most]
    some = [row for row in rows if any((*row, column) in found for column in rest)]
    turned = [
        [column, *(" / ".join(filter(None, _gains(found.get((*row, column)))[1:])) for row in some)]
        for column in rest
    ]
    under = ["gain / β_priv gain", *(f"{group}, {label}" for group, label in some)]
    return "\n\n".join([grid(header, lines), *([grid(under, turned)] if turned else [])])


def _gains(record: Record | None) -> tuple[str, str, str]:
    if record is None or not record.found:
        return ("" if record is None else "diverged"), "", ""
    gains = (Spread.of(record.gain()), Spread.of(record.gain("private", head=0)))
    last = Spread.of(record.accuracy("shared")[..., -1])
    return last.text(), gains[0].text(signed=True), gains[1].text(signed=True)


def _table(study: Study, records: Sequence[Record]) -> str:
    grouped = any(record.group for record in records)
    most = max((r.accuracy("shared").shape[-1] for r in records if r.found), default=1)
    ranks = [f"β_sh {name}" for name in head_names(most)[1:]] if study.all_heads else []
    ranks = ranks or ["β_sh last head"]
    header = [
        *(["group"] if grouped else []), "setting", "β_sh main", *ranks, "lowest client",
        "β_sh isolated", "gain", "β_priv main", "β_priv isolated", "kB", "steps/s",
    ]  # fmt: skip
    lines = []
    before = None
    for record in records:
        group = record.group if record.group != before else ""
        before = record.group
        start = [*([group] if grouped else []), record.label]
        lines.append([*start, *_cells(record, len(ranks), len(header) - len(start))])
    return grid(header, lines)


def _cells(record: Record, ranks: int, width: int) -> list[str]:
    if not record.found:
        return ["diverged", *[""] * (width - 1)]
    *heads, baseline = rows(record)
    main, last, aux = heads[0], heads[-1], heads[1:]
    shown = [last] if ranks == 1 else [*aux, *[None] * (ranks - len(aux))]
    return [
        main.shared.text(),
        *(head.shared.text() if head and len(heads) > 1 else "–" for head in shown),
        f"{last.shared.min:.3f}",
        baseline.shared.text(),
        last.shared_gain.text(signed=True) if last.shared_gain else "",
        main.private.text(),
        baseline.private.text(),
        kilobytes(record),
        speed(record),
    ]


def _facts(records: Sequence[Record], wide: bool) -> str:
    first = records[0]
    minutes = sum(record.wall_seconds for record in records) / 60
    steps = sorted({record.config["train"]["steps"] for record in records})
    clients = {record.config["clients"]["num"] for record in records}
    facts = [
        first_few(list(dict.fromkeys(r.config["data"]["name"] for r in records)), DATA_SETS),
        f"{clients.pop()} clients" if len(clients) == 1 else "as many clients as a row says",
        f"{' and '.join(f'{s:,}' for s in steps)} steps",
        _seeds(records),
        " and ".join(dict.fromkeys(f"{r.hardware} ({r.device})" for r in records)),
        f"{minutes:.0f} minute{'s' if round(minutes) != 1 else ''} for these rows",
    ]
    explained = (
        "Mean ± standard deviation over seeds of the mean over clients. ",
        ""
        if wide
        else "*Lowest client*: the lowest shared accuracy of any client's last head in any seed. ",
        "*Gain*: over the same clients in isolation. ",
        "" if wide else "*kB*: sent by one client in a step. ",
    )
    return "".join(explained) + "; ".join(facts) + f". `{first.command}`"


def _seeds(records: Sequence[Record]) -> str:
    """Which seeds, of the first record; how many, where records differ."""
    counts = {len(record.found.seeds) if record.found else 1 for record in records}
    if len(counts) > 1:
        return f"{min(counts)} to {max(counts)} seeds, from 0 on"
    found, first = records[0].found, records[0].config["seed"]
    seeds = found.seeds if found else [first]
    return f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"


def csv_text(records: Sequence[Record]) -> str:
    """A line for every cell and head, the isolated baseline included."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["study", "cell", "group", "label", "column", "head"]
        + [
            f"{kind}_{part}"
            for kind in ("shared", "private", "shared_gain")
            for part in ("mean", "std", "min", "max")
        ]
        + ["bytes_per_client_and_step", "seconds_per_step"]
    )
    for record in (record for record in records if record.found):
        start = [record.study, record.cell, record.group, record.label, record.column]
        end = [record.results.bytes_per_client_and_step, record.seconds_per_step]
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
