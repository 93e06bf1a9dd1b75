# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Preparing data sets: no network, stand-ins of pip and TensorFlow, and kills in the middle.

The stand-in of Python makes environments whose Python is this one with a TensorFlow of twenty
lines, which reads tfrecord files, and a data set of TFDS that is built here from nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from ml_collections import ConfigDict
from PIL import Image

from experiments.prepare import __main__ as prepare
from experiments.prepare import files
from mhd_jax.data import sources
from tests.test_sources import write_dataset

ROOT = Path(__file__).resolve().parent.parent

# Reads what a tfrecord file holds: length, its checksum, the record, its checksum.
TENSORFLOW = """
import os, pathlib, struct, time, types

class Record(bytes):
    def numpy(self):
        return bytes(self)

def TFRecordDataset(path):
    with open(path, "rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            yield Record(file.read(length))
            file.read(4)
            time.sleep(float(os.environ.get("SLOW", 0)))

data = types.SimpleNamespace(TFRecordDataset=TFRecordDataset)
"""

# A data set that TFDS builds from a download, which is counted, and from made-up images.
BUILDER = """
import io, os, pathlib, time
import numpy as np, tensorflow_datasets as tfds
from PIL import Image

class Blobs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(6, 6, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
        }
        keys = ("image", "label")
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
        )

    def _split_generators(self, dl_manager):
        kept = dl_manager.download_dir / "blobs.zip"
        if not kept.exists():
            with open(os.environ["DOWNLOADS"], "a") as file:
                file.write("x")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text("archive")
        return {"train": self._generate_examples(30), "test": self._generate_examples(9)}

    def _generate_examples(self, count):
        for i in range(count):
            time.sleep(float(os.environ.get("SLOW", 0)))
            picture = io.BytesIO()
            Image.new("RGB", (6, 6), (i, i, i)).save(picture, "PNG")
            picture.seek(0)
            yield i, {"image": picture, "label": i % 3}
"""

# `python -m venv FOLDER` makes the interpreter of FOLDER; that one takes pip's and worker's calls.
PYTHON = """#!{python}
import os, pathlib, runpy, sys
here = pathlib.Path({here!r})
with open(here / "asked.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1:3] == ["-m", "venv"]:
    target = pathlib.Path(sys.argv[-1]) / "bin" / "python"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(pathlib.Path(__file__).read_text())
    target.chmod(0o755)
elif sys.argv[1:3] == ["-m", "pip"]:
    sys.exit(int(os.environ.get("PIP_STATUS", 0)))
else:
    sys.path.insert(0, str(here))
    if "--from" not in sys.argv:
        import blobs_builder
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make_stand_in(folder: Path) -> Path:
    """A folder with the stand-in of Python, of TensorFlow, and the data set's builder."""
    folder.mkdir()
    (folder / "tensorflow.py").write_text(TENSORFLOW)
    (folder / "blobs_builder.py").write_text(BUILDER)
    program = folder / "python"
    program.write_text(PYTHON.format(python=sys.executable, here=str(folder)))
    program.chmod(0o755)
    return folder


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_stand_in(tmp_path / "stand_in")
    monkeypatch.setenv("DOWNLOADS", str(folder / "downloads.txt"))
    return folder


def asked(stand_in: Path) -> list[str]:
    file = stand_in / "asked.txt"
    return file.read_text().splitlines() if file.exists() else []


def as_tfrecord(root: Path, shards: int = 3) -> Path:
    """Turns what `write_dataset` wrote into a tfrecord copy with several files for training."""
    folder = root / "blobs" / "1.0.0"
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        path = folder / f"blobs-{split['name']}.array_record-00000-of-00001"
        reader = ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        path.unlink()
        parts = [list(part) for part in np.array_split(np.arange(len(records)), shards)]
        split["shardLengths"] = [str(len(part)) for part in parts]
        for index, part in enumerate(parts):
            name = f"blobs-{split['name']}.tfrecord-{index:05d}-of-{shards:05d}"
            with open(folder / name, "wb") as file:
                for i in part:
                    file.write(struct.pack("<Q4x", len(records[i])) + records[i] + b"\0" * 4)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return root


def command(stand_in: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "experiments.prepare", *words, f"--python={stand_in / 'python'}"]


def read(root: Path, name: str = "blobs") -> sources.Source:
    """The data set as a run reads it."""
    settings = {"name": name, "dir": str(root), "split": "train", "image_size": 0}
    return sources.source(ConfigDict(settings))


def kill_when(words: list[str], seen: Callable[[], bool], seconds: float = 0.1) -> None:
    """Starts a command, slowly, and kills all of its processes once something has been seen."""
    environment = os.environ | {"SLOW": str(seconds)}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_build_is_killed_in_the_middle_and_resumed(tmp_path: Path, stand_in: Path) -> None:
    target = tmp_path / "tfds"
    words = command(stand_in, "blobs", f"--dir={target}")
    # Files are built once the download is over.
    kill_when(
        words,
        lambda: (
            any(target.glob(".prepare/**/blobs.zip"))
            and any(target.glob(".prepare/blobs/data/**/incomplete.*"))
        ),
    )
    assert not (target / "blobs").exists()  # nothing that looks prepared
    subprocess.run(words, check=True, cwd=ROOT)
    source = read(target)
    assert (len(source.train), len(source.test)) == (30, 9)
    labels, pixels = source.train.labels, source.train.images(np.arange(30))[:, 0, 0, 0]
    assert np.array_equal(labels, pixels % 3) and sorted(pixels) == list(range(30))
    installs = [words for words in asked(stand_in) if words.startswith("-m pip install")]
    assert len(installs) == 1 and "tensorflow-datasets==" in installs[0]
    assert (stand_in / "downloads.txt").read_text() == "x"  # once
    assert not (target / ".prepare").exists()  # the environment and the downloads are gone


def test_a_conversion_is_killed_in_the_middle_and_resumed(tmp_path: Path, stand_in: Path) -> None:
    copy = as_tfrecord(write_dataset(tmp_path / "copy"))
    before = {path.name: path.read_bytes() for path in (copy / "blobs" / "1.0.0").iterdir()}
    target = tmp_path / "tfds"
    words = command(stand_in, "blobs", f"--dir={target}", f"--from={copy}")
    made = target / ".prepare" / "blobs" / "data" / "blobs" / "1.0.0"
    first = made / "blobs-train.array_record-00000-of-00003"
    kill_when(words, first.exists)
    stamp = first.stat().st_mtime_ns
    subprocess.run(words, check=True, cwd=ROOT)
    result = target / "blobs" / "1.0.0"
    assert (result / first.name).stat().st_mtime_ns == stamp  # was kept, not made again
    source = read(target)
    assert source.class_names == ("red", "green", "blue")
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1]
    images = source.train.images(np.arange(5))
    assert np.array_equal(images[:, 0, 0, 0], 40 * source.train.labels)
    assert not list(result.glob("*.tfrecord*")) and not list(result.glob("*.part"))
    after = {path.name: path.read_bytes() for path in (copy / "blobs" / "1.0.0").iterdir()}
    assert after == before  # the copy is as it was


@pytest.fixture(scope="module")
def once_converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    stand_in, copy = make_stand_in(folder / "stand_in"), as_tfrecord(write_dataset(folder / "copy"))
    flags = [f"--dir={folder / 'tfds'}", f"--from={copy}", f"--python={stand_in / 'python'}"]
    prepare.main(["blobs", *flags])
    return folder / "tfds"


@pytest.fixture
def converted(once_converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once_converted, tmp_path / "tfds"))


def test_checksums_are_written_and_checked(
    converted: Path, stand_in: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = converted / "blobs" / "1.0.0"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected
    count = len(asked(stand_in))
    prepare.main(["blobs", f"--dir={converted}"])
    assert "is prepared; its checksums are right" in capsys.readouterr().out
    assert len(asked(stand_in)) == count  # nothing was done again
    damaged = folder / "blobs-test.array_record-00001-of-00003"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit, match=f"{damaged} has changed; delete"):
        prepare.main(["blobs", f"--dir={converted}"])
    damaged.unlink()
    with pytest.raises(SystemExit, match=f"{damaged} is gone"):
        prepare.main(["blobs", f"--dir={converted}"])


def test_too_little_space_is_said_before_anything_is_done(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**12, 0, 2**30)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SystemExit, match=r"imagenet2012 takes 160.0 GiB more, and 1.0 GiB are"):
        prepare.main(["imagenet2012", f"--dir={tmp_path}", f"--python={stand_in / 'python'}"])
    assert asked(stand_in) == []


def test_a_copy_that_is_not_complete_is_refused(tmp_path: Path, stand_in: Path) -> None:
    copy = as_tfrecord(write_dataset(tmp_path / "copy"))
    info = copy / "blobs" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"shardLengths": ["2"', '"shardLengths": ["3"'))
    flags = [f"--dir={tmp_path / 'tfds'}", f"--from={copy}", f"--python={stand_in / 'python'}"]
    with pytest.raises(SystemExit, match="CommandError: status 1"):
        prepare.main(["blobs", *flags])
    assert not (tmp_path / "tfds" / "blobs").exists()


def test_records_are_counted(converted: Path) -> None:
    folder = converted / "blobs" / "1.0.0"
    files.check_records(folder)
    info = folder / "dataset_info.json"
    data = json.loads(info.read_text())
    data["splits"][0]["shardLengths"][0] = "7"
    info.write_text(json.dumps(data))
    with pytest.raises(files.PrepareError, match="has 2 records instead of 7"):
        files.check_records(folder)
    next(iter(files.shards(folder))).unlink()
    with pytest.raises(files.PrepareError, match="is not there"):
        files.check_records(folder)


def test_images_that_a_run_could_not_read_are_noticed(tmp_path: Path, stand_in: Path) -> None:
    builder = stand_in / "blobs_builder.py"
    builder.write_text(builder.read_text().replace("picture.seek(0)", ""))  # nothing to read
    flags = [f"--dir={tmp_path / 'tfds'}", f"--python={stand_in / 'python'}"]
    with pytest.raises(SystemExit, match="record 0.*an image that can be read"):
        prepare.main(["blobs", *flags])
    assert not (tmp_path / "tfds" / "blobs").exists()


def test_an_install_that_fails_ends_in_its_message(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_STATUS", "2")
    with pytest.raises(SystemExit, match="CommandError: status 2 from: .* -m pip install"):
        prepare.main(["blobs", f"--dir={tmp_path}", f"--python={stand_in / 'python'}"])


def test_what_is_there_without_checksums_is_adopted_or_left_alone(
    tmp_path: Path, stand_in: Path
) -> None:
    write_dataset(tmp_path)
    for flags in ([], [f"--from={tmp_path}"]):
        with pytest.raises(SystemExit, match="without checksums.* --adopt"):
            prepare.main(["blobs", f"--dir={tmp_path}", *flags])
    prepare.main(["blobs", f"--dir={tmp_path}", "--adopt"])
    prepare.main(["blobs", f"--dir={tmp_path}"])
    with pytest.raises(SystemExit, match="there is no cubes in it"):
        prepare.main(["cubes", f"--dir={tmp_path}", "--adopt"])
    assert asked(stand_in) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["blobs", "--from=nowhere"], "--from=nowhere: there is no blobs in it"),
        (["tiny_imagenet32"], "expected the folder tiny-imagenet-200, unpacked from"),
    ],
)
def test_a_source_that_is_not_there_is_refused(
    tmp_path: Path, stand_in: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        prepare.main([*flags, f"--dir={tmp_path}", f"--python={stand_in / 'python'}"])


def test_tiny_imagenet_from_its_archive(tmp_path: Path) -> None:
    """It needs no TensorFlow and no environment."""
    archive = tmp_path / "tiny-imagenet-200"
    (archive / "val" / "images").mkdir(parents=True)
    (archive / "wnids.txt").write_text("n2\nn1\n")
    for label, name in enumerate(("n1", "n2")):
        folder = archive / "train" / name / "images"
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (64, 64), (100 * label,) * 3).save(folder / f"{i}.JPEG")
        Image.new("RGB", (64, 64), (100 * label,) * 3).save(archive / f"val/images/{label}.JPEG")
    annotations = "0.JPEG\tn1\t0\t0\t62\t62\n1.JPEG\tn2\t0\t0\t62\t62\n"
    (archive / "val" / "val_annotations.txt").write_text(annotations)
    target = tmp_path / "tfds"
    prepare.main(["tiny_imagenet32", f"--dir={target}", f"--from={archive}"])
    source = read(target, "tiny_imagenet32")
    assert (source.class_names, source.image_shape) == (("n1", "n2"), (32, 32, 3))
    assert sorted(source.train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    for split in (source.train, source.test):
        pixels = split.images(np.arange(len(split)))[:, 5, 5, 1].astype(int)
        assert np.abs(pixels - 100 * split.labels).max() <= 2  # JPEG
    prepare.main(["tiny_imagenet32", f"--dir={target}"])  # checksums are right


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with (
        prepare._alone(tmp_path / "work"),
        pytest.raises(files.PrepareError, match="another process"),
        prepare._alone(tmp_path / "work"),
    ):
        pass
