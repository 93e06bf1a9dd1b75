# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The notebooks run from the first cell to the last, and their two forms say the same."""

from __future__ import annotations

import ast
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "experiments" / "colab"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


CHEAPLY = """
from mhd_jax import train
from mhd_jax.monitor import Monitor
from tests.garbage import collect_rarely

collect_rarely()
Monitor.look = lambda self, state, step: ({}, [])  # no notebook shows what it finds

def cheaply(config, workdir, train_and_evaluate=train.train_and_evaluate):
    # A client that joins is compared with itself alone; elsewhere the baseline is a line in plots.
    config.isolated_baseline = config.clients.frozen > 0
    config.train.steps_per_call = 1  # a loop over steps takes longer to trace than so few to call
    return train_and_evaluate(config, workdir, with_report=False)

train.train_and_evaluate = cheaply
"""


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_there_are_four_pairs() -> None:
    assert NAMES == ["extend_heads", "quickstart", "silos_to_client", "your_own_data"]
    assert NAMES == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_agree(name: str) -> None:
    text = jupytext.read(FOLDER / f"{name}.py")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert cells(text) == cells(notebook)
    nbformat.validate(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_code_cell_installs_in_colab_only(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert first.partition("CHECKOUT = ")[2].startswith('""\n'), "the address is the reader's"
    assert 'if "google.colab" in sys.modules' in first and "pip" in first and "CHECKOUT]" in first


@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_short(name: str) -> None:
    """A head of one's own takes fewer than 30 lines."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None and node.end_lineno - node.lineno < 30


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_they_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One after another in one kernel that forgets its names in between; no reports are written."""
    monkeypatch.setenv("MHD_JAX_NOTEBOOK_STEPS", "6")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    whole, parts = nbformat.v4.new_notebook(), {}
    whole.cells.append(nbformat.v4.new_code_cell(CHEAPLY))
    for name in NAMES:
        parts[name] = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
        whole.cells += [*parts[name], nbformat.v4.new_code_cell("%reset -f")]
    client = nbclient.NotebookClient(whole, timeout=600, kernel_name="python3")
    client.execute(cwd=tmp_path)
    for name, run in parts.items():
        data = [output.get("data", {}) for cell in run for output in cell.get("outputs", [])]
        assert any("image/png" in one for one in data), f"{name} showed no figure"
