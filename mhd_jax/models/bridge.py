# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Networks from elsewhere, as embedding networks: of Linen, and of NNX through Flax's own bridge.

Their convolutions take the lowering of the built-in ones, see `mhd_jax.models.conv`, and gradients
pass through their batch normalisation as in training, see `mhd_jax.models.norm.renormalised`.

Source: https://flax.readthedocs.io/en/latest/guides/bridge_guide.html.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from mhd_jax.errors import ConfigError
from mhd_jax.models import norm
from mhd_jax.models.conv import convolution

RANDOM = ("params", "default")
"""The names under which a network gets its random keys. Linen takes "params" and NNX "default" for
every stream that has no key of its own, so that dropout and streams of any name are served."""


def keys(key: jax.Array) -> dict[str, jax.Array]:
    """Random keys for `init` and `apply` of a network of either kind."""
    return dict.fromkeys(RANDOM, key)


class NnxNetwork(nnx.bridge.ToLinen):
    """An NNX module, built anew by its class from `rngs` for every client.

    Its parameters (`nnx.Param`) and batch statistics (`nnx.BatchStat`) become those of a Linen
    module. `train()` and `eval()` switch its dropout and batch statistics, and where its
    `__call__` takes `train`, it is told as well.
    """

    @nn.nowrap
    def label(self) -> str:
        """The class's name, for messages."""
        made: Any = self.nnx_class
        return getattr(getattr(made, "func", made), "__name__", type(self).__name__)

    def __call__(  # type: ignore[override]
        self,
        x: Float[Array, "B ..."],
        train: bool,
        conv_lowering: str = "auto",
        renormalise: bool = False,
    ) -> Float[Array, "B D"]:
        """Embeddings of samples."""
        forward = functools.partial(
            _forward, train=train, conv_lowering=conv_lowering, renormalise=renormalise
        )
        return super().__call__(x, nnx_method=forward)


def _forward(
    module: nnx.Module, x: Array, *, train: bool, conv_lowering: str, renormalise: bool
) -> Array:
    (module.train if train else module.eval)()
    takes = inspect.signature(type(module).__call__).parameters
    with contextlib.ExitStack() as replaced:
        for _, part in nnx.iter_graph(module):
            if isinstance(part, nnx.Conv) and part.conv_general_dilated is lax.conv_general_dilated:
                replaced.enter_context(_lowered(part, conv_lowering))
            if isinstance(part, nnx.BatchNorm) and renormalise:
                replaced.enter_context(_renormalised(part))
        return module(x, **({"train": train} if "train" in takes else {}))


def call(
    module: nn.Module,
    x: Array,
    *,
    train: bool,
    conv_lowering: str = "auto",
    renormalise: bool = False,
) -> Array:
    """What a Linen module makes of x; it is told `train` where its `__call__` takes it."""
    if isinstance(module, NnxNetwork):
        return module(x, train, conv_lowering, renormalise)
    with nn.intercept_methods(functools.partial(_call_layer, conv_lowering, renormalise)):
        return module(x, train=train) if _takes_train(module) else module(x)


def _call_layer(
    lowering: str,
    renormalise: bool,
    call_layer: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Calls a layer of a Linen module, with what is chosen for convolutions and normalisation."""
    layer: Any = context.module
    own = "conv_general_dilated_cls", "conv_general_dilated"
    if isinstance(layer, nn.Conv) and not any(getattr(layer, name) for name in own):
        with _lowered(layer, lowering):
            return call_layer(*args, **kwargs)
    if isinstance(layer, nn.BatchNorm | norm.BatchNorm) and renormalise and args:
        x, *rest = args
        return call_layer(norm.renormalised(x, _batch_axes(layer, x)), *rest, **kwargs)
    return call_layer(*args, **kwargs)


def _lowered(layer: Any, lowering: str) -> contextlib.AbstractContextManager[None]:
    """Has a layer convolve by `mhd_jax.models.conv.convolution`; both kinds of Flax ask for it."""
    lowered = functools.partial(convolution, lowering=lowering)
    return _replaced(layer, "conv_general_dilated", lowered)


def _renormalised(layer: nnx.BatchNorm) -> contextlib.AbstractContextManager[None]:
    """Has a layer's inputs renormalised where it brings them and its variables to one type."""
    promote = layer.promote_dtype

    def promote_renormalised(values: tuple[Any, ...], **types: Any) -> Any:
        x, *variables = values
        return promote((norm.renormalised(x, _batch_axes(layer, x)), *variables), **types)

    return _replaced(layer, "promote_dtype", promote_renormalised)


@contextlib.contextmanager
def _replaced(layer: Any, attribute: str, value: Any) -> Iterator[None]:
    """Another value for an attribute of a layer, for as long as the context lasts."""
    before = getattr(layer, attribute)
    # A bound Linen module refuses ordinary assignment.
    put = functools.partial(object.__setattr__, layer, attribute)
    put(value)
    try:
        yield
    finally:
        put(before)


def _batch_axes(layer: Any, x: Array) -> tuple[int, ...]:
    """Over which a layer of batch normalisation takes means and variances."""
    features = np.atleast_1d(getattr(layer, "axis", -1)) % x.ndim
    return tuple(axis for axis in range(x.ndim) if axis not in features)


def _takes_train(piece: Callable[..., Any]) -> bool:
    if isinstance(piece, nn.Sequential):  # hands what it gets to its first layer
        return bool(piece.layers) and _takes_train(piece.layers[0])
    called = type(piece).__call__ if isinstance(piece, nn.Module) else piece
    takes = inspect.signature(called).parameters.values()
    return any(one.name == "train" or one.kind is one.VAR_KEYWORD for one in takes)


FLAGS = ("training", "is_training", "deterministic")
"""What others call `train`, or its opposite."""


def misnamed_flag(module: nn.Module) -> str:
    """What a module takes in place of `train`, and so is never told; "" for nothing."""
    if isinstance(module, NnxNetwork):
        made: Any = module.nnx_class
        told = inspect.signature(getattr(made, "func", made).__call__).parameters
        # None leaves it to the layers, as they are switched.
        flags = [flag for flag in FLAGS if flag in told and told[flag].default is not None]
        return "" if "train" in told or not flags else flags[0]
    if isinstance(module, nn.Sequential) or _takes_train(module):
        return ""
    takes = inspect.signature(type(module).__call__).parameters
    return next((flag for flag in FLAGS if flag in takes), "")


def is_nnx(piece: object) -> bool:
    """Whether it is an NNX module class, with or without arguments by `functools.partial`."""
    made = getattr(piece, "func", piece)
    return isinstance(made, type) and issubclass(made, nnx.Module)


def network(piece: Callable[..., nnx.Module]) -> NnxNetwork:
    """The network of an NNX module class that takes `rngs`, possibly a `functools.partial` of one.

    Raises:
      ConfigError: it does not take `rngs`, or needs arguments that it does not get.
    """
    made: Any = getattr(piece, "func", piece)
    given, named = getattr(piece, "args", ()), getattr(piece, "keywords", {})
    try:
        inspect.signature(made.__init__).bind(None, *given, **named, rngs=None)
    except TypeError as error:
        accepted = (
            "an NNX module class that takes rngs alone, the rest of its arguments given by "
            f"functools.partial ({error})"
        )
        raise ConfigError("model.name", made.__name__, accepted) from error
    return NnxNetwork(piece, metadata_fn=None)


def label(network: nn.Module) -> str:
    """What messages call a network."""
    return network.label() if isinstance(network, NnxNetwork) else type(network).__name__
