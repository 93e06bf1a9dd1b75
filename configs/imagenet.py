# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Eight clients with 250 primary labels each on ImageNet: ResNet-34, 10 % public.

    python -m mhd_jax.main --config=configs/imagenet.py --workdir=runs/imagenet

Prepare the data set once, in ``data.dir`` or ``$TFDS_DATA_DIR``:
``python -m experiments.prepare imagenet2012 --dir=... --manual_dir=...``.
With ``--estimate`` instead of a workdir, the command says what a run needs.
Variants, as in ``configs/imagenet.py:cpu``:

| variant  | network, images                  | steps  | hardware     |
|----------|----------------------------------|--------|--------------|
| (none)   | ResNet-34, 224 px                | 60,000 | 8 GPUs       |
| `:tpu`   | the same, bfloat16, batch 64     | 60,000 | TPU, 8 cores |
| `:cpu`   | ResNet-8, 64 px, 5 % of the data | 2,000  | 2 cores      |
| `:smoke` | ResNet-8 of width 4, 64 px       | 4      | anything     |

Neither time nor accuracy of these variants has been measured. Method and optimiser
are the defaults. They were chosen on smaller data (``experiments/robustness.py``), not on ImageNet.
"""

import ml_collections

from mhd_jax.config import variant as _variant

VARIANTS: dict[str, dict] = {
    "": {
        "data.name": "imagenet2012",
        "data.batch_size": 32,  # with a ResNet-34 at 224 px, this fits a device of 16 GiB
        "data.public_batch_size": 32,
        "data.augment": "random_resized_crop",  # as is usual for ImageNet
        "model.name": "resnet34",
        "train.steps": 60_000,
        "train.log_every": 100,
        "train.eval_every": 5_000,
        "train.checkpoint_every": 5_000,
        "data.image_size": 224,
        "model.stem": "imagenet",
    },
    "tpu": {
        "data.batch_size": 64,
        "data.public_batch_size": 64,
        "model.dtype": "bfloat16",
    },
    "cpu": {
        "data.image_size": 64,
        "data.split": "train[:5%]",
        "data.batch_size": 16,
        "data.public_batch_size": 16,
        "model.name": "resnet8",
        "model.stem": "default",
        "train.steps": 2_000,
        "train.eval_every": 1_000,
        "train.checkpoint_every": 500,
    },
    "smoke": {
        "data.image_size": 64,
        "data.split": "train[:4000]",
        "data.batch_size": 8,
        "data.public_batch_size": 8,
        "model.name": "resnet8",
        "model.stem": "default",
        "model.width": 4,
        "train.steps": 4,
        "train.log_every": 2,
        "train.eval_every": 4,
        "train.checkpoint_every": 4,
    },
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The settings of `variant`."""
    return _variant(variant, VARIANTS, __file__)
