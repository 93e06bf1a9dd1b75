# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Heads: one matrix product for all, and initial values that depend on the rank alone."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax.models.heads import LinearHeads, per_head


def test_the_fused_product_equals_one_product_per_head() -> None:
    embedding = jax.random.normal(jax.random.key(0), (4, 6))
    heads = LinearHeads(num_classes=5, num_heads=3)
    logits, variables = heads.init_with_output(jax.random.key(1), embedding, train=True)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (6, 3, 5) and variables["params"]["bias"].shape == (3, 5)
    for head in range(3):
        np.testing.assert_allclose(logits[:, head], embedding @ kernel[:, head], atol=1e-5)


@pytest.mark.parametrize("more", [2, 3, 8])
def test_initial_values_of_a_head_depend_on_its_rank_only(more: int) -> None:
    initialize = jax.jit(per_head(nn.initializers.lecun_normal()), static_argnums=1)
    key = jax.random.key(0)
    few, many = initialize(key, (16, 2, 7)), initialize(key, (16, more, 7))
    np.testing.assert_array_equal(few, many[:, :2])
    assert not np.array_equal(few[:, 0], few[:, 1])


def test_the_spread_of_initial_values_counts_one_head_only() -> None:
    kernel = per_head(nn.initializers.lecun_normal())(jax.random.key(0), (400, 10, 5))
    np.testing.assert_allclose(jnp.std(kernel), 1 / np.sqrt(400), rtol=0.05)
