# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What the pages say about the code is true: settings, defaults, links, sizes.

`docs/build.py` builds the site from the same pages; `.ci/run` does, with warnings as errors.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import mhd_jax
from mhd_jax import config

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += sorted(f"docs/{page.name}" for page in DOCS.glob("*.md"))


@pytest.fixture(scope="module")
def generate() -> Any:
    sys.path.insert(0, str(DOCS))
    try:
        import generate
    finally:
        sys.path.remove(str(DOCS))
    return generate


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The fragments that links to a page's headings may have, as GitHub and MyST make them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", words).strip().lower().replace(" ", "-"))
    return found


# --- The front page -------------------------------------------------------------------------------


def test_the_front_page_is_short() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 200
    assert len(text.encode()) <= 14_000


def test_how_it_works_is_near_the_top() -> None:
    lines = read("README.md").splitlines()
    assert lines.index("## How it works") < 90


# --- Links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, fragment = target.partition("#")
        if "://" in target:
            continue
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if fragment and file.suffix == ".md":
            assert fragment in anchors(str(file.relative_to(ROOT))), f"{page} links to {target}"


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", read("docs/index.md")))
    assert linked == {Path(page).name for page in PAGES if page.startswith("docs/")} - {"index.md"}


# --- Settings -------------------------------------------------------------------------------------


def test_every_setting_has_a_comment(generate: Any) -> None:
    known = set(config.flatten(config.default_config()))
    notes = generate.comments()
    assert set(notes) == known
    assert [name for name in sorted(known) if not notes[name]] == []


def test_every_setting_is_read_somewhere(generate: Any) -> None:
    assert [name for name, modules in generate.readers().items() if not modules] == []


def test_a_comment_may_stand_above_or_beside_and_end_with_what_is_accepted(generate: Any) -> None:
    assert generate._split("steps between two averages [at least 1]") == (
        "steps between two averages",
        "at least 1",
    )
    assert generate._split("no range") == ("no range", "")


def test_generated_pages_are_current() -> None:
    """In a process of its own: here other tests may have registered pieces."""
    command = [sys.executable, "docs/build.py", "--check"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("comment", "shown"),
    [
        ('"" = data.dir, not data.other', '`""` = `data.dir`, not data.other'),
        ("dirichlet, shards: the shards", "`dirichlet`, `shards`: the shards"),
        ("one of them", "One of them"),
    ],
)
def test_names_in_comments_are_marked(generate: Any, comment: str, shown: str) -> None:
    assert generate._marked(comment, {"data.dir", "shards", "dirichlet"}) == shown


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_settings_that_pages_name_exist(page: str) -> None:
    known = config.flatten(config.default_config())
    sections = {name.partition(".")[0] for name in known if "." in name}
    for word in re.findall(r"`([a-z_]+\.[a-z_.]+)(?:=[^`]*)?`", prose(page)):
        if word.partition(".")[0] in sections and not word.endswith((".py", ".png", ".json")):
            assert word in known, f"{page} names {word}"


def test_defaults_that_the_method_page_explains_are_the_defaults() -> None:
    known = config.flatten(config.default_config())
    section = read("docs/method.md").partition("## Defaults")[2]
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", section, re.MULTILINE)
    assert len(rows) > 5
    for name, shown in rows:
        value = known[name]
        assert shown == (f'"{value}"' if isinstance(value, str) else str(value)), name


# --- API reference --------------------------------------------------------------------------------


def test_the_reference_has_a_page_for_every_module(generate: Any, tmp_path: Path) -> None:
    generate.write_reference(tmp_path / "api")
    found = {page.stem for page in (tmp_path / "api").iterdir()}
    files = (ROOT / "mhd_jax").rglob("*.py")
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    assert found == {name.removesuffix(".__init__") for name in modules}


# --- Citation -------------------------------------------------------------------------------------


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == mhd_jax.__version__
    released = re.search(r"^## \[(\d.*)\] - (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert released is not None
    assert released.groups() == (citation["version"], citation["date-released"])
    assert citation["authors"] == [{"name": "The mhd-jax authors"}]
    assert "2211.15774" in citation["preferred-citation"]["url"]
