# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Augmentation: the same for a sample wherever its row is computed, and what its name says."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax import rng
from mhd_jax.data import augment as lib
from mhd_jax.errors import ConfigError

NAMES = ["none", "flip", "crop_flip"]


def batch(size: int, shape: tuple[int, int, int] = (16, 16, 3)) -> np.ndarray:
    """Images without a zero, so that zeros in the result are padding."""
    return np.random.default_rng(0).integers(1, 256, (size, *shape), dtype=np.uint8)


def apply(name: str, images: np.ndarray, first: int = 0, seed: int = 0) -> np.ndarray:
    positions = jnp.arange(first, first + len(images))
    keys = rng.each(jax.random.key(seed), positions)
    return np.asarray(jax.jit(lib.augment, static_argnums=0)(name, keys, images))


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_type_stay(name: str) -> None:
    for typed in (batch(4, (20, 12, 3)), (batch(4, (8, 8, 1)) / 255).astype(np.float32)):
        result = apply(name, typed)
        assert result.shape == typed.shape
        assert result.dtype == typed.dtype


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_comes_out_the_same_however_the_batch_is_split(name: str) -> None:
    images = batch(12)
    whole = apply(name, images)
    parts = [apply(name, images[i : i + 3], first=i) for i in range(0, 12, 3)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", NAMES)
def test_it_works_under_a_map_over_clients(name: str) -> None:
    images = np.stack([batch(5), batch(5)])
    keys = jax.vmap(rng.each, (0, None))(jax.random.split(jax.random.key(0)), jnp.arange(5))
    apply_all = functools.partial(lib.augment, name)
    mapped = jax.jit(jax.vmap(apply_all))(keys, images)
    single = [jax.jit(apply_all)(keys[i], images[i]) for i in range(2)]
    assert np.array_equal(mapped, np.stack(single))


@pytest.mark.parametrize("name", ["flip", "crop_flip"])
def test_keys_decide(name: str) -> None:
    images = np.repeat(batch(1), 32, axis=0)
    result = apply(name, images)
    assert len(np.unique(result.reshape(32, -1), axis=0)) > 1
    assert np.array_equal(result, apply(name, images))
    assert not np.array_equal(result, apply(name, images, seed=1))


def test_none_changes_nothing() -> None:
    images = batch(4)
    assert np.array_equal(apply("none", images), images)


def test_flip_mirrors_left_to_right_half_of_the_time() -> None:
    images = batch(400, (4, 4, 1))
    result = apply("flip", images)
    same = (result == images).all(axis=(1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert np.all(same | mirrored)
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("size", [8, 32])
def test_crops_are_shifts_of_the_padded_image_and_its_mirror(size: int) -> None:
    pad = lib.crop_padding(size)
    images = batch(1, (size, size, 1))
    result = apply("crop_flip", np.repeat(images, 2400, axis=0))
    padded = np.pad(images[0], ((pad, pad), (pad, pad), (0, 0)))
    shifts = range(2 * pad + 1)
    windows = [padded[y : y + size, x : x + size] for y in shifts for x in shifts]
    possible = {window.tobytes() for window in windows}
    mirrored = {window[:, ::-1].tobytes() for window in windows}
    found = [image.tobytes() for image in result]
    assert set(found) <= possible | mirrored
    assert 1080 < sum(image in mirrored for image in found) < 1320
    # All are as likely, to within five standard deviations.
    mean = 2400 / (2 * len(windows))
    assert max(found.count(image) for image in set(found)) < mean + 5 * mean**0.5
    assert len(set(found)) == 2 * len(windows)


def test_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ConfigError, match="data.augment = 'crop': .* did you mean 'crop_flip'"):
        lib.augment("crop", rng.each(jax.random.key(0), jnp.arange(1)), jnp.asarray(batch(1)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda key, x: (x, x), "one that makes an array of a sample, not tuple"),
        (lambda key, x: None, "one that makes an array of a sample, not NoneType"),
        (lambda key, x: x.nothing, r"samples of shape \(8, 8, 1\) .AttributeError"),
        (lambda key, x: {}["a"], r"samples of shape \(8, 8, 1\) .KeyError"),
        (lambda key, x: x[:4], r"leaves uint8\(8, 8, 1\) so, not uint8\(4, 8, 1\)"),
    ],
)
def test_one_that_breaks_its_contract_is_named(
    change: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(lib.AUGMENTS._pieces, "mine", change)
    with pytest.raises(ConfigError, match=f"data.augment = 'mine': expected .*{said}"):
        lib.check("mine", (8, 8, 1), np.dtype(np.uint8))


def test_normalize_takes_bytes_as_parts_of_255_and_floats_as_they_are() -> None:
    images = batch(3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (images / 255.0 - np.array(mean)) / np.array(std)
    for stored in (images, (images / 255).astype(np.float32)):
        result = lib.normalize(jnp.asarray(stored), mean, std)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_normalize_refuses_whole_numbers_that_are_not_bytes() -> None:
    with pytest.raises(TypeError, match="uint8 or floating point, not int32"):
        lib.normalize(jnp.zeros((1, 1, 1), jnp.int32), (0.0,), (1.0,))
