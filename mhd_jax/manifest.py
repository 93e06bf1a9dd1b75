# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The manifest of a checkpoint: the SHA-256 of its files, by which damage is noticed."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from mhd_jax.files import files_below
from mhd_jax.wording import brief

MANIFEST = "manifest.json"
# Written or rewritten by Orbax at the rename itself and not needed to restore.
_NOT_SUMMED = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")


def read(checkpoint: epath.Path) -> dict[str, Any]:
    """The manifest of a checkpoint: "sha256" by file and "leaves", the arrays by path."""
    return json.loads((checkpoint / MANIFEST).read_bytes())


def checksums(checkpoint: epath.Path) -> dict[str, str]:
    """SHA-256 of every file that a restore reads, by its path below `checkpoint`."""
    files = {
        path.relative_to(checkpoint).as_posix(): path
        for path in files_below(checkpoint)
        if not (path.parent == checkpoint and path.name in _NOT_SUMMED)
    }
    with ThreadPoolExecutor() as pool:
        return dict(zip(files, pool.map(_digest, files.values()), strict=True))


def damage(checkpoint: epath.Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        manifest = read(checkpoint)
        written, _ = manifest["sha256"].items(), manifest["leaves"].items()
        found = checksums(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {brief(error)}"
    for name, digest in written:
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} is not what was written"
    return None


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
