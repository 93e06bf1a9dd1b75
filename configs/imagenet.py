# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Eight clients with 250 primary labels each on ImageNet: ResNet-34, 10 % public.

    python -m mhd_jax.main --config=configs/imagenet.py --workdir=runs/imagenet

The data set has to be prepared once,
``python -m experiments.prepare imagenet2012 --dir=... --manual_dir=...``,
in ``data.dir`` or ``$TFDS_DATA_DIR``. ``--estimate`` instead of a workdir says what a run needs.
Variants, as in ``configs/imagenet.py:cpu``:

| variant  | network, images                  | steps  | hardware     |
|----------|----------------------------------|--------|--------------|
| (none)   | ResNet-34, 224 px                | 60,000 | 8 GPUs       |
| `:tpu`   | the same, bfloat16, batch 64     | 60,000 | TPU, 8 cores |
| `:cpu`   | ResNet-8, 64 px, 5 % of the data | 2,000  | 2 cores      |
| `:smoke` | ResNet-8 of width 4, 64 px       | 4      | anything     |

Time and expected figure of every variant: not measured here.
"""

import ml_collections

from mhd_jax.config import variant as _variant

VARIANTS: dict[str, dict] = {
    "": {
        "data.name": "imagenet2012",
        "data.batch_size": 32,
        "data.public_batch_size": 32,
        "data.augment": "random_resized_crop",
        "partition.primary_labels": 250,
        "model.name": "resnet34",
        "heads.aux": 2,
        "distill.nu_aux": 1.0,
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.1,
        "optimizer.warmup_steps": 2_000,
        "optimizer.weight_decay": 0.0001,
        "train.steps": 60_000,
        "train.log_every": 100,
        "train.eval_every": 5_000,
        "train.checkpoint_every": 5_000,
        "data.image_size": 224,
        "data.public_fraction": 0.1,
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
        "heads.aux": 1,
        "optimizer.learning_rate": 0.05,
        "optimizer.warmup_steps": 100,
        "train.steps": 2_000,
        "train.eval_every": 1_000,
        "train.checkpoint_every": 500,
    },
    "smoke": {
        "data.image_size": 64,
        "data.split": "train[:4000]",
        "data.batch_size": 8,
        "data.public_batch_size": 8,
        "partition.primary_labels": 250,
        "model.name": "resnet8",
        "model.stem": "default",
        "model.width": 4,
        "heads.aux": 1,
        "train.steps": 4,
        "train.log_every": 2,
        "train.eval_every": 4,
        "train.checkpoint_every": 4,
    },
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The settings of `variant`."""
    return _variant(variant, VARIANTS, __file__)
