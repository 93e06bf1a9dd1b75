# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The defaults on words and series that they were not chosen on, with networks of a user.

    pip install --no-deps aeon==1.6.0 wordfreq==3.1.1
    python -m experiments.sequences --preset=held_out --workdir=runs/held_out --jobs=2

No default was changed after a look at these data, but how screening counts images that a public
batch repeats was corrected.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from experiments.harness import sequences, sweep, worst
from experiments.harness.candidates import DIRICHLET, Settings
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study, slug

ALL = ("cnn", "gru", "transformer")
"""Networks of `experiments.harness.sequence_networks`."""

KINDS: Mapping[str, tuple[Settings, Collection[str]]] = {
    "s = 100": ({}, ALL),
    "Dirichlet 0.1": (DIRICHLET, ("cnn",)),
}
"""How labels are divided, and networks that are tried on that."""

ROWS = (
    (sequences.WORDS, "words", ALL),
    ("series_japanese_vowels", "Japanese vowels", ALL),
    ("series_italy_power_demand", "Italy's power demand", ("cnn", "gru")),
)
"""What `data.name` and the table call it, and networks."""


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        _cell(name, label, network, kind)
        for kind, (_, tried) in KINDS.items()
        for name, label, networks in ROWS
        for network in networks
        if network in tried
    ]


def _cell(name: str, label: str, network: str, kind: str) -> Cell:
    classes = sequences.CLASSES[name]
    changes = {
        "train.steps": 1000, "data.name": name, "data.num_classes": classes,
        "model.name": f"sequence_{network}", **KINDS[kind][0],
    }  # fmt: skip
    label = f"{label}, {classes} classes, {network}"
    return Cell(slug(f"{name} {network} {kind}"), label, changes, group=kind, column="defaults")


STUDY = Study(
    "sequences",
    "The defaults on words and series",
    cells,
    draw=worst.draw,
    definitions=(
        "Words: the 1,000 most frequent ones of 3 to 12 letters in each of 13 languages, as the "
        "package wordfreq 3.1.1 lists them, without those that several languages have; the class "
        "is the language.",
        "Series: all sets in the package aeon 1.6.0 with classes, equal lengths of at most 100 "
        "steps and at least 400 series, training and test parts together.",
        "A fifth of the samples, drawn once, are for testing. 8 clients, complete graph, 4 "
        "auxiliary heads, 1,000 steps.",
        worst.WHAT_COLLAPSES,
    ),
    extra=worst.verdict,
)


if __name__ == "__main__":
    sweep.main(STUDY)
