# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""TensorFlow Datasets, read from prepared array_record files; TensorFlow is never imported."""

from __future__ import annotations

import difflib
import functools
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
from absl import logging
from jaxtyping import Int, UInt8

from mhd_jax.data.sources.interface import (
    SOURCES,
    Shape,
    Silos,
    Source,
    Split,
    blocks,
    decode_image,
    resolve_shape,
    statistics,
)
from mhd_jax.errors import ConfigError, suggest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Records whose labels are read at a time: bounds the memory, as a record holds its image too.
LABEL_BLOCK = 1024


class Records(Protocol):
    """Serialized records with random access."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[int]) -> Sequence[bytes]:
        """Several records at once."""


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
        read = [
            [feature.int64_list.value[0] for feature in self._features(block, self._label_key)]
            for block in blocks(np.arange(len(self)), LABEL_BLOCK)
        ]
        return np.concatenate(read).astype(np.int32)

    def keys(self, name: str) -> list[str]:
        """The values of a feature of every sample, integers or bytes, as text."""

        def text(feature: Any) -> str:
            if feature.bytes_list.value:
                return feature.bytes_list.value[0].decode()
            return str(feature.int64_list.value[0])

        parts = blocks(np.arange(len(self)), LABEL_BLOCK)
        return [text(feature) for block in parts for feature in self._features(block, name)]

    @property
    def has_labels(self) -> bool:
        """Whether the first label is one; datasets that keep their test labels secret have -1."""
        return next(self._features(np.arange(1), self._label_key)).int64_list.value[0] >= 0

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Int[np.ndarray, " n"]) -> Iterator[UInt8[np.ndarray, "h w c"]]:
        """See `Split`."""
        for index, feature in zip(indices, self._features(indices, self._image_key), strict=True):
            yield decode_image(feature.bytes_list.value[0], f"record {index}")

    def _features(self, indices: Int[np.ndarray, " n"], key: str) -> Iterator[Any]:
        """One feature of each record; records are fetched together, 10 times as fast as singly."""
        from tensorflow_datasets.proto import tf_example_pb2

        for record in self._records.__getitems__(indices.tolist()):
            yield tf_example_pb2.Example.FromString(record).features.feature[key]


def tensorflow_dataset(
    name: str, directory: str, split: str, shape: Shape, client_key: str = ""
) -> Source:
    """A dataset of TensorFlow Datasets that lies prepared in `directory` or $TFDS_DATA_DIR.

    The test split is "test", or "validation" where there is none or its labels are kept secret;
    `split` has no sample of it. `client_key` is the feature, an integer or a string, that names the
    client of a sample.

    Source: https://www.tensorflow.org/datasets/data_source.
    """
    builder = _builder(name, directory or os.environ.get("TFDS_DATA_DIR", ""))
    features = builder.info.features
    image_key, label_key = _keys(builder)
    target = resolve_shape(features[image_key].shape, shape)

    def make(part: str) -> TfdsSplit:
        return TfdsSplit(_records(builder, part), image_key, label_key, target)

    tests = {part: make(part) for part in ("test", "validation") if part in builder.info.splits}
    held_out = next((part for part, made in tests.items() if made.has_labels), None)
    if held_out is None:
        raise ConfigError("data.name", name, "a dataset with a labelled split test or validation")
    if {part.partition("[")[0].strip() for part in split.split("+")} & {held_out, "all"}:
        accepted = f"no samples of {held_out!r}, on which everybody is tested"
        raise ConfigError("data.split", split, accepted)
    class_names = tuple(features[label_key].names)
    train, (mean, std) = make(split or "train"), statistics(name, target[-1])
    silos = _silos(builder, train, client_key) if client_key else None
    return Source(name, class_names, train, tests[held_out], mean, std, silos)


def _silos(builder: tfds.core.DatasetBuilder, train: TfdsSplit, client_key: str) -> Silos:
    """The clients that a feature names, in the order of their sorted names."""
    known = list(builder.info.features)
    if client_key not in known:
        raise ConfigError("data.client_key", client_key, f"a feature, {suggest(client_key, known)}")
    dtype = np.dtype(builder.info.features[client_key].np_dtype)
    if dtype.kind not in "iuSUO" or builder.info.features[client_key].shape != ():
        accepted = f"a feature that is one integer or one text, not {dtype}"
        raise ConfigError("data.client_key", client_key, accepted)
    names, owner = np.unique(train.keys(client_key), return_inverse=True)
    return Silos(tuple(map(str, names)), owner)


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
        _refuse_unprepared(name, directory, "nothing", f"--dir={directory or '~/tfds'}")
    if "array_record" not in {form.value for form in builder.info.available_file_formats()}:
        found, source = f"{builder.info.file_format.value} files", f"--from={builder.data_path}"
        _refuse_unprepared(name, directory, found, "--dir=another folder", source)
    return builder


def _refuse_unprepared(name: str, directory: str, found: str, *flags: str) -> NoReturn:
    command = shlex.join(["python", "-m", "experiments.prepare", name, *flags])
    raise ConfigError(
        "data.name",
        name,
        f"a dataset prepared as array_record files, but data.dir = {directory!r} has {found} of"
        f" that name. Prepare it once, in a checkout of mhd-jax, with: {command}",
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
