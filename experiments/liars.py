# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What lying clients cost honest ones: by attack, teacher rule and graph, by rank and hop.

    python -m experiments.liars --preset=digits --workdir=runs/digits
    python -m experiments.liars --preset=cifar10_cpu --workdir=runs/cifar10_cpu

Every figure is of honest clients alone, and every loss is against the same clients in the same run
without lies. Liars are the last clients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.harness import plots, sweep
from experiments.harness.candidates import ALL_PEERS, PAPER_ALL_PEERS
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Kind, Record, Study
from experiments.harness.tables import grid, over_seeds
from mhd_jax.graph import GRAPHS, hop_distances
from mhd_jax.results import head_names

Settings = Mapping[str, Any]

SCENES: dict[str, Settings] = {
    "complete": {},
    "random, 4 peers each": {"graph.name": "random_regular", "graph.degree": 4},
    "directed cycle": {"graph.name": "cycle"},
    "complete, 16 clients": {"clients.num": 16},
}
"""Who hears whom."""

RULES: dict[str, Settings] = {
    "default": {},
    "all peers": ALL_PEERS,
    "no screening": {**ALL_PEERS, "distill.screening": 0.0},
    "paper": PAPER_ALL_PEERS,
    "reputation, screened": {**ALL_PEERS, "distill.rule": "reputation"},
    **{
        name: {**ALL_PEERS, "distill.rule": name, "distill.screening": 0.0}
        for name in ("reputation", "agreement", "capped", "trimmed_mean", "median")
    },
    "FedAvg": {"method": "fedavg"},
    **{
        f"FedAvg, {name}": {"method": "fedavg", "average.rule": name}
        for name in ("median", "trimmed_mean", "krum")
    },
}
"""Who teaches, or what is made of parameters."""

NO_LIES = "nobody lies"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of the study.

    Attributes:
      rule: a name in `RULES`.
      attack: a name in `mhd_jax.attacks.ATTACKS`; "" where nobody lies.
      liars: how many.
      scene: a name in `SCENES`.
    """

    rule: str
    attack: str = ""
    liars: int = 1
    scene: str = "complete"

    @property
    def label(self) -> str:
        """The attack and how many lie."""
        return f"{self.attack.replace('_', ' ')} × {self.liars}" if self.attack else NO_LIES

    def cell(self, common: Settings) -> Cell:
        """The run that it needs; `common` are settings of all."""
        settings = {**common, **SCENES[self.scene], **RULES[self.rule]}
        if self.attack:
            clients = int(settings.get("clients.num", 8))
            who = tuple(range(clients - self.liars, clients))
            settings |= {"attack.name": self.attack, "attack.clients": who}
        lies = f"{self.attack} {self.liars}" if self.attack else "honest"
        words = f"{self.scene} {self.rule} {lies}".replace(",", "").replace("_", " ")
        name = "-".join(words.lower().split())
        return Cell(name, f"{self.rule}: {self.label}", settings, group=self.scene)


_DECISIVE = [
    *(
        Trial(rule, attack, liars)
        for rule in ("default", "all peers")
        for attack, liars in (
            ("", 1),
            ("constant", 1),
            ("nan", 1),
            ("coordinated", 2),
            ("nan", 2),
            ("shifted", 1),
        )
    ),
    Trial("no screening"),
    Trial("no screening", "coordinated", 2),
    Trial("paper"),
    Trial("paper", "constant"),
]
_MORE = [
    Trial("all peers", "random_class"),
    Trial("all peers", "constant", 2),
    Trial("all peers", "coordinated", 4),
    Trial("all peers", "shifted", 2),
    Trial("no screening", "random_class"),
    Trial("reputation"),
    Trial("reputation", "coordinated", 2),
    Trial("reputation", "shifted"),
    Trial("reputation, screened"),
    Trial("reputation, screened", "shifted"),
    Trial("reputation, screened", "coordinated", 2),
]
_TRAVELS = [
    Trial("no screening", attack, scene="directed cycle") for attack in ("", "random_class")
]
_PARAMETERS = [
    Trial("FedAvg"),
    *(
        Trial(f"FedAvg{rule}", "sign_flipped")
        for rule in ("", ", median", ", trimmed_mean", ", krum")
    ),
    Trial("FedAvg", "noise"),
]
_ATTACKS = [Trial("all peers", name) for name in ("rare_class", "swapped", "sign_flipped", "copy")]
_DEFENCES = [
    Trial(rule, attack, liars)
    for rule in ("trimmed_mean", "agreement", "capped", "median")
    for attack, liars in (("", 1), ("coordinated", 2))
]
_GRAPHS = [
    *(Trial("all peers", attack, scene="directed cycle") for attack in ("", "random_class")),
    *(Trial("all peers", attack, scene="random, 4 peers each") for attack in ("", "random_class")),
    *(Trial("all peers", attack, 3, scene="complete, 16 clients")
      for attack in ("", "coordinated")),
]  # fmt: skip


_SMALL: Settings = {
    "train.steps": 1000, "data.batch_size": 32, "data.public_batch_size": 32, "model.width": 64,
}  # fmt: skip
"""Photographs on a laptop: ninety seconds a run on one core."""


def trials(preset: Preset) -> list[Trial]:
    """What is run at a preset, the decisive runs first."""
    if preset.name.startswith("cifar10"):
        return _DECISIVE
    return [*_DECISIVE, *_MORE, *_TRAVELS, *_PARAMETERS, *_ATTACKS, *_DEFENCES, *_GRAPHS]


def cells(preset: Preset) -> list[Cell]:
    common = _SMALL if preset.name == "cifar10_cpu" else {}
    return [trial.cell(common) for trial in trials(preset)]


# --- What lies cost -------------------------------------------------------------------------------


def loss(record: Record, honest: Record, kind: Kind, head: int = -1) -> Float[np.ndarray, "R k"]:
    """What each client that does not lie loses, by seed, against the run in which nobody does."""
    before = getattr(honest.results, f"{kind}_accuracy")[:, record.honest]
    return before[..., head] - record.accuracy(kind)[..., head]


def _honest_run(record: Record, records: Sequence[Record]) -> Record | None:
    """The same cell without lies."""
    rule = _rule(record).split(",")[0] if _rule(record).startswith("FedAvg") else _rule(record)
    wanted = (record.group, rule, NO_LIES)
    found = (one for one in records if (one.group, _rule(one), _attack(one)) == wanted)
    return next(found, None)


def _rule(record: Record) -> str:
    return record.label.rpartition(": ")[0]


def _attack(record: Record) -> str:
    return record.label.rpartition(": ")[2]


def losses(records: Sequence[Record]) -> str:
    """A row for every graph and attack, a column for every rule."""
    rules = list(dict.fromkeys(map(_rule, records)))
    rows = dict.fromkeys((record.group, _attack(record)) for record in records)
    found = {(record.group, _attack(record), _rule(record)): record for record in records}
    lines = [
        [group, attack, *(_loss_cell(found.get((group, attack, rule)), records) for rule in rules)]
        for group, attack in rows
        if attack != NO_LIES
    ]
    said = (
        "What honest clients lose, shared accuracy of the last head / private accuracy of the "
        "main head, against the same rule without lies (FedAvg: against its mean without lies):"
    )
    return f"{said}\n\n{grid(['graph', 'attack', *rules], lines)}"


def _loss_cell(record: Record | None, records: Sequence[Record]) -> str:
    honest = _honest_run(record, records) if record else None
    if record is None or honest is None:
        return ""
    shared = over_seeds(loss(record, honest, "shared").mean(axis=1))
    private = loss(record, honest, "private", head=0).mean()
    return f"{shared} / {private:+.3f}"


# --- How far a lie travels ------------------------------------------------------------------------


def travels(record: Record, honest: Record) -> Float[np.ndarray, "H D"]:
    """Mean loss of every head by hops from the nearest liar, 1..D, on the directed cycle."""
    clients = len(record.honest)
    cycle = GRAPHS.get("cycle")(clients, np.random.default_rng(0))
    hops = hop_distances(cycle)[:, ~record.honest].min(axis=1)[record.honest]
    heads = record.accuracy("shared").shape[-1]
    table = [
        [loss(record, honest, "shared", head)[:, hops == hop].mean() for hop in np.unique(hops)]
        for head in range(heads)
    ]
    return np.array(table)


def draw(records: Sequence[Record]) -> Figure:
    """Losses by attack and rule; beside them, on the cycle, by head and hop."""
    told = [(one, other) for one in records
            if _attack(one) != NO_LIES and (other := _honest_run(one, records))]  # fmt: skip
    cycle = [pair for pair in told if pair[0].group == "directed cycle"]
    figure, axes = plots.panels(1 + bool(cycle), 1.4 + 0.17 * max(len(told), 12))
    axis = axes[0]
    for line, (record, honest) in enumerate(told):
        each = loss(record, honest, "shared").mean(axis=1)
        spread = each.std(ddof=1) if len(each) > 1 else 0.0
        axis.errorbar(each.mean(), line, xerr=spread, color=plots.AUX, marker="D", ms=4)
    axis.set_yticks(range(len(told)), [_row(record) for record, _ in told], fontsize=6.5)
    axis.set_ylim(max(len(told), 1) - 0.5, -0.5)
    axis.axvline(0, color=plots.BASELINE, lw=1)
    axis.set_title("loss of shared accuracy, last head", loc="left", fontsize=9)
    for record, honest in cycle[:1]:
        _heat(axes[1], travels(record, honest), record.label)
    return figure


def _row(record: Record) -> str:
    scene = "" if record.group == "complete" else f" ({record.group})"
    return f"{record.label}{scene}"


def _heat(axis: Axes, table: Float[np.ndarray, "H D"], trial: str) -> None:
    axis.grid(False)
    axis.imshow(table, cmap=plots.HEAT, vmin=0, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if value > 0.55 * table.max() else plots.INK
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7.5)
    axis.set_xticks(range(table.shape[1]), map(str, range(1, table.shape[1] + 1)))
    axis.set_yticks(range(table.shape[0]), head_names(table.shape[0]))
    axis.set_xlabel(f"hops from the liar on a directed cycle\n{trial}")
    axis.set_title("the same by head and hop", loc="left", fontsize=9)


STUDY = Study(
    "liars",
    "Lying clients",
    cells,
    draw=draw,
    extra=losses,
    definitions=(
        "All numbers are those of honest clients. A message of NaN is dropped, so that the liar is "
        "silent, and what is lost is what nobody else knows.",
        "*default*: two random peers a step, aligned and screened. *all peers*: the same with all "
        "peers in every step. *no screening*: all peers, aligned but not screened. *paper*: all "
        "peers, neither aligned nor screened. Other rules hear all peers, aligned, and screened "
        "only where the name says so.",
        "*random class*: certain of one class, fixed for each image. *coordinated*: liars agree on "
        "that class. *rare class*: honest, except that on one image in 16 the liar is certain of "
        "the class it names least. *shifted*: gives each class the name of the next.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
