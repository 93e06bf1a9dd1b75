# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Eight clients with skewed labels on CIFAR-10.

    python -m mhd_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

Prepare the data set once, in ``data.dir`` or ``$TFDS_DATA_DIR``:
``python -m experiments.prepare cifar10 --dir=...``. Variants:

| variant  | network, images            | steps  | hardware     |
|----------|----------------------------|--------|--------------|
| (none)   | ResNet-20, 32 px           | 20,000 | one GPU      |
| `:tpu`   | ResNet-18, 32 px, bfloat16 | 20,000 | TPU, 8 cores |
| `:cpu`   | 3-layer CNN, 16 px         | 6,000  | 2 cores      |
| `:mlp`   | MLP, 16 px                 | 2,000  | 2 cores      |
| `:smoke` | 2-layer CNN, 8 px          | 6      | anything     |

Measured: shared accuracy of the last head and of the same clients in isolation, over 3 seeds.

- `:mlp`, two minutes on two cores: 0.438 ± 0.002 and 0.235 ± 0.002, private accuracy 0.789 and
  0.779 (``python -m experiments.main_comparison --preset=cifar10_cpu``).
- `:cpu`: 0.445 ± 0.004 and 0.246 ± 0.003, private accuracy 0.816 and 0.805
  (``python -m experiments.main_comparison --preset=cifar10_cnn``).
- No variant, after 4,000 of its steps, one seed: 0.434 and 0.264, private accuracy 0.857
  and 0.856 (``python -m experiments.accelerator --pieces=training --out=runs/accelerator``).

The other variants have not been measured.
"""

import ml_collections

from mhd_jax.config import variant as _variant
from mhd_jax.config_bases import small_images

VARIANTS = small_images(
    {
        "": {"data.name": "cifar10", "model.name": "resnet20"},
        "cpu": {"train.steps": 6_000},  # after 3,000 the last head is still learning
        "mlp": {
            "data.image_size": 16,
            "data.augment": "none",  # a dense network has no use for shifted images
            "model.name": "mlp",
            "train.steps": 2000,
            "train.log_every": 50,
            "train.eval_every": 500,
            "train.checkpoint_every": 500,
        },
    }
)


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The settings of `variant`."""
    return _variant(variant, VARIANTS, __file__)
