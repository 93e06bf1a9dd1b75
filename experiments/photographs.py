# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The defaults on photographs with networks that they were not chosen on.

    python -m experiments.photographs --preset=held_out --workdir=runs/held_out --jobs=2

No default was changed after a look at these networks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from experiments.harness import sweep, worst
from experiments.harness.candidates import DATA, DIRICHLET, Settings
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study, slug

NETWORKS: Mapping[str, str] = {
    "dropout": "cnn with dropout",
    "pooled": "cnn with mean pooling",
    "mixer": "mixer",
    "transformer": "transformer",
}
"""Networks of `experiments.harness.photo_networks`, and what the table calls them."""

KINDS: Mapping[str, tuple[Settings, Mapping[str, Collection[str]]]] = {
    "s = 100": ({}, {"CIFAR-10": NETWORKS, "Tiny ImageNet": NETWORKS}),
    "Dirichlet 0.1": (DIRICHLET, {"CIFAR-10": ("dropout", "pooled")}),
}
"""How labels are divided, and networks that are tried on which photographs."""


def cells(preset: Preset) -> list[Cell]:
    del preset
    return [
        _cell(data, network, kind)
        for kind, (_, tried) in KINDS.items()
        for data, networks in tried.items()
        for network in networks
    ]


def _cell(data: str, network: str, kind: str) -> Cell:
    changes = {
        "train.steps": 1000, "model.name": f"photo_{network}", **DATA[data], **KINDS[kind][0],
    }  # fmt: skip
    label = f"{data}, {NETWORKS[network]}"
    return Cell(slug(f"{data} {network} {kind}"), label, changes, group=kind, column="defaults")


STUDY = Study(
    "photographs",
    "The defaults with other networks on photographs",
    cells,
    draw=worst.draw,
    definitions=(
        "Photographs are at 16 px; of Tiny ImageNet the first 20 classes. Networks have 14,000 to "
        "41,000 parameters: convolutions with dropout and a dense layer; convolutions with group "
        "normalisation and mean pooling; a mixer and a transformer with patches of 4 x 4 pixels. "
        "8 clients, complete graph, 4 auxiliary heads, 1,000 steps.",
        worst.WHAT_COLLAPSES,
    ),
    extra=worst.verdict,
)


if __name__ == "__main__":
    sweep.main(STUDY)
