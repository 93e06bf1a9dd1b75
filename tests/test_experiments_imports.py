# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""In experiments/ nothing imports in a circle, and the harness knows no study."""

from __future__ import annotations

import ast
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parent.parent


def imports(package: Path) -> nx.DiGraph:
    """Which module of a package imports which, inside functions too; notebooks are left out."""
    found = [f for f in package.rglob("*.py") if f.stem != "__init__" and "colab" not in f.parts]
    files = {".".join(f.relative_to(package.parent).with_suffix("").parts): f for f in found}
    graph = nx.DiGraph()
    graph.add_nodes_from(files)
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            others: list[str] = []
            if isinstance(node, ast.Import):
                others = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                others = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            graph.add_edges_from((name, other) for other in others if other in files)
    return graph


EXPERIMENTS = imports(ROOT / "experiments")


def room(module: str) -> str:
    """The folder of a module, or "studies"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else "studies"


def test_nothing_imports_in_a_circle() -> None:
    assert list(nx.simple_cycles(EXPERIMENTS)) == []
    assert EXPERIMENTS.has_edge("experiments.harness.sweep", "experiments.harness.tables")


def test_arrows_between_rooms_run_down() -> None:
    """`render`, which shows everything, stands above the studies and the benchmarks."""
    below: dict[str, set[str]] = {
        "harness": set(), "launch": set(), "studies": {"harness", "checks"},
        "benchmarks": {"harness"},
        "checks": {"harness"}, "prepare": {"launch"},
        "accelerator": {"harness", "benchmarks", "checks"},
    }  # fmt: skip
    for module, other in EXPERIMENTS.edges:
        if module != "experiments.harness.render" and room(module) != room(other):
            assert room(other) in below[room(module)], f"{module} imports {other}"


def test_studies_do_not_know_each_other() -> None:
    for module, other in EXPERIMENTS.edges:
        if room(module) == room(other) == "studies":
            assert module == "experiments.all", f"{module} imports {other}"


def test_a_circle_is_found(tmp_path: Path) -> None:
    package = tmp_path / "planted"
    package.mkdir()
    (package / "a.py").write_text("def f():\n    from planted import b\n")
    (package / "b.py").write_text("import planted.a\n")
    assert len(list(nx.simple_cycles(imports(package)))) == 1
