# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Residual networks: published sizes, and the outputs of the same network in PyTorch."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax import estimate
from mhd_jax.models import build

PUBLISHED = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}


@pytest.mark.parametrize(("name", "num_params"), PUBLISHED.items())
def test_number_of_parameters_is_the_published_one(name: str, num_params: int) -> None:
    model = build({"name": name, "norm": "batch", "stem": "imagenet"}, 1000, num_heads=1)
    x = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == num_params


@pytest.mark.parametrize(
    ("name", "num_params"), [("resnet8", 78_042), ("resnet14", 175_258), ("resnet20", 272_474)]
)
def test_number_of_parameters_of_the_small_networks(name: str, num_params: int) -> None:
    model = build({"name": name, "norm": "batch"}, 10, num_heads=1)
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == num_params


def outcome(config: dict[str, Any], x: jax.Array, params: Any = None) -> tuple[np.ndarray, Any]:
    model = build(config, num_classes=3, num_heads=1)
    if params is None:
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))["params"]
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f"), shapes)
    _, embedding = jax.jit(lambda p: model.apply({"params": p}, x, train=True))(params)
    return np.asarray(embedding), params


def test_embeddings_are_signed_unless_asked_otherwise() -> None:
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    signed, params = outcome({"name": "resnet8", "width": 4}, x)
    config = {"name": "resnet8", "width": 4, "signed_embedding": False}
    rectified, _ = outcome(config, x, params)
    assert (signed < 0).any() and (rectified >= 0).all() and (rectified > 0).any()


def test_the_default_stem_follows_the_image_size() -> None:
    model = build({"name": "resnet18", "width": 4}, num_classes=3, num_heads=1)
    for side, kernel_size in ((64, 3), (65, 7)):
        x = jnp.zeros((1, side, side, 3))
        shapes = jax.eval_shape(lambda x=x: model.init(jax.random.key(0), x, train=False))
        stem = shapes["params"]["network"]["stem_conv"]["kernel"]
        assert stem.shape == (kernel_size, kernel_size, 3, 4)


def _torch_resnet(stages: list[int], width: int, bottleneck: bool, cifar: bool) -> Any:
    """torchvision's ResNet without its classifier, in its own names."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def conv(inputs: int, outputs: int, size: int, stride: int) -> Any:
        return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            outputs = 4 * width if bottleneck else width
            sizes = [(width, 3, stride), (outputs, 3, 1)]
            if bottleneck:
                sizes = [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)]
            self.depth, last = len(sizes), inputs
            for i, (channels, size, step) in enumerate(sizes, start=1):
                setattr(self, f"conv{i}", conv(last, channels, size, step))
                setattr(self, f"bn{i}", nn.BatchNorm2d(channels))
                last = channels
            self.downsample = None
            if stride > 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.depth + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = y if i == self.depth else torch.relu(y)
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    layers, inputs = [], width
    for stage, blocks in enumerate(stages):
        layer = []
        for block in range(blocks):
            layer.append(Block(inputs, width * 2**stage, 2 if stage and not block else 1))
            inputs = width * 2**stage * (4 if bottleneck else 1)
        layers.append((f"layer{stage + 1}", nn.Sequential(*layer)))
    stem = [conv(3, width, 3, 1) if cifar else nn.Conv2d(3, width, 7, 2, 3, bias=False)]
    network = nn.Sequential()
    for name, module in [("conv1", stem[0]), ("bn1", nn.BatchNorm2d(width)), ("relu", nn.ReLU())]:
        network.add_module(name, module)
    if not cifar:
        network.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
    for name, module in layers:
        network.add_module(name, module)
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flat", nn.Flatten())
    return network


def _ours(name: str) -> tuple[list[str], str, str]:
    """Where a tensor of torchvision's ResNet lives in ours: path, collection, leaf."""
    name = re.sub(r"^layer(\d+)\.(\d+)\.", lambda m: f"stage{m[1]}_block{int(m[2]) + 1}/", name)
    name = name.replace("downsample.0", "shortcut_conv").replace("downsample.1", "shortcut_norm")
    name = re.sub(r"bn(\d)", r"norm\1", name)
    path, leaf = name.rsplit(".", 1)
    if "/" not in path:
        path = {"conv1": "stem_conv", "norm1": "stem_norm"}[path]
    if "conv" in path.split("/")[-1]:
        return path.split("/"), "params", "kernel"
    collection = "batch_stats" if leaf.startswith("running") else "params"
    leaves = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return path.split("/"), collection, leaves[leaf]


def _ported(network: Any, variables: Any) -> Any:
    """Our variables with every value taken from the PyTorch network, none left over."""
    variables = jax.tree.map(lambda leaf: None, variables)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        path, collection, leaf = _ours(name)
        node = variables[collection]["network"]
        for part in path:
            node = node[part]
        value = tensor.numpy()
        node[leaf] = jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)
    del variables["params"]["head"]
    assert all(leaf is not None for leaf in jax.tree.leaves(variables, is_leaf=lambda x: x is None))
    return variables


@pytest.mark.parametrize(
    ("name", "stages", "bottleneck", "side"),
    [
        ("resnet18", [2, 2, 2, 2], False, 72),
        ("resnet34", [3, 4, 6, 3], False, 32),
        ("resnet50", [3, 4, 6, 3], True, 72),
        ("resnet20", [3, 3, 3], False, 32),
    ],
)
@pytest.mark.parametrize("train", [False, True])
def test_outputs_equal_pytorch(
    name: str, stages: list[int], bottleneck: bool, side: int, train: bool
) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = _torch_resnet(stages, 8, bottleneck, cifar=side <= 64)
    for value in network.state_dict().values():
        if value.ndim == 1:  # scales, biases and running statistics
            value.copy_(torch.rand(value.shape) + 0.5)
    config = {"name": name, "width": 8, "norm": "batch", "signed_embedding": False}
    model = build(config, num_classes=3, num_heads=1)
    x = np.random.default_rng(0).normal(size=(4, side, side, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    variables = _ported(network, shapes)
    ours = jax.jit(lambda v, x: model.network.apply(v, x, train=train))(
        {collection: tree["network"] for collection, tree in variables.items()}, x
    )
    with torch.no_grad():
        theirs = network.train(train)(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "conv_lowering", ["unrolled", pytest.param("grouped", marks=pytest.mark.slow)]
)
def test_rematerialisation_keeps_less_and_computes_the_same(conv_lowering: str) -> None:
    """Losses, gradients and batch statistics of stacked clients, as in a step."""
    x = jax.random.normal(jax.random.key(1), (2, 2, 8, 8, 3))  # [K, B, H, W, C]

    def outcome(remat: bool) -> Any:
        config = {"name": "resnet8", "width": 4, "norm": "batch", "remat": remat}
        model = build(config, num_classes=3, num_heads=2, conv_lowering=conv_lowering)
        init = jax.jit(jax.vmap(lambda key, x: model.init(key, x, train=False)))
        variables = init(jax.random.split(jax.random.key(0)), x)

        def losses(params: Any) -> Any:
            def one(params: Any, stats: Any, x: jax.Array) -> Any:
                given = {"params": params, "batch_stats": stats}
                (logits, _), new = model.apply(given, x, train=True, mutable=["batch_stats"])
                return (logits**2).mean(), new

            found, new = jax.vmap(one)(params, variables["batch_stats"], x)
            return found.sum(), new

        compiled = jax.jit(jax.value_and_grad(losses, has_aux=True))
        return compiled(variables["params"]), variables["params"]

    plain, again = outcome(False), outcome(True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, again)
    kept = [
        estimate.saved_bytes(build({"name": "resnet14", "remat": remat}, 3, num_heads=2),
                             (8, 8, 3), batch_size=4)
        for remat in (False, True)
    ]  # fmt: skip
    assert kept[1] < kept[0] / 3
