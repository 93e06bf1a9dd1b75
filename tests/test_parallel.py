# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The mesh: which layout is chosen, padding, and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhd_jax import parallel
from mhd_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("cohorts", "client_devices", "rows"),
    [([8], 4, (8,)), ([3], 3, (3,)), ([5], 3, (6,)), ([1], 1, (1,)), ([5, 3], 4, (8, 4))],
)
def test_the_fewest_devices_with_the_least_work_each(cohorts, client_devices, rows):
    layout = parallel.make_layout(cohorts)
    assert (layout.client_devices, layout.rows) == (client_devices, rows)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 4))
def test_split_and_join_are_inverse(cohorts, devices):
    layout = parallel.make_layout(cohorts, client_devices=devices)
    values = np.arange(2 * sum(cohorts) * 3).reshape(2, sum(cohorts), 3)
    parts = layout.split(values, axis=1)
    assert [part.shape[1] for part in parts] == list(layout.rows)
    np.testing.assert_array_equal(layout.join(parts, axis=1), values)


def test_rows_lie_on_their_own_devices():
    layout = parallel.make_layout([8], client_devices=4)
    array = layout.put(np.arange(8), parallel.CLIENTS)
    held = {s.device.id: np.asarray(s.data).tolist() for s in array.addressable_shards}
    assert held == {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6, 7]}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"client_devices": 5}, "parallel.client_devices = 5"),
        ({"data_devices": 9}, "parallel.data_devices = 9"),
        ({"client_devices": 4, "data_devices": 2}, "parallel.client_devices = 4"),
        ({"data_devices": 3, "batch_sizes": (64,)}, "parallel.data_devices = 3"),
    ],
)
def test_impossible_meshes_are_refused(settings, named):
    assert len(jax.devices()) == 4
    with pytest.raises(ConfigError, match=named):
        parallel.make_layout([8], **settings)


def test_description_counts_inert_rows():
    assert "1 inert rows" in parallel.make_layout([3], client_devices=2).describe()
