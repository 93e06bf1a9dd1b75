# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Images in memory: scikit-learn's digits and photographs, and arrays of one's own."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from mhd_jax import rng
from mhd_jax.data.sources.interface import (
    SOURCES,
    Shape,
    Source,
    Split,
    check_source,
    fit,
    part,
    resolve_shape,
    statistics,
)
from mhd_jax.errors import ConfigError


class ArraySplit(Split):
    """Images that are in memory already."""

    def __init__(
        self, images: Shaped[np.ndarray, "N H W C"], labels: Int[np.ndarray, " N"]
    ) -> None:
        self._images = images
        self._labels = labels.astype(np.int32)
        self.image_shape = images.shape[1:]
        self.dtype = images.dtype

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """See `Split`."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: Int[np.ndarray, " n"]) -> Iterator[Shaped[np.ndarray, "h w c"]]:
        """See `Split`."""
        return iter(self._images[indices])

    def images(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n H W C"]:
        """See `Split`; nothing has to be decoded."""
        return self._images[indices]


@SOURCES.register("digits")
def digits(directory: str, split: str, shape: Shape) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: 1,297 to train on and 500 to test on.

    Which ones are for testing never changes; the classes are in proportion in both. Images are
    float32 in 0..1; resized, or as the public set of another dataset, they are uint8.

    Source: UCI "Optical Recognition of Handwritten Digits", the test part, through
    https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html.
    """
    from sklearn import datasets, model_selection  # slow to import

    del directory  # the images come with scikit-learn
    data = datasets.load_digits()
    images: Float[np.ndarray, "N 8 8 1"] = (data.images / 16).astype(np.float32)[..., None]
    target = resolve_shape(images.shape[1:], shape)
    if target != images.shape[1:]:
        images = np.stack([fit(image, target) for image in np.rint(images * 255).astype(np.uint8)])
    train, test = model_selection.train_test_split(
        np.arange(len(images)), test_size=500, random_state=0, stratify=data.target
    )
    train = train[part(split, len(train))]
    channels = target[-1]
    return Source(
        name="digits",
        class_names=tuple(str(digit) for digit in data.target_names),
        train=ArraySplit(images[train], data.target[train]),
        test=ArraySplit(images[test], data.target[test]),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )


@SOURCES.register("photos")
def photos(directory: str, split: str, shape: Shape) -> Source:
    """Patches of two photographs, 32x32 in colour: 416 to train on and 104 to test on.

    A public set that has nothing to do with the private images and needs no download. The class
    is the photograph; which patches are for testing never changes.

    Source: the photographs "china" and "flower" that come with scikit-learn,
    https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_sample_images.html.
    """
    from sklearn import datasets  # slow to import

    del directory  # the photographs come with scikit-learn
    side = 32
    pictures = datasets.load_sample_images()
    patches, labels = [], []
    for label, picture in enumerate(pictures.images):
        for row in range(0, picture.shape[0] - side + 1, side):
            for column in range(0, picture.shape[1] - side + 1, side):
                patches.append(picture[row : row + side, column : column + side])
                labels.append(label)
    target = resolve_shape((side, side, 3), shape)
    images, classes = np.stack([fit(patch, target) for patch in patches]), np.array(labels)
    order = rng.generator(0, "photos").permutation(len(images))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    train = train[part(split, len(train))]
    return Source(
        "photos",
        tuple(pathlib.Path(name).stem for name in pictures.filenames),
        ArraySplit(images[train], classes[train]),
        ArraySplit(images[test], classes[test]),
        *statistics("photos", target[-1]),
    )


def from_arrays(
    name: str,
    train: tuple[Shaped[np.ndarray, "N H W C"], Int[np.ndarray, " N"]],
    test: tuple[Shaped[np.ndarray, "M H W C"], Int[np.ndarray, " M"]],
    *,
    class_names: Sequence[str] = (),
) -> Source:
    """A dataset of images that are in memory already.

    Args:
      name: what `data.name` calls it.
      train: images and labels that clients and the public set draw from; images are uint8, or
        float32 in 0..1, and without an axis of channels where they are grey.
      test: images and labels that everybody is evaluated on.
      class_names: one per class; numbers by default, up to the largest label.

    Raises:
      ConfigError: arrays whose shapes or types do not fit together.

    >>> images, labels = np.zeros((6, 8, 8), np.uint8), np.array([0, 1, 2, 0, 1, 2])
    >>> mine = from_arrays("mine", (images, labels), (images[:3], labels[:3]))
    >>> mine.num_classes, mine.image_shape
    (3, (8, 8, 1))
    """
    known, held_out = _array_split(name, *train), _array_split(name, *test)
    classes = max(int(known.labels.max()), int(held_out.labels.max())) + 1
    names = tuple(class_names) or tuple(map(str, range(classes)))
    source = Source(name, names, known, held_out, *statistics(name, known.image_shape[-1]))
    check_source(source, name)
    return source


def _array_split(name: str, images: np.ndarray, labels: np.ndarray) -> ArraySplit:
    images, labels = np.asarray(images), np.asarray(labels)
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or len(images) == 0 or labels.shape != images.shape[:1]:
        accepted = (
            f"images of shape [N, H, W, C] or [N, H, W] and labels of shape [N], not "
            f"{images.shape} and {labels.shape}"
        )
        raise ConfigError("data.name", name, accepted)
    if labels.dtype.kind not in "iu":
        raise ConfigError("data.name", name, f"labels that are integers, not {labels.dtype}")
    if images.dtype.kind == "f":
        images = images.astype(np.float32)
        if not (images.min() >= 0 and images.max() <= 1):
            accepted = f"floating-point images in 0..1, not {images.min():g}..{images.max():g}"
            raise ConfigError("data.name", name, accepted)
    return ArraySplit(images, labels)
