# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Where images and labels come from: digits, a folder of images, or TensorFlow Datasets.

A `Source` has a training and a test `Split`; a split gives labels for everything at once, which is
cheap, and images for any indices, which are decoded when asked for. TensorFlow is never imported:
prepared datasets are read from their array_record files.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import functools
import io
import math
import os
import pathlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float, Int, Shaped, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from mhd_jax import rng
from mhd_jax.errors import ConfigError
from mhd_jax.registry import Registry
from mhd_jax.workdir import files_below

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

Shape = tuple[int, int, int]
"""Height, width, channels."""

AS_STORED: Shape = (0, 0, 0)

# Threads that decode images, and images that one decodes before it takes the next block. Decoding
# leaves the interpreter's lock, reading headers does not: more threads would wait for each other.
MAX_THREADS = 16
BLOCK = 256

# Records whose labels are read at a time: bounds the memory, as a record holds its image too.
LABEL_BLOCK = 1024

# Images of a folder that decide between grey and colour: one in colour is enough.
FIRST_LOOK = 16

IMAGE_FILES = (".png", ".jpg", ".jpeg")

# Published channel statistics, of values in 0..1. Any other dataset gets 0.5 and 0.25: statistics
# measured on the clients' images would be something that leaves the clients before training.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet2012": _IMAGENET,
    "imagenet_resized": _IMAGENET,
    "tiny_imagenet32": _IMAGENET,
}


class Split(abc.ABC):
    """Images with labels, in a fixed order, read by index.

    Attributes:
      image_shape: height, width and channels of what `images` returns.
      dtype: uint8, or float32 for images that are stored as numbers in 0..1.
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
            list(threads.map(decode, _blocks(np.arange(len(indices)), block)))
        return images


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A dataset for image classification.

    Attributes:
      name: as in `data.name`.
      class_names: one per class; a label is an index into them.
      train: what clients and the public set draw from.
      test: what everybody is evaluated on.
      mean: per channel, subtracted from values in 0..1 before an image enters a model.
      std: per channel, the divisor after that.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> Shape:
        """Height, width and channels of every image."""
        return self.train.image_shape


class Records(Protocol):
    """Serialized records with random access."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[int]) -> Sequence[bytes]:
        """Several records at once."""


Loader = Callable[[str, str, Shape], Source]
"""``(data.dir, data.split, image shape with 0 for "as stored") -> Source``."""

SOURCES: Registry[Loader] = Registry("data.name")


def source(config: ConfigDict) -> Source:
    """The dataset that the settings under `data` name.

    Args:
      config: with `name` ("digits", "photos", "folder", or one of TensorFlow Datasets such as
        "cifar10" or "imagenet_resized/64x64"), `dir`, `split` ("" or "train" for all training
        samples, or a part such as "train[:20%]" or "train[:5000]"), and `image_size` (0 for the
        stored size).

    Raises:
      ConfigError: there is no such dataset, it is not prepared, or a setting does not fit it.

    >>> digits = source(ConfigDict({"name": "digits", "dir": "", "split": "", "image_size": 0}))
    >>> len(digits.train), len(digits.test), digits.image_shape
    (1297, 500, (8, 8, 1))
    """
    size = config.image_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ConfigError("data.image_size", size, "a size in pixels, or 0 for the stored size")
    return _load(config.name, config.dir, config.split, (size, size, 0))


def public_split(config: ConfigDict, image_shape: Shape) -> Split:
    """The images of another dataset as the public set; nobody reads its labels.

    Args:
      config: the settings under `data`; `public_name` is the dataset, whose training images are
        taken, and `public_dir` where it is ("" for `dir`). The name "folder" stands for all images
        below the directory, whatever its folders are called.
      image_shape: the shape of the private images, to which the public ones are resized and, if
        need be, turned from colour to grey or back.

    Raises:
      ConfigError: as `source`, naming the `data.public_...` settings.
    """
    directory = config.public_dir or config.dir
    try:
        if config.public_name == "folder":
            return _unlabelled_folder(directory, image_shape)
        return _load(config.public_name, directory, "train", image_shape).train
    except ConfigError as error:
        setting = error.setting.replace("data.", "data.public_")
        accepted = error.accepted.replace("data.", "data.public_")
        raise ConfigError(setting, error.value, accepted) from error


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
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


def _decode(data: bytes, name: str) -> UInt8[np.ndarray, "h w c"]:
    """An image at its own size, grey [h, w, 1] or colour [h, w, 3]; `name` is for the error."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode.startswith(("I", "F")):
                raise OSError(f"pixels of type {picture.mode}, not 8 bits a channel")
            mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
            pixels = np.asarray(picture if picture.mode == mode else picture.convert(mode))
            return pixels.reshape(*pixels.shape[:2], -1)
    except OSError as error:
        raise ConfigError("data.dir", name, f"an image that can be read ({error})") from None


def _decode_file(file: epath.Path) -> UInt8[np.ndarray, "h w c"]:
    """See `_decode`; a file that cannot be opened is as bad as one that is no image."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError("data.dir", str(file), f"an image that can be read ({error})") from None
    return _decode(data, str(file))


def _blocks(values: Int[np.ndarray, " n"], size: int) -> list[Int[np.ndarray, " b"]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _load(name: str, directory: str, split: str, shape: Shape) -> Source:
    if name in SOURCES.names():
        found = SOURCES.get(name)(directory, split, shape)
        check_source(found, name)
        return found
    return tensorflow_dataset(name, directory, split, shape)


def _resolve(stored: Sequence[int | None], wanted: Shape) -> Shape:
    """The shape to deliver: what is wanted, and where that is 0 what is stored."""
    shape = [want or have for want, have in zip(wanted, stored, strict=True)]
    if not all(shape):
        raise ConfigError("data.image_size", 0, "a size in pixels, as stored images differ in size")
    height, width, channels = (size or 0 for size in shape)
    # Transparency is dropped: models see grey or red, green, blue.
    return height, width, 1 if channels == 1 else 3


def _statistics(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = STATISTICS.get(re.split("[/:]", name)[0], ((), ()))
    if len(mean) != channels:
        return (0.5,) * channels, (0.25,) * channels
    return mean, std


def _part(split: str, num_samples: int) -> slice:
    """The samples that `data.split` keeps, for sources without a grammar of their own."""
    accepted = (
        "'' for all samples, or part of the training split such as 'train[:20%]' or 'train[:5000]',"
        f" with at least one of the {num_samples} samples"
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


# --- Images in memory -----------------------------------------------------------------------------


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
    target = _resolve(images.shape[1:], shape)
    if target != images.shape[1:]:
        images = np.stack([fit(image, target) for image in np.rint(images * 255).astype(np.uint8)])
    train, test = model_selection.train_test_split(
        np.arange(len(images)), test_size=500, random_state=0, stratify=data.target
    )
    train = train[_part(split, len(train))]
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
    target = _resolve((side, side, 3), shape)
    images, classes = np.stack([fit(patch, target) for patch in patches]), np.array(labels)
    order = rng.generator(0, "photos").permutation(len(images))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    train = train[_part(split, len(train))]
    return Source(
        "photos",
        tuple(pathlib.Path(name).stem for name in pictures.filenames),
        ArraySplit(images[train], classes[train]),
        ArraySplit(images[test], classes[test]),
        *_statistics("photos", target[-1]),
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
    source = Source(name, names, known, held_out, *_statistics(name, known.image_shape[-1]))
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


def check_source(found: Source, name: str) -> None:
    """Looks at the types, the shapes and the labels of a source, and at its first image.

    Raises:
      ConfigError: naming what was expected.
    """
    if not isinstance(found, Source):
        accepted = f"a loader that returns a Source, not {type(found).__name__}"
        raise ConfigError("data.name", name, accepted)
    shape, classes = found.image_shape, found.num_classes
    if len(found.mean) != shape[-1] or len(found.std) != shape[-1]:
        accepted = f"a mean and a std of {shape[-1]} channels, not {found.mean} and {found.std}"
        raise ConfigError("data.name", name, accepted)
    for part, split in (("train", found.train), ("test", found.test)):
        images, labels = split.images(np.zeros(1, np.int64)), split.labels
        if images.shape != (1, *shape) or images.dtype not in (np.uint8, np.float32):
            accepted = f"{part} images of shape {(1, *shape)}, uint8 or float32, for one index"
            raise ConfigError("data.name", name, f"{accepted}, not {images.dtype}{images.shape}")
        if labels.shape != (len(split),) or labels.dtype.kind not in "iu":
            accepted = f"integer {part} labels of shape [N] = {(len(split),)}"
            raise ConfigError("data.name", name, f"{accepted}, not {labels.dtype}{labels.shape}")
        if labels.min() < 0 or labels.max() >= classes:
            accepted = f"{part} labels in 0..{classes - 1}, as there are {classes} class names"
            raise ConfigError("data.name", name, f"{accepted}, not {labels.min()}..{labels.max()}")


# --- A folder of images --------------------------------------------------------------------------


class FolderSplit(Split):
    """Image files, decoded with Pillow.

    Args:
      files: where the images are.
      labels: one per file.
      image_shape: what to deliver.
      resize: whether images of another height and width are resized, or refused.
    """

    def __init__(
        self,
        files: Sequence[epath.Path],
        labels: Int[np.ndarray, " N"],
        image_shape: Shape,
        resize: bool,
    ) -> None:
        self._files = files
        self._labels = labels.astype(np.int32)
        self._resize = resize
        self.image_shape = image_shape

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """See `Split`; known from the names of the folders."""
        return self._labels

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: Int[np.ndarray, " n"]) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """See `Split`."""
        for index in indices:
            image = _decode_file(self._files[index])
            if not self._resize and image.shape[:2] != self.image_shape[:2]:
                size, first = ("x".join(map(str, s[:2])) for s in (image.shape, self.image_shape))
                why = f"as {self._files[index]} is {size} and the first image {first}"
                raise ConfigError("data.image_size", 0, f"a size in pixels, {why}")
            yield image


@SOURCES.register("folder")
def folder(directory: str, split: str, shape: Shape) -> Source:
    """Images in `<data.dir>/train/<class>/` and `<data.dir>/test/<class>/`, PNG or JPEG.

    The names of the folders below `train`, sorted, are the classes. Files are put into a random
    order that never changes, so that a part of them (`data.split`) has all classes in it.
    """
    root = _directory(directory, "train/<class>/ and test/<class>/")
    class_names = tuple(sorted(path.name for path in root.glob("train/*") if path.is_dir()))
    others = {path.name for path in root.glob("test/*") if path.is_dir()} - set(class_names)
    if others:
        raise ConfigError(
            "data.dir", directory, f"the same classes in train/ and test/, not only {min(others)!r}"
        )
    parts = []
    for part in ("train", "test"):
        files = _shuffled([f for name in class_names for f in _image_files(root / part / name)])
        if not files:
            raise ConfigError("data.dir", directory, f"PNG or JPEG images in {part}/<class>/")
        parts.append(files)
    parts[0] = parts[0][_part(split, len(parts[0]))]
    stored = [_decode_file(file).shape for file in parts[0][:FIRST_LOOK]]
    target = _resolve((*stored[0][:2], max(channels for *_, channels in stored)), shape)
    label_of = {name: label for label, name in enumerate(class_names)}
    train, test = (
        FolderSplit(
            files,
            # The class is the folder below train/ or test/, however deep below it the file is.
            np.array([label_of[file.relative_to(root).parts[1]] for file in files]),
            target,
            resize=shape[0] > 0,
        )
        for files in parts
    )
    return Source("folder", class_names, train, test, *_statistics("folder", target[-1]))


def _unlabelled_folder(directory: str, shape: Shape) -> Split:
    files = _image_files(_directory(directory, "it"))
    if not files:
        raise ConfigError("data.dir", directory, "a directory with PNG or JPEG images in it")
    return FolderSplit(files, np.full(len(files), -1), shape, resize=True)


def _directory(directory: str, where: str) -> epath.Path:
    """The directory as a path, or a URL; `Path("")` would be the current directory."""
    path = epath.Path(directory).expanduser()
    if not directory or not path.is_dir():
        raise ConfigError("data.dir", directory, f"a directory with PNG or JPEG images in {where}")
    return path


def _image_files(root: epath.Path) -> list[epath.Path]:
    """All images below a directory, in an order that does not depend on the file system."""
    return sorted(path for path in files_below(root) if path.suffix.lower() in IMAGE_FILES)


def _shuffled(files: list[epath.Path]) -> list[epath.Path]:
    """A random order that never changes."""
    return [files[index] for index in rng.generator(0, "folder").permutation(len(files))]


# --- TensorFlow Datasets -------------------------------------------------------------------------


class TfdsSplit(Split):
    """Records of a prepared dataset, `tf.train.Example` messages in array_record files.

    Only the feature that is asked for is decoded, and always with Pillow, so that the same files
    give the same pixels on every machine.

    Args:
      records: the undecoded records, read in blocks by `__getitems__`.
      image_key: the feature that holds the image.
      label_key: the feature that holds the label.
      image_shape: what to deliver.
    """

    def __init__(
        self, records: Records, image_key: str, label_key: str, image_shape: Shape
    ) -> None:
        self._records = records
        self._image_key = image_key
        self._label_key = label_key
        self.image_shape = image_shape

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " N"]:
        """See `Split`."""
        if len(self) > 200_000:
            logging.info("Reading the labels of %d samples.", len(self))
        blocks = [
            [feature.int64_list.value[0] for feature in self._features(block, self._label_key)]
            for block in _blocks(np.arange(len(self)), LABEL_BLOCK)
        ]
        return np.concatenate(blocks).astype(np.int32)

    @property
    def has_labels(self) -> bool:
        """Whether the first label is one; datasets that keep their test labels secret have -1."""
        return next(self._features(np.arange(1), self._label_key)).int64_list.value[0] >= 0

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Int[np.ndarray, " n"]) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """See `Split`."""
        for index, feature in zip(indices, self._features(indices, self._image_key), strict=True):
            yield _decode(feature.bytes_list.value[0], f"record {index}")

    def _features(self, indices: Int[np.ndarray, " n"], key: str) -> Iterator[Any]:
        """One feature of each record; records are fetched together, 10 times as fast as singly."""
        from tensorflow_datasets.proto import tf_example_pb2

        for record in self._records.__getitems__(indices.tolist()):
            yield tf_example_pb2.Example.FromString(record).features.feature[key]


def tensorflow_dataset(name: str, directory: str, split: str, shape: Shape) -> Source:
    """A dataset of TensorFlow Datasets that lies prepared in `directory` or $TFDS_DATA_DIR.

    The test split is "test", or "validation" where there is none or its labels are kept secret.

    Source: https://www.tensorflow.org/datasets/data_source.
    """
    builder = _builder(name, directory or os.environ.get("TFDS_DATA_DIR", ""))
    features = builder.info.features
    image_key, label_key = _keys(builder)
    target = _resolve(features[image_key].shape, shape)

    def make(part: str) -> TfdsSplit:
        return TfdsSplit(_records(builder, part), image_key, label_key, target)

    tests = [make(part) for part in ("test", "validation") if part in builder.info.splits]
    test = next((part for part in tests if part.has_labels), None)
    if test is None:
        raise ConfigError("data.name", name, "a dataset with a labelled split test or validation")
    class_names = tuple(features[label_key].names)
    return Source(name, class_names, make(split or "train"), test, *_statistics(name, target[-1]))


def _builder(name: str, directory: str) -> tfds.core.DatasetBuilder:
    """The builder of a dataset that is prepared in a file format with random access."""
    import tensorflow_datasets as tfds  # seconds

    try:
        builder = tfds.builder(name, data_dir=directory or None)
    except tfds.core.DatasetNotFoundError:
        # Listing community datasets would look for them on the network.
        registered = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, [*SOURCES.names(), *registered], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        accepted = f"{', '.join(SOURCES.names())}, or a dataset of TensorFlow Datasets"
        where = f"registered there or prepared in data.dir = {directory!r}"
        raise ConfigError("data.name", name, f"{accepted}, {where}{hint}") from None
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            "data.name", name, f"a dataset of TensorFlow Datasets ({reason})"
        ) from None
    if not builder.info.splits:
        command = ["tfds", "build", name, "--file_format=array_record"]
        command += [f"--data_dir={directory}"] if directory else []
        _refuse_unprepared(name, directory, "nothing", command)
    if "array_record" not in {form.value for form in builder.info.available_file_formats()}:
        command = ["tfds", "convert_format", f"--dataset_version_dir={builder.data_path}"]
        command += ["--out_file_format=array_record"]
        _refuse_unprepared(name, directory, f"{builder.info.file_format.value} files", command)
    return builder


def _refuse_unprepared(name: str, directory: str, found: str, command: list[str]) -> NoReturn:
    raise ConfigError(
        "data.name",
        name,
        f"a dataset prepared as array_record files, but data.dir = {directory!r} has {found} of"
        f" that name. Prepare it once, where TensorFlow is installed, with: {shlex.join(command)}",
    )


def _keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """The names of the image and of the label among the features."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    keys: Any = builder.info.supervised_keys or ()
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    found: list[Any] = [features[key] if isinstance(key, str) else None for key in keys]
    if len(found) != 2 or not all(map(isinstance, found, kinds)):
        raise ConfigError("data.name", builder.name, "a dataset of one image and one label each")
    if found[0].np_dtype != np.uint8:
        raise ConfigError("data.name", builder.name, "a dataset of images with 8 bits a channel")
    return keys


def _records(builder: tfds.core.DatasetBuilder, split: str) -> Records:
    """The undecoded records of a split."""
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(
            split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            file_format="array_record",
        )
    except ValueError as error:
        splits = ", ".join(builder.info.splits)
        accepted = f"samples of the splits {splits}, such as 'train', 'train[:20%]', 'train[:5000]'"
        reason = str(error).partition("\n")[0]
        raise ConfigError("data.split", split, f"{accepted} ({reason})") from None
