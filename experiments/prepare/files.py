# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The files of a prepared data set: where they are, whether all are there, their checksums.

TFDS' layout is `<data_dir>/<name>[/<config>]/<version>/`, with `dataset_info.json`,
`features.json`, names of labels, and files of records.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
INFO = "dataset_info.json"

_VERSION = re.compile(r"\d+\.\d+\.\d+")


class PrepareError(RuntimeError):
    """A data set that cannot be prepared, or is damaged: what is wrong, and what would help."""


def version_folder(root: Path, name: str) -> Path | None:
    """The newest version of a data set in a data directory, or `root` itself if it is one.

    Args:
      root: a data directory, or a version's folder below one.
      name: as `data.name`: "cifar10", "cifar10:3.0.2" or "imagenet_resized/64x64".
    """
    path, _, wanted = name.partition(":")
    if (root / INFO).exists():
        stored = json.loads((root / INFO).read_text())
        return root if stored["name"] == path.partition("/")[0] else None
    found = [
        folder
        for folder in (root / path).glob("*")
        if _VERSION.fullmatch(folder.name) and (folder / INFO).exists()
    ]
    kept = [folder for folder in found if wanted in ("", folder.name)]
    return max(kept, key=lambda folder: tuple(map(int, folder.name.split("."))), default=None)


def prepared(root: Path, name: str) -> Path | None:
    """The folder of a data set that this module has finished."""
    folder = version_folder(root, name)
    return folder if folder and (folder / SUMS).exists() else None


def shards(folder: Path, suffix: str = "array_record") -> dict[Path, int]:
    """The files of all splits with how many records each has, by `dataset_info.json`.

    >>> folder = getfixture("tmp_path")
    >>> split = {"name": "test", "shardLengths": ["5", "4"]}
    >>> _ = (folder / INFO).write_text(json.dumps({"name": "blobs", "splits": [split]}))
    >>> [(path.name, count) for path, count in shards(folder).items()]
    [('blobs-test.array_record-00000-of-00002', 5), ('blobs-test.array_record-00001-of-00002', 4)]
    """
    info: dict[str, Any] = json.loads((folder / INFO).read_text())
    found = {}
    for split in info["splits"]:
        lengths = [int(length) for length in split["shardLengths"]]
        for index, length in enumerate(lengths):
            part = f"{index:05d}-of-{len(lengths):05d}"
            found[folder / f"{info['name']}-{split['name']}.{suffix}-{part}"] = length
    return found


def check_records(folder: Path) -> None:
    """Counts the records of every file.

    Raises:
      PrepareError: a file is not there, cannot be read, or has another number of records.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    for path, length in shards(folder).items():
        if not path.exists():
            raise PrepareError(f"{path} is not there")
        try:
            reader = ArrayRecordReader(str(path))
            count = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError) as error:
            raise PrepareError(f"{path} cannot be read: {error}") from None
        if count != length:
            raise PrepareError(f"{path} has {count} records instead of {length}")


def write_sums(folder: Path) -> None:
    """Writes the checksums of all files, for `check_sums` and `sha256sum --check` alike."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    lines = [f"{_sum(folder / name)}  {name}\n" for name in names]
    temporary = folder / f".{SUMS}"
    temporary.write_text("".join(lines))
    temporary.replace(folder / SUMS)


def check_sums(folder: Path) -> None:
    """Compares all files with their checksums.

    Raises:
      PrepareError: a file has changed or is gone.
    """
    for line in (folder / SUMS).read_text().splitlines():
        expected, name = line.split("  ", 1)
        if not (folder / name).exists():
            raise PrepareError(f"{folder / name} is gone; delete {folder} and prepare it again")
        if _sum(folder / name) != expected:
            raise PrepareError(f"{folder / name} has changed; delete {folder}, prepare it again")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
