# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a data source is: the types, and what all sources share.

A `Source` has a training and a test `Split`; a split gives labels for everything at once, which is
cheap, and images for any indices, which are decoded when asked for.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int, Shaped, UInt8
from PIL import Image, ImageOps

from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.registry import Registry

Shape = tuple[int, ...]
"""Of one sample: height, width and channels of an image; (F,), (T,) or (T, F) of other arrays."""

AS_STORED: Shape = (0, 0, 0)

FEWEST = 2
"""Fewest samples a client may have."""

FEWEST_CLASSES = 2
"""With fewer there is nothing to tell apart."""

COMPARED = 256
"""Samples of a split, at most, that go into a data set's fingerprint."""

# Threads that decode images, and images that one decodes before it takes the next block. Decoding
# leaves the interpreter's lock, reading headers does not: more threads would wait for each other.
MAX_THREADS = 16
BLOCK = 256

# Published channel statistics, of values in 0..1. Any other data set is measured on its public
# images: statistics of the clients' images would leave the clients before training.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": _IMAGENET,
    "imagenet_resized": _IMAGENET,
    "tiny_imagenet32": _IMAGENET,
}


class Split(abc.ABC):
    """Samples with labels, in a fixed order, read by index.

    Most are images, hence the names; any array of numbers per sample will do.

    Attributes:
      image_shape: shape of one sample of what `images` returns, such as (height, width, channels).
      dtype: uint8 for pixels, float32 for other numbers (images in 0..1), int32 for ids.
    """

    image_shape: Shape
    dtype: np.dtype = np.dtype(np.uint8)

    @property
    @abc.abstractmethod
    def labels(self) -> Int[np.ndarray, " N"]:
        """The label of every sample, int32; read on first use and kept. No image is decoded."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, indices: Int[np.ndarray, " n"]) -> Iterator[Shaped[np.ndarray, "h w c"]]:
        """Decodes images one after another, each at the size it is stored in."""

    def images(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n H W C"]:
        """Decodes images, on several threads, to `image_shape` and `dtype`.

        Raises:
          ConfigError: an image cannot be read, or has another size than the others while
            `data.image_size` leaves sizes as they are stored.
        """
        indices = np.asarray(indices, dtype=np.int64)
        images = np.empty((len(indices), *self.image_shape), self.dtype)
        num_threads = min(MAX_THREADS, os.cpu_count() or 1)
        block = max(1, min(BLOCK, math.ceil(len(indices) / num_threads)))

        def decode(positions: Int[np.ndarray, " b"]) -> None:
            for position, image in zip(positions, self.read(indices[positions]), strict=True):
                images[position] = fit(image, self.image_shape)

        with futures.ThreadPoolExecutor(num_threads) as threads:
            # list() passes on an exception that a thread met.
            list(threads.map(decode, blocks(np.arange(len(indices)), block)))
        return images


@dataclasses.dataclass(frozen=True, eq=False)
class Silos:
    """The clients that a data set comes with; the partition `by_key` keeps them.

    Attributes:
      names: one per client, K.
      owner: the client, 0 to K - 1, of every training sample, [N].
      test: test samples that belong to clients, all together; None for none.
      test_owner: the client of each of those, [M].
    """

    names: tuple[str, ...]
    owner: Int[np.ndarray, " N"]
    test: Split | None = None
    test_owner: Int[np.ndarray, " M"] = dataclasses.field(
        default_factory=lambda: np.empty(0, dtype=np.int64)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A dataset for classification.

    Attributes:
      name: as in `data.name`.
      class_names: one per class; a label is an index into them.
      train: what clients and the public set draw from.
      test: what everybody is evaluated on.
      mean: per channel or feature, subtracted from values before a sample enters a model (of
        pixels: values in 0..1); () to measure it on the public samples of a run. Ids have none.
      std: per channel or feature, the divisor after that; likewise.
      silos: the clients that it comes with; None where samples are to be divided.
      public: an unlabelled public pool of its own; None for a share of `train`.
      columns: of the tables that it was made from; () where they have no names.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    silos: Silos | None = None
    public: Split | None = None
    columns: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> Shape:
        """Shape of every sample."""
        return self.train.image_shape


def fingerprint(source: Source, public: Split, indices: Int[np.ndarray, " P"]) -> str:
    """What tells data from others of the same name: 16 hexadecimal digits.

    Of all labels, of whose samples they are, and of up to `COMPARED` samples of the test set and of
    the public set, evenly spread: those that every process may read.

    Args:
      source: the private data.
      public: the split that the public set is of; its labels are not read.
      indices: the public set.
    """
    found, silos = hashlib.sha256(), source.silos
    if silos is not None:
        found.update(repr(silos.names).encode())
        for owner in (silos.owner, silos.test_owner):
            found.update(np.ascontiguousarray(owner, np.int64).tobytes())
    for split in (source.train, source.test, silos.test if silos else None):
        if split is not None:
            found.update(f"{len(split)} {split.image_shape} {split.dtype}".encode())
            found.update(np.ascontiguousarray(split.labels, np.int32).tobytes())
    for split, among in ((source.test, np.arange(len(source.test))), (public, indices)):
        few = split.images(at_most(among, COMPARED))
        found.update(np.ascontiguousarray(few).tobytes())
    return found.hexdigest()[:16]


def at_most(indices: Int[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    """The indices themselves, or of more than `most` some, evenly spread.

    >>> at_most(np.arange(10), 4)
    array([0, 3, 6, 9])
    """
    return indices[:: max(1, -(-len(indices) // most))]


class SubSplit(Split):
    """Some samples of another split, by index; their labels stay what they are."""

    def __init__(self, whole: Split, indices: Int[np.ndarray, " n"]) -> None:
        self.image_shape, self.dtype = whole.image_shape, whole.dtype
        self._whole, self._indices = whole, np.asarray(indices)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Labels of the samples that are left."""
        return self._whole.labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: Int[np.ndarray, " n"]) -> Iterator[Shaped[np.ndarray, "h w c"]]:
        """Decodes images of the whole split."""
        return self._whole.read(self._indices[np.asarray(indices)])


class JoinedSplit(Split):
    """Several splits of like samples, one after another."""

    def __init__(self, parts: Sequence[Split]) -> None:
        self.image_shape, self.dtype = parts[0].image_shape, parts[0].dtype
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " N"]:
        """Labels of all parts."""
        return np.concatenate([part.labels for part in self._parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, indices: Int[np.ndarray, " n"]) -> Iterator[Shaped[np.ndarray, "h w c"]]:
        """Decodes images of the parts."""
        for index in np.asarray(indices):
            part = int(np.searchsorted(self._starts, index, side="right")) - 1
            yield from self._parts[part].read(np.array([index - self._starts[part]]))


def first_classes(source: Source, count: int) -> Source:
    """The data set less all classes but the first `count`; 0 keeps all.

    Raises:
      ConfigError: fewer than `FEWEST_CLASSES`, or more than there are.
    """
    if count == 0 or count == source.num_classes:
        return source
    if not FEWEST_CLASSES <= count <= source.num_classes:
        accepted = (
            f"0 for all, or {FEWEST_CLASSES} to {source.num_classes} classes of {source.name}"
        )
        raise ConfigError("data.num_classes", count, accepted)

    def kept(split: Split) -> Int[np.ndarray, " n"]:
        return np.flatnonzero(split.labels < count)

    return dataclasses.replace(
        source,
        class_names=source.class_names[:count],
        train=SubSplit(source.train, kept(source.train)),
        test=SubSplit(source.test, kept(source.test)),
        silos=source.silos and _fewer_classes(source.silos, kept(source.train), kept),
    )


def _fewer_classes(
    silos: Silos,
    train: Int[np.ndarray, " n"],
    kept: Callable[[Split], Int[np.ndarray, " m"]],
) -> Silos:
    """The same clients with the training samples that are left, and likewise of their tests."""
    fewer = dataclasses.replace(silos, owner=silos.owner[train])
    if silos.test is None:
        return fewer
    test = kept(silos.test)
    return dataclasses.replace(
        fewer, test=SubSplit(silos.test, test), test_owner=silos.test_owner[test]
    )


Loader = Callable[[str, str, Shape], Source]
"""``(data.dir, data.split, image shape with 0 for "as stored") -> Source``."""

SOURCES: Registry[Loader] = Registry("data.name")


def load_all(split: Split) -> Shaped[np.ndarray, "N H W C"]:
    """All images of a split in memory, in the split's order."""
    return split.images(np.arange(len(split)))


def fit(image: Shaped[np.ndarray, "h w c"], shape: Shape) -> Shaped[np.ndarray, "H W C"]:
    """Brings an image to a shape: the largest centred part of that aspect ratio, resized.

    Pillow resizes with its antialiased bilinear filter. Colours become grey by their luma.

    Raises:
      TypeError: the image is not uint8 and would have to be changed.

    >>> fit(np.zeros((20, 30, 3), np.uint8), (8, 8, 1)).shape
    (8, 8, 1)
    """
    if image.shape == shape:
        return image
    if image.dtype != np.uint8:
        raise TypeError(f"only uint8 images can be resized, not {image.dtype}")
    height, width, channels = shape
    picture = to_pillow(image, channels)
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


def to_pillow(image: UInt8[np.ndarray, "h w c"], channels: int) -> Image.Image:
    """The image for Pillow, grey for one channel and RGB for three."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return picture.convert("L" if channels == 1 else "RGB")


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w c"]:
    """An image at its own size, grey [h, w, 1] or colour [h, w, 3]; `name` is for the error."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode.startswith(("I", "F")):
                raise OSError(f"pixels of type {picture.mode}, not 8 bits a channel")
            mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
            pixels = np.asarray(picture if picture.mode == mode else picture.convert(mode))
            return pixels.reshape(*pixels.shape[:2], -1)
    except Exception as error:  # Pillow has many for files that are broken, SyntaxError among them
        reason = "no image of a known kind" if "cannot identify" in str(error) else error
        raise ConfigError("data.dir", name, f"an image that can be read ({reason})") from None


def decode_file(file: epath.Path) -> UInt8[np.ndarray, "h w c"]:
    """See `decode_image`; a file that cannot be opened is as bad as one that is no image."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError("data.dir", str(file), f"an image that can be read ({error})") from None
    return decode_image(data, str(file))


def blocks(values: Int[np.ndarray, " n"], size: int) -> list[Int[np.ndarray, " b"]]:
    """Cuts values into parts of `size`, the last of what is left."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def resolve_shape(stored: Sequence[int | None], wanted: Shape) -> Shape:
    """The shape to deliver: what is wanted, and where that is 0 what is stored.

    Raises:
      ConfigError: it is wanted of samples that are no images, or their sizes differ.
    """
    if len(stored) != len(wanted):
        raise ConfigError("data.shape", tuple(stored), f"samples of shape {tuple(wanted)}")
    shape = [want or have for want, have in zip(wanted, stored, strict=True)]
    if not all(shape):
        raise ConfigError("data.image_size", 0, "a size in pixels, as stored images differ in size")
    height, width, channels = (size or 0 for size in shape)
    # Transparency is dropped: models see grey or red, green, blue.
    return height, width, 1 if channels == 1 else 3


def statistics(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Published mean and standard deviation per channel; () and () where there are none."""
    mean, std = STATISTICS.get(re.split("[/:]", name)[0], ((), ()))
    return (mean, std) if len(mean) == channels else ((), ())


MEASURED = 4096  # samples that statistics are measured on, at most


def measured_statistics(
    split: Split, indices: Int[np.ndarray, " P"], setting: str = "data.public_fraction"
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of some samples per channel or feature, the last axis.

    Args:
      split: of the public samples; pixels (uint8) count as values in 0..1.
      indices: the public set; more than `MEASURED` are thinned out evenly.
      setting: where they come from, which an error blames.

    Returns:
      Both, or () and () for ids, which are not normalised.

    Raises:
      ConfigError: all values of all channels are alike, or some are not finite.
    """
    if is_ids(split.dtype):
        return (), ()
    images = split.images(at_most(indices, MEASURED))
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    pixels = images.reshape(-1, images.shape[-1]).astype(np.float64) / scale
    if not np.isfinite(pixels).all():
        accepted = "finite numbers, but some are NaN or inf"
        raise ConfigError(setting, f"{len(images)} public samples", accepted)
    mean, std = pixels.mean(axis=0), pixels.std(axis=0)
    std = np.where(np.ptp(pixels, axis=0) > 0, std, 0.0)  # not what is left of rounding
    if not std.any():
        accepted = "some that differ, to normalise by"
        raise ConfigError(setting, f"{len(images)} public samples, all alike", accepted)
    if not std.all():
        dead = np.flatnonzero(std == 0).tolist()
        logging.warning("channels %s of the public samples are constant: not scaled", dead)
    std = np.where(std == 0, 1.0, std)
    return tuple(map(float, mean)), tuple(map(float, std))


def is_ids(dtype: np.dtype) -> bool:
    """Whether numbers of this type are ids: integers, but not the 8 bits of pixels.

    >>> [is_ids(np.dtype(name)) for name in ("int32", "uint8", "float32")]
    [True, False, False]
    """
    return dtype.kind in "iu" and dtype != np.uint8


def part(split: str, num_samples: int) -> slice:
    """The samples that `data.split` keeps, for sources without a grammar of their own."""
    accepted = (
        "'' or 'train' for all samples, or part of the training split such as 'train[:20%]' or "
        f"'train[:5000]', with at least one of the {num_samples} samples"
    )
    match = re.fullmatch(r"(?:train(?:\[(-?\d+%?)?:(-?\d+%?)?\])?)?", split)
    if match is None:
        raise ConfigError("data.split", split, accepted)
    bounds = [
        round(num_samples * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
        for bound in (match[1] or "0", match[2] or str(num_samples))
    ]
    inside = all(abs(bound) <= num_samples for bound in bounds)
    if not (inside and range(num_samples)[slice(*bounds)]):
        raise ConfigError("data.split", split, accepted)
    return slice(*bounds)


def check_source(found: Source, name: str) -> None:
    """Looks at the types, the shapes, the classes and the labels of a source, and its first image.

    Raises:
      ConfigError: naming what was expected.
    """
    if not isinstance(found, Source):
        accepted = f"a loader that returns a Source, not {type(found).__name__}"
        raise ConfigError("data.name", name, accepted)
    with of_piece("data.name", name, "a Source with a train and a test Split that can be read"):
        shape, classes = found.image_shape, found.num_classes
        parts = [
            (part, split, split.images(np.zeros(1, np.int64)), split.labels)
            for part, split in (("train", found.train), ("test", found.test))
        ]
    if classes < FEWEST_CLASSES:
        raise ConfigError("data.name", name, f"at least {FEWEST_CLASSES} classes, not {classes}")
    if odd := [one for one in found.class_names if not isinstance(one, str)]:
        raise ConfigError("data.name", name, f"class names that are text, not {odd[0]!r}")
    if len(found.mean) not in (0, shape[-1]) or len(found.std) != len(found.mean):
        accepted = (
            f"a mean and a std of {shape[-1]} channels, or none, not {found.mean} and {found.std}"
        )
        raise ConfigError("data.name", name, accepted)
    if not all(value > 0 for value in found.std):
        raise ConfigError("data.name", name, f"a std above 0 in every channel, not {found.std}")
    for part, split, images, labels in parts:
        stored = [str(found.train.dtype)] if split is found.test else ["uint8", "float32", "int32"]
        if images.shape != (1, *shape) or str(images.dtype) not in stored:
            accepted = (
                f"{part} samples of shape {(1, *shape)}, {' or '.join(stored)}, for one index"
            )
            raise ConfigError("data.name", name, f"{accepted}, not {images.dtype}{images.shape}")
        array = isinstance(labels, np.ndarray)
        if not array or labels.shape != (len(split),) or labels.dtype.kind not in "iu":
            accepted = f"integer {part} labels, an array of shape [N] = {(len(split),)}"
            given = f"{labels.dtype}{labels.shape}" if array else type(labels).__name__
            raise ConfigError("data.name", name, f"{accepted}, not {given}")
        if labels.min() < 0 or labels.max() >= classes:
            accepted = f"{part} labels in 0..{classes - 1}, as there are {classes} class names"
            raise ConfigError("data.name", name, f"{accepted}, not {labels.min()}..{labels.max()}")
    _check_silos(found, name)


def warn_of_channels_first(source: Source) -> None:
    """Says so where images look like [C, H, W]: anything trains on them, but sees no picture."""
    shape = source.image_shape
    if len(shape) == 3 and shape[0] in (1, 3) and shape[-1] > 4 and not is_ids(source.train.dtype):
        logging.warning(
            "samples of shape %s are taken for images of %d x %d with %d channels; of images "
            "with the channels first, move them last: np.moveaxis(images, 1, -1)",
            shape, *shape,
        )  # fmt: skip


def _check_silos(found: Source, name: str) -> None:
    """The part of `check_source` about clients and the public pool that a source comes with."""
    silos, shape = found.silos, found.image_shape
    for part, split in (("public", found.public), ("client test", silos.test if silos else None)):
        if split is not None and (split.image_shape != shape or split.dtype != found.train.dtype):
            accepted = f"{part} samples of shape {shape} and type {found.train.dtype}"
            accepted += f", not {split.image_shape} and {split.dtype}"
            raise ConfigError("data.name", name, accepted)
    if silos is None:
        return
    owner = np.asarray(silos.owner)
    known = set(range(len(silos.names)))
    if owner.shape != (len(found.train),) or set(np.unique(owner).tolist()) != known:
        accepted = f"the client, 0 to {len(silos.names) - 1}, of every training sample"
        raise ConfigError("data.name", name, f"{accepted}, and samples of every client")
