# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Eight clients with 50 primary labels each on Tiny ImageNet (200 classes) at 32 px.

    python -m mhd_jax.main --config=configs/tiny_imagenet.py --workdir=runs/tiny_imagenet

Prepare the data set once, in ``data.dir`` or ``$TFDS_DATA_DIR``:
``python -m experiments.prepare tiny_imagenet32 --dir=... --from=tiny-imagenet-200``.
With ``--estimate`` instead of a workdir, the command says what a run needs.
Variants, as in ``configs/tiny_imagenet.py:cpu``:

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

VARIANTS = small_images({"": {"data.name": "tiny_imagenet32"}})


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The settings of `variant`."""
    return _variant(variant, VARIANTS, __file__)
