# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Images in folders named by their class."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from mhd_jax import rng
from mhd_jax.data.sources.interface import (
    AS_STORED,
    FEWEST,
    SOURCES,
    Shape,
    Silos,
    Source,
    Split,
    decode_file,
    part,
    resolve_shape,
    statistics,
)
from mhd_jax.errors import ConfigError
from mhd_jax.files import absolute, files_below

# Images of a folder that decide between grey and colour: one in colour is enough.
FIRST_LOOK = 16

IMAGE_FILES = (".png", ".jpg", ".jpeg")


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
            image = decode_file(self._files[index])
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
    With a folder `<data.dir>/clients` the layout is that of `client_folders`.
    """
    root = _directory(directory, "train/<class>/ and test/<class>/")
    if (root / "clients").is_dir():
        return client_folders(root, split, shape)
    class_names = tuple(sorted(path.name for path in root.glob("train/*") if path.is_dir()))
    others = {path.name for path in root.glob("test/*") if path.is_dir()} - set(class_names)
    if others:
        raise ConfigError(
            "data.dir", directory, f"the same classes in train/ and test/, not only {min(others)!r}"
        )
    parts = []
    for half in ("train", "test"):
        files = _shuffled([f for name in class_names for f in _image_files(root / half / name)])
        if not files:
            raise ConfigError("data.dir", directory, f"PNG or JPEG images in {half}/<class>/")
        parts.append(files)
    parts[0] = parts[0][part(split, len(parts[0]))]
    target = _target(parts[0], shape)
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
    return Source("folder", class_names, train, test, *statistics("folder", target[-1]))


def client_folders(root: epath.Path, split: str, shape: Shape) -> Source:
    """Clients as they are, `<root>/clients/<name>/<class>/`, with `<root>/test/<class>/`.

    Everything below `<root>/public` is the public pool; without this folder a fraction of all
    clients' images is. `<root>/client_test/<name>/<class>/` holds test images of clients; either
    every client has some or none has. Classes are the folders of all clients and of the test.

    Raises:
      ConfigError: naming the client or the folder, and what is missing in it.
    """
    names = _folders(root / "clients")
    holders = [root / "test", *(root / "clients" / who for who in names)]
    class_names = sorted({name for holder in holders for name in _folders(holder)})
    train = _labelled(root, "clients", class_names)
    held = collections.Counter(file.relative_to(root).parts[1] for file in train)
    for who in names:
        if held[who] < FEWEST:
            raise ConfigError("clients", who, f"at least {FEWEST} images, not {held[who]}")
    train = train[part(split, len(train))]
    owner = {who: index for index, who in enumerate(names)}
    tests, own = _labelled(root, "test", class_names), _labelled(root, "client_test", class_names)
    _check_classes(root, train, tests, class_names)
    if own and {file.relative_to(root).parts[1] for file in own} != set(names):
        accepted = f"images of every client and of nobody else: {', '.join(names)}"
        raise ConfigError("data.dir", str(root / "client_test"), accepted)
    target = _target(train, shape)

    def make(files: Sequence[epath.Path]) -> FolderSplit:
        labels = [class_names.index(_class_of(root, file)) for file in files]
        return FolderSplit(files, np.array(labels, int), target, resize=shape[0] > 0)

    def owners(files: Sequence[epath.Path]) -> Int[np.ndarray, " n"]:
        return np.array([owner[file.relative_to(root).parts[1]] for file in files], int)

    return Source(
        "folder", tuple(class_names), make(train), make(tests), *statistics("folder", target[-1]),
        silos=Silos(tuple(names), owners(train), make(own) if own else None, owners(own)),
        public=_pool(root / "public", target),
    )  # fmt: skip


def _pool(directory: epath.Path, shape: Shape) -> Split | None:
    """The public pool, where there is a folder for it."""
    return unlabelled_folder(str(directory), shape) if directory.is_dir() else None


def _folders(root: epath.Path) -> list[str]:
    return sorted(path.name for path in root.glob("*") if path.is_dir())


def _labelled(root: epath.Path, half: str, class_names: Sequence[str]) -> list[epath.Path]:
    """All images of a part that lie in a folder of a class, shuffled."""
    files = _image_files(root / half) if (root / half).is_dir() else []
    return _shuffled([file for file in files if _class_of(root, file) in class_names])


def _class_of(root: epath.Path, file: epath.Path) -> str:
    """The class of an image: the folder below `test`, or below the client's."""
    parts = file.relative_to(root).parts
    at = 1 if parts[0] == "test" else 2
    return parts[at] if len(parts) > at + 1 else ""


def _check_classes(
    root: epath.Path,
    train: Sequence[epath.Path],
    test: Sequence[epath.Path],
    class_names: Sequence[str],
) -> None:
    """Raises `ConfigError` for a class without a client, or without a test image."""
    for files, half, accepted in (
        (train, "clients", "a client with images of class"),
        (test, "test", "test images of class"),
    ):
        missing = set(class_names) - {_class_of(root, file) for file in files}
        if missing or not files:
            raise ConfigError(
                "data.dir", str(root / half), f"{accepted} {min(missing, default='<class>')!r}"
            )


def _target(files: Sequence[epath.Path], shape: Shape) -> Shape:
    """The shape to deliver, from the first few images."""
    stored = [decode_file(file).shape for file in files[:FIRST_LOOK]]
    return resolve_shape((*stored[0][:2], max(channels for *_, channels in stored)), shape)


def unlabelled_folder(directory: str, shape: Shape) -> Split:
    """All images below a directory, whatever its folders are called; every label is -1."""
    files = _image_files(_directory(directory, "it"))
    if not files:
        raise ConfigError("data.dir", directory, "a directory with PNG or JPEG images in it")
    shape = resolve_shape(AS_STORED, shape)
    return FolderSplit(files, np.full(len(files), -1), shape, resize=True)


def shared_folders(directory: str, public: str) -> list[str]:
    """Which of the folders `train`, `clients`, `test`, `client_test` share images with `public`.

    Args:
      directory: that these folders are in.
      public: of which all images are public.
    """
    halves = ("train", "clients", "test", "client_test")
    folders = {half: absolute(epath.Path(directory) / half) for half in halves}
    pool = absolute(public)
    return [
        half
        for half, folder in folders.items()
        if folder.is_dir() and (pool in (folder, *folder.parents) or folder in pool.parents)
    ]


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
