# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Sixteen clients on a ring, Dirichlet labels, public images of another data set.

    python -m experiments.ring --preset=cifar10_cpu --workdir=runs/cifar10_cpu

The setting of IDKD (D. Ravikumar et al., 2024, https://arxiv.org/abs/2304.04326), as far as
it can be had here: 16 clients in a ring, CIFAR-10 split by a Dirichlet distribution of 0.1 and
0.05, Tiny ImageNet as the public set, networks without batch statistics. What the preset decides
differs from theirs: network, resolution, number of steps. With `--preset=cifar10_resnet20` the
network is theirs too; that wants an accelerator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.harness import sweep
from experiments.harness.candidates import PAPER
from experiments.harness.presets import Preset
from experiments.harness.study import Cell, Study

METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gossip_1": ("gossip, every step", {"method": "gossip", "average.every": 1}),
    "gossip_200": ("gossip, every 200 steps", {"method": "gossip", "average.every": 200}),
    "codistillation": ("codistillation", {"method": "codistillation"}),
    "mhd": ("MHD", PAPER),
    "aligned": ("aligned MHD (ours)", {}),
}


def cells(preset: Preset) -> list[Cell]:
    ring: dict[str, Any] = {
        "graph.name": "undirected_cycle",
        "clients.num": 16,
        "partition.name": "dirichlet",
    }
    if preset.public_names:
        ring["data.public_name"] = preset.public_names[0]
    if preset.base().model.name.startswith("resnet"):
        ring["model.norm"] = "group"
    return [
        Cell(f"{name}_alpha{alpha:g}", label, {**ring, **changes, "partition.alpha": alpha},
             group=f"Dirichlet {alpha:g}")
        for alpha in (0.1, 0.05) for name, (label, changes) in METHODS.items()
    ]  # fmt: skip


STUDY = Study(
    "ring",
    "A ring of sixteen",
    cells,
    definitions=(
        "Every client reads its two neighbours on the ring. Gossip averages parameters with them.",
    ),
)


if __name__ == "__main__":
    sweep.main(STUDY)
