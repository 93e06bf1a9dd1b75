# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Random changes to images on the device, and the normalisation that follows them.

An augmentation changes one image with one key. Since nothing but a sample's own key decides what
happens to it, a batch may be cut over devices anywhere and every sample still comes out the same.
Images stay in the type they are stored in (uint8, or float in 0..1); `normalize` comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from mhd_jax.data.sources import is_ids
from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.registry import Registry

Augment = Callable[[Key[Array, ""], Shaped[Array, "..."]], Shaped[Array, "..."]]
"""``(key of the sample, image) -> image`` of the same shape and type; or any other sample."""

AUGMENTS: Registry[Augment] = Registry("data.augment")


def augment(
    name: str, keys: Key[Array, " B"], images: Shaped[Array, "B H W C"]
) -> Shaped[Array, "B H W C"]:
    """Applies the augmentation called `name` (`data.augment`) to each image with its own key.

    Args:
      name: a name in `AUGMENTS`.
      keys: one typed key per sample, see `rng.each`.
      images: uint8, or float in 0..1.

    Raises:
      ConfigError: there is no such augmentation.

    >>> images = jnp.ones((2, 8, 8, 1))
    >>> from mhd_jax import rng
    >>> augment("flip", rng.each(jax.random.key(0), jnp.arange(2)), images).shape
    (2, 8, 8, 1)
    """
    return jax.vmap(AUGMENTS.get(name))(keys, images)


IMAGES_ONLY = ("flip", "crop_flip")
"""Augmentations that know what left and right are."""


def check(name: str, shape: Sequence[int], dtype: np.dtype) -> None:
    """Traces an augmentation on one sample.

    Raises:
      ConfigError: it is one of images and these are none, it fails, makes something else than one
        array, or changes shape or type.
    """
    if name in IMAGES_ONLY and (len(shape) != 3 or is_ids(np.dtype(dtype))):
        refuse(name, shape)
    sample, change = jax.ShapeDtypeStruct(tuple(shape), dtype), AUGMENTS.get(name)
    with of_piece("data.augment", name, f"one that can change samples of shape {tuple(shape)}"):
        changed = jax.eval_shape(change, jax.random.key(0), sample)
    if not isinstance(changed, jax.ShapeDtypeStruct):
        accepted = f"one that makes an array of a sample, not {type(changed).__name__}"
        raise ConfigError("data.augment", name, accepted)
    if (changed.shape, changed.dtype) != (sample.shape, sample.dtype):
        accepted = f"one that leaves {sample.dtype}{shape} so, not {changed.dtype}{changed.shape}"
        raise ConfigError("data.augment", name, accepted)


def refuse(name: str, shape: Sequence[int]) -> NoReturn:
    """Raises `ConfigError` for an augmentation of images and samples that are none."""
    accepted = f"none for samples of shape {tuple(shape)}: {name} changes images [H, W, C], which "
    accepted += "are uint8 or floating point"
    raise ConfigError("data.augment", name, accepted)


@AUGMENTS.register("none")
def none(key: Key[Array, ""], image: Shaped[Array, "H W C"]) -> Shaped[Array, "H W C"]:
    """Leaves the image as it is."""
    del key
    return image


@AUGMENTS.register("flip")
def flip(key: Key[Array, ""], image: Shaped[Array, "H W C"]) -> Shaped[Array, "H W C"]:
    """Mirrors the image left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


@AUGMENTS.register("crop_flip")
def crop_flip(key: Key[Array, ""], image: Shaped[Array, "H W C"]) -> Shaped[Array, "H W C"]:
    """Shifts the image by up to `crop_padding` pixels each way, black outside, and mirrors half.

    Source: C.-Y. Lee et al., "Deeply-Supervised Nets", AISTATS 2015, as used for CIFAR by K. He et
    al., "Deep Residual Learning", CVPR 2016, section 4.2, https://arxiv.org/abs/1512.03385.
    """
    # One draw for all three: each draw of its own doubles the time to compile. Taking the rest of
    # a division of 32 random bits favours a shift by less than 1 part in 10^8.
    down, right, mirror = jax.random.bits(key, (3,))
    height, width, _ = image.shape
    tall, wide = crop_padding(height), crop_padding(width)
    padded = jnp.pad(image, ((tall, tall), (wide, wide), (0, 0)))
    start = (down % (2 * tall + 1), right % (2 * wide + 1), jnp.uint32(0))
    shifted = jax.lax.dynamic_slice(padded, start, image.shape)
    return jnp.where(mirror % 2 == 1, shifted[:, ::-1], shifted)


def crop_padding(size: int) -> int:
    """Pixels that `crop_flip` pads: 4 from 32 pixels up, in proportion below, at least 1.

    >>> [crop_padding(size) for size in (8, 16, 32, 64)]
    [1, 2, 4, 4]
    """
    return max(1, min(4, size // 8))


def mixup(
    keys: Key[Array, " B"],
    samples: Float[Array, "B ..."],
    others: Float[Array, "B ..."],
    most: float,
) -> Float[Array, "B ..."]:
    """(1 - w) x + w x' for each sample x and another x', w being uniform from 0 to `most`.

    Source: mixup, H. Zhang et al., 2018, https://arxiv.org/abs/1710.09412; for distillation, where
    teacher and student see the same mixed image, L. Beyer et al., 2022, "Knowledge distillation: A
    good teacher is patient and consistent", https://arxiv.org/abs/2106.05237.

    Args:
      keys: one typed key per sample.
      samples: normalised.
      others: what is mixed into each of them.
      most: at most 0.5: `samples` stay the larger part.
    """
    weights = jax.vmap(lambda key: jax.random.uniform(key, maxval=most))(keys)
    weights = weights.reshape(-1, *(1,) * (samples.ndim - 1))
    return samples + weights * (others - samples)


def normalize(
    images: Shaped[Array, "*batch H W C"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*batch H W C"]:
    """(x - mean) / std per channel in float32, x being in 0..1.

    Args:
      images: uint8, which is divided by 255 first, or float, which is taken as being in 0..1.
      mean: per channel, of values in 0..1.
      std: likewise.

    Raises:
      TypeError: images of another type.

    >>> normalize(jnp.full((1, 1, 1), 255, jnp.uint8), mean=[0.5], std=[0.25]).item()
    2.0
    """
    if images.dtype == jnp.uint8:
        scaled = images.astype(jnp.float32) / 255
    elif jnp.issubdtype(images.dtype, jnp.floating):
        scaled = images.astype(jnp.float32)
    else:
        raise TypeError(f"images must be uint8 or floating point, not {images.dtype}")
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
