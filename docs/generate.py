# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Pages written from the code: every setting, every key of a run's output, the API reference.

`settings.md` and `outputs.md` are committed, so that they can be read without building anything; a
test fails when they are not current (`python docs/build.py --pages` rewrites them).
"""

from __future__ import annotations

import ast
import importlib
import io
import pkgutil
import re
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mhd_jax
from mhd_jax import config as config_lib
from mhd_jax import results
from mhd_jax.models import classifier
from mhd_jax.registry import Registry

PACKAGE = Path(mhd_jax.__file__).parent
NOTICE = "<!-- Written by `python docs/build.py --pages`; edit {source} instead. -->\n"

SECTIONS = {
    "": "Run",
    "data": "Data",
    "partition": "Partition",
    "clients": "Clients",
    "model": "Embedding network",
    "heads": "Heads",
    "graph": "Communication graph",
    "exchange": "Exchange",
    "distill": "Distillation",
    "average": "Parameter averaging",
    "rounds": "Rounds",
    "attack": "Lies",
    "optimizer": "Optimiser",
    "train": "Training",
    "parallel": "Devices",
    "privacy": "Differential privacy",
}

# Modules that get a section as a whole and know its settings by their last name.
ROOMS = {
    "data": ("data/sources",),
    "partition": ("data/partition",),
    "model": ("models/",),
    "graph": ("graph",),
    "optimizer": ("optimizer",),
    "distill": ("methods",),
    "train": ("train", "experiment"),
    "parallel": ("models/",),
    "privacy": ("privacy",),
}

# Sections whose settings are also read by their last name as a string.
BY_KEY = ("graph", "model", "partition")


def modules() -> Iterator[ModuleType]:
    """The package and all modules in it, in alphabetical order."""
    yield mhd_jax
    for info in pkgutil.walk_packages([str(PACKAGE)], "mhd_jax."):
        yield importlib.import_module(info.name)


# --- Settings -------------------------------------------------------------------------------------


def comments() -> dict[str, str]:
    """The comment beside (or on the lines above) every assignment of a default, by setting."""
    source = Path(config_lib.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    notes = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    statements = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt))
    for node in sorted(statements, key=lambda node: node.lineno):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            path = _chain(node.targets[0])
            if path[0] == "config" and not ast.unparse(node.value).endswith("ConfigDict()"):
                above, line = [], node.lineno - 1
                while lines[line - 1].strip().startswith("#"):
                    above.insert(0, notes[line])
                    line -= 1
                parts = [*above, notes.get(node.end_lineno or node.lineno, "")]
                found[".".join(path[1:])] = " ".join(part for part in parts if part)
    return found


def readers() -> dict[str, list[str]]:
    """For every setting the modules that read it, as paths in the package."""
    settings = list(config_lib.flatten(config_lib.default_config()))
    found: dict[str, list[str]] = {name: [] for name in settings}
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        used = _names_used(file.read_text(encoding="utf-8")) if path != "config.py" else set()
        for name in settings:
            section, _, leaf = name.rpartition(".")
            as_read = {f"{section or 'config'}.{leaf}"}
            if any(path.startswith(room) for room in ROOMS.get(section, ())):
                as_read |= {f"config.{leaf}", f"settings.{leaf}", f"chosen.{leaf}", f"*{leaf}"}
                as_read |= {f"'{leaf}'", f"'{name}'"} if section in BY_KEY else set()
            if as_read & used:
                found[name].append(path)
    return found


def _names_used(source: str) -> set[str]:
    """The last two words of dotted names, keyword-only parameters as `*x`, and strings as `'x'`."""
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            used.add(".".join(_chain(node)[-2:]))
        elif isinstance(node, ast.arguments):
            used |= {f"*{parameter.arg}" for parameter in node.kwonlyargs}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.add(f"'{node.value}'")
    return used


def _chain(node: ast.expr) -> list[str]:
    """`config.graph.name` as its three words; what is not a name is left out."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def choices() -> dict[str, list[str]]:
    """Settings that are one of some names, and the names that this package has for them."""
    found: dict[str, list[str]] = {}
    for module in modules():
        for piece in vars(module).values():
            if isinstance(piece, Registry):
                names = found.setdefault(piece.setting, [])
                names += [name for name in piece._pieces if name not in names]
    for setting, names in config_lib.ONE_OF.items():
        found[setting] = list(names)
    found["model.norm"] = list(classifier.NORMS)
    found["model.dtype"] = list(classifier.DTYPES)
    found["model.stem"] = list(classifier.STEMS)
    lowering = next(name for name in config_lib.flatten(config_lib.default_config())
                    if name.startswith("parallel.conv"))  # fmt: skip
    found[lowering] = list(classifier.CONVS)
    return {name: [n for n in names if not n.endswith("_example")] for name, names in found.items()}


def accepted(name: str, default: Any, stated: str, names: dict[str, list[str]]) -> str:
    """What a setting may be: as stated in [brackets] in its comment, or as the checks have it."""
    one_of = ", ".join(f"`{choice}`" for choice in names.get(name, ()))
    if one_of or stated:
        return "; ".join(part for part in (one_of, stated[:1].lower() + stated[1:]) if part)
    if isinstance(default, bool):
        return "`True`, `False`"
    if name in config_lib.RANGES:
        return config_lib.RANGES[name][1]
    return f"{type(default).__name__}"


def _default(value: Any) -> str:
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def settings_page() -> str:
    """`settings.md`."""
    defaults = config_lib.flatten(config_lib.default_config())
    notes, read_by, names = comments(), readers(), choices()
    words = {*defaults, *(choice for known in names.values() for choice in known)}
    order = {name: place for place, name in enumerate(notes)}  # as they stand in config.py
    text = NOTICE.format(source="mhd_jax/config.py") + SETTINGS_INTRODUCTION
    sections = dict.fromkeys(name.rpartition(".")[0] for name in defaults)
    for section in sorted(sections, key=list(SECTIONS).index):
        title = f"{SECTIONS[section]}: `{section}`" if section else SECTIONS[section]
        text += f"\n## {title}\n\n"
        text += "| setting | default | what it does | accepts | used in |\n" + 5 * "| --- " + "|\n"
        for name, default in sorted(defaults.items(), key=lambda item: order[item[0]]):
            if name.rpartition(".")[0] == section:
                note, stated = (_marked(part, words) for part in _split(notes.get(name, "")))
                modules_of_it = ", ".join(f"[`{p}`](../mhd_jax/{p})" for p in read_by[name])
                cells = (f"`{name}`", _default(default), note,
                         accepted(name, default, stated, names), modules_of_it)  # fmt: skip
                text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return text


def _split(note: str) -> tuple[str, str]:
    """A comment and the accepted values that stand in [brackets] at its end."""
    match = re.fullmatch(r"(.*?)\s*(?:\[(.*)\])?", note)
    assert match is not None
    return match[1], match[2] or ""


def _marked(text: str, words: set[str]) -> str:
    """Strings and names in code type; a capital letter where the text starts with neither."""

    def mark(match: re.Match[str]) -> str:
        word = match[0]
        named = "." in word or "_" in word
        before_colon = re.fullmatch(r"(, [a-z_]+)*: .*", match.string[match.end() :])
        return f"`{word}`" if word in words and (named or before_colon) else word

    text = re.sub(r"\(\(.*?\)\)|\(\"[^)]*\)|\"[^\"]*\"|\(\)", lambda match: f"`{match[0]}`", text)
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"(?<![\w.$])[a-z_]+(\.[a-z_]+)*", mark, piece) for piece in pieces[::2]]
    text = "".join(pieces)
    return text[:1].upper() + text[1:]


SETTINGS_INTRODUCTION = """
# Settings

Every setting of a run with its default. Change one on the command line, from Python, or in a file
of your own like those in [`configs/`](../configs). These come with the package and also go by
their names, as in `--config=cifar10:cpu`, wherever you are; without `--config` it is `digits`.

```bash
python -m mhd_jax.main --config=configs/digits.py --workdir=runs/cycle \\
  --config.graph.name=cycle --config.heads.aux=6
```

```python
import mhd_jax

run = mhd_jax.fit({"graph.name": "cycle", "heads.aux": 6})
```

A name or a value that is not accepted is refused before any work is done, with the setting, the
value and what would be accepted. Where a setting takes a name, it also takes the name of a piece
that you registered: see [Extending](extending.md). The settings of a run are in its `config.json`.

[Method: defaults](method.md#defaults) gives the reason for each default, [One default for
everything](defaults.md) the measurements.
"""


# --- Outputs --------------------------------------------------------------------------------------


def outputs_page() -> str:
    """`outputs.md`."""
    text = NOTICE.format(source="mhd_jax/results/") + OUTPUTS_INTRODUCTION
    for file, keys in results.describe_fields().items():
        text += f"\n## {file}\n\n{ABOUT_FILES.get(file, '')}\n"
        text += "| key | shape | unit | meaning |\n" + 4 * "| --- " + "|\n"
        for key in keys:
            cells = (f"`{key.key}`", key.shape, "" if key.unit in "1–" else key.unit, key.about)
            text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return text


OUTPUTS_INTRODUCTION = """
# Outputs

What a run leaves in its `--workdir`, and what every key means.

| file | what it holds |
| --- | --- |
| `config.json` | all settings; the same ones resume a run, [others](#what-may-change) are refused |
| `data.sha256` | a fingerprint of the run's data; other data are refused |
| `files.sha256` | the same for the files that `graph.matrix` and `clients.trace` name |
| [`summary.json`](#summaryjson) | the result: accuracies of all clients and heads, data, graph |
| [`metrics.jsonl`](#metricsjsonl) | losses and accuracies over steps, one JSON object a line |
| `report.html` | tables and figures in one file that opens offline |
| `figures/*.png` | the figures of the report |
| `checkpoints/` | the latest states, from which the run resumes |
| `run.lock` | keeps a second run out |

## What may change

A run that goes on may differ from before in where it runs and what it writes: `parallel.*`,
`clients.offload`, `data.dir`, `data.public_dir`, `data.feed`, `data.workers`, `metrics`,
`bytes_to`, and of `train.*` in `steps_per_call`, `log_every`, `eval_every`, `checkpoint_every` and
`keep_checkpoints`.

## Reading it

With the extra `[tensorboard]`, TensorBoard shows what `metrics.jsonl` has, as means over clients.

From Python, `Run.load` reads all of it:

```python
import mhd_jax

run = mhd_jax.Run.load("runs/digits")
run.summary["shared_accuracy"]  # [K, H]: one row per client, one column per head
run.history  # metrics.jsonl as a pandas frame, means over clients
```

Shapes: K clients, H = m + 1 heads (the main head, then the auxiliary heads by rank) of which h are
published, C classes, R seeds. A number without a unit has no dimension; accuracies are fractions
from 0 to 1.
"""

ABOUT_FILES = {
    "summary.json": """Written at the end of a run. If `num_seeds` is more than 1, results are those
of the first seed, and `replicas` has those of every seed. With `method = supervised` one model
stands for all clients: parameters, bytes, `epsilon` and `class_accuracy` are its own, with K = 1.
""",
    "metrics.jsonl": """Every line has `step` and `seconds`. Lines with losses are written every
`train.log_every` steps, lines with accuracies every `train.eval_every`. With several seeds, values
are those of the first.
""",
}


# --- Reference ------------------------------------------------------------------------------------


def write_reference(folder: Path) -> None:
    """One page for every module, filled from its docstrings by Sphinx."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for module in modules():
        name = module.__name__
        title = f"``{name}``"
        body = f"{title}\n{'=' * len(title)}\n\n.. automodule:: {name}\n"
        (folder / f"{name}.rst").write_text(body, encoding="utf-8")


def pages() -> dict[str, str]:
    """All committed pages that are written from the code, by file name."""
    return {"settings.md": settings_page(), "outputs.md": outputs_page()}


def write_pages(folder: Path) -> None:
    """Rewrites them in `folder`."""
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


def outdated(folder: Path) -> list[str]:
    """Those that differ in `folder` from what the code says."""
    return [
        name
        for name, text in pages().items()
        if not (folder / name).exists() or (folder / name).read_text(encoding="utf-8") != text
    ]
