# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Networks for photographs, and the study that tries them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import photographs
from experiments.harness import photo_networks
from experiments.harness.presets import PRESETS


@pytest.mark.parametrize("name", photo_networks.NETWORKS)
def test_networks_tell_images_apart_and_only_training_drops(name):
    network = photo_networks.NETWORKS[name]()
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    drops = name in ("dropout", "transformer")
    flag = {"train": False} if drops else {}
    found, variables = network.init_with_output(jax.random.key(0), jnp.asarray(images), **flag)
    assert found.ndim == 2
    assert not np.allclose(found[0], found[1])
    if drops:
        once, again = (
            network.apply(variables, images, train=True, rngs={"dropout": jax.random.key(seed)})
            for seed in (1, 2)
        )
        assert not np.allclose(once, again)


def test_the_study_tries_every_network_on_all_photographs():
    cells = photographs.cells(PRESETS["held_out"])
    assert len({cell.name for cell in cells}) == len(cells)
    for data in ("cifar10", "tiny_imagenet32"):
        tried = [cell.changes["model.name"].removeprefix("photo_") for cell in cells
                 if cell.changes["data.name"] == data and cell.group == "s = 100"]  # fmt: skip
        assert tried == list(photo_networks.NETWORKS)
