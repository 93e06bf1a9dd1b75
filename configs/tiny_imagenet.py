# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Eight clients with 50 primary labels each on Tiny ImageNet (200 classes) at 32 px.

    python -m mhd_jax.main --config=configs/tiny_imagenet.py --workdir=runs/tiny_imagenet

The data set has to be prepared once,
``python -m experiments.prepare tiny_imagenet32 --dir=... --from=tiny-imagenet-200``,
in ``data.dir`` or ``$TFDS_DATA_DIR``. ``--estimate`` instead of a workdir says what a run needs.
Variants, as in ``configs/tiny_imagenet.py:cpu``:

| variant  | network, images               | steps  | hardware     |
|----------|-------------------------------|--------|--------------|
| (none)   | ResNet-18, 32 px              | 20,000 | one GPU      |
| `:tpu`   | the same, bfloat16, batch 128 | 20,000 | TPU, 8 cores |
| `:cpu`   | 3-layer CNN, 16 px            | 3,000  | 2 cores      |
| `:smoke` | 2-layer CNN, 8 px             | 6      | anything     |

Time and expected figure of every variant: not measured here.
"""

import ml_collections

from mhd_jax.config import variant as _variant

VARIANTS: dict[str, dict] = {
    "": {
        "data.name": "tiny_imagenet32",
        "data.batch_size": 64,
        "data.public_batch_size": 64,
        "data.augment": "crop_flip",
        "partition.primary_labels": 50,
        "model.name": "resnet18",
        "heads.aux": 2,
        "distill.nu_aux": 1.0,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 0.002,
        "optimizer.warmup_steps": 500,
        "optimizer.weight_decay": 0.0001,
        "train.steps": 20_000,
        "train.log_every": 100,
        "train.eval_every": 1_000,
        "train.checkpoint_every": 2_000,
    },
    "tpu": {
        "data.batch_size": 128,
        "data.public_batch_size": 128,
        "model.name": "resnet18",
        "model.dtype": "bfloat16",
    },
    "cpu": {
        "data.image_size": 16,
        "data.batch_size": 32,
        "data.public_batch_size": 32,
        "data.augment": "none",
        "model.name": "cnn",
        "model.width": 16,
        "heads.aux": 1,
        "optimizer.warmup_steps": 100,
        "optimizer.weight_decay": 0.0,
        "train.steps": 3_000,
        "train.log_every": 50,
        "train.eval_every": 500,
        "train.checkpoint_every": 500,
    },
    "smoke": {
        "data.image_size": 8,
        "data.split": "train[:2000]",
        "data.batch_size": 8,
        "data.public_batch_size": 8,
        "model.name": "cnn",
        "model.width": 8,
        "model.depth": 2,
        "heads.aux": 1,
        "train.steps": 6,
        "train.log_every": 2,
        "train.eval_every": 6,
        "train.checkpoint_every": 6,
    },
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The settings of `variant`."""
    return _variant(variant, VARIANTS, __file__)
