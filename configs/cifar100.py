# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Eight clients with 25 primary labels each on CIFAR-100.

    python -m mhd_jax.main --config=configs/cifar100.py --workdir=runs/cifar100

Prepare the data set once, in ``data.dir`` or ``$TFDS_DATA_DIR``:
``python -m experiments.prepare cifar100 --dir=...``.
With ``--estimate`` instead of a workdir, the command says what a run needs.
Variants, as in ``configs/cifar100.py:cpu``:

| variant  | network, images               | steps  | hardware     |
|----------|-------------------------------|--------|--------------|
| (none)   | ResNet-18, 32 px              | 20,000 | one GPU      |
| `:tpu`   | the same, bfloat16, batch 128 | 20,000 | TPU, 8 cores |
| `:cpu`   | 3-layer CNN, 16 px            | 3,000  | 2 cores      |
| `:smoke` | 2-layer CNN, 8 px             | 6      | anything     |

Neither time nor accuracy of these variants has been measured.
"""

import ml_collections

from mhd_jax.config import variant as _variant
from mhd_jax.config_bases import small_images

VARIANTS = small_images({"": {"data.name": "cifar100"}})


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The settings of `variant`."""
    return _variant(variant, VARIANTS, __file__)
