# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The multi-head classifier: shapes, initial values, errors for pieces that break a contract."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mhd_jax.errors import ConfigError
from mhd_jax.models import HEADS, MODELS, build

# Networks filed by the examples in docstrings do not belong to the package.
OWN_MODELS = [name for name in MODELS if not name.endswith("_example")]
OWN_HEADS = [name for name in HEADS if not name.endswith("_example")]
SMALL = {"width": 8}


def variables(name: str, num_heads: int, x: jax.Array, **settings: Any) -> Any:
    model = build({"name": name, **SMALL, **settings}, num_classes=10, num_heads=num_heads)
    return jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OWN_MODELS)
def test_every_network_gives_float32_logits_and_embeddings(name: str, dtype: str) -> None:
    x = jnp.zeros((2, 16, 16, 3))
    model = build({"name": name, **SMALL, "dtype": dtype}, num_classes=7, num_heads=3)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    logits, embedding = jax.eval_shape(lambda p: model.apply(p, x, train=True), params)
    assert logits.shape == (2, 3, 7) and logits.dtype == jnp.float32
    assert embedding.shape[0] == 2 and embedding.ndim == 2 and embedding.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["mlp"])
def test_trunk_and_main_head_start_the_same_whatever_the_number_of_heads(name: str) -> None:
    x = jnp.zeros((2, 8, 8, 3))
    many, one = variables(name, 5, x)["params"], variables(name, 1, x)["params"]
    jax.tree.map(np.testing.assert_array_equal, many["network"], one["network"])
    np.testing.assert_array_equal(many["head"]["kernel"][:, :1], one["head"]["kernel"])
    np.testing.assert_array_equal(many["head"]["bias"][:1], one["head"]["bias"])


def test_stacked_clients_start_the_same_whatever_the_number_of_heads() -> None:
    x = jnp.zeros((1, 8, 8))

    def stacked(num_heads: int) -> Any:
        model = build({"name": "mlp"}, num_classes=10, num_heads=num_heads)
        init = jax.vmap(lambda key: model.init(key, x, train=False)["params"])
        return jax.jit(init)(jax.random.split(jax.random.key(0), 4))

    many, one = stacked(5), stacked(1)
    jax.tree.map(np.testing.assert_array_equal, many["network"], one["network"])
    np.testing.assert_array_equal(many["head"]["kernel"][:, :, :1], one["head"]["kernel"])


def test_a_locked_config_dict_is_accepted() -> None:
    config = ml_collections.ConfigDict({"name": "mlp", "width": 0, "norm": "layer"}).lock()
    assert build(config, num_classes=3, num_heads=1).network.width == 128


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ({"name": "mpl"}, "model.name"),
        ({"width": -1}, "model.width"),
        ({"width": 1.5}, "model.width"),
        ({"depth": -2}, "model.depth"),
        ({"norm": "instance"}, "model.norm"),
        ({"dtype": "float16"}, "model.dtype"),
        ({"stem": "imagnet"}, "model.stem"),
        ({"widht": 3}, "model.widht"),
    ],
)
def test_a_bad_setting_is_named(config: dict[str, Any], setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        build({"name": "mlp", **config}, num_classes=10, num_heads=1)
    assert error.value.setting == setting


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="parallel.conv_lowering"):
        build({"name": "mlp"}, 10, 1, conv_lowering="group")
    with pytest.raises(ConfigError, match="heads.aux = -1"):
        build({"name": "mlp"}, 10, 0)
    with pytest.raises(ConfigError, match="heads.name"):
        build({"name": "mlp"}, 10, 1, head="liner")


class _Transposed(nn.Module):
    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        return jnp.zeros((embedding.shape[0], self.num_classes, self.num_heads))


class _Unpooled(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return x


def test_a_head_of_another_shape_is_told_the_expected_one() -> None:
    model = build({"name": "mlp"}, 10, 5, head=_Transposed)
    with pytest.raises(ConfigError, match=r"\[B, H, C\] = \(2, 5, 10\), not \(2, 10, 5\)"):
        model.init(jax.random.key(0), jnp.zeros((2, 4)), train=False)


def test_a_network_of_another_shape_is_told_the_expected_one() -> None:
    model = build({"name": lambda settings: _Unpooled()}, 10, 5)
    with pytest.raises(ConfigError, match=r"\[B, D\] with B = 2, not \(2, 4, 4\)"):
        model.init(jax.random.key(0), jnp.zeros((2, 4, 4)), train=False)


class _Counts(nn.Module):
    """A network without gradients, or without features."""

    width: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(self.width)(x).astype(jnp.int32) if self.width else x[:, :0]


class _Votes(nn.Module):
    """A head without gradients."""

    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        return jnp.ones((len(embedding), self.num_heads, self.num_classes), bool)


@pytest.mark.parametrize(
    ("network", "head", "said"),
    [
        (_Counts(), None, "model.name = '_Counts': expected embeddings in floating point, not int"),
        (_Counts(0), None, r"model.name = '_Counts': expected embeddings .* not \(2, 0\)"),
        (None, _Votes, "heads.name = '_Votes': expected logits in floating point, not bool"),
    ],
)
def test_what_has_no_gradient_is_refused(network: Any, head: Any, said: str) -> None:
    name = "mlp" if network is None else lambda settings: network
    model = build({"name": name}, 10, 5, **({"head": head} if head else {}))
    with pytest.raises(ConfigError, match=said):
        model.init(jax.random.key(0), jnp.zeros((2, 4)), train=False)


@pytest.mark.parametrize("name", OWN_HEADS)
def test_every_head_keeps_its_contract(name: str) -> None:
    head = HEADS.get(name)(num_classes=7, num_heads=3)
    logits, params = head.init_with_output(jax.random.key(0), jnp.ones((2, 8)), train=True)
    assert logits.shape == (2, 3, 7) and np.isfinite(logits).all()
