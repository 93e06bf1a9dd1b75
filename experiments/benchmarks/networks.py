# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The networks of the benchmarks in PyTorch, and how our parameters get into them.

Needs PyTorch (`pip install -e ".[bench]"`). Images are [B, ...] for dense networks and, as PyTorch
has them, [B, C, H, W] for convolutional ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mhd_jax.models import vit
from mhd_jax.models.norm import num_groups

PyTree = Any


class Client(nn.Module):
    """An embedding network with all heads as one linear layer on its embedding.

    Args:
      network: images to embeddings [B, D].
      width: D.
      heads: H, the main head included.
      classes: C.
    """

    def __init__(self, network: nn.Module, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(width, heads * classes)
        self.shape = (heads, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, H, C] and embeddings [B, D]."""
        embedding = self.network(images)
        return self.head(embedding).unflatten(-1, self.shape), embedding


def mlp(inputs: int, width: int = 128) -> nn.Module:
    """`mhd_jax.models.mlp.MLP` of depth 1 with layer normalisation."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, width),
        nn.LayerNorm(width),
        nn.ReLU(),
        nn.Linear(width, width // 2),
        nn.LayerNorm(width // 2),
    )


class Block(nn.Module):
    """`mhd_jax.models.resnet.ResidualBlock`, basic, with group normalisation."""

    def __init__(self, inputs: int, width: int, stride: int, last_relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = _group_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _group_norm(width)
        self.last_relu = last_relu
        self.shortcut = inputs != width or stride > 1
        if self.shortcut:
            self.shortcut_conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut_norm = _group_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, O, h, w]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y = y + (self.shortcut_norm(self.shortcut_conv(x)) if self.shortcut else x)
        return torch.relu(y) if self.last_relu else y


class ResNet(nn.Module):
    """`mhd_jax.models.resnet.ResNet` with basic blocks, a 3x3 stem and group normalisation."""

    def __init__(self, stages: tuple[int, ...], width: int, channels: int = 3) -> None:
        super().__init__()
        self.stem_conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.stem_norm = _group_norm(width)
        inputs = width
        for stage, blocks in enumerate(stages):
            for block in range(blocks):
                last = stage == len(stages) - 1 and block == blocks - 1
                stride = 2 if stage and not block else 1
                module = Block(inputs, width * 2**stage, stride, last_relu=not last)
                self.add_module(f"stage{stage + 1}_block{block + 1}", module)
                inputs = width * 2**stage

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, D]."""
        x = torch.relu(self.stem_norm(self.stem_conv(x)))
        for name, module in self.named_children():
            x = module(x) if name.startswith("stage") else x
        return x.mean((2, 3))


class Attention(nn.Module):
    """`mhd_jax.models.vit.Block`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense1, self.dense2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        y = self.qkv(self.norm1(x)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2)
        y = functional.scaled_dot_product_attention(*y.chunk(3, dim=1))
        x = x + self.project(y.transpose(1, 2).flatten(2))
        y = functional.gelu(self.dense1(self.norm2(x)), approximate="tanh")
        return x + self.dense2(y)


class ViT(nn.Module):
    """`mhd_jax.models.vit.ViT`."""

    def __init__(self, width: int, depth: int, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        height, columns, channels = image_shape
        count = (height // vit.PATCH) * (columns // vit.PATCH)
        self.embed = nn.Linear(vit.PATCH**2 * channels, width)
        where = torch.from_numpy(vit.positions(count, width))
        self.register_buffer("positions", where, persistent=False)
        self.blocks = [f"block{index}" for index in range(depth)]
        for name in self.blocks:
            self.add_module(name, Attention(width, vit.HEADS))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, D]."""
        x = x.unfold(2, vit.PATCH, vit.PATCH).unfold(3, vit.PATCH, vit.PATCH)
        x = x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # [B, N, P * P * C]
        x = self.embed(x) + self.positions
        for name in self.blocks:
            x = self.get_submodule(name)(x)
        return self.norm(x).mean(1)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(num_groups(channels), channels)


# --- Parameters -----------------------------------------------------------------------------------

_MLP = {"Dense_0": "1", "GroupNorm_0": "2", "Dense_1": "4", "GroupNorm_1": "5"}


def load(client: Client, params: Mapping[str, PyTree]) -> None:
    """Copies the parameters of one of our clients into its PyTorch counterpart, all of them.

    Args:
      client: an `mlp` or a `ResNet` with heads.
      params: `{"network": ..., "head": ...}`, numpy leaves.
    """
    head = {"kernel": params["head"]["kernel"], "bias": params["head"]["bias"]}
    flat = {"head.weight": _turned(head["kernel"].reshape(head["kernel"].shape[0], -1)),
            "head.bias": head["bias"].reshape(-1)}  # fmt: skip
    for path, value in _leaves(params["network"]):
        *names, leaf = path
        layer = ".".join(_MLP.get(name, name) for name in names)
        kind = "bias" if leaf == "bias" else "weight"
        flat[f"network.{layer}.{kind}"] = _turned(value) if leaf == "kernel" else value
    state = {name: torch.from_numpy(np.array(value)) for name, value in flat.items()}
    client.load_state_dict(state)


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], np.ndarray]]:
    if not isinstance(tree, Mapping):
        return [(path, np.asarray(tree))]
    return [leaf for name, part in tree.items() for leaf in _leaves(part, (*path, name))]


def _turned(kernel: np.ndarray) -> np.ndarray:
    """A kernel in PyTorch's order of axes: outputs, inputs, then the window."""
    order = (1, 0) if kernel.ndim == 2 else (3, 2, 0, 1)
    return kernel.transpose(order)


def make(
    name: str, image_shape: tuple[int, ...], width: int, heads: int, classes: int, depth: int = 0
) -> Client:
    """The PyTorch counterpart of one of our clients.

    Args:
      name: `model.name`: "mlp", "vit", or "resnet" with its number of layers (8, 14, 20 or 18).
      image_shape: of our images, channels last.
      width: `model.width`, 0 for the network's own.
      heads: H.
      classes: C.
      depth: `model.depth`, of "vit" only.
    """
    if name == "mlp":
        width = width or 128
        return Client(mlp(int(np.prod(image_shape)), width), width // 2, heads, classes)
    if name == "vit":
        width = width or vit.WIDTH
        return Client(ViT(width, depth or vit.DEPTH, image_shape), width, heads, classes)
    if name == "resnet18":
        width = width or 64
        return Client(ResNet((2, 2, 2, 2), width, image_shape[-1]), 8 * width, heads, classes)
    layers = re.fullmatch(r"resnet(8|14|20)", name)
    if layers is None:
        raise ValueError(f"no PyTorch counterpart of {name!r}")
    stages, width = ((int(layers[1]) - 2) // 6,) * 3, width or 16
    return Client(ResNet(stages, width, image_shape[-1]), 4 * width, heads, classes)
