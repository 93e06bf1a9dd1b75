# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Residual networks (He et al. 2016, https://arxiv.org/abs/1512.03385), for ImageNet and CIFAR.

ResNet-18, 34 and 50 have four stages and the parameters of the published networks (with stride
on the 3x3 convolution of a bottleneck, "v1.5"); ResNet-8, 14 and 20 are the three-stage networks
of the paper's section 4.2, small enough for a CPU.

Embeddings are signed by default: the last block leaves its ReLU out, which adds no parameters.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mhd_jax.models.classifier import EmbeddingFactory, ModelSettings
from mhd_jax.models.conv import Conv
from mhd_jax.models.norm import norm

LARGEST_CIFAR_SIDE = 64


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions (basic) or 1x1, 3x3, 1x1 (bottleneck) around a shortcut.

    Attributes:
      width: features of the 3x3 convolutions.
      stride: step of the block.
      bottleneck: whether the block is a bottleneck; its output has 4 times the width.
      last_relu: whether a ReLU follows the sum.
      norm: normalisation, "layer", "group", "batch" or "none".
      dtype: type of activations and arithmetic.
      conv: lowering of stacked convolutions.
    """

    width: int
    stride: int = 1
    bottleneck: bool = False
    last_relu: bool = True
    norm: str = "group"
    dtype: DTypeLike = jnp.float32
    conv: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B h w O"]:
        """The block's output; the residual branch starts at zero (its last scale is zero)."""
        features = self.width * (4 if self.bottleneck else 1)
        layers = [(self.width, 3, self.stride), (features, 3, 1)]
        if self.bottleneck:
            layers = [(self.width, 1, 1), (self.width, 3, self.stride), (features, 1, 1)]
        y = x
        for index, (width, kernel_size, stride) in enumerate(layers, start=1):
            last = index == len(layers)
            init = nn.initializers.zeros if last else nn.initializers.ones
            y = self._conv(width, kernel_size, stride, f"conv{index}")(y)
            y = norm(self.norm, self.dtype, f"norm{index}", init)(y, train)
            y = y if last else nn.relu(y)
        if x.shape[-1] != features or self.stride > 1:
            x = self._conv(features, 1, self.stride, "shortcut_conv")(x)
            x = norm(self.norm, self.dtype, "shortcut_norm")(x, train)
        return nn.relu(x + y) if self.last_relu else x + y

    def _conv(self, features: int, kernel_size: int, stride: int, name: str) -> Conv:
        return Conv(features, kernel_size, stride, dtype=self.dtype, lowering=self.conv, name=name)


class ResNet(nn.Module):
    """A residual network without its classifier.

    Attributes:
      stages: blocks of each stage; every stage after the first halves the image.
      width: features of the first stage; each further stage doubles them.
      bottleneck: whether blocks are bottlenecks.
      stem: "cifar" (3x3), "imagenet" (7x7 with stride 2, then a 3x3 maximum pool with stride 2)
        or "default", which is "cifar" for images of up to 64 pixels.
      signed_embedding: leave the ReLU of the last block out.
      norm: normalisation, "layer", "group", "batch" or "none".
      dtype: type of activations and arithmetic.
      conv: lowering of stacked convolutions.
      remat: keep only the blocks' inputs for the backward pass and compute the rest again.
    """

    stages: tuple[int, ...]
    width: int
    bottleneck: bool = False
    stem: str = "default"
    signed_embedding: bool = True
    norm: str = "group"
    dtype: DTypeLike = jnp.float32
    conv: str = "auto"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B D"]:
        """Embeddings, the mean over positions of the last block's output."""
        x = self._stem(x.astype(self.dtype), train)
        # Argument 2, after the module and x, is `train`, which is no array.
        block_type = nn.remat(ResidualBlock, static_argnums=(2,)) if self.remat else ResidualBlock
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                last = stage == len(self.stages) - 1 and block == blocks - 1
                x = block_type(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    last_relu=not (last and self.signed_embedding),
                    norm=self.norm,
                    dtype=self.dtype,
                    conv=self.conv,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train)
        return x.mean((1, 2), dtype=jnp.float32)

    def _stem(self, x: Array, train: bool) -> Array:
        small = max(x.shape[1:3]) <= LARGEST_CIFAR_SIDE
        stem = ("cifar" if small else "imagenet") if self.stem == "default" else self.stem
        kernel_size, stride = (3, 1) if stem == "cifar" else (7, 2)
        x = Conv(
            self.width,
            kernel_size,
            stride,
            dtype=self.dtype,
            lowering=self.conv,
            name="stem_conv",
        )(x)
        x = nn.relu(norm(self.norm, self.dtype, "stem_norm")(x, train))
        if stem == "imagenet":
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


def resnet(
    settings: ModelSettings, stages: tuple[int, ...], width: int, bottleneck: bool = False
) -> nn.Module:
    """A `ResNet`, with `width` unless the settings say otherwise."""
    return ResNet(
        stages=stages,
        width=settings.width or width,
        bottleneck=bottleneck,
        stem=settings.stem,
        signed_embedding=settings.signed_embedding,
        norm=settings.norm_or("group"),
        dtype=settings.compute_dtype,
        conv=settings.conv_lowering,
        remat=settings.remat,
    )


NETWORKS: dict[str, EmbeddingFactory] = {
    "resnet8": functools.partial(resnet, stages=(1, 1, 1), width=16),
    "resnet14": functools.partial(resnet, stages=(2, 2, 2), width=16),
    "resnet20": functools.partial(resnet, stages=(3, 3, 3), width=16),
    "resnet18": functools.partial(resnet, stages=(2, 2, 2, 2), width=64),
    "resnet34": functools.partial(resnet, stages=(3, 4, 6, 3), width=64),
    "resnet50": functools.partial(resnet, stages=(3, 4, 6, 3), width=64, bottleneck=True),
}
