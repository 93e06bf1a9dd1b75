# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Builds or converts a data set; runs in an environment with TensorFlow and without this package.

    environment/bin/python worker.py cifar10 --data_dir=... [--from=... | --download_dir=...]

Writes to `<data_dir>/<name>/<version>/`. Files are written under another name and renamed, so that
one that exists is complete; a conversion goes on with the first file that is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def build(options: argparse.Namespace) -> None:
    """Downloads and builds a data set of TFDS as array_record files."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(options.name, data_dir=options.data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_dir=options.download_dir,
        # Copies that TFDS keeps prepared are tfrecord files.
        download_config=tfds.download.DownloadConfig(
            manual_dir=options.manual_dir, try_download_gcs=False
        ),
    )


def convert(source: Path, data_dir: Path) -> None:
    """Converts the tfrecord files of a version's folder to array_record files.

    Args:
      source: `<some data dir>/<name>[/<config>]/<version>`, which stays as it is.
      data_dir: where the converted copy goes, under the same name.
    """
    info = json.loads((source / "dataset_info.json").read_text())
    if info["fileFormat"] not in ("tfrecord", "array_record"):
        raise SystemExit(f"{source} holds {info['fileFormat']} files; tfrecord can be converted")
    parts = [info["name"], *([info["configName"]] if info.get("configName") else [])]
    target = data_dir.joinpath(*parts, info["version"])
    target.mkdir(parents=True, exist_ok=True)
    for split in info["splits"]:
        count = len(split["shardLengths"])
        for index, length in enumerate(split["shardLengths"]):
            name = f"{info['name']}-{split['name']}.{{}}-{index:05d}-of-{count:05d}"
            _convert_file(
                source / name.format(info["fileFormat"]),
                target / name.format("array_record"),
                int(length),
            )
    for path in source.iterdir():  # features, names of labels
        if path.is_file() and path.suffix in (".json", ".txt"):
            shutil.copy(path, target)
    info["fileFormat"] = "array_record"
    info.pop("alternativeFileFormats", None)
    (target / "dataset_info.json").write_text(json.dumps(info, indent=2))


def _convert_file(source: Path, target: Path, length: int) -> None:
    """Copies the records of one file, all or none of them."""
    if target.exists():
        return
    temporary = target.with_name(f"{target.name}.part")
    if source.name == target.name:  # is in the right form already
        shutil.copyfile(source, temporary)
    else:
        from array_record.python.array_record_module import ArrayRecordWriter

        # One record a group, for random access, as TFDS writes them.
        writer, count = ArrayRecordWriter(str(temporary), "group_size:1"), 0
        for record in records(source):
            writer.write(record)
            count += 1
        writer.close()
        if count != length:
            raise SystemExit(f"{source} has {count} records instead of {length}")
    os.replace(temporary, target)
    print(f"{target.name}: {length} records", flush=True)


def records(path: Path) -> Iterator[bytes]:
    """The records of a tfrecord file; TensorFlow checks the checksum of each."""
    import tensorflow as tf

    for record in tf.data.TFRecordDataset(str(path)):
        yield record.numpy()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Builds or converts a data set.")
    parser.add_argument("name")
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--download_dir", type=Path)
    parser.add_argument("--manual_dir", type=Path)
    options = parser.parse_args()
    if options.source:
        convert(options.source, options.data_dir)
    else:
        build(options)


if __name__ == "__main__":
    main()
