# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Heads: one matrix product for all, and initial values that depend on the rank alone."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax import api
from mhd_jax import experiment as experiment_lib
from mhd_jax.models.heads import LinearHeads, per_head, starts_alike
from tests import small


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


# --- The isolated baseline ------------------------------------------------------------------------


class OneMatrix(nn.Module):
    """Heads whose initial values depend on how many there are."""

    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        logits = nn.Dense(self.num_heads * self.num_classes)(embedding)
        return logits.reshape(-1, self.num_heads, self.num_classes)


class Tuned(LinearHeads):
    """Another's head that draws each head by itself."""


@pytest.mark.parametrize(("head", "alike"), [(OneMatrix, False), (Tuned, True)])
def test_a_run_warns_of_a_baseline_that_starts_elsewhere(
    head: type[nn.Module], alike: bool, pieces: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert starts_alike(head(5, 4), head(5, 1), width=6) == alike
    config = small.config(isolated_baseline=True)
    api.pieces.use(config, {"head": head})
    experiment_lib.build(config)
    assert ("per_head draws the same" in caplog.text) != alike
