# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Prepares a data set once, in one command.

    python -m experiments.prepare cifar10 --dir=~/tfds                    # downloads and builds
    python -m experiments.prepare cifar10 --dir=~/tfds --from=/data/tfds  # converts a tfrecord copy
    python -m experiments.prepare imagenet2012 --dir=~/tfds --manual_dir=/data/imagenet
    python -m experiments.prepare tiny_imagenet32 --dir=~/tfds --from=/data/tiny-imagenet-200

TensorFlow, which both building and converting need, goes into an environment of its own below
`--dir` and is deleted when the data set is ready. Free space is checked first. A killed command is
typed again: what was downloaded, installed or converted by then is kept. At the end every file is
counted and its checksum written to SHA256SUMS; typed once more, the command checks these.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import ml_collections
import numpy as np

from experiments.launch.commands import CommandError, Shell, stop
from experiments.prepare import files, tiny_imagenet
from experiments.prepare.files import PrepareError
from mhd_jax.errors import ConfigError

WORKER = Path(__file__).with_name("worker.py")
GIB = 2**30

# GiB that downloads, what is unpacked of them and the result take, by the catalogue of TFDS
# (https://www.tensorflow.org/datasets/catalog). ImageNet's archives are not downloaded.
SPACE = {"cifar10": 0.5, "cifar100": 0.5, "imagenet2012": 157.0, "tiny_imagenet32": 0.3}
ENVIRONMENT_SPACE = 3.0


def requirements() -> tuple[str, ...]:
    """What is installed beside the data: TensorFlow, and TFDS as it is here."""
    same = ("tensorflow-datasets", "array-record")
    tensorflow = "tensorflow-cpu" if sys.platform == "linux" else "tensorflow"
    return (f"{tensorflow}>=2.20", *(f"{name}=={metadata.version(name)}" for name in same))


def prepare(shell: Shell, options: argparse.Namespace) -> Path:
    """Prepares a data set, or checks the one that is there; returns its folder.

    Raises:
      PrepareError: not enough space, a damaged file, a source that is not there, ...
      CommandError: installing or building failed.
    """
    name, root = options.name, options.dir.expanduser().resolve()
    if found := files.prepared(root, name):
        files.check_sums(found)
        shell.show(f"{found} is prepared; its checksums are right")
        return found
    if old := files.version_folder(root, name):
        raise PrepareError(
            f"{old} holds {name} in another form or without checksums. Use another --dir, with "
            f"--from={root} to convert it, or --adopt if it holds array_record files you trust"
        )
    work = root / ".prepare" / name.replace("/", "_")
    _check_space(root, work, options)
    if shell.dry_run:
        return _make(shell, work, options)
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work):
        made = _make(shell, work, options)
        files.check_records(made)
        _read_some(work / "data", options.name)
        files.write_sums(made)
        target = root / made.relative_to(work / "data")
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)  # complete or not there at all
    shutil.rmtree(root / ".prepare" if _only(work) else work)
    shell.show(f"{target} is prepared")
    return target


def _read_some(root: Path, name: str) -> None:
    """Reads all labels and some images as a run does.

    Raises:
      ConfigError: what a run would say.
    """
    from mhd_jax.data import sources

    settings = {"name": name, "dir": str(root), "split": "", "image_size": 32}
    found = sources.source(ml_collections.ConfigDict(settings))
    for split in (found.train, found.test):
        ends = np.unique([0, len(split) // 2, len(split) - 1])
        split.images(ends)
        if not (0 <= split.labels.min() <= split.labels.max() < found.num_classes):
            raise PrepareError(f"{name}: labels that are not in 0..{found.num_classes - 1}")


def _only(work: Path) -> bool:
    return [path.name for path in work.parent.iterdir()] == [work.name]


def _make(shell: Shell, work: Path, options: argparse.Namespace) -> Path:
    """Writes the data set below `work`/data; what is there already is kept."""
    if options.name == tiny_imagenet.NAME:
        return tiny_imagenet.convert(options.source, work / "data")
    python = _environment(shell, work / "environment", options.python)
    arguments = ["--data_dir", str(work / "data")]
    if options.source:
        folder = files.version_folder(options.source.expanduser().resolve(), options.name)
        if folder is None:
            raise PrepareError(f"--from={options.source}: there is no {options.name} in it")
        arguments += ["--from", str(folder)]
    else:
        for left in work.glob("data/**/incomplete.*"):  # of a build that was killed
            shutil.rmtree(left)
        arguments += ["--download_dir", str(work / "downloads")]
        if options.manual_dir:
            arguments += ["--manual_dir", str(options.manual_dir.expanduser().resolve())]
    shell.run(str(python), str(WORKER), options.name, *arguments)
    made = files.version_folder(work / "data", options.name)
    if made is None and not shell.dry_run:
        raise PrepareError(f"nothing of the name {options.name} was written to {work / 'data'}")
    return made or work


def _environment(shell: Shell, folder: Path, python: Path) -> Path:
    """A Python with TensorFlow; made anew unless a complete one is there."""
    interpreter, ready = folder / "bin" / "python", folder / "ready.json"
    wanted = json.dumps(requirements())
    if not (ready.exists() and ready.read_text() == wanted):
        shell.run(str(python), "-m", "venv", "--clear", str(folder))
        shell.run(str(interpreter), "-m", "pip", "install", "--quiet", *requirements())
        if not shell.dry_run:
            ready.write_text(wanted)
    return interpreter


def _check_space(root: Path, work: Path, options: argparse.Namespace) -> None:
    """Raises `PrepareError` where there is too little space for what is still to come."""
    if options.source:
        source = files.version_folder(options.source.expanduser().resolve(), options.name)
        size = files.size(source) if source else 0
        needed = SPACE.get(options.name, 0.0) * GIB if source is None else 1.2 * size
    else:
        needed = SPACE.get(options.name, 0.0) * GIB
    if options.name != tiny_imagenet.NAME:
        needed += ENVIRONMENT_SPACE * GIB
    missing = needed - (files.size(work) if work.exists() else 0)
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if (free := shutil.disk_usage(there).free) < missing:
        raise PrepareError(
            f"--dir={root}: preparing {options.name} takes {missing / GIB:.1f} GiB more, and "
            f"{free / GIB:.1f} GiB are free"
        )


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Refuses a second process that prepares the same; a dead one's lock is no lock."""
    with open(work / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(f"another process prepares this at the moment in {work}") from None
        yield


def adopt(shell: Shell, options: argparse.Namespace) -> Path:
    """Takes over a prepared data set without checksums: counts its records and writes them.

    Raises:
      PrepareError: it is not there, or not complete.
    """
    root = options.dir.expanduser().resolve()
    folder = files.version_folder(root, options.name)
    if folder is None:
        raise PrepareError(f"--dir={root}: there is no {options.name} in it")
    files.check_records(folder)
    files.write_sums(folder)
    shell.show(f"{folder} is complete; its checksums are in {files.SUMS}")
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; what a user can mend ends in one line and status 1."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("name", help="of TFDS, such as cifar10 or imagenet_resized/64x64")
    parser.add_argument("--dir", type=Path, required=True, help="what data.dir will be")
    parser.add_argument("--from", dest="source", type=Path, help="a copy to convert")
    parser.add_argument("--manual_dir", type=Path, help="archives that have to be got by hand")
    parser.add_argument("--python", type=Path, default=Path(sys.executable),
                        help="makes the environment; one that TensorFlow supports")  # fmt: skip
    parser.add_argument("--adopt", action="store_true", help="checksums for what is in --dir")
    parser.add_argument("--dry_run", action="store_true", help="print commands and run none")
    options = parser.parse_args(argv)
    shell = Shell(options.dry_run)
    try:
        (adopt if options.adopt else prepare)(shell, options)
    except (ConfigError, PrepareError, CommandError) as error:
        stop(error)


if __name__ == "__main__":
    main()
