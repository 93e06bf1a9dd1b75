# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Samples in memory: scikit-learn's digits, photographs and table, and arrays of one's own."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from mhd_jax import rng, wording
from mhd_jax.data.sources.interface import (
    SOURCES,
    Shape,
    Silos,
    Source,
    Split,
    check_source,
    fit,
    part,
    resolve_shape,
    statistics,
    warn_of_channels_first,
)
from mhd_jax.errors import ConfigError, of_piece


class ArraySplit(Split):
    """Samples that are in memory already."""

    def __init__(self, images: Shaped[np.ndarray, "N ..."], labels: Int[np.ndarray, " N"]) -> None:
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

    def read(self, indices: Int[np.ndarray, " n"]) -> Iterator[Shaped[np.ndarray, ...]]:
        """See `Split`."""
        return iter(self._images[indices])

    def images(self, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n ..."]:
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
    from sklearn import model_selection  # slow to import

    del directory  # the images come with scikit-learn
    data = _load_digits()
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


@functools.cache
def _load_digits() -> Any:
    """They come as text, which takes as long to read as the rest of a run to build."""
    from sklearn import datasets  # slow to import

    return datasets.load_digits()


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


@SOURCES.register("breast_cancer")
def breast_cancer(directory: str, split: str, shape: Shape) -> Source:
    """569 tumours, 30 numbers each, benign or malignant: 419 to train on and 150 to test on.

    A table that needs no download. Its four clients are a made-up division that looks like a
    real one: each gets tumours of one size, by quartiles of the mean radius, so that the first
    hardly ever meets a malignant one and the last hardly ever a benign one.

    Source: UCI "Breast Cancer Wisconsin (Diagnostic)", through
    https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_breast_cancer.html.

    Raises:
      ConfigError: a size in pixels.
    """
    from sklearn import datasets, model_selection  # slow to import

    del directory  # the table comes with scikit-learn
    if any(shape):
        raise ConfigError("data.image_size", shape[0], "0: this data set is a table")
    data = datasets.load_breast_cancer()
    table: Float[np.ndarray, "N 30"] = data.data.astype(np.float32)
    train, test = model_selection.train_test_split(
        np.arange(len(table)), test_size=150, random_state=0, stratify=data.target
    )
    train = train[part(split, len(train))]
    radius = table[:, list(data.feature_names).index("mean radius")]
    quartiles = np.quantile(radius, [0.25, 0.5, 0.75])
    return Source(
        "breast_cancer",
        tuple(map(str, data.target_names)),
        ArraySplit(table[train], data.target[train]),
        ArraySplit(table[test], data.target[test]),
        silos=Silos(
            ("smallest", "small", "large", "largest"), np.searchsorted(quartiles, radius[train])
        ),
    )


def from_arrays(
    name: str,
    train: tuple[Shaped[np.ndarray, "N ..."], Int[np.ndarray, " N"]],
    test: tuple[Shaped[np.ndarray, "M ..."], Int[np.ndarray, " M"]],
    *,
    class_names: Sequence[str] = (),
    clients: Sequence[object] | np.ndarray = (),
) -> Source:
    """A dataset that is in memory already.

    Args:
      name: what `data.name` calls it.
      train: samples and labels that clients and the public set draw from; see `as_samples` for
        what samples may be: images, rows of a table, series, ids.
      test: samples and labels that everybody is evaluated on.
      class_names: one per class; numbers by default, up to the largest label.
      clients: the name of the client of every training sample, [N], for the partition `by_key`;
        clients come in the order of their sorted names.

    Raises:
      ConfigError: no pair, arrays whose shapes or types do not fit together, or tables whose
        columns have other names or another order.

    >>> images, labels = np.zeros((6, 8, 8), np.uint8), np.array([0, 1, 2, 0, 1, 2])
    >>> mine = from_arrays("mine", (images, labels), (images[:3], labels[:3]))
    >>> mine.num_classes, mine.image_shape
    (3, (8, 8, 1))
    """
    if not isinstance(name, str):
        raise ConfigError("name", name, "what data.name calls the data set")
    given = [((which, type(pair).__name__), pair) for which, pair in
             (("train", train), ("test", test))]  # fmt: skip
    columns = check_columns(given)
    known, held_out = (
        array_split((f"{where[0]} in data.name", name), *as_pair(where, pair))
        for where, pair in given
    )
    classes = max(int(known.labels.max()), int(held_out.labels.max())) + 1
    names = as_names(class_names, classes)
    silos = _silos(name, clients, len(known)) if len(clients) else None
    mean, std = statistics(name, known.image_shape[-1])
    source = Source(name, names, known, held_out, mean, std, silos, columns=columns)
    check_source(source, name)
    warn_of_channels_first(source)
    return source


def _silos(name: str, clients: Sequence[object] | np.ndarray, samples: int) -> Silos:
    """Clients by their sorted names; raises `ConfigError` where a training sample has none."""
    if len(clients) != samples:
        accepted = f"a client for each of {samples} training samples, not {len(clients)}"
        raise ConfigError("data.name", name, accepted)
    if missing := sum(map(_is_missing, clients)):
        accepted = f"a client for every training sample; {missing} of them have none"
        raise ConfigError("data.name", name, accepted)
    keys, owner = np.unique([str(client) for client in clients], return_inverse=True)
    return Silos(tuple(map(str, keys)), owner)


def as_names(given: Sequence[object], classes: int) -> tuple[str, ...]:
    """Names of classes as text, which may be given as numbers; numbers where none are given."""
    return tuple(map(str, given)) if len(given) else tuple(map(str, range(classes)))


def _is_missing(client: object) -> bool:
    """Whether it is None, NaN or what pandas has in their place, which may not be compared."""
    try:
        return client is None or bool(client != client)
    except TypeError:
        return True


Where = tuple[str, object]
"""A setting and its value, for the message of an error."""


def as_pair(where: Where, pair: object) -> tuple[np.ndarray, np.ndarray]:
    """Samples and their labels, neither of them checked.

    Raises:
      ConfigError: of the setting and value `where`: something else than these two.
    """
    if not isinstance(pair, tuple | list):
        raise ConfigError(*where, "a pair (samples, labels)")
    if len(pair) != 2:
        raise ConfigError(*where, f"a pair (samples, labels), not {len(pair)} in number")
    return pair[0], pair[1]


def check_columns(
    given: Iterable[tuple[Where, object]], columns: Sequence[str] = ()
) -> tuple[str, ...]:
    """The columns of tables whose columns have names; as arrays, tables with others look alike.

    Args:
      given: setting and value that an error names, and samples with or without labels: what comes
        first is looked at.
      columns: that all have to have; () for those of the first table.

    Returns:
      The columns; () where none have names.

    Raises:
      ConfigError: a table has other columns, or has them in another order.
    """
    columns = tuple(columns)
    for where, pair in given:
        table = pair[0] if isinstance(pair, tuple | list) and pair else None
        named = tuple(map(str, getattr(table, "columns", ())))
        if columns and named and named != columns:
            accepted = f"the columns {', '.join(columns)} in this order, as the first table has"
            raise ConfigError(*where, accepted)
        columns = columns or named
    return columns


def array_split(where: Where, samples: np.ndarray, labels: np.ndarray) -> ArraySplit:
    """Samples and their labels, checked.

    Raises:
      ConfigError: of the setting and value `where`: shapes, types or values that cannot be.
    """
    samples = as_samples(where, samples)
    with of_piece(*where, "one label a sample"):
        labels = np.asarray(labels)
    if labels.shape != samples.shape[:1]:
        accepted = f"labels of shape [N] = {samples.shape[:1]}, one a sample, not {labels.shape}"
        raise ConfigError(*where, accepted)
    if labels.dtype == bool:  # a comparison, such as outcome == "ill"
        labels = labels.astype(np.int32)
    if labels.dtype.kind not in "iu":
        raise ConfigError(*where, f"labels that are integers, not {labels.dtype}")
    if labels.max() > np.iinfo(np.int32).max or labels.min() < np.iinfo(np.int32).min:
        accepted = f"labels of classes, from 0 on, not {labels.min()}..{labels.max()}"
        raise ConfigError(*where, accepted)
    return ArraySplit(samples, labels)


def as_samples(where: Where, samples: np.ndarray) -> Shaped[np.ndarray, "N ..."]:
    """Samples in a type that training knows.

    Args:
      where: setting and value that an error names.
      samples: images [N, H, W, C] or grey [N, H, W], uint8 or floating point in 0..1; other
        floating-point numbers, such as tables [N, F] and series [N, T, F]; or ids, integers of
        any shape [N, ...].

    Returns:
      uint8 as it is (with an axis of channels), floating point as float32, ids as int32.

    Raises:
      ConfigError: no samples, no numbers, numbers that are not finite, images not in 0..1, ids
        below 0 or beyond 32 bits.
    """
    given, samples = samples, _as_array(where, samples)
    if samples.ndim < 2 or not samples.size:
        accepted = "at least one sample, in an array of shape [N, F], [N, T], [N, T, F], [N, H, W]"
        raise ConfigError(*where, f"{accepted} or [N, H, W, C], not {samples.shape}")
    if samples.dtype == np.uint8:
        return samples[..., None] if samples.ndim == 3 else samples
    if samples.dtype.kind in "iu":
        return _ids(where, samples)
    if samples.dtype.kind not in "fb":
        raise ConfigError(*where, f"samples that are numbers, not {_not_numbers(given, samples)}")
    with np.errstate(over="ignore"):
        return _finite(where, samples.astype(np.float32), samples)


def as_stored(
    setting: str, samples: object, shape: Sequence[int], dtype: np.dtype
) -> Shaped[np.ndarray, "N ..."]:
    """Samples as a data set of such samples stores them: pixels in uint8, or numbers in `dtype`.

    Images in floating point lie in 0..1 and may stand for pixels, and pixels for them.

    Args:
      setting: what messages call them.
      samples: [N, ...]; True and False are the numbers 1 and 0.
      shape: of one sample.
      dtype: uint8 for pixels, another integer type for ids, floating point for other numbers.

    Raises:
      ConfigError: another shape or type, numbers that are not finite, images that are not in 0..1.
    """
    samples = _as_array((setting, type(samples).__name__), samples)
    if samples.ndim != len(shape) + 1 or samples.shape[1:] != tuple(shape):
        accepted = f"[N, {', '.join(map(str, shape))}]"
        raise ConfigError(setting, f"an array of shape {samples.shape}", accepted)
    given, kind, dtype = f"an array of {samples.dtype}", samples.dtype.kind, np.dtype(dtype)
    images = len(shape) == 3
    if dtype.kind in "iu" and dtype != np.uint8:
        if kind not in "iu":
            raise ConfigError(setting, given, "ids, which are integers")
        return _ids((setting, given), samples)
    if kind not in ("fb" if images and samples.dtype != np.uint8 else "fiub"):
        pixels = "pixels of type uint8, or floating point in 0..1"
        accepted = pixels if images else f"numbers of type {dtype}"
        raise ConfigError(setting, given, accepted)
    if dtype == np.uint8 and samples.dtype != np.uint8 and not images:
        raise ConfigError(setting, given, "numbers of type uint8, which alone are divided by 255")
    if samples.dtype == np.uint8:
        return samples if dtype == np.uint8 else samples.astype(dtype) / (255 if images else 1)
    if not len(samples):
        return samples.astype(dtype)
    with np.errstate(over="ignore"):
        return _finite((setting, given), samples.astype(np.float32), samples)


def _ids(where: Where, samples: Int[np.ndarray, "N ..."]) -> Int[np.ndarray, "N ..."]:
    """The samples as int32, unless an id is below 0 or does not fit."""
    if samples.size and (samples.min() < 0 or samples.max() > np.iinfo(np.int32).max):
        accepted = f"ids (integers) from 0 to 2**31 - 1, not {samples.min()}..{samples.max()}; "
        accepted += "give numbers that are no ids as floating point"
        raise ConfigError(*where, accepted)
    return samples.astype(np.int32)


def _as_array(where: Where, samples: object) -> np.ndarray:
    """Samples as an array, unless their shapes differ or some of their values are hidden."""
    if np.ma.is_masked(samples):
        raise ConfigError(*where, "samples without missing values, not a masked array")
    types = [getattr(kind, "numpy_dtype", kind) for kind in getattr(samples, "dtypes", ())]
    with of_piece(*where, ALIKE):
        if types and all(isinstance(kind, np.dtype) and kind.kind in "biuf" for kind in types):
            # A frame of pandas: types of its own, Float64 for one, would come as objects.
            return samples.to_numpy(dtype=np.result_type(*types))  # type: ignore[attr-defined]
        return np.asarray(samples)


def _not_numbers(given: object, samples: np.ndarray) -> str:
    """The type of samples that are none, and in a frame the columns to blame."""
    kinds = getattr(given, "dtypes", ())
    named = zip(getattr(given, "columns", ()), kinds, strict=False)
    guilty = [str(name) for name, kind in named if getattr(kind, "kind", "O") not in "biuf"]
    which = f" in the columns {wording.first_few(guilty, MOST_ROWS)}" if guilty else ""
    return f"{samples.dtype}{which}"


def _finite(
    where: Where, samples: Float[np.ndarray, "N ..."], given: Shaped[np.ndarray, "N ..."]
) -> Float[np.ndarray, "N ..."]:
    """The samples, unless a number is not finite (as `given`, or here), or images not in 0..1."""
    rows = np.flatnonzero(~np.isfinite(samples.reshape(len(samples), -1)).all(axis=1))
    if len(rows):
        beyond = np.isfinite(given[rows]).all()
        found = "NaN, inf or more than float32 holds" if beyond else "NaN or inf"
        listed = ", ".join(map(str, rows[:MOST_ROWS])) + ", ..." * (len(rows) > MOST_ROWS)
        count = f"{len(rows)} of {len(samples)} rows have {found}"
        raise ConfigError(*where, f"finite numbers, but {count} (rows {listed})")
    if samples.ndim == 4 and not (samples.min() >= 0 and samples.max() <= 1):
        accepted = f"floating-point images in 0..1, not {samples.min():g}..{samples.max():g}; "
        accepted += "pixels in 0..255 have the type uint8"
        raise ConfigError(*where, accepted)
    _check_precision(where, samples, given)
    return samples


def _check_precision(
    where: Where, samples: Float[np.ndarray, "N ..."], given: Shaped[np.ndarray, "N ..."]
) -> None:
    """Raises unless float32 can tell the values of each feature apart: times in seconds it cannot.

    A feature may be rounded by a hundredth of its standard deviation.
    """
    if given.dtype.itemsize <= samples.dtype.itemsize or len(given) < 2:
        return
    exact, rounded = (values.reshape(len(given), -1) for values in (given, samples))
    lost = np.abs(exact - rounded).max(axis=0) > 0.01 * exact.std(axis=0)
    features = np.flatnonzero(lost & (exact.min(axis=0) < exact.max(axis=0)))
    if len(features):
        accepted = (
            "numbers that float32 can tell apart, unlike those of features "
            f"{wording.listed(features)}: subtract their mean first"
        )
        raise ConfigError(*where, accepted)


MOST_ROWS = 5  # that an error lists

ALIKE = "an array of samples, all of one shape"
