# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Sources: fixed orders, cheap labels, right pixels, and errors that say what to do."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from mhd_jax.config import default_config
from mhd_jax.data import sources as lib
from mhd_jax.data.sources import interface, tfds
from mhd_jax.errors import ConfigError

BYTES = np.dtype(np.uint8)


def config(**changes: Any) -> ConfigDict:
    values: dict[str, Any] = {
        "name": "digits",
        "dir": "",
        "split": "train",
        "image_size": 0,
        "public_name": "",
        "public_dir": "",
    }
    return ConfigDict({**values, **changes})


def save(path: Path, value: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> None:
    """Writes an image of one brightness."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


# --- Digits --------------------------------------------------------------------------------------


def test_digits_split_never_changes() -> None:
    digits = lib.source(config())
    assert (digits.num_classes, digits.image_shape) == (10, (8, 8, 1))
    assert (len(digits.train), len(digits.test)) == (1297, 500)
    counts = np.bincount(digits.test.labels)
    assert counts.min() >= 48 and counts.max() <= 51
    assert zlib.crc32(digits.test.labels.astype("<i4").tobytes()) == 1243825419
    assert zlib.crc32(lib.load_all(digits.train).astype("<f4").tobytes()) == 773404521


def test_digits_are_numbers_from_zero_to_one() -> None:
    digits = lib.source(config())
    images = lib.load_all(digits.train)
    assert images.dtype == digits.train.dtype == np.float32
    assert images.shape == (1297, 8, 8, 1)
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert digits.train.labels.dtype == np.int32
    assert (digits.mean, digits.std) == ((0.0,), (1.0,))
    assert np.array_equal(digits.train.images(np.array([5, 2])), images[[5, 2]])


def test_digits_resized_are_bytes() -> None:
    digits = lib.source(config(image_size=16))
    small = lib.load_all(lib.source(config()).test)
    large = lib.load_all(digits.test)
    assert large.shape == (500, 16, 16, 1) and large.dtype == np.uint8
    means = large.mean((1, 2, 3)) / 255, small.mean((1, 2, 3))
    np.testing.assert_allclose(*means, atol=0.02)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("", slice(None)),
        ("train", slice(None)),
        ("train[:20%]", slice(0, 259)),
        ("train[:100]", slice(0, 100)),
        ("train[100:300]", slice(100, 300)),
        ("train[-10:]", slice(1287, None)),
    ],
)
def test_split_takes_a_part_of_the_training_set(split: str, expected: slice) -> None:
    everything, part = lib.source(config()), lib.source(config(split=split))
    assert np.array_equal(part.train.labels, everything.train.labels[expected])
    assert len(part.test) == 500


@pytest.mark.parametrize(
    "split", ["trian", "test", "train[:0]", "train[5:2]", "train[:1298]", "train[::2]", "train[:a]"]
)
def test_impossible_parts_are_refused(split: str) -> None:
    with pytest.raises(ConfigError, match="data.split = .* at least one of the 1297 samples"):
        lib.source(config(split=split))


@pytest.mark.parametrize("size", [-1, 8.0, True, "8"])
def test_impossible_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ConfigError, match="data.image_size = "):
        lib.source(ConfigDict({**config(), "image_size": size}))


def test_a_registered_source_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lib.SOURCES, "_pieces", dict(lib.SOURCES._pieces))

    @lib.SOURCES.register("blank")
    def blank(directory: str, split: str, shape: lib.Shape) -> lib.Source:
        part = lib.ArraySplit(np.zeros((3, 4, 4, 1), np.uint8), np.arange(3))
        return lib.Source("blank", ("a", "b", "c"), part, part, (0.5,), (0.5,))

    assert lib.source(config(name="blank")).image_shape == (4, 4, 1)


# --- Resizing ------------------------------------------------------------------------------------


def test_fit_keeps_the_middle_and_the_brightness() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # the middle third, which is all that is left
    # The filter reaches over the edge of the part that is kept, by less than a pixel.
    assert np.all(lib.fit(wide, (5, 5, 3))[:, 1:-1] == 200)
    assert np.all(lib.fit(wide, (20, 20, 1))[:, 2:-2] == 200)
    checks = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.all(np.abs(lib.fit(checks[..., None], (8, 8, 1)).astype(int) - 127) < 20)


def test_fit_turns_grey_into_colour_and_back() -> None:
    grey = np.full((4, 4, 1), 90, np.uint8)
    assert np.array_equal(lib.fit(grey, (4, 4, 3)), np.full((4, 4, 3), 90))
    assert np.array_equal(lib.fit(lib.fit(grey, (4, 4, 3)), (4, 4, 1)), grey)


def test_fit_leaves_floats_alone_or_refuses() -> None:
    image = np.zeros((4, 4, 1), np.float32)
    assert lib.fit(image, (4, 4, 1)) is image
    with pytest.raises(TypeError, match="only uint8 images can be resized"):
        lib.fit(image, (8, 8, 1))


# --- A folder of images --------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Cats are dark and dogs are bright, in PNG and JPEG, some in a folder further down."""
    for i in range(6):
        save(tmp_path / "train" / "cat" / f"{i}.png", 10 + i)
        save(tmp_path / "train" / "dog" / "more" / f"{i}.JPG", 200 + i)
    for i in range(3):
        save(tmp_path / "test" / "cat" / f"{i}.jpeg", 20 + i)
        save(tmp_path / "test" / "dog" / f"{i}.png", 210 + i)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_folder_reads_images_and_classes(photos: Path) -> None:
    source = lib.source(config(name="folder", dir=str(photos)))
    assert source.class_names == ("cat", "dog")
    assert source.image_shape == (12, 12, 3)
    for split, size in ((source.train, 12), (source.test, 6)):
        images = lib.load_all(split)
        assert images.shape == (size, 12, 12, 3) and images.dtype == np.uint8
        assert np.array_equal(images.mean((1, 2, 3)) > 128, split.labels == 1)
    assert (source.mean, source.std) == ((), ())  # measured on the public images of a run


def test_folder_in_a_bucket(photos: Path, remote: epath.Path) -> None:
    for file in filter(Path.is_file, photos.rglob("*")):
        (remote / file.relative_to(photos)).write_bytes(file.read_bytes())
    here, there = (lib.source(config(name="folder", dir=str(place))) for place in (photos, remote))
    assert there.class_names == here.class_names
    for ours, theirs in ((here.train, there.train), (here.test, there.test)):
        every = np.arange(len(ours))
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.images(every), theirs.images(every))


def test_folder_order_is_mixed_and_fixed(photos: Path) -> None:
    sources = [lib.source(config(name="folder", dir=str(photos))) for _ in range(2)]
    labels = sources[0].train.labels
    assert np.any(np.diff(labels) < 0)
    assert np.array_equal(lib.load_all(sources[0].train), lib.load_all(sources[1].train))
    half = lib.source(config(name="folder", dir=str(photos), split="train[:50%]"))
    assert np.array_equal(half.train.labels, labels[:6])


def test_folder_resizes_images_of_any_size_and_kind(photos: Path) -> None:
    save(photos / "train" / "dog" / "grey.png", 220, (40, 30), "L")
    save(photos / "train" / "dog" / "clear.png", 220, (7, 9), "RGBA")
    split = lib.source(config(name="folder", dir=str(photos), image_size=8)).train
    images = lib.load_all(split)
    assert images.shape == (14, 8, 8, 3)
    assert np.array_equal(images.mean((1, 2, 3)) > 128, split.labels == 1)
    sizes = {image.shape[:2] for image in split.read(np.arange(14))}
    assert sizes == {(12, 12), (30, 40), (9, 7)}


def test_folder_refuses_mixed_sizes_unless_told_a_size(photos: Path) -> None:
    save(photos / "train" / "dog" / "large.png", 220, (40, 30))
    split = lib.source(config(name="folder", dir=str(photos))).train
    with pytest.raises(ConfigError, match="data.image_size = 0: .* 30x40 .* 12x12|12x12 .* 30x40"):
        lib.load_all(split)


CUT = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x00IHDR\x00\x00\x00\x00"
"""A PNG whose header says that it has no length, which Pillow answers with a ValueError."""


@pytest.mark.parametrize(
    ("path", "mode", "content", "message"),
    [
        ("train/dog/bad.png", "", b"not an image", "bad.png': expected an image that can be read"),
        ("train/dog/cut.png", "", CUT, "cut.png': expected an image that can be read .*IHDR"),
        (
            "train/dog/deep.png", "I;16", b"",
            r"deep.png': .*\(pixels of type I;16, not 8 bits a channel",
        ),
    ],
)  # fmt: skip
def test_folder_names_an_unreadable_image(
    photos: Path, path: str, mode: str, content: bytes, message: str
) -> None:
    if mode:
        Image.new(mode, (12, 12)).save(photos / path)
    else:
        (photos / path).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        source = lib.source(config(name="folder", dir=str(photos)))
        lib.load_all(source.train)


def test_folder_without_its_parts_is_refused(photos: Path, tmp_path: Path) -> None:
    def refusal(directory: str) -> str:
        with pytest.raises(ConfigError, match="data.dir = ") as caught:
            lib.source(config(name="folder", dir=directory))
        return str(caught.value)

    assert "a directory with PNG or JPEG images in train/<class>/ and test/<class>/" in refusal("")
    assert "a directory with PNG or JPEG images" in refusal(str(tmp_path / "missing"))
    assert "PNG or JPEG images in train/<class>/" in refusal(str(tmp_path / "train" / "cat"))
    save(photos / "test" / "bird" / "0.png", 0)
    assert "the same classes in train/ and test/, not only 'bird'" in refusal(str(photos))


# --- TensorFlow Datasets -------------------------------------------------------------------------


def write_dataset(
    root: Path,
    name: str = "blobs",
    splits: tuple[str, ...] = ("train", "test"),
    shape: tuple[int | None, ...] = (6, 6, 3),
    secret: tuple[str, ...] = (),
    file_format: str = "array_record",
) -> Path:
    """Writes what `tfds build` would: 5 samples a split of brightness 40 * label, 3 classes."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    feature = "tensorflow_datasets.core.features"
    size = {"dimensions": [str(axis or -1) for axis in shape]}
    features = {
        "image": {
            "pythonClassName": f"{feature}.image_feature.Image",
            "image": {"shape": size, "dtype": "uint8", "encodingFormat": "png"},
        },
        "label": {
            "pythonClassName": f"{feature}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "3"},
        },
        "site": {
            "pythonClassName": f"{feature}.scalar.Scalar",
            "tensor": {"shape": {}, "dtype": "int64", "encoding": "none"},
        },
        "writer": {"pythonClassName": f"{feature}.text_feature.Text", "text": {}},
    }
    top = {
        "pythonClassName": f"{feature}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(top))
    (folder / "label.labels.txt").write_text("red\ngreen\nblue\n")
    info = {
        "fileFormat": file_format,
        "name": name,
        "version": "1.0.0",
        "splits": [
            {
                "name": split,
                "shardLengths": ["5"],
                "numBytes": "1000",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split in splits
        ],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for split in splits:
        path = folder / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for i in range(5):
            picture = io.BytesIO()
            Image.new("RGB", (6, 6 if shape[0] else 6 + i), (40 * (i % 3),) * 3).save(
                picture, "PNG"
            )
            example = tf_example_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(picture.getvalue())
            label = -1 if split in secret else i % 3
            example.features.feature["label"].int64_list.value.append(label)
            example.features.feature["site"].int64_list.value.append(7 + i % 2)
            example.features.feature["writer"].bytes_list.value.append(b"bac"[i % 3 : i % 3 + 1])
            writer.write(example.SerializeToString())
        writer.close()
    return root


def test_tfds_reads_images_and_labels(tmp_path: Path) -> None:
    source = lib.source(config(name="blobs", dir=str(write_dataset(tmp_path))))
    assert source.class_names == ("red", "green", "blue")
    assert source.image_shape == (6, 6, 3)
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1]
    assert source.train.labels.dtype == np.int32
    images = lib.load_all(source.train)
    assert images.shape == (5, 6, 6, 3) and images.dtype == np.uint8
    assert np.array_equal(images[:, 0, 0, 0], 40 * source.train.labels)
    assert np.array_equal(source.train.images(np.array([4, 0, 4])), images[[4, 0, 4]])
    assert source.train.images(np.array([], int)).shape == (0, 6, 6, 3)


@pytest.mark.parametrize(
    ("key", "names", "owner"),
    [("site", ("7", "8"), [0, 1, 0, 1, 0]), ("writer", ("a", "b", "c"), [1, 0, 2, 1, 0])],
)
def test_tfds_a_feature_names_the_client(
    tmp_path: Path, key: str, names: tuple[str, ...], owner: list[int]
) -> None:
    silos = lib.source(config(name="blobs", dir=str(write_dataset(tmp_path)), client_key=key)).silos
    assert silos is not None and silos.names == names
    assert silos.owner.tolist() == owner


@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        ("blobs", "wirter", "expected a feature, .*did you mean 'writer'"),
        ("blobs", "image", "expected a feature that is one integer or one text, not uint8"),
        ("digits", "site", "expected '' for 'digits': only TensorFlow Datasets have features"),
    ],
)
def test_a_feature_that_names_no_client_is_refused(
    tmp_path: Path, name: str, key: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"data.client_key = '{key}': {said}"):
        lib.source(config(name=name, dir=str(write_dataset(tmp_path)), client_key=key))


def test_tfds_directory_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(write_dataset(tmp_path)))
    assert len(lib.source(config(name="blobs")).train) == 5


def test_labels_are_read_once_and_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = lib.source(config(name="blobs", dir=str(write_dataset(tmp_path)))).train
    monkeypatch.setattr(tfds, "decode_image", None)  # calling it would fail
    assert split.labels is split.labels
    with pytest.raises(TypeError):
        split.images(np.array([0]))


@pytest.mark.parametrize(
    ("splits", "secret", "expected"),
    [
        (("train", "test", "validation"), (), "test"),
        (("train", "validation"), (), "validation"),
        (("train", "test", "validation"), ("test",), "validation"),
    ],
)
def test_tfds_test_split(
    tmp_path: Path, splits: tuple[str, ...], secret: tuple[str, ...], expected: str
) -> None:
    write_dataset(tmp_path, splits=splits, secret=secret)
    source = lib.source(config(name="blobs", dir=str(tmp_path)))
    assert source.test._records.split == expected  # type: ignore[attr-defined]


def test_tfds_without_a_labelled_test_split_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, secret=("test",))
    with pytest.raises(ConfigError, match="a labelled split test or validation"):
        lib.source(config(name="blobs", dir=str(tmp_path)))


def test_tfds_parts_of_the_training_split(tmp_path: Path) -> None:
    directory = str(write_dataset(tmp_path))
    labels = lib.source(config(name="blobs", dir=directory, split="train[1:4]")).train.labels
    assert labels.tolist() == [1, 2, 0]
    assert len(lib.source(config(name="blobs", dir=directory, split="")).train) == 5
    for split in ("trian", "train[:0]", "train[:9]", "train[::2]"):
        with pytest.raises(ConfigError, match=r"data.split = .* samples of the splits train, test"):
            lib.source(config(name="blobs", dir=directory, split=split))
    for split in ("test", "train[:2]+test[2:]", "all"):
        with pytest.raises(ConfigError, match="data.split = .* no samples of 'test', on which"):
            lib.source(config(name="blobs", dir=directory, split=split))


def test_tfds_images_of_many_sizes_need_a_size(tmp_path: Path) -> None:
    directory = str(write_dataset(tmp_path, shape=(None, None, 3)))
    with pytest.raises(ConfigError, match="data.image_size = 0: expected a size in pixels"):
        lib.source(config(name="blobs", dir=directory))
    split = lib.source(config(name="blobs", dir=directory, image_size=4)).train
    assert split.images(np.arange(5)).shape == (5, 4, 4, 3)
    assert [image.shape[0] for image in split.read(np.arange(5))] == [6, 7, 8, 9, 10]


def test_tfds_split_survives_pickling(tmp_path: Path) -> None:
    """Worker processes that prefetch batches get their splits this way."""
    split = lib.source(config(name="blobs", dir=str(write_dataset(tmp_path)))).train
    copy = pickle.loads(pickle.dumps(split))
    assert np.array_equal(lib.load_all(copy), lib.load_all(split))
    assert np.array_equal(copy.labels, split.labels)


def test_missing_dataset_names_the_command_that_prepares_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        lib.source(config(name="cifar100", dir=str(tmp_path)))
    message = str(caught.value)
    assert message.startswith("data.name = 'cifar100': expected a dataset prepared as array_record")
    assert f"data.dir = {str(tmp_path)!r} has nothing of that name" in message
    command = f"python -m experiments.prepare cifar100 --dir={tmp_path}"
    assert message.endswith(command)


def test_dataset_in_another_format_names_the_command_that_converts_it(tmp_path: Path) -> None:
    write_dataset(tmp_path, file_format="tfrecord")
    with pytest.raises(ConfigError) as caught:
        lib.source(config(name="blobs", dir=str(tmp_path)))
    message = str(caught.value)
    assert "has tfrecord files of that name" in message
    folder = tmp_path / "blobs" / "1.0.0"
    command = f"experiments.prepare blobs '--dir=another folder' --from={folder}"
    assert message.endswith(command)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "data.name = 'digit': .*; did you mean 'digits'"),
        ("cifar_10", "data.name = 'cifar_10': .* data.dir = .*; did you mean 'cifar10'"),
        ("imagenet_resized/9x9", "data.name = 'imagenet_resized/9x9': expected a dataset"),
    ],
)
def test_unknown_datasets_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lib.source(config(name=name, dir=str(tmp_path)))


def test_datasets_that_do_not_classify_images_are_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path) / "blobs" / "1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    del info["supervisedKeys"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ConfigError, match="a dataset of one image and one label each"):
        lib.source(config(name="blobs", dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "channels", "mean"),
    [
        ("cifar10", 3, 0.4914),
        ("cifar10:3.0.2", 3, 0.4914),
        ("imagenet_resized/64x64", 3, 0.485),
        ("mnist", 1, None),
        ("cifar10", 1, None),
    ],
)
def test_statistics_are_published_ones_or_none(
    name: str, channels: int, mean: float | None
) -> None:
    means, stds = interface.statistics(name, channels)
    assert len(means) == len(stds) == (0 if mean is None else channels)
    assert means[:1] == (() if mean is None else (mean,))


def _split(images: np.ndarray) -> lib.ArraySplit:
    return lib.ArraySplit(images, np.zeros(len(images), np.int64))


def test_statistics_are_measured_on_the_given_images_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    mean, std = lib.measured_statistics(_split(images), np.arange(0, 50, 2))
    pixels = images[::2].reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std(axis=0), atol=1e-6)


def test_constant_images_are_refused_and_a_constant_channel_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = np.full((5, 2, 2, 2), 7, np.uint8)
    told = "data.public_fraction = '5 public samples, all alike'.*that differ"
    with pytest.raises(ConfigError, match=told):
        lib.measured_statistics(_split(images), np.arange(5))
    images[0, 0, 0, 0] = 9
    with caplog.at_level("WARNING", logger="absl"):
        _, std = lib.measured_statistics(_split(images), np.arange(5))
    assert std[1] == 1.0 and "channels [1]" in caplog.text


def test_the_first_classes_of_a_data_set_are_a_data_set() -> None:
    whole = lib.source(ConfigDict({"name": "digits", "dir": "", "split": "", "image_size": 0}))
    part = interface.first_classes(whole, 3)
    assert part.num_classes == 3 and part.class_names == ("0", "1", "2")
    at = np.flatnonzero(whole.train.labels < 3)
    np.testing.assert_array_equal(part.train.labels, whole.train.labels[at])
    np.testing.assert_array_equal(part.train.images([0, 5]), whole.train.images(at[[0, 5]]))
    for count in (1, 11):
        with pytest.raises(ConfigError, match=f"data.num_classes = {count}: .*2 to 10 classes"):
            interface.first_classes(whole, count)


def test_nothing_imports_tensorflow(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    program = (
        "import sys\n"
        "from mhd_jax.data import sources\n"
        "assert 'tensorflow_datasets' not in sys.modules, 'slow import'\n"
        f"source = sources.tensorflow_dataset('blobs', {str(tmp_path)!r}, 'train', (4, 4, 0))\n"
        "source.train.images([0, 1]), source.train.labels\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


# --- A public set from another dataset -----------------------------------------------------------


def test_public_images_take_the_private_shape_and_their_labels_stay_unread(tmp_path: Path) -> None:
    settings = config(public_name="blobs", public_dir=str(write_dataset(tmp_path)))
    split = lib.public_split(settings, (8, 8, 1), BYTES)
    assert lib.load_all(split).shape == (5, 8, 8, 1)
    assert "labels" not in vars(split)


def test_photos_are_patches_of_two_photographs() -> None:
    photos = lib.source(config(name="photos"))
    assert (len(photos.train), len(photos.test)) == (416, 104)
    assert (photos.class_names, photos.image_shape) == (("china", "flower"), (32, 32, 3))
    images = lib.load_all(photos.train)
    assert images.dtype == np.uint8 and len(np.unique(images, axis=0)) == 416
    assert zlib.crc32(photos.test.labels.astype("<i4").tobytes()) == 2155476953
    grey = lib.load_all(lib.public_split(config(public_name="photos"), (8, 8, 1), BYTES))
    assert grey.shape == (416, 8, 8, 1) and grey.dtype == np.uint8 and grey.std() > 20


def test_public_images_from_digits() -> None:
    images = lib.load_all(lib.public_split(config(public_name="digits"), (16, 16, 3), BYTES))
    assert images.shape == (1297, 16, 16, 3) and images.dtype == np.uint8


def test_public_folder_needs_no_classes(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / ("deep/er" if i % 2 else ".") / f"{i}.png", 50 * i, (9, 7 + i))
    split = lib.public_split(config(public_name="folder", dir=str(tmp_path)), (6, 6, 3), BYTES)
    images = lib.load_all(split)
    assert images.shape == (4, 6, 6, 3)
    assert sorted(images.mean((1, 2, 3))) == [0, 50, 100, 150]
    assert np.all(split.labels == -1)
    for shape, said in (((6, 6, 4), r"\(6, 6, 4\)"), ((5,), r"\(5,\)")):
        with pytest.raises(ConfigError, match=f"data.public_name = 'folder': .*shape {said}"):
            lib.public_split(config(public_name="folder", dir=str(tmp_path)), shape, BYTES)


def test_public_errors_name_the_public_settings(tmp_path: Path) -> None:
    for name in ("cifar100", "no_such_dataset"):
        settings = config(public_name=name, public_dir=str(tmp_path))
        with pytest.raises(ConfigError, match="^data.public_name = .* data.public_dir = "):
            lib.public_split(settings, (8, 8, 1), BYTES)
    with pytest.raises(ConfigError, match="^data.public_dir = "):
        lib.public_split(config(public_name="folder", public_dir=str(tmp_path)), (8, 8, 1), BYTES)


def test_public_images_that_are_private_or_test_images_are_named(tmp_path: Path) -> None:
    def named(**settings: Any) -> tuple[str, ...]:
        return lib.made_public(config(**settings))

    for elsewhere in ("", "/anywhere"):
        for name, other in (("digits", "digits"), ("imagenet2012", "imagenet2012:5.1.0")):
            assert named(name=name, public_name=other, public_dir=elsewhere) == (lib.PRIVATE,)
    assert named(name="digits") == named(name="digits", public_name="photos") == ()
    for half in ("train", "test", "public"):
        save(tmp_path / half / "cat" / "0.png", 0)
    folder = {"name": "folder", "public_name": "folder", "dir": str(tmp_path)}
    assert named(**folder) == (lib.PRIVATE, lib.TEST)
    assert named(**folder, public_dir=str(tmp_path / "train" / "cat")) == (lib.PRIVATE,)
    assert named(**folder, public_dir=str(tmp_path / "test")) == (lib.TEST,)
    assert named(**folder, public_dir=str(tmp_path / "public")) == ()


# --- Prepared datasets, where a machine has them -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_classes", "train", "test"),
    [("cifar10", 10, 50_000, 10_000), ("tiny_imagenet32", 200, 100_000, 10_000)],
)
def test_prepared_datasets(
    tfds_dir: Path, name: str, num_classes: int, train: int, test: int
) -> None:
    if not (tfds_dir / name).is_dir():
        pytest.skip(f"{name} is not prepared in {tfds_dir}")
    source = lib.source(config(name=name, dir=str(tfds_dir)))
    assert (source.num_classes, source.image_shape) == (num_classes, (32, 32, 3))
    assert (len(source.train), len(source.test)) == (train, test)
    assert np.all(np.bincount(source.test.labels) == test // num_classes)
    indices = np.arange(0, train, train // 200)
    images = source.train.images(indices)
    z = (images / 255 - np.array(source.mean)) / np.array(source.std)
    assert np.all(np.abs(z.mean((0, 1, 2))) < 0.3) and np.all(np.abs(z.std((0, 1, 2)) - 1) < 0.3)
    small = lib.source(config(name=name, dir=str(tfds_dir), image_size=16)).train.images(indices)
    assert small.shape == (len(indices), 16, 16, 3)
    np.testing.assert_allclose(small.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=3)


def test_arrays_that_are_no_data_set_are_refused() -> None:
    labels = np.arange(6) % 2
    table = (np.ones((6, 3)), labels)
    for name, train, said in (
        (3, table, "what data.name calls"),
        ("x", (np.ones((6, 0)), labels), "at least one sample"),
        ("x", (np.ones((6, 3)), 0 * labels), "at least 2 classes"),
        ("x", (np.full((6, 3), 1e300), labels), "6 of 6 rows have NaN, inf or more than float32"),
    ):
        test = (train[0], train[1]) if said.startswith("at least 2") else table
        with pytest.raises(ConfigError, match=said):
            lib.from_arrays(name, train, test)
    for given, said in (
        (((*table, 1), table), "train = 'tuple': expected a pair .*, not 3 in number"),
        ((table, (table[0],)), "test = 'tuple': expected a pair .*, not 1 in number"),
        ((table, table[0]), r"test = 'ndarray': expected a pair \(samples, labels\)$"),
        ((None, table), "train = 'NoneType': expected a pair"),
    ):
        with pytest.raises(ConfigError, match=said):
            lib.from_arrays("x", *given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="^test in data.name = 'x': expected at least one sample"):
        lib.from_arrays("x", table, (table[0][:0], labels[:0]))
    hidden = np.ma.masked_equal(np.eye(6, 3), 1)  # whose values under the mask are numbers
    for samples, given_labels, said in (
        ([[1, 2], [3]], [0, 1], "an array of samples, all of one shape .ValueError"),
        (hidden, labels, "samples without missing values, not a masked array"),
        (table[0], [0, [1]], "one label a sample .ValueError"),
        (table[0], labels + 2**40, f"labels of classes, from 0 on, not {2**40}..{2**40 + 1}"),
    ):
        with pytest.raises(ConfigError, match=f"data.name = 'x': expected {said}"):
            lib.from_arrays("x", (samples, given_labels), table)  # type: ignore[arg-type]


def test_columns_of_train_and_test_are_the_same() -> None:
    pandas = pytest.importorskip("pandas")
    labels = np.arange(6) % 2
    frame = pandas.DataFrame(np.eye(6, 3), columns=["age", "height", "weight"])
    mine = lib.from_arrays("mine", (frame, labels), (frame, labels))
    assert mine.columns == ("age", "height", "weight")
    assert lib.from_arrays("mine", (frame, labels), (frame.to_numpy(), labels)).columns
    for other in (frame[["height", "age", "weight"]], frame.rename(columns={"age": "years"})):
        with pytest.raises(ConfigError, match="test = 'tuple': .* columns age, height, weight in"):
            lib.from_arrays("mine", (frame, labels), (other, labels))


def test_names_of_classes_may_be_given_as_numbers() -> None:
    labels = np.arange(6) % 2
    table = (np.ones((6, 3)), labels)
    assert lib.from_arrays("x", table, table, class_names=(3, 8)).class_names == ("3", "8")
    source = lib.from_clients(
        {"a": table, "b": table}, public=table[0], test=table, class_names=np.array([3, 8])
    )
    assert source.class_names == ("3", "8")
    numbered = dataclasses.replace(source, class_names=(3, 8))  # of a loader of one's own
    with pytest.raises(ConfigError, match="data.name = 'mine': .*names that are text, not 3"):
        lib.check_source(numbered, "mine")


def test_a_source_of_a_single_class_is_refused() -> None:
    alone = lib.ArraySplit(np.ones((8, 3), np.float32), np.zeros(8, int))
    with pytest.raises(ConfigError, match="data.name = 'mine': expected at least 2 classes, not 1"):
        lib.check_source(lib.Source("mine", ("a",), alone, alone), "mine")


class Ramp(interface.Split):
    """A split of one's own."""

    image_shape = (4,)
    dtype = np.dtype(np.float32)

    @property
    def labels(self) -> Any:
        return np.arange(8) % 2

    def __len__(self) -> int:
        return 8

    def read(self, indices: Any) -> Any:
        for index in indices:
            yield np.full(self.length, index * self.scale, np.float32)

    length, scale = 4, 1.0


class Longer(Ramp):
    length = 5


class Shapeless(Ramp):
    @property
    def image_shape(self) -> Any:  # type: ignore[override]
        raise AttributeError("image_shape")


class Unmeasured(Ramp):
    scale = np.nan


class Listed(Ramp):
    @property
    def labels(self) -> Any:
        return [0, 1] * 4


@pytest.mark.parametrize(
    ("split", "std", "said"),
    [
        (Longer(), (), "expected a Source with a train and a test Split .*TypeError: only uint8"),
        (Shapeless(), (), "expected a Source with a train and a test Split .*AttributeError"),
        (np.zeros((8, 4)), (), "expected a Source with a train and a test Split .*AttributeError"),
        (Listed(), (), "expected integer train labels, an array of shape .N. = .8,., not list"),
        (Ramp(), (1.0, 1.0, 0.0, 1.0), "expected a std above 0 in every channel"),
    ],
)
def test_a_source_of_ones_own_that_cannot_be_read_is_named(
    split: Any, std: tuple[float, ...], said: str
) -> None:
    source = lib.Source("mine", ("a", "b"), split, split, tuple(0.0 * x for x in std), std)
    with pytest.raises(ConfigError, match=f"data.name = 'mine': {said}"):
        lib.check_source(source, "mine")


def test_public_samples_that_are_not_finite_are_named() -> None:
    with pytest.raises(ConfigError, match="'8 public samples': expected finite numbers"):
        interface.measured_statistics(Unmeasured(), np.arange(8))


def test_a_sample_whose_client_pandas_does_not_know_is_counted() -> None:
    pandas = pytest.importorskip("pandas")
    table = (np.ones((3, 3)), np.array([0, 1, 0]))
    clients = pandas.Series(["a", pandas.NA, "b"], dtype="string")
    with pytest.raises(ConfigError, match="a client for every training sample; 1 of them"):
        lib.from_arrays("x", table, table, clients=clients)


@pytest.mark.parametrize(("shape", "told"), [((3, 8, 8), 1), ((8, 8, 3), 0), ((1, 4, 4), 0)])
def test_images_with_the_channels_first_are_told(
    shape: tuple[int, ...], told: int, caplog: pytest.LogCaptureFixture
) -> None:
    logging.get_absl_logger().propagate = True
    images = (np.zeros((4, *shape), np.uint8), np.arange(4) % 2)
    lib.from_arrays("x", images, images)
    assert caplog.text.count("move them last: np.moveaxis(images, 1, -1)") == told


def test_a_data_set_is_known_again_by_its_contents() -> None:
    def made(change: int = 0, relabel: int = 0) -> str:
        table = np.arange(60.0).reshape(20, 3) + change
        labels = (np.arange(20) + relabel) % 2
        found = lib.from_arrays("x", (table, labels), (table, labels))
        return lib.fingerprint(found, found.train, np.arange(0, 20, 5))

    assert made() == made() and len({made(), made(1), made(0, 1)}) == 3


def test_clients_that_a_data_set_comes_with_are_known_again() -> None:
    def made(owner: int, *names: str) -> str:
        table = np.arange(60.0).reshape(20, 3)
        whose = np.array(names)[(np.arange(20) // 2 + owner) % 2]
        pair = (table, np.arange(20) % 2)
        found = lib.from_arrays("x", pair, pair, clients=whose)
        return lib.fingerprint(found, found.train, np.arange(0, 20, 5))

    found = [made(0, "a", "b"), made(1, "a", "b"), made(0, "a", "c")]
    assert len(set(found)) == 3 and found[0] == made(0, "a", "b")


def test_a_public_table_beside_images_is_named() -> None:
    config = default_config().data
    config.public_name = "breast_cancer"
    with pytest.raises(ConfigError, match=r"data\.public_name = 'breast_cancer'.*\(8, 8, 1\)"):
        lib.public_split(config, (8, 8, 1), BYTES)


def test_public_images_beside_a_table_or_of_other_channels_are_named() -> None:
    config = default_config().data
    config.public_name = "digits"
    for shape, named in (((5,), r"\(5,\)"), ((8, 8, 4), r"\(8, 8, 4\)")):
        with pytest.raises(ConfigError, match=f"data.public_name = 'digits'.*shape {named}"):
            lib.public_split(config, shape, BYTES)


TABLE = np.arange(60.0).reshape(20, 3)
TYPES = {"numbers": TABLE, "ids": TABLE.astype(int), "bytes": TABLE.astype(np.uint8)}


@pytest.mark.parametrize(("name", "public"), list(itertools.permutations(TYPES, 2)))
def test_a_public_table_of_another_type_is_named(
    name: str, public: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(directory: str, split: str, shape: interface.Shape) -> interface.Source:
        pair = (TYPES[public], np.arange(20) % 2)
        return lib.from_arrays(public, pair, pair)

    monkeypatch.setitem(lib.SOURCES._pieces, public, load)
    dtype = lib.from_arrays(name, *[(TYPES[name], np.arange(20) % 2)] * 2).train.dtype
    said = f"^data.public_name = '{public}': expected samples of type {dtype}, as those"
    with pytest.raises(ConfigError, match=said):
        lib.public_split(config(public_name=public), (3,), dtype)


def test_ids_and_images_are_no_public_set_for_each_other() -> None:
    with pytest.raises(ConfigError, match="data.public_name = 'digits': .* type int32"):
        lib.public_split(config(public_name="digits"), (8, 8, 1), np.dtype(np.int32))


def test_public_images_may_be_bytes_beside_private_ones_in_0_to_1() -> None:
    photos = lib.public_split(config(public_name="photos"), (8, 8, 1), np.dtype(np.float32))
    assert photos.dtype == np.uint8
    digits = lib.public_split(config(public_name="digits"), (8, 8, 1), BYTES)
    assert digits.dtype == np.float32


@pytest.mark.parametrize(("offset", "lost"), [(1.7e9, True), (1e6, False), (0.0, False)])
def test_numbers_that_float32_cannot_tell_apart_are_refused(offset: float, lost: bool) -> None:
    rng, y = np.random.default_rng(0), np.arange(40) % 2
    x = np.c_[rng.normal(size=40), offset + 40 * y + rng.normal(size=40), np.full(40, 0.1)]
    if not lost:
        assert len(lib.from_arrays("m", (x, y), (x, y)).train) == 40
        return
    with pytest.raises(ConfigError, match="float32 can tell apart, unlike those of features 1:"):
        lib.from_arrays("m", (x, y), (x, y))
