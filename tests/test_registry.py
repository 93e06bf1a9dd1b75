# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A registry finds our own pieces and those of installed packages, and nothing else."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path

import pytest

from mhd_jax.distill import max_prob
from mhd_jax.errors import ConfigError
from mhd_jax.models import MODELS
from mhd_jax.registry import Registry, is_ours


@pytest.fixture
def shapes() -> Registry[object]:
    registry: Registry[object] = Registry("shape.name")
    registry.register("square")(4)
    registry.register("triangle")(3)
    return registry


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that pip could have installed: a module and the entry points it declares."""
    (tmp_path / "outside_shapes.py").write_text("hexagon = 6\nsquare = 'not ours'\n")
    metadata = tmp_path / "outside_shapes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: outside-shapes\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[mhd_jax.shape.name]\n"
        "hexagon = outside_shapes:hexagon\n"
        "square = outside_shapes:square\n"
        "broken = outside_shapes_that_is_gone:broken\n"
        "[mhd_jax.colour.name]\n"
        "red = outside_shapes:hexagon\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    invalidate_caches()
    yield
    sys.modules.pop("outside_shapes", None)


def test_register_returns_the_piece_unchanged() -> None:
    registry: Registry[object] = Registry("shape.name")

    def circle() -> float:
        return 3.14

    assert registry.register("circle")(circle) is circle
    assert registry.get("circle") is circle


def test_names_keep_the_order_of_registration(shapes: Registry[object]) -> None:
    assert shapes.names() == ["square", "triangle"]
    assert list(shapes) == ["square", "triangle"]


def test_registries_share_nothing(shapes: Registry[object]) -> None:
    assert Registry("shape.name").names() == []
    assert "square" in shapes


@pytest.mark.parametrize("name", ["sqare", "", None, 3])
def test_an_unknown_name_is_an_error_that_lists_the_known(
    shapes: Registry[object], name: str
) -> None:
    with pytest.raises(ConfigError, match="one of square, triangle") as caught:
        shapes.get(name)
    assert caught.value.setting == "shape.name"
    assert caught.value.value == name


def test_a_mistyped_name_gets_the_nearest(shapes: Registry[object]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'square'"):
        shapes.get("sqare")


@pytest.mark.usefixtures("installed")
def test_an_installed_package_adds_a_piece(shapes: Registry[object]) -> None:
    assert shapes.names() == ["square", "triangle", "hexagon", "broken"]
    assert shapes.get("hexagon") == 6


@pytest.mark.usefixtures("installed")
def test_our_own_piece_wins_over_one_of_the_same_name(shapes: Registry[object]) -> None:
    assert shapes.get("square") == 4


@pytest.mark.usefixtures("installed")
def test_listing_does_not_import_the_package(shapes: Registry[object]) -> None:
    shapes.names()
    assert "outside_shapes" not in sys.modules


@pytest.mark.usefixtures("installed")
def test_a_broken_package_fails_only_when_asked_for(shapes: Registry[object]) -> None:
    assert shapes.get("triangle") == 3
    with pytest.raises(ModuleNotFoundError, match="outside_shapes_that_is_gone"):
        shapes.get("broken")


@pytest.mark.usefixtures("installed")
def test_entry_points_of_another_setting_stay_away(shapes: Registry[object]) -> None:
    with pytest.raises(ConfigError, match="shape.name = 'red'"):
        shapes.get("red")


def test_a_piece_is_ours_wherever_it_is_wrapped() -> None:
    assert is_ours(max_prob) and is_ours(functools.partial(max_prob)) and is_ours(MODELS)
    assert not is_ours(len) and not is_ours(functools.partial(sorted, reverse=True))


def test_a_piece_of_no_module_is_not_ours() -> None:
    def made(x: object) -> object:
        return x

    assert not is_ours(made)
    made.__module__ = None  # type: ignore[assignment]
    assert not is_ours(made) and not is_ours(functools.partial(made, 1))
    made.__module__ = "mhd_jax_of_somebody_else"
    assert not is_ours(made)
