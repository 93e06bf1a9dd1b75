# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Builds the API reference from the docstrings: ``python docs/build.py`` writes docs/api."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import mhd_jax


def build(folder: Path) -> None:
    """Writes a page for every module, and an index that searches them."""
    for name in mhd_jax.__all__:  # imported on first use, which pdoc does not wait for
        vars(mhd_jax)[name] = getattr(mhd_jax, name)
    found = pkgutil.walk_packages(mhd_jax.__path__, "mhd_jax.")
    for package in [mhd_jax, *(importlib.import_module(m.name) for m in found if m.ispkg)]:
        modules = [module.name for module in pkgutil.iter_modules(package.__path__)]
        named = getattr(package, "__all__", [])
        package.__all__ = list(dict.fromkeys([*named, *modules]))  # pdoc follows no others
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        # Array types of generated constructors, which it then shows as they are written.
        warnings.filterwarnings("ignore", message="Error parsing type annotation")
        pdoc.pdoc("mhd_jax", output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "api")
