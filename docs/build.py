# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Builds the documentation: `python docs/build.py` writes docs/_build/html/index.html.

    pip install -c requirements.txt -e ".[docs]"
    python docs/build.py                # warnings, dead links among them, are errors
    python docs/build.py --pages        # only rewrites the generated pages settings.md, outputs.md
    python docs/build.py --check        # only says whether these are current

`--repository=https://...` says where the project lives, for links from the site to its files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

import jax  # noqa: E402

jax.Array.__module__ = "jax"  # what signatures call it, from here on

import generate  # noqa: E402  (a neighbour of this file)


def build(repository: str) -> int:
    """Runs Sphinx; returns its exit status."""
    from sphinx.cmd import build as sphinx

    os.environ["MHD_JAX_REPOSITORY"] = repository.rstrip("/")
    output = FOLDER / "_build"
    shutil.rmtree(output, ignore_errors=True)
    strict = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    status = sphinx.build_main(
        [*strict, "-d", str(output / "cache"), str(FOLDER), str(output / "html")]
    )
    if status == 0:
        print(f"written: {output / 'html' / 'index.html'}")
    return status


def main() -> None:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description="Builds the documentation.")
    parser.add_argument("--pages", action="store_true", help="only rewrite the generated pages")
    parser.add_argument("--check", action="store_true", help="only say whether they are current")
    parser.add_argument("--repository", default="", help="address of the project's repository")
    options = parser.parse_args()
    if options.check:
        outdated = generate.outdated(FOLDER)
        sys.exit(f"run python docs/build.py --pages: {outdated} differ" if outdated else None)
    generate.write_pages(FOLDER)
    if not options.pages:
        generate.write_reference(FOLDER / "api")
        sys.exit(build(options.repository))


if __name__ == "__main__":
    main()
