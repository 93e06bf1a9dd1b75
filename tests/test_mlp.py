# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Dense embedding networks: layers, sizes, and a signed, normalised embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax.models import build


@pytest.mark.parametrize(
    ("name", "num_params"),
    [
        # 64x128, bias, norm; 128x64, bias, norm; head 64x10 and bias.
        ("mlp", 64 * 128 + 3 * 128 + 128 * 64 + 3 * 64 + 650),
        ("mlp_small", 64 * 64 + 3 * 64 + 64 * 32 + 3 * 32 + 330),
        ("mlp_large", 64 * 256 + 256 * 256 + 6 * 256 + 256 * 128 + 3 * 128 + 1290),
    ],
)
def test_number_of_parameters(name: str, num_params: int) -> None:
    model = build({"name": name}, num_classes=10, num_heads=1)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8)), train=False)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == num_params


def test_width_and_depth_are_settings() -> None:
    model = build({"name": "mlp", "width": 10, "depth": 3}, num_classes=4, num_heads=1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 6)), train=False)["params"]["network"]
    shapes = [params[f"Dense_{layer}"]["kernel"].shape for layer in range(4)]
    assert shapes == [(6, 10), (10, 10), (10, 10), (10, 5)]


def test_the_embedding_has_both_signs_and_a_fixed_length() -> None:
    x = jax.random.normal(jax.random.key(0), (16, 8, 8))
    model = build({"name": "mlp"}, num_classes=10, num_heads=2)
    (_, embedding), _ = model.init_with_output(jax.random.key(1), x, train=True)
    assert (np.asarray(embedding) < 0).mean() > 0.3
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 8.0, rtol=1e-3)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize(("norm", "biases"), [("batch", False), ("group", True)])
def test_there_is_no_bias_in_front_of_batch_normalisation(
    name: str, norm: str, biases: bool
) -> None:
    model = build({"name": name, "norm": norm, "width": 8}, num_classes=4, num_heads=1)
    variables = jax.eval_shape(
        lambda key: model.init(key, jnp.zeros((2, 8, 8, 1)), train=True), jax.random.key(0)
    )
    dense = [layer for at, layer in variables["params"]["network"].items() if "Dense" in at]
    assert dense and all(("bias" in layer) == biases for layer in dense)
