# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The layers of the package: a module imports from layers below its own, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mhd_jax

PACKAGE = Path(mhd_jax.__file__).parent

LAYERS = (
    ("errors", "files", "rng", "trees", "wording"),
    ("config", "edges", "inputs", "manifest", "registry"),
    ("attacks", "command", "config_bases", "graph", "models", "optimizer", "parallel"),
    ("participation", "routes"),
    ("data", "distill", "results", "weights"),
    ("aggregation",),
    ("health", "methods", "state"),
    ("seating",),
    ("evaluate", "exchange", "privacy"),
    ("evaluator", "federation", "step"),
    ("schedule",),
    ("experiment", "probe"),
    ("audit", "estimate", "monitor"),
    ("runtime",),
    ("reporting",),
    ("record",),
    ("train",),
    ("api",),
    ("main",),
)
"""Modules and packages from the ground up."""

LEVELS = {unit: level for level, layer in enumerate(LAYERS) for unit in layer}


def modules(package: Path) -> dict[str, Path]:
    """All modules by dotted name, without the package's own name."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:  # the front door imports the interface, when it is first used
            found[name] = file
    return found


def imports(source: str, known: set[str]) -> set[str]:
    """The modules of the package that a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        named = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        ours = {name.removeprefix("mhd_jax.") for name in named if name.startswith("mhd_jax.")}
        inside = ours & known
        found |= {name for name in inside if not any(o.startswith(f"{name}.") for o in inside)}
    return found


def arrows(package: Path) -> dict[str, set[str]]:
    """What every module imports."""
    files = modules(package)
    return {name: imports(file.read_text(), set(files)) for name, file in files.items()}


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that do not lead to a lower layer, those inside a package left out."""
    found = []
    for name, imported in graph.items():
        unit = name.partition(".")[0]
        for other in imported:
            target = other.partition(".")[0]
            if target != unit and LEVELS[target] >= LEVELS[unit]:
                found.append(f"{name} imports {other}")
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or nothing; a package's front does not count for its own modules."""
    inside = {
        name: {other for other in imported if not name.startswith(f"{other}.")}
        for name, imported in graph.items()
    }
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_has_a_layer() -> None:
    assert {name.partition(".")[0] for name in modules(PACKAGE)} == set(LEVELS)


def test_no_import_leads_upward() -> None:
    assert upward(arrows(PACKAGE)) == []


def test_no_circle() -> None:
    assert circle(arrows(PACKAGE)) == []


@pytest.mark.parametrize(
    "text",
    ["from mhd_jax import train", "import mhd_jax.train", "from mhd_jax.train import Passage"],
)
def test_an_upward_import_is_found(text: str) -> None:
    graph = arrows(PACKAGE)
    graph["step"] = graph["step"] | imports(f"def later():\n    {text}", set(graph))
    assert upward(graph) == ["step imports train"]
    assert set(circle(graph)) >= {"step", "train"}
