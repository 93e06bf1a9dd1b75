# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Places in any page are filled, with links that lead from there to the figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.harness import render
from experiments.harness.presets import ROOT
from mhd_jax.errors import ConfigError

PLACE = "<!-- results: digits/topology -->\n<!-- end of results -->\n"


def test_pages_are_the_readme_and_all_of_docs(tmp_path: Path) -> None:
    names = ["README.md", "docs/results.md", "docs/more/speed.md", "CHANGELOG.md", "docs/build.py"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {page.relative_to(tmp_path).as_posix() for page in render.pages(tmp_path)}
    assert found == set(names[:3])


@pytest.mark.parametrize("name", ["README.md", "docs/results.md", "docs/more/deep.md"])
def test_links_lead_from_the_page_to_the_figure(name: str) -> None:
    page = ROOT / name
    text = render.render(page, f"before\n{PLACE}after\n")
    assert text.startswith("before\n") and text.endswith("<!-- end of results -->\nafter\n")
    (link,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    figure = ROOT / "experiments" / "results" / "digits" / "topology" / "figure.png"
    assert (page.parent / link).resolve() == figure and figure.exists()
    assert render.render(page, text) == text


def test_a_changed_number_is_noticed() -> None:
    page = ROOT / "README.md"
    text = render.render(page, PLACE)
    changed = re.sub(r"0\.\d", "0.x", text, count=1)
    assert changed != text and render.render(page, changed) == text


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (PLACE.replace("topology", "topolgy"), "did you mean 'topology'"),
        (PLACE.replace("digits", "digit"), "did you mean 'digits'"),
        (PLACE.replace("digits/topology", "benchmarks/stp"), "did you mean 'step'"),
        (PLACE.partition("\n")[0] + "\n", "followed by <!-- end of results -->"),
    ],
)
def test_a_place_that_cannot_be_filled_is_refused(place: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        render.render(ROOT / "docs" / "x.md", place)


def test_check_names_the_pages_that_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text(PLACE)
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "pages", lambda: [page])
    with pytest.raises(SystemExit, match="differ from the results: docs/results.md"):
        render.main(["--check"])
    assert page.read_text() == PLACE
    monkeypatch.setattr(render, "write_up", lambda: None)
    render.main([])
    render.main(["--check"])
    assert "| directed cycle |" in page.read_text()
