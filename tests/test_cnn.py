# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The plain convolutional network: layers and sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mhd_jax.models import build


def test_width_and_depth_are_settings() -> None:
    model = build({"name": "cnn", "width": 4, "depth": 2}, num_classes=3, num_heads=1)
    x = jnp.zeros((1, 8, 8, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    network = shapes["params"]["network"]
    assert network["Conv_0"]["kernel"].shape == (3, 3, 3, 4)
    assert network["Conv_1"]["kernel"].shape == (3, 3, 4, 8)
    assert network["Dense_0"]["kernel"].shape == (8, 8)


def test_the_embedding_has_both_signs_and_depends_on_the_image() -> None:
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    model = build({"name": "cnn", "width": 8, "depth": 2}, num_classes=3, num_heads=2)
    (_, embedding), _ = jax.jit(lambda key: model.init_with_output(key, x, train=True))(
        jax.random.key(1)
    )
    assert (np.asarray(embedding) < 0).any() and (np.asarray(embedding) > 0).any()
    assert np.abs(np.diff(embedding, axis=0)).max() > 1e-3
