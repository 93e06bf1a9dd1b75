# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What the README, CONTRIBUTING.md and the pages of docs/ tell people to type works.

Python snippets run, one page in one namespace, with few steps. Commands are checked piece by
piece: modules exist, settings are known, paths are there. `.ci/run` types the two commands of the
README that install, word for word.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

import mhd_jax
from mhd_jax import api, config, train
from mhd_jax import experiment as experiment_lib
from tests import small

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md")
PAGES += tuple(sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, *languages: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for language, body in BLOCK.findall(text) if language in languages]


def commands(page: str) -> list[list[str]]:
    """The words of every command, without the environment in front of it."""
    found = []
    for body in blocks(page, "bash", "sh"):
        body = re.sub(r"(^| )#.*$", "", body.replace("\\\n", " "), flags=re.MULTILINE)
        outside_quotes = r"(?=(?:[^']*'[^']*')*[^']*$)"
        for line in re.split(rf"(?:&&|\n){outside_quotes}", body):
            words = shlex.split(line, comments=True)
            if words:
                found.append([word.removeprefix(".venv/bin/") for word in words])
    inline = re.findall(r"`(python -m [^`]+)`", (ROOT / page).read_text(encoding="utf-8"))
    return found + [shlex.split(line) for line in inline]


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in api.PIECES.values():
        monkeypatch.setattr(registry, "_pieces", dict(registry._pieces))


@pytest.fixture
def quick_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `mhd_jax.fit` train a few steps of a small run, with the settings given."""
    fit = mhd_jax.fit
    without_report = functools.partial(train.train_and_evaluate, with_report=False)
    monkeypatch.setattr(train, "train_and_evaluate", without_report)

    def quick(settings: dict[str, Any], _workdir: str = "", **pieces: Any) -> mhd_jax.Run:
        made = small.config()
        kept = {name: value for name, value in settings.items() if name != "train.steps"}
        config.update(made, kept)
        return fit(made, **pieces)

    monkeypatch.setattr(api, "fit", quick)


def run_snippets(page: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": __name__}  # dataclasses look their module up
    for body in blocks(page, "python"):
        exec(body, namespace)
    return namespace


@pytest.mark.usefixtures("registries", "quick_fit")
def test_the_snippets_of_the_readme_run() -> None:
    found = run_snippets("README.md")
    assert found["run"].config.heads.name == "CosineHead"
    assert found["run"].config.graph.name == "cycle"
    assert isinstance(found["run"].plot_accuracy(), matplotlib.figure.Figure)
    assert found["again"].summary == found["run"].summary


@pytest.mark.usefixtures("registries", "quick_fit")
@pytest.mark.parametrize(
    "page",
    [
        "docs/settings.md", "docs/api.md",
        pytest.param("docs/your-own-data.md", marks=pytest.mark.slow),  # trains five runs
    ],
)  # fmt: skip
def test_the_snippets_of_a_page_run(page: str) -> None:
    assert "mhd_jax" in run_snippets(page)


@pytest.mark.usefixtures("registries", "quick_fit")
def test_the_snippets_about_extending_run() -> None:
    """They register a piece of every kind; a run with all of them at once is built and checked."""
    assert run_snippets("docs/extending.md")["run"].config.heads.name == "HiddenLayerHead"
    made = small.config(
        heads__name="halved", model__name="flat", distill__confidence="squared",
        distill__rule="softmax_of_confidence", graph__name="leader", data__name="noise",
        partition__name="by_turns", exchange__encoding="float16", metrics=("best_class",),
        data__augment="dimmed", optimizer__name="lion",
    )  # fmt: skip
    experiment = experiment_lib.build(made)
    assert experiment.topologies[0].at(0).sum() == 3
    made.method, made.exchange.encoding = "one_head", "bytes"
    parts = experiment_lib.build(made).parts
    assert parts.method.distillation.wiring == "main"
    assert type(parts.encoding).__name__ == "Bytes"


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_modules_flags_and_files_that_exist(page: str) -> None:
    known = config.flatten(config.default_config())
    assert len(commands(page)) >= 3 or page not in ("README.md", "CONTRIBUTING.md")
    for words in commands(page):
        if words[0].endswith("python") and words[1] == "-m" and words[2] != "venv":
            assert importlib.util.find_spec(words[2]), words
        for word in words:
            if word.startswith("--config="):
                assert (ROOT / word.removeprefix("--config=").partition(":")[0]).exists(), word
            elif word.startswith("--config."):
                assert word.removeprefix("--config.").partition("=")[0] in known, word
            elif word.startswith("tests/"):
                assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:mhd_jax|configs|experiments|tests|docs)/[\w/.]*)`", text)
    for target in named:
        if target not in ("tests/test_x.py", "mhd_jax/x.py"):
            assert (ROOT / target).exists(), target


def test_the_output_in_the_readme_is_of_this_version() -> None:
    """Same run, same numbers: the partition's hash stands for the whole of it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- output: job -->\n```text\n(.*?)```", text, re.DOTALL)
    assert shown is not None
    made = config.default_config()
    experiment = experiment_lib.build(made)
    assert experiment.federations[0].partition.hash()[:12] in shown[1]
    for row in ("main", "aux 4", "isolated"):
        assert re.search(rf"^{row} +0\.\d+", shown[1], re.MULTILINE)
