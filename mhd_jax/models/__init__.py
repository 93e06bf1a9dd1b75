# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Embedding networks, heads, and the multi-head classifier a client trains.

A network of your own is a module of Flax, Linen or NNX, or a function from `ModelSettings` to
one, filed under a name:

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
from flax import nnx

from mhd_jax.errors import ConfigError, of_piece, suggest
from mhd_jax.models import bridge, cnn, mlp, resnet, vit
from mhd_jax.models.classifier import EmbeddingFactory, ModelSettings, MultiHeadClassifier
from mhd_jax.models.heads import HEADS
from mhd_jax.registry import Registry

__all__ = ["HEADS", "MODELS", "ModelSettings", "MultiHeadClassifier", "build"]

MODELS: Registry[EmbeddingFactory] = Registry("model.name")
for _name, _network in {
    **mlp.NETWORKS, **cnn.NETWORKS, **resnet.NETWORKS, **vit.NETWORKS,
}.items():  # fmt: skip
    MODELS.register(_name)(_network)


def network_settings(model_config: Mapping[str, Any], conv_lowering: str = "auto") -> ModelSettings:
    """What the settings `model.*` say of a network but for its name; see `build`.

    Raises:
      ConfigError: a setting or a value that is not known.
    """
    # What a network starts from is no part of what it is.
    values = {key: x for key, x in model_config.items() if key not in ("name", "init_from")}
    known = {field.name for field in dataclasses.fields(ModelSettings)} - {"conv_lowering"}
    for field in values:
        if field not in known:
            raise ConfigError(f"model.{field}", values[field], suggest(field, sorted(known)))
    return ModelSettings(**values, conv_lowering=conv_lowering)


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
      model_config: `name` (a registered name, or a network itself, see `embedding_network`) and
        any of the fields of `ModelSettings`; those left out have their defaults.
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
    name = model_config.get("name", "mlp")
    settings = network_settings(model_config, conv_lowering)
    piece = MODELS.get(name) if isinstance(name, str) else name
    make_head = HEADS.get(head) if isinstance(head, str) else head
    return MultiHeadClassifier(
        network=embedding_network(name, piece, settings),
        head=_made(
            "heads.name",
            head,
            "num_classes and num_heads",
            lambda: make_head(num_classes=num_classes, num_heads=num_heads),
        ),
        num_classes=num_classes,
        num_heads=num_heads,
        conv_lowering=conv_lowering,
    )


def embedding_network(name: object, piece: Any, settings: ModelSettings) -> nn.Module:
    """The network of a registered piece.

    Args:
      name: what `model.name` calls it.
      piece: a Linen module or its class, or an NNX module class that takes `rngs`, the arguments
        of a class given by `functools.partial`; or a function from settings to one of these.
      settings: for such a function.

    Raises:
      ConfigError: it is, or makes, something else.
    """
    if isinstance(piece, nnx.Module):
        accepted = "the class of an NNX module, as every client has initial parameters of its own"
        raise ConfigError("model.name", type(piece).__name__, f"{accepted}, not an instance")
    if isinstance(piece, nn.Module):
        return piece.clone()
    if bridge.is_nnx(piece):
        return bridge.network(piece)
    made = getattr(piece, "func", piece)
    if isinstance(made, type) and issubclass(made, nn.Module):
        return _made("model.name", name, "no arguments", piece)

    def make() -> Any:
        made = piece(settings)
        return bridge.network(made) if bridge.is_nnx(made) else made

    return _made("model.name", name, "a ModelSettings", make)


def _made(setting: str, name: object, takes: str, make: Callable[[], Any]) -> nn.Module:
    """What a factory makes, if it is a Linen module.

    Raises:
      ConfigError: it does not take the arguments, or makes something else.
    """
    wanted = f"what takes {takes} and makes a module of Flax"
    with of_piece(setting, name, wanted):
        module = make()
    if not isinstance(module, nn.Module):
        raise ConfigError(setting, name, f"{wanted}, not {type(module).__name__}")
    return module
