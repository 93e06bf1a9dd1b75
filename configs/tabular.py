# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Four silos of a table learn from each other: scikit-learn's breast cancer data, no download.

    python -m mhd_jax.main --config=configs/tabular.py --workdir=runs/tabular

Each client has the tumours of one size, so the first hardly ever sees a malignant one and the
last hardly ever a benign one: see `mhd_jax.data.sources.arrays.breast_cancer`. Features are
normalised with the mean and the standard deviation of the public rows.

Variants: ``configs/tabular.py:smoke`` (a few steps, to see that everything works).
"""

import ml_collections

from mhd_jax.config import variant as _variant

VARIANTS: dict[str, dict] = {
    "": {
        "data.name": "breast_cancer",
        "data.public_fraction": 0.2,
        "data.batch_size": 32,
        "data.public_batch_size": 32,
        "partition.name": "by_key",
        "clients.num": 4,
        "model.name": "mlp_small",
        "heads.aux": 2,
        "train.steps": 600,
        "train.eval_every": 100,
        "train.checkpoint_every": 300,
    },
    "smoke": {
        "train.steps": 20,
        "train.log_every": 5,
        "train.eval_every": 10,
        "train.checkpoint_every": 10,
    },
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The settings of `variant`."""
    return _variant(variant, VARIANTS, __file__)
