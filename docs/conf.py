# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration of the documentation; `docs/build.py` builds it.

The pages are plain Markdown that also reads well where no Sphinx is at work. What Sphinx needs
beyond that is added here while it reads them: tables of contents from the lists of links in
`index.md` and `api.md`, and addresses for links to files outside of `docs/`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

import mhd_jax

ROOT = Path(__file__).resolve().parent.parent
project = "mhd-jax"
author = "The mhd-jax authors"
copyright = f"2026, {author}"
release = version = mhd_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
suppress_warnings = ["config.cache"]
nitpicky = True
# Objects of other projects, whose reference is not at hand without a network; private ones.
nitpick_ignore_regex = [("py:.*", pattern) for pattern in (r"(?!mhd_jax\.).*", r".*\.(_\w+|T)")]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
# Links to files of the repository: `build.py --repository=https://...` makes them addresses there,
# otherwise they lead from docs/_build/html to the checkout around it.
REPOSITORY = os.environ.get("MHD_JAX_REPOSITORY", "")
FILES = f"{REPOSITORY}/blob/main" if REPOSITORY else "../../.."
myst_url_schemes = {"http": None, "https": None, "repo": f"{FILES}/{{{{path}}}}"}

python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "ignore-module-all": True,  # a name is documented once, in the module that defines it
    "exclude-members": "set",  # matplotlib adds it to every artist
}
smartquotes = False
default_role = "literal"  # docstrings say `name`, as Markdown does
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"mhd-jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False

_LINK = re.compile(r"^[-*] \[[^]]+\]\(([\w-]+)\.md\)", re.MULTILINE)
_OUTSIDE = re.compile(r"(?<!!)(\[[^][]*\]\()\.\./")


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Appends tables of contents, and marks links that leave `docs/`."""
    text = _OUTSIDE.sub(r"\1repo:", source[0])
    if "://github.com/" in REPOSITORY:  # notebooks open in Colab
        colab = FILES.replace("://github.com/", "://colab.research.google.com/github/")
        text = re.sub(r"repo:(experiments/colab/\w+\.ipynb)", rf"{colab}/\1", text)
    text = re.sub(r"(?<=\d) (±) (?=\d)", "\u00a0\\1\u00a0", text)  # a number stays on one line
    if docname == "index":
        for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
            title, pages = section.partition("\n")[0], "\n".join(_LINK.findall(section))
            if pages:
                text += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n"
    if docname == "api":
        text += "\n## Modules\n\n```{toctree}\n:glob:\n:maxdepth: 1\n\napi/*\n```\n"
    if docname == "contributing":  # the page in the root, seen from here
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        text = re.sub(r"\]\((?!\w+:|#|docs/)", "](repo:", text).replace("](docs/", "](")
    source[0] = text


def to_restructured_text(app: Sphinx, what: str, name: str, obj: object, options: object,
                         lines: list[str]) -> None:  # fmt: skip
    """Docstrings are plain text: |x| is no substitution, an indented block after ":" is code."""
    for place, line in enumerate(lines):
        lines[place] = line.replace("|", "\\|")
        after = [*lines[place + 1 : place + 3], "", ""]
        if line.endswith(":") and not after[0].strip() and after[1].startswith("    "):
            lines[place] += ":"


def simplify_signature(app: Sphinx, what: str, name: str, obj: object, options: object,
                       signature: str, returns: str) -> tuple[str, str] | None:  # fmt: skip
    """A protocol is not made by calling it."""
    return ("", "") if what == "class" and getattr(obj, "_is_protocol", False) else None


def skip_field_numbers(app: Sphinx, what: str, name: str, obj: object, skip: bool,
                       options: object) -> bool | None:  # fmt: skip
    """Fields of named tuples have no docstring of their own but a number."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def inline_math(translator: nodes.NodeVisitor, node: nodes.math) -> None:
    """A formula within a line as MathML, which browsers draw without a script or a network."""
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def display_math(translator: nodes.NodeVisitor, node: nodes.math_block) -> None:
    """A formula on a line of its own."""
    formula = latex2mathml.tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Registers what is defined above."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", to_restructured_text, priority=100)
    app.connect("autodoc-process-signature", simplify_signature)
    app.connect("autodoc-skip-member", skip_field_numbers)
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
