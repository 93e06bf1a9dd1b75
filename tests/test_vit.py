# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The vision transformer; that it learns and its shapes are the contract test's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax.errors import ConfigError
from mhd_jax.models import vit
from mhd_jax.models.classifier import ModelSettings


def test_attention_mixes_patches_and_positions_tell_them_apart() -> None:
    model = vit.vit(ModelSettings(width=8, depth=1))
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    swapped = jnp.concatenate([x[:, 4:], x[:, :4]], axis=1)  # the same patches elsewhere
    variables = model.init(jax.random.key(1), x, train=False)
    one, other = (model.apply(variables, images, train=False) for images in (x, swapped))
    assert one.shape == (1, 8) and not np.allclose(one, other, atol=1e-3)
    assert not any(leaf.ndim > 2 for leaf in jax.tree.leaves(variables))  # no convolution


@pytest.mark.parametrize(
    ("settings", "shape", "said"),
    [
        ({"width": 12}, (8, 8, 1), "model.width = 12: expected a multiple of 8"),
        ({"norm": "batch"}, (8, 8, 1), "model.norm = 'batch': expected layer"),
        ({}, (6, 8, 1), r"sides are multiples of 4 pixels, not samples of \(6, 8, 1\)"),
        ({}, (5,), r"images \[H, W, C\] .*, not samples of \(5,\)"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: Any, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model = vit.vit(ModelSettings(**settings))
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
