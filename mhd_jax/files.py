# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Paths that may be local or URLs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from etils import epath


def absolute(path: epath.PathLike) -> epath.Path:
    """`path` as an absolute epath; a URL is one already."""
    made = epath.Path(path)
    # `resolve` would put the current directory in front of a URL.
    return made if is_remote(made) else made.expanduser().resolve()


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is a URL such as ``gs://bucket/run`` rather than a local path."""
    return "://" in os.fspath(path)


def files_below(directory: epath.Path) -> Iterator[epath.Path]:
    """All files in a directory and the directories in it; `rglob` does not work for URLs."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path
