# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every public name says what it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import mhd_jax

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(mhd_jax.__path__, prefix="mhd_jax.")
)


def undocumented(module: Any) -> Iterator[str]:
    """Public functions and classes of a module, and public methods, without a docstring."""
    if not (module.__doc__ or "").strip():
        yield module.__name__
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            if not (value.__doc__ or "").strip() or value.__doc__.startswith(f"{name}("):
                yield f"{module.__name__}.{name}"  # a dataclass's own signature says nothing
            yield from _methods(f"{module.__name__}.{name}", value)
        elif inspect.isfunction(value) and not (value.__doc__ or "").strip():
            yield f"{module.__name__}.{name}"


def _methods(owner: str, kind: type) -> Iterator[str]:
    for name, value in vars(kind).items():
        function = getattr(value, "fget", None) or getattr(value, "func", None)
        function = function or getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        inherited = any(inspect.getdoc(getattr(base, name, None)) for base in kind.__mro__[1:])
        if not (function.__doc__ or "").strip() and not inherited:
            yield f"{owner}.{name}"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert list(undocumented(importlib.import_module(name))) == []


def test_a_name_without_one_is_found() -> None:
    module = type(inspect)("planted", "A module.")
    exec("def said():\n    'Yes.'\ndef unsaid(): pass\nclass Unsaid:\n    def it(self): pass",
         vars(module))  # fmt: skip
    found = ["planted.unsaid", "planted.Unsaid", "planted.Unsaid.it"]
    assert list(undocumented(module)) == found
