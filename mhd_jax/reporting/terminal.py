# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a run says on the terminal: a header, a progress bar and the final table."""

from __future__ import annotations

import datetime
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from mhd_jax.results import Accuracies, Spread, Summary, epsilon_range, head_rows
from mhd_jax.wording import first_few

# Without a terminal nobody watches a bar: one plain line whenever there are new values, and
# otherwise this often, so that a log file shows that the run is alive.
SECONDS_BETWEEN_LINES = 30.0

_TEXT = "{n_fmt}/{total_fmt}  {rate_noinv_fmt}  ETA {remaining}  {desc}"
_BAR = "{percentage:3.0f}%|{bar:12}| " + _TEXT
_COLUMNS_FOR_BAR = 100  # with fewer the text alone fills the line


def final_table(summary: Summary) -> str:
    """The results as a plain text table: a row per head, then the isolated baseline.

    Args:
      summary: what a run leaves in ``summary.json``.

    Returns:
      Several lines without a trailing newline.
    """
    rows = head_rows(summary)
    gains = any(row.shared_gain for row in rows)
    labels = ["mean", "min", "max", *(["gain"] if gains else [])]
    cells = [
        [
            row.name,
            *_cells(row.shared, row.shared_gain, gains),
            *_cells(row.private, row.private_gain, gains),
        ]
        for row in rows
    ]
    table = _layout(["head", *labels, *labels], cells)
    return "\n".join([*table, "", _legend(summary, gains), *_own_tests(summary), *_claim(summary)])


def _claim(summary: Summary) -> list[str]:
    """A line on differential privacy where it is claimed, over all seeds."""
    found = [seed.epsilon for seed in summary.seeds if seed.epsilon is not None]
    if not found:
        return []
    delta, epsilon = summary.config["privacy"]["delta"], epsilon_range(np.concatenate(found))
    return ["", f"what a client publishes: epsilon {epsilon} at delta {delta:g} for one sample"]


MOST_OWN = 40  # clients with a line of their own


def _own_tests(summary: Summary) -> list[str]:
    """A line per client with its accuracy on its own test samples, where there are such."""
    own = _own_main(summary.seeds)
    if own is None:
        return []
    alone = _own_main([seed.isolated_baseline for seed in summary.seeds])
    title = "on the client's own test samples (private accuracy above is re-weighted)"
    title += f", mean over {len(summary.seeds)} seeds" if len(summary.seeds) > 1 else ""
    lines = ["", f"{title}:"]
    width = max(map(len, summary.names[:MOST_OWN]))
    for client, name in enumerate(summary.names[:MOST_OWN]):
        line = f"  {name.ljust(width)}  main {_or_dash(own[client])}"
        lines.append(line if alone is None else f"{line}  isolated {_or_dash(alone[client])}")
    if len(own) > MOST_OWN:
        told = own[summary.counted & ~np.isnan(own)]
        mean = _or_dash(told.mean() if told.size else np.nan)
        whose = f"all{summary.who_counts}"
        lines.append(f"  and {len(own) - MOST_OWN:,} more; mean of {whose}  main {mean}")
    return lines


def _own_main(results: Iterable[Accuracies | None]) -> Float[np.ndarray, " K"] | None:
    """The main heads' accuracy on the clients' own test samples, mean over seeds."""
    known = [one.own_test_accuracy for one in results if one is not None]
    found = [own[:, 0] for own in known if own is not None]
    return np.mean(found, axis=0) if found else None


def _or_dash(value: float) -> str:
    """An accuracy, or a dash for a client without test samples, equally wide.

    >>> _or_dash(0.5), _or_dash(float("nan"))
    ('0.500', '    –')
    """
    return f"{'–':>5}" if np.isnan(value) else f"{value:.3f}"


def _legend(summary: Summary, gains: bool) -> str:
    clients = int(summary.counted.sum())
    lines = f"mean, min and max over {clients} client{'s' if clients != 1 else ''}"
    lines += summary.who_counts
    if len(summary.seeds) > 1:
        lines += f" and {len(summary.seeds)} seeds (± std of the seeds' means)"
    return lines + ("; gain over the isolated baseline" if gains else "")


def _cells(spread: Spread, gain: Spread | None, with_gain: bool) -> list[str]:
    cells = [spread.text(), f"{spread.min:.3f}", f"{spread.max:.3f}"]
    if with_gain:
        cells.append(gain.text(signed=True) if gain else "")
    return cells


def _layout(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns the columns under 'shared accuracy' and 'private accuracy', half of them each."""
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    half = (len(header) - 1) // 2

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        parts = [cells[0].ljust(widths[0]), "  ".join(padded[:half]), "  ".join(padded[half:])]
        return "    ".join(parts).rstrip()

    sizes = [sum(group) + 2 * (half - 1) for group in (widths[1 : 1 + half], widths[1 + half :])]
    titles = ["shared accuracy", "private accuracy"]
    groups = [f" {t} ".center(size, "-") for t, size in zip(titles, sizes, strict=True)]
    top = "    ".join([" " * widths[0], *groups])
    body = [line(row) for row in rows]
    return [top, line(header), "-" * max(map(len, [top, *body])), *body]


def describe_run(
    config: ConfigDict,
    *,
    private_samples: Sequence[int],
    public_samples: int,
    test_samples: int,
    primary_labels: Bool[np.ndarray, "K C"],
    partition_hash: str,
    client_names: Sequence[str] = (),
    graph: Mapping[str, Any],
    num_params: Sequence[int],
    num_heads: int,
    device: str,
    feed: str,
    statistics: str = "",
    exchange: str = "",
    privacy: str = "",
) -> str:
    """The lines printed before the first step: what is about to run, and on what.

    Args:
      config: The run's config.
      private_samples: Of every client.
      public_samples: Unlabelled samples that all clients see.
      test_samples: Samples that accuracies are measured on.
      primary_labels: Which labels each client holds as primary.
      partition_hash: Of the assignment of samples to clients.
      client_names: Of clients that the data set comes with.
      graph: Statistics of the communication graph, from `mhd_jax.graph.describe`, and its "name"
        where it is not that of the settings; of the first one where it "changes".
      num_params: Parameters of every client.
      num_heads: Heads of every client.
      device: The accelerator, in words.
      feed: How images get there, in words.
      statistics: What happens to batch statistics, in words; "" for nothing.
      exchange: How teachers are found along the graph, in words; "" where there are none.
      privacy: What is done to private gradients and what that proves; "" for nothing.
    """
    clients, classes = primary_labels.shape
    owned = primary_labels.sum(axis=1)
    facts = {
        "data": f"{config['data']['name']}, {classes} classes: {sum(private_samples):,} private, "
        f"{public_samples:,} public, {test_samples:,} test samples",
        "partition": f"{config['partition']['name']}: {_range(private_samples)} samples"
        + (f" and {_range(owned)} primary labels" if owned.any() else "")
        + f" a client (hash {partition_hash[:12]})",
        **({"clients": _with_sizes(client_names, private_samples)} if client_names else {}),
        "graph": f"{graph.get('name') or _graph_name(config)}: {_describe_graph(graph)}",
        "model": f"{_architectures(config)}: {_range(num_params)} parameters a client, "
        + _describe_heads(num_heads),
        **({"statistics": statistics} if statistics else {}),
        "device": device,
        "samples": feed,
        **({"teachers": exchange} if exchange else {}),
        **({"privacy": privacy} if privacy else {}),
    }
    steps = _count(config["train"]["steps"], "step")
    title = f"{config['method']}, {_count(clients, 'client')}, {steps}"
    return "\n".join([title, *(f"  {name:<10} {fact}" for name, fact in facts.items())])


def fitted(text: str) -> str:
    """The lines of `describe_run`, broken where the terminal ends; as they are in a log."""
    if not sys.stdout.isatty():
        return text
    filled = textwrap.TextWrapper(
        shutil.get_terminal_size().columns, subsequent_indent=" " * 13,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(map(filled.fill, text.split("\n")))


MOST_NAMES = 8  # of clients on one line


def _with_sizes(names: Sequence[str], sizes: Sequence[int]) -> str:
    """Names of clients and how many samples each has.

    >>> _with_sizes(("north", "south"), (40, 1200))
    'north (40), south (1,200)'
    """
    pairs = zip(names, sizes, strict=True)
    return first_few([f"{name} ({size:,})" for name, size in pairs], MOST_NAMES)


def _range(values: Sequence[int] | np.ndarray) -> str:
    low, high = int(min(values)), int(max(values))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _architectures(config: ConfigDict) -> str:
    groups = [f"{count} x {name}" for name, count in config["clients"]["models"]]
    return ", ".join(groups) or config["model"]["name"]


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _describe_heads(num_heads: int) -> str:
    if num_heads == 1:
        return "one head"
    return f"main head and {_count(num_heads - 1, 'auxiliary head')}"


def _graph_name(config: ConfigDict) -> str:
    return ", ".join(config["graph"]["sequence"]) or config["graph"]["name"]


def _describe_graph(facts: Mapping[str, Any]) -> str:
    start = "changes; at first " if facts.get("changes") else ""
    if not facts["edges"]:
        return f"{start}no edges, nobody learns from anybody"
    low, high = facts["min_degree"], facts["max_degree"]
    parts = [
        start + _count(facts["edges"], "edge"),
        f"{_range([low, high])} peer{'s' if high > 1 else ''} a client",
    ]
    if facts["strongly_connected"]:
        hops = _count(facts["diameter"], "hop")
        parts.append(f"everybody hears from everybody within {hops}")
    elif facts["weakly_connected"]:
        parts.append("not everybody hears from everybody")
    else:
        parts.append("in several pieces")
    return ", ".join(parts)


def format_values(values: Mapping[str, float]) -> str:
    """Values for a progress line; names that begin with the same word are written together.

    >>> format_values({"β_sh main": 0.361, "β_sh aux 4": 0.784, "β_priv main": 0.97})
    'β_sh main 0.36 aux 4 0.78 · β_priv main 0.97'
    """
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        group, _, rest = name.partition(" ")
        groups.setdefault(group, []).append(f"{rest} {value:.2f}".strip())
    return " · ".join(f"{group} {' '.join(parts)}" for group, parts in groups.items())


class Progress:
    """Steps done, steps per second, time left and the current values.

    On a terminal (or in a notebook) a bar; elsewhere plain lines on stderr, one at every update
    that brings new values and otherwise one every `SECONDS_BETWEEN_LINES`. The steps of the
    first update do not count towards the rate of a plain line: they carry the compilation.

    On 80 columns::

        500/1500  95.21 steps/s  ETA 00:10  β_sh main 0.36 aux 0.78 · β_priv 0.97

    Args:
      total: Steps of the whole run.
      initial: Steps done before this process started (a resumed run).
      enabled: False says nothing at all, for all but the first of several processes.
    """

    def __init__(self, total: int, initial: int = 0, enabled: bool = True) -> None:
        self._total = total
        self._enabled = enabled
        self._values: dict[str, float] = {}
        self._bar: tqdm | None = None
        self._first: tuple[int, float] | None = None
        self._last_line = time.monotonic()
        if enabled and _watched():
            self._bar = tqdm(
                total=total, initial=initial, unit=" steps", file=sys.stderr, **_shape()
            )

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Reports that `step` steps are done; earlier values stay until new ones replace them."""
        self._values.update(values or {})
        if self._bar is not None:
            self._bar.set_description_str(format_values(self._values), refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._enabled:
            self._update_plain(step, bool(values))

    def _update_plain(self, step: int, fresh: bool) -> None:
        now = time.monotonic()
        first_step, first_time = self._first = self._first or (step, now)
        if not fresh and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        parts = [f"step {step}/{self._total}"]
        if step > first_step and now > first_time:
            rate = (step - first_step) / (now - first_time)
            left = datetime.timedelta(seconds=round((self._total - step) / rate))
            parts += [f"{rate:.3g} steps/s", f"ETA {left}"]
        parts += [format_values(self._values)] if self._values else []
        print(" · ".join(parts), file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._enabled:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the last state of the bar on the screen; more than once is fine."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shape() -> dict[str, Any]:
    """How the bar uses its line; tqdm itself draws nothing on a terminal of unknown size."""
    if not sys.stderr.isatty():
        return {"bar_format": _BAR, "dynamic_ncols": True}
    columns, rows = shutil.get_terminal_size()
    form = _BAR if columns >= _COLUMNS_FOR_BAR else _TEXT
    return {"bar_format": form, "ncols": columns, "nrows": rows}


def _watched() -> bool:
    """Whether somebody sees a bar move: stderr is a terminal, or this is a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or (shell is not None and "IPKernelApp" in shell.config)
