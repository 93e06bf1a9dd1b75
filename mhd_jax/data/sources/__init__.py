# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Where samples and labels come from: arrays, clients, image folders, TensorFlow Datasets."""

from __future__ import annotations

import re

import numpy as np
from ml_collections import ConfigDict

from mhd_jax.data.sources.arrays import ArraySplit, from_arrays
from mhd_jax.data.sources.folder import FolderSplit, shared_folders, unlabelled_folder
from mhd_jax.data.sources.interface import (
    AS_STORED,
    SOURCES,
    Loader,
    Shape,
    Silos,
    Source,
    Split,
    at_most,
    check_source,
    fingerprint,
    first_classes,
    fit,
    is_ids,
    load_all,
    measured_statistics,
    part,
)
from mhd_jax.data.sources.silos import from_clients
from mhd_jax.data.sources.tfds import TfdsSplit, tensorflow_dataset
from mhd_jax.errors import ConfigError, of_piece

__all__ = [
    "AS_STORED",
    "PRIVATE",
    "SOURCES",
    "TEST",
    "ArraySplit",
    "FolderSplit",
    "Loader",
    "Shape",
    "Silos",
    "Source",
    "Split",
    "TfdsSplit",
    "at_most",
    "check_source",
    "fingerprint",
    "fit",
    "from_arrays",
    "from_clients",
    "is_ids",
    "load_all",
    "made_public",
    "measured_statistics",
    "part",
    "public_split",
    "source",
    "tensorflow_dataset",
]


def source(config: ConfigDict) -> Source:
    """The dataset that the settings under `data` name.

    Args:
      config: with `name` ("digits", "photos", "folder", or one of TensorFlow Datasets such as
        "cifar10" or "imagenet_resized/64x64"), `dir`, `split` ("" or "train" for all training
        samples, or a part such as "train[:20%]" or "train[:5000]"), `image_size` (0 for the
        stored size), `num_classes` (the first so many classes only, 0 for all), and `client_key`
        (TensorFlow Datasets: the feature that names a sample's client, "" for none).

    Raises:
      ConfigError: there is no such dataset, it is not prepared, or a setting does not fit it.

    >>> digits = source(ConfigDict({"name": "digits", "dir": "", "split": "", "image_size": 0}))
    >>> len(digits.train), len(digits.test), digits.image_shape
    (1297, 500, (8, 8, 1))
    """
    size = config.image_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ConfigError("data.image_size", size, "a size in pixels, or 0 for the stored size")
    client_key = config.client_key if "client_key" in config else ""
    found = _load(config.name, config.dir, config.split, (size, size, 0), client_key)
    return first_classes(found, config.num_classes if "num_classes" in config else 0)


def public_split(config: ConfigDict, image_shape: Shape, dtype: np.dtype) -> Split:
    """The images of another dataset as the public set; nobody reads its labels.

    Args:
      config: the settings under `data`; `public_name` is the dataset, whose training images are
        taken, and `public_dir` where it is ("" for `dir`). The name "folder" stands for all images
        below the directory, whatever its folders are called.
      image_shape: the shape of the private images, to which the public ones are resized and, if
        need be, turned from colour to grey or back.
      dtype: of the private samples, which that of the public ones has to fit.

    Raises:
      ConfigError: as `source`, naming the `data.public_...` settings; or samples of another shape
        or type.
    """
    directory = config.public_dir or config.dir
    alike = f"samples of shape {image_shape}, as those of data.name are"
    try:
        if config.public_name == "folder":
            found = unlabelled_folder(directory, image_shape)
        else:
            found = _load(config.public_name, directory, "train", image_shape).train
    except ConfigError as error:
        setting = error.setting.replace("data.", "data.public_")
        if setting.removeprefix("data.") not in config:  # its own shape is asked of it, say
            raise ConfigError("data.public_name", config.public_name, alike) from error
        accepted = error.accepted.replace("data.", "data.public_")
        raise ConfigError(setting, error.value, accepted) from error
    if found.image_shape != tuple(image_shape):
        raise ConfigError("data.public_name", config.public_name, alike)
    _check_type(config.public_name, found, dtype)
    return found


def _check_type(name: str, public: Split, dtype: np.dtype) -> None:
    """Raises `ConfigError` where public samples are not numbers of the kind of the private ones.

    Both are normalised alike. Normalisation divides bytes by 255, so that images in uint8 fit those
    in floating point, which lie in 0..1; numbers of tables and series may lie anywhere.
    """
    images = len(public.image_shape) == 3 and not (is_ids(dtype) or is_ids(public.dtype))
    if public.dtype != dtype and not images:
        accepted = f"samples of type {dtype}, as those of data.name are, not {public.dtype}"
        raise ConfigError("data.public_name", name, accepted)


PRIVATE, TEST = "the clients' own images", "the test images"


def made_public(config: ConfigDict) -> tuple[str, ...]:
    """`PRIVATE`, `TEST`, or both, where `public_name` makes them public; () where it does not.

    Told from the names of the data sets, and of folders from their directories; no image is
    compared. Another directory makes no other data set: sources that bring their samples read
    none, and in TensorFlow Datasets it holds a copy of the same images.

    Args:
      config: the settings under `data`.
    """
    name = _without_variant(config.public_name)
    if name != _without_variant(config.name):
        return ()
    if name == "folder":
        halves = shared_folders(config.dir, config.public_dir or config.dir)
        kinds = {TEST if half.endswith("test") else PRIVATE for half in halves}
        return tuple(sorted(kinds))
    return (PRIVATE,)


def _without_variant(name: str) -> str:
    """The name of a data set without its size or version.

    >>> _without_variant("imagenet_resized/64x64"), _without_variant("cifar10:3.0.2")
    ('imagenet_resized', 'cifar10')
    """
    return re.split("[/:]", name)[0]


def _load(name: str, directory: str, split: str, shape: Shape, client_key: str = "") -> Source:
    if name in SOURCES:
        if client_key:
            accepted = f"'' for {name!r}: only TensorFlow Datasets have features by name"
            raise ConfigError("data.client_key", client_key, accepted)
        load = SOURCES.get(name)
        with of_piece("data.name", name, "a source (dir, split, shape)"):
            found = load(directory, split, shape)
        check_source(found, name)
        return found
    if client_key:
        return tensorflow_dataset(name, directory, split, shape, client_key)
    return tensorflow_dataset(name, directory, split, shape)
