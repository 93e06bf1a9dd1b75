# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a network is made of: the answers, and how often it is traced for them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax
from mhd_jax.models import MultiHeadClassifier, build, shapes
from mhd_jax.models.heads import LinearHeads
from tests import small

SAMPLE = (4, 4, 1)
TRACED: list[str] = []


class Noted(nn.Module):
    """A small network that notes how often it is called."""

    scale: Any = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        TRACED.append("once more")
        return nn.Dense(5)(x.reshape(len(x), -1)) * jnp.sum(jnp.asarray(self.scale))


@pytest.fixture
def traced() -> list[str]:
    TRACED.clear()
    return TRACED


def _ask(model: nn.Module) -> None:
    assert shapes.embedding_width(model, SAMPLE) == 5
    assert set(shapes.variable_shapes(model, SAMPLE)) == {"params"}
    assert shapes.count_params(model, SAMPLE) == 16 * 5 + 5 + 2 * (5 * 3 + 3)
    assert not shapes.has_statistics(model, SAMPLE)


def _classifier(**fields: Any) -> MultiHeadClassifier:
    head = LinearHeads(num_classes=3, num_heads=2)
    return MultiHeadClassifier(Noted(**fields), head, num_classes=3, num_heads=2)


def test_questions_about_equal_networks_trace_one(traced: list[str]) -> None:
    for _ in range(2):
        _ask(_classifier(scale=2.0))
    assert len(traced) == 1
    _ask(_classifier(scale=3.0))
    assert len(traced) == 2


def test_a_network_that_is_no_key_of_a_dictionary_is_asked_each_time(traced: list[str]) -> None:
    _ask(_classifier(scale=np.ones(2)))
    assert len(traced) == 4


def test_a_network_that_reads_a_changed_global_has_its_new_shapes(
    monkeypatch: pytest.MonkeyPatch, pieces: None
) -> None:
    """As in a notebook: one cell sets a width, the next one trains."""
    mhd_jax.register("model.name", "Wide", lambda settings: Wide())
    for width in (5, 7):
        monkeypatch.setitem(WIDTH, "now", width)
        experiment = small.build(model__name="Wide")
        state = experiment.init_state(abstract=True)
        assert state.clients[0].params["model"]["head"]["kernel"].shape[-3] == width
        assert shapes.embedding_width(experiment.parts.models[0], experiment.sample) == width


WIDTH = {"now": 5}


class Wide(nn.Module):
    """A network as wide as a variable says."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(WIDTH["now"])(x.reshape(len(x), -1))


def test_convolutions_and_chance_are_found() -> None:
    def made(name: str, **settings: Any) -> nn.Module:
        return build({"name": name, "width": 8, **settings}, num_classes=3, num_heads=2)

    for _ in range(2):  # the second answer is the one that was kept
        assert shapes.has_convolutions(made("cnn"), (8, 8, 3))
        assert not shapes.has_convolutions(made("mlp"), (8, 8, 3))
        assert not shapes.draws(made("mlp"), (8, 8, 3))
        assert shapes.draws(_Dropping(), SAMPLE)


class _Dropping(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return x[:, None], x
