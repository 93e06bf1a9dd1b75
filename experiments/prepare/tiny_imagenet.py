# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Tiny ImageNet at 32 px from its unpacked archive; TFDS has no such data set.

The archive (http://cs231n.stanford.edu/tiny-imagenet-200.zip) has 200 classes at 64 px,
`train/<class>/images/*.JPEG` and `val/images/*.JPEG` with `val/val_annotations.txt`. Images are
halved by Pillow and stored as PNG, so that nothing is lost twice.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from experiments.prepare.files import INFO, PrepareError

NAME, VERSION, SIDE = "tiny_imagenet32", "1.0.0", 32
SHARD = 10_000  # images in a file

_FEATURE = "tensorflow_datasets.core.features"
Sample = tuple[Path, int]


def convert(source: Path | None, data_dir: Path) -> Path:
    """Writes the data set; files that are there already are left alone.

    Args:
      source: the unpacked archive.
      data_dir: where `tiny_imagenet32/1.0.0` goes.

    Raises:
      PrepareError: no source, or not such an archive.
    """
    if source is None or not (source.expanduser() / "wnids.txt").is_file():
        raise PrepareError(
            f"--from={source}: expected the folder tiny-imagenet-200, unpacked from "
            "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
        )
    source = source.expanduser()
    classes = sorted((source / "wnids.txt").read_text().split())
    splits = {"train": _train(source, classes), "validation": _validation(source, classes)}
    folder = data_dir / NAME / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    lengths = {split: _write(folder, split, samples) for split, samples in splits.items()}
    (folder / "label.labels.txt").write_text("".join(f"{name}\n" for name in classes))
    (folder / "features.json").write_text(json.dumps(_features(len(classes)), indent=2))
    # Last: a folder that has it is complete.
    (folder / INFO).write_text(json.dumps(_info(folder, lengths), indent=2))
    return folder


def _train(source: Path, classes: Sequence[str]) -> list[Sample]:
    """All training images in a random order that never changes."""
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((source / "train" / name / "images").glob("*.JPEG"))
    ]
    random.Random(0).shuffle(found)
    return found


def _validation(source: Path, classes: Sequence[str]) -> list[Sample]:
    label_of = {name: label for label, name in enumerate(classes)}
    lines = (source / "val" / "val_annotations.txt").read_text().splitlines()
    pairs = [line.split("\t")[:2] for line in lines]
    return [(source / "val" / "images" / file, label_of[name]) for file, name in pairs]


def _write(folder: Path, split: str, samples: Sequence[Sample]) -> list[int]:
    """Writes the files of a split; how many images each has."""
    from array_record.python.array_record_module import ArrayRecordWriter

    if not samples:
        raise PrepareError(f"--from: there are no images for the split {split}")
    parts = [samples[start : start + SHARD] for start in range(0, len(samples), SHARD)]
    for index, part in enumerate(parts):
        path = folder / f"{NAME}-{split}.array_record-{index:05d}-of-{len(parts):05d}"
        if path.exists():
            continue
        temporary = path.with_name(f"{path.name}.part")
        writer = ArrayRecordWriter(str(temporary), "group_size:1")
        for image, label in part:
            writer.write(_record(image, label))
        writer.close()
        temporary.replace(path)
        print(f"{path.name}: {len(part)} records", flush=True)
    return [len(part) for part in parts]


def _record(path: Path, label: int) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2

    stored = io.BytesIO()
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        small.save(stored, "PNG")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(stored.getvalue())
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def _features(classes: int) -> dict:
    """What TFDS reads the meaning of a record from."""
    shape = {"dimensions": [str(SIDE), str(SIDE), "3"]}
    image = {"shape": shape, "dtype": "uint8", "encodingFormat": "png"}
    return {
        "pythonClassName": f"{_FEATURE}.features_dict.FeaturesDict",
        "featuresDict": {
            "features": {
                "image": {"pythonClassName": f"{_FEATURE}.image_feature.Image", "image": image},
                "label": {
                    "pythonClassName": f"{_FEATURE}.class_label_feature.ClassLabel",
                    "classLabel": {"numClasses": str(classes)},
                },
            }
        },
    }


def _info(folder: Path, lengths: dict[str, list[int]]) -> dict:
    def split(name: str) -> dict:
        size = sum(path.stat().st_size for path in folder.glob(f"{NAME}-{name}.array_record-*"))
        return {
            "name": name,
            "shardLengths": [str(length) for length in lengths[name]],
            "numBytes": str(size),
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }

    keys = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}
    return {
        "name": NAME,
        "version": VERSION,
        "fileFormat": "array_record",
        "description": "Tiny ImageNet, 200 classes, halved to 32x32 pixels.",
        "splits": [split(name) for name in lengths],
        "supervisedKeys": keys,
    }
