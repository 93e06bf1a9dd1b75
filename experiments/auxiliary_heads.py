# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""How many auxiliary heads, and how heavy their distillation and that of the embedding.

python -m experiments.auxiliary_heads --preset=digits --workdir=runs/digits
"""

from __future__ import annotations

from experiments import plots, sweep
from experiments.presets import Preset
from experiments.sweep import Cell, Study


def cells(preset: Preset) -> list[Cell]:
    base = preset.base().distill
    grid = [
        (0, base.nu_aux, base.nu_emb),
        (1, base.nu_aux, base.nu_emb),
        (2, base.nu_aux, base.nu_emb),
        (4, base.nu_aux, base.nu_emb),
        (4, base.nu_aux, 0.0),
        (1, 1.0 if base.nu_aux != 1.0 else 3.0, base.nu_emb),
    ]
    return [
        Cell(
            f"m{heads}_aux{nu_aux:g}_emb{nu_emb:g}",
            f"m = {heads}, ν_aux = {nu_aux:g}, ν_emb = {nu_emb:g}",
            {"heads.aux": heads, "distill.nu_aux": nu_aux, "distill.nu_emb": nu_emb},
        )
        for heads, nu_aux, nu_emb in grid
    ]


STUDY = Study(
    "auxiliary_heads",
    "Auxiliary heads and the weights of distillation",
    cells,
    draw=plots.ranks,
    all_heads=True,
    definitions=("m = 0 distils embeddings alone.",),
)


if __name__ == "__main__":
    sweep.main(STUDY)
