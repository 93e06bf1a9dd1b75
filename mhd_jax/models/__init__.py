# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Embedding networks, heads, and the multi-head classifier a client trains.

A network of your own is a function from `ModelSettings` to a Linen module, filed under a name:

>>> import flax.linen as nn
>>> @MODELS.register("flat_example")
... def flat(settings):
...     return nn.Sequential([lambda x, train: x.reshape(x.shape[0], -1), nn.Dense(8)])
>>> model = build({"name": "flat_example"}, num_classes=10, num_heads=5)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from mhd_jax.errors import ConfigError, suggest
from mhd_jax.models import cnn, mlp, resnet
from mhd_jax.models.classifier import EmbeddingFactory, ModelSettings, MultiHeadClassifier
from mhd_jax.models.heads import HEADS
from mhd_jax.registry import Registry

__all__ = ["HEADS", "MODELS", "ModelSettings", "MultiHeadClassifier", "build"]

MODELS: Registry[EmbeddingFactory] = Registry("model.name")
for _name, _network in {**mlp.NETWORKS, **cnn.NETWORKS, **resnet.NETWORKS}.items():
    MODELS.register(_name)(_network)


def build(
    model_config: Mapping[str, Any],
    num_classes: int,
    num_heads: int,
    *,
    head: str | Callable[..., nn.Module] = "linear",
    conv_lowering: str = "auto",
) -> MultiHeadClassifier:
    """The classifier that `model_config` describes.

    Args:
      model_config: `name` (a registered name, or an `EmbeddingFactory` itself) and any of the
        fields of `ModelSettings`; those left out have their defaults.
      num_classes: C.
      num_heads: H >= 1, the main head included.
      head: a name in `HEADS`, or a Linen module class with the fields of a head.
      conv_lowering: lowering of stacked convolutions, the setting `parallel.conv_lowering`.

    Returns:
      A module; `__call__(x [B, ...], *, train)` gives logits [B, H, C] and embeddings [B, D].

    Raises:
      ConfigError: a name or value that is not known.
    """
    if num_classes < 1 or num_heads < 1:
        raise ConfigError("heads.aux", num_heads - 1, "an integer >= 0")
    values = dict(model_config)
    name = values.pop("name", "mlp")
    known = {field.name for field in dataclasses.fields(ModelSettings)} - {"conv_lowering"}
    for field in values:
        if field not in known:
            raise ConfigError(f"model.{field}", values[field], suggest(field, sorted(known)))
    factory = MODELS.get(name) if isinstance(name, str) else name
    settings = ModelSettings(**values, conv_lowering=conv_lowering)
    make_head = HEADS.get(head) if isinstance(head, str) else head
    return MultiHeadClassifier(
        network=_made("model.name", name, "a ModelSettings", lambda: factory(settings)),
        head=_made(
            "heads.name",
            head,
            "num_classes and num_heads",
            lambda: make_head(num_classes=num_classes, num_heads=num_heads),
        ),
        num_classes=num_classes,
        num_heads=num_heads,
    )


def _made(setting: str, name: object, takes: str, make: Callable[[], Any]) -> nn.Module:
    """What a factory makes, if it is a Linen module.

    Raises:
      ConfigError: it does not take the arguments, or makes something else.
    """
    wanted = f"what takes {takes} and makes a flax.linen module"
    try:
        module = make()
    except TypeError as error:
        raise ConfigError(setting, name, f"{wanted} ({error})") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(setting, name, f"{wanted}, not {type(module).__name__}")
    return module
