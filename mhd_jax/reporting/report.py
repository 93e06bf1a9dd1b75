# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The report of a run: one HTML file with its numbers and figures, readable without a network.

The prose and the looks are in ``templates/report.html.j2``; here are only the numbers.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import numpy as np
from etils import epath
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from mhd_jax.config import default_config, flatten
from mhd_jax.reporting import charts, style
from mhd_jax.reporting.charts import format_bytes
from mhd_jax.reporting.graph_drawing import MOST_DRAWN, communication_graph
from mhd_jax.results import (
    ISOLATED,
    Accuracies,
    History,
    Spread,
    Summary,
    counted,
    head_rows,
    hop_table,
    of_counted,
)

ON_SUMMARY = (
    charts.accuracy_per_class,
    charts.label_distribution,
    communication_graph,
    charts.hop_picture,
)
ON_HISTORY = (
    charts.accuracy_over_steps,
    charts.losses,
    charts.health,
    charts.accuracy_over_bytes,
)
"""The figures of a report, from its summary and from its history."""

MOST_LABELS = 8  # primary labels of a client that are listed; more are counted
MOST_ROWS = 200  # clients with a row of their own; more are summarised


def write_report(workdir: epath.PathLike, summary: Summary, history: History) -> epath.Path:
    """Writes ``report.html`` and, from the same drawing, ``figures/*.png``.

    Args:
      workdir: Directory of the run; may be on a remote file system.
      summary: what a run leaves in ``summary.json``.
      history: The objects of ``metrics.jsonl``.

    Returns:
      The path of the report.
    """
    folder = epath.Path(workdir)
    paths = save_all(summary, history, folder / "figures")
    images = {path.stem: path.read_bytes() for path in paths}
    report = folder / "report.html"
    unfinished = folder / ".report.html"
    unfinished.write_text(render(summary, images))
    unfinished.replace(report)  # so that a report that exists is a whole one
    return report


def save_all(summary: Summary, history: History, directory: epath.PathLike) -> list[epath.Path]:
    """Writes every figure as a PNG.

    Args:
      summary: what a run leaves in ``summary.json``.
      history: The objects of ``metrics.jsonl``.
      directory: Where to; made if it is not there. May be on a remote file system.

    Returns:
      The files, one per figure, named like the functions that draw them.
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for draw in ON_SUMMARY:
        paths.append(_save(draw(summary), folder, draw))
    everybody = len(summary.label_histogram)
    told = of_counted(history, counted(everybody, summary.liars, summary.frozen))
    for trace in ON_HISTORY:
        paths.append(_save(trace(told), folder, trace))
    return paths


def _save(figure: Figure, folder: epath.Path, draw: Callable[..., Figure]) -> epath.Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=style.DPI, facecolor="white")
    path = folder / f"{draw.__name__}.png"
    path.write_bytes(buffer.getvalue())
    return path


def render(summary: Summary, images: Mapping[str, bytes]) -> str:
    """The report as HTML.

    Args:
      summary: what a run leaves in ``summary.json``.
      images: PNG files by the name of the function in `mhd_jax.reporting.charts` that drew them; a
        figure that is missing here is left out of the report.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mhd_jax.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "signed": signed, "bytes": format_bytes}
    environment.globals |= {"number": number, "signed": signed}
    rows = head_rows(summary)
    heads = [row for row in rows if row.name != ISOLATED]
    return environment.get_template("report.html.j2").render(
        summary=summary,
        settings=flatten(summary.config),
        graph=_graph_name(summary),
        rows=rows,
        main=heads[0],
        last=heads[-1],
        baseline=rows[-1] if rows[-1].name == ISOLATED else None,
        clients=client_rows(summary),
        own_tests=summary.own_test_accuracy is not None,
        replicas=replica_rows(summary),
        hops=_hops(summary),
        in_numbers=len(summary.adjacency) > MOST_DRAWN,
        changes=not np.array_equal(summary.adjacency, summary.adjacency_union),
        traffic=byte_rows(summary),
        sections=_sections(summary.config),
        images={name: _embedded(png) for name, png in images.items()},
    )


def _graph_name(summary: Summary) -> str:
    """Of the graph that was used, which is not that of the settings with every method."""
    settings = summary.config["graph"]
    edges = np.asarray(summary.adjacency_union, bool)
    if not edges.any():
        return "none"
    always = np.array_equal(summary.adjacency, summary.adjacency_union)
    if always and edges.sum() == len(edges) * (len(edges) - 1):
        return "complete"
    return ", ".join(settings["sequence"]) or settings["name"]


def _embedded(png: bytes) -> dict[str, Any]:
    """The data and the width, in percent of the page, at which text is equally large in all."""
    pixels = int.from_bytes(png[16:20], "big")  # the first field of a PNG's header
    width = min(100, round(100 * pixels / (style.WIDTH * style.DPI)))
    return {"data": base64.b64encode(png).decode(), "width": width}


def number(value: float | Spread) -> str:
    """An accuracy; of a spread over replicas the mean and its standard deviation.

    >>> number(0.84217), number(Spread(0.84217, 0.8, 0.9, std=0.0123)), number(math.nan)
    ('0.842', '0.842 ± 0.012', '–')
    """
    if not isinstance(value, Spread) and math.isnan(value):
        return "–"
    return value.text() if isinstance(value, Spread) else f"{value:.3f}"


def signed(value: float | Spread) -> str:
    """A difference of accuracies, with its sign.

    >>> signed(-0.0041), signed(0.4821), signed(0.0)
    ('−0.004', '+0.482', '0.000')
    """
    if not isinstance(value, Spread) and math.isnan(value):
        return "–"
    text = value.text(signed=True) if isinstance(value, Spread) else f"{value:+.3f}"
    return text[1:] if text[1:].startswith("0.000") else text.replace("-", "−")


def client_rows(summary: Summary) -> list[dict[str, Any]]:
    """What the report says of every client (of the first seed where there are several).

    Of many clients `summary_rows` instead.
    """
    if len(summary.shared_accuracy) > MOST_ROWS:
        return summary_rows(summary)
    shared, private = summary.shared_accuracy, summary.private_accuracy
    peers, samples = summary.adjacency.sum(axis=1), summary.label_histogram.sum(axis=1)
    # One pooled model stands for all clients.
    params = np.broadcast_to(summary.num_params, len(shared))
    epsilon = summary.epsilon
    if epsilon is not None:
        epsilon = np.broadcast_to(epsilon, len(shared))
    baseline = summary.isolated_baseline
    rows = []
    for client in range(len(shared)):
        rows.append(
            {
                "client": summary.names[client],
                "samples": int(samples[client]),
                "labels": _listed(np.compress(summary.primary_labels[client], summary.labels)),
                "peers": int(peers[client]),
                "params": int(params[client]),
                "shared_main": shared[client, 0],
                "shared_last": shared[client, -1],
                "shared_baseline": baseline and baseline.shared_accuracy[client, 0],
                "private_main": private[client, 0],
                "private_baseline": baseline and baseline.private_accuracy[client, 0],
                "epsilon": None if epsilon is None else float(epsilon[client]),
                "own_main": _of_main(summary, client),
                "own_baseline": _of_main(baseline, client),
            }
        )
    return rows


def summary_rows(summary: Summary) -> list[dict[str, Any]]:
    """Least, greatest and some quantiles over the clients that count, each column by itself."""
    baseline, main = summary.isolated_baseline, summary.own_test_accuracy
    own = baseline.own_test_accuracy if baseline else None
    columns: dict[str, np.ndarray | None] = {
        "samples": summary.label_histogram.sum(axis=1),
        "labels": summary.primary_labels.sum(axis=1),
        "peers": summary.adjacency.sum(axis=1),
        "params": np.asarray(summary.num_params),
        "shared_main": summary.shared_accuracy[:, 0],
        "shared_last": summary.shared_accuracy[:, -1],
        "shared_baseline": None if baseline is None else baseline.shared_accuracy[:, 0],
        "private_main": summary.private_accuracy[:, 0],
        "private_baseline": None if baseline is None else baseline.private_accuracy[:, 0],
        "own_main": None if main is None else main[:, 0],
        "own_baseline": None if own is None else own[:, 0],
        "epsilon": None if summary.epsilon is None else np.asarray(summary.epsilon),
    }
    whole = ("samples", "labels", "peers", "params")
    rows = []
    for name, share in SHARES.items():
        found = {
            key: None if values is None else _quantile(values, share, summary.counted)
            for key, values in columns.items()
        }
        rows.append({"client": name, **found, **{k: round(found[k] or 0) for k in whole}})
    return rows


def _quantile(values: Float[np.ndarray, " K"], share: float, told: Bool[np.ndarray, " K"]) -> float:
    """Over the clients that are told of, as far as known."""
    # One pooled model stands for all clients.
    chosen = np.broadcast_to(values, told.shape)[told]
    known = chosen[~np.isnan(chosen)]
    return float(np.quantile(known, share)) if known.size else math.nan


SHARES = {"least": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "greatest": 1.0}
"""Rows of the table of many clients."""


def _of_main(found: Accuracies | None, client: int) -> float | None:
    """A client's accuracy on its own test samples, where there are any."""
    own = found.own_test_accuracy if found is not None else None
    return None if own is None else float(own[client, 0])


def _listed(labels: np.ndarray) -> str:
    if len(labels) > MOST_LABELS:
        return f"{len(labels):,} labels"
    return ", ".join(labels) or "none"


def replica_rows(summary: Summary) -> list[dict[str, Any]]:
    """Means over clients of every seed; empty for a run of one."""
    return [
        {"seed": run.seed, "hash": run.partition_hash, "rows": head_rows(run)}
        for run in summary.replicas
    ]


def _hops(summary: Summary) -> dict[str, Any]:
    found = hop_table(summary)
    return {
        "distances": found.names,
        "pairs": found.pairs,
        "rows": list(zip(found.heads, found.accuracy.tolist(), strict=True)),
    }


def byte_rows(summary: Summary) -> list[dict[str, Any]]:
    """Both accountings of communication and FedAvg's, per client and step and for the run."""
    settings = flatten(summary.config)
    refresh, average = settings["exchange.refresh_steps"], settings["average.every"]
    what = {
        "predictions": ("Predictions published", "in every step of distillation"),
        "snapshots": ("Snapshots shipped instead", f"one every {refresh:,} steps"),
        "fedavg": ("FedAvg", f"all parameters every {average:,} steps"),
    }
    per_step = {key: summary.bytes_per_step[key] for key in what}
    run = {
        key: per_step[key].sum() * every * (summary.steps // every)
        for key, every in (("snapshots", refresh), ("fedavg", average))
    }
    run["predictions"] = summary.bytes_published  # not all steps distil, nor all clients in them
    return [
        {
            "name": name,
            "when": when,
            "client": Spread.of(per_step[key][None]),
            "run": run[key],
            "ratio": run[key] / run["fedavg"] if run["fedavg"] else None,
        }
        for key, (name, when) in what.items()
    ]


def _sections(config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """All settings by section, each with whether it differs from its default."""
    defaults = {name: json.dumps(value) for name, value in flatten(default_config()).items()}
    sections: dict[str, list[dict[str, Any]]] = {"run": []}
    for name, value in flatten(config).items():
        section, _, leaf = name.rpartition(".")
        text = json.dumps(value)
        sections.setdefault(section or "run", []).append(
            {"name": leaf, "value": text.strip('"') or "–", "changed": defaults.get(name) != text}
        )
    return sections
