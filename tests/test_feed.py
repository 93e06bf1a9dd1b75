# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Public batches as the step sees them: mixed the same way for everybody, on any devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mhd_jax.data import feed
from mhd_jax.data.batches import Visits, public_indices
from mhd_jax.data.feed import Preparation
from mhd_jax.errors import ConfigError
from mhd_jax.experiment import Experiment
from mhd_jax.parallel import DATA
from tests import reference, small

STATISTICS = np.array([[[0.5], [0.25]]], np.float32)
SEED, PLACES, STORED = 3, 8, 40


def images(at: np.ndarray) -> np.ndarray:
    """Stored 2x2 images of a public set of `STORED`."""
    return np.random.default_rng(0).random((STORED, 2, 2, 1), np.float32)[at]


def prepared(preparation: Preparation, stored: np.ndarray, step: int, devices: int = 1):
    mesh = Mesh(np.array(jax.devices()[:devices]), (DATA,), axis_types=(AxisType.Auto,))
    here = jax.shard_map(
        lambda x: preparation.public(x, jnp.asarray(STATISTICS[0]), jnp.uint32(SEED), step),
        mesh=mesh, in_specs=P(DATA), out_specs=P(DATA),
    )  # fmt: skip
    return np.asarray(jax.jit(here)(jax.device_put(stored, NamedSharding(mesh, P(DATA)))))


def mixed(count: int, every: int, step: int, devices: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Indices in the public set, and the batch, of a run whose samples stay `count` exchanges."""
    visits = Visits(count, every)
    at = public_indices(SEED, STORED, PLACES, visits, step, step + 1)[0]
    preparation = Preparation("none", STATISTICS, visits, mixup=0.5)
    return at, prepared(preparation, images(at), step, devices)


def test_a_sample_holds_less_than_half_of_the_one_before() -> None:
    at, found = mixed(count=1, every=1, step=5)
    plain = (images(at) - 0.5) / 0.25
    weights = small.mixup_weights(SEED, 5, PLACES, most=0.5)
    assert len(set(weights.tolist())) == PLACES
    np.testing.assert_allclose(found, reference.mixup(plain, weights), rtol=1e-5, atol=1e-6)


def test_without_mixup_samples_are_themselves() -> None:
    stored = images(np.arange(PLACES))
    found = prepared(Preparation("none", STATISTICS), stored, step=5)
    np.testing.assert_allclose(found, (stored - 0.5) / 0.25, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_devices_that_share_a_batch_mix_across_their_border(count: int) -> None:
    _, alone = mixed(count, every=1, step=7)
    for devices in (2, 4):
        np.testing.assert_array_equal(mixed(count, 1, 7, devices)[1], alone)


def test_a_sample_stays_in_the_mixture_that_was_sent() -> None:
    """Readers keep predictions of a sample for four exchanges: it must not change meanwhile."""
    seen: dict[int, tuple[int, np.ndarray]] = {}
    stayed = 0
    for step in range(0, 32, 2):
        at, found = mixed(count=4, every=2, step=step)
        for place, (sample, values) in enumerate(zip(at.tolist(), found, strict=True)):
            came = int(Visits(4, 2).origin(step, np.array(place))[0])
            if sample in seen and seen[sample][0] == came:
                np.testing.assert_array_equal(values, seen[sample][1])
                stayed += 1
            seen[sample] = came, values
    assert stayed > 80


@pytest.mark.parametrize("value", [0.6, -0.5])
def test_a_second_sample_is_never_the_larger_part(value: float) -> None:
    with pytest.raises(ConfigError, match=r"distill\.mixup = .*: expected 0 to 0\.5"):
        small.build(distill__mixup=value)


# --- Of several seeds -----------------------------------------------------------------------------


def _bytes(experiment: Experiment) -> int:
    return feed.resident_bytes(experiment.feed, experiment.layout)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_seeds_share_one_copy_of_the_same_public_set(devices, monkeypatch):
    changes = {
        "num_seeds": 3, "data__public_name": "digits", "data__augment": "none",
        "parallel__client_devices": devices,
    }  # fmt: skip
    shared = small.build(**changes)
    assert shared.feed.data["public"].shape == (1, 1297, 8, 8, 1)
    assert shared.feed.data["public"].shape == shared.feed.data_shapes()["public"].shape
    ours, _ = small.run(shared)
    monkeypatch.setattr(feed, "_public_sets", lambda federations: federations)
    apart = small.build(**changes)
    assert _bytes(apart) - _bytes(shared) == 2 * 1297 * 64 * np.float32().nbytes
    theirs, _ = small.run(apart)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))


def test_public_sets_of_the_seeds_own_stay_apart():
    experiment = small.build(num_seeds=2)
    stored = np.asarray(experiment.feed.data["public"])
    for fed, images in zip(experiment.federations, stored, strict=True):
        np.testing.assert_array_equal(images, fed.public.images(fed.public_indices))
