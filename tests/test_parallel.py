# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The mesh: which layout is chosen, padding, and what is refused."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from mhd_jax import api, distill, parallel
from mhd_jax import experiment as experiment_lib
from mhd_jax.errors import ConfigError
from mhd_jax.registry import whole_batch
from tests import small


@pytest.mark.parametrize(
    ("cohorts", "client_devices", "rows"),
    [([8], 4, (8,)), ([3], 3, (3,)), ([5], 3, (6,)), ([1], 1, (1,)), ([5, 3], 3, (6, 3))],
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


@pytest.mark.parametrize(
    ("cohorts", "batches", "shape", "idle"),
    [
        ([1], (64, 64), (1, 4), 0),
        ([2], (64, 64), (2, 2), 0),
        ([3], (64, 64), (3, 1), 1),
        ([8], (64, 64), (4, 1), 0),
        ([1], (6, 9), (1, 3), 1),  # 2 and 4 do not divide both batches
        ([1], (5, 7), (1, 1), 3),
        ([2, 1], (8, 8), (2, 2), 0),
    ],
)
def test_devices_that_are_left_share_batches(cohorts, batches, shape, idle):
    layout = parallel.make_layout(cohorts, batch_sizes=batches)
    assert (layout.client_devices, layout.data_devices, layout.idle_devices) == (*shape, idle)
    assert ("devices idle" in layout.describe()) is bool(idle)


def test_arrays_without_elements_have_their_part_of_the_mesh():
    """As inputs of `jax.shard_map` they crash the compiler of jaxlib 0.11."""
    layout = parallel.make_layout((4,), client_devices=4)
    shapes = []

    def inside(x, empty):
        shapes.append((x.shape, empty.shape, empty.dtype))
        return x + empty.sum(), empty

    specs = (P(parallel.CLIENTS), P(None, parallel.CLIENTS))
    mapped = parallel.on_mesh(inside, layout, in_specs=specs, out_specs=specs)
    x, empty = jax.jit(mapped)(jnp.arange(4.0), jnp.zeros((3, 8, 0), jnp.int32))
    assert set(shapes) == {((1,), (3, 2, 0), jnp.dtype("int32"))}
    assert x.tolist() == [0, 1, 2, 3] and empty.shape == (3, 8, 0)


def test_dispatch_stays_two_calls_ahead_of_the_devices():
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(x @ y), x))
    in_flight, results, unfinished = parallel.InFlight(), [], []
    for _ in range(8):
        results.append(slow(jnp.ones((200, 200))))
        in_flight.add({"nested": results[-1]})
        unfinished.append(sum(not result.is_ready() for result in results))
    assert max(unfinished) == parallel.IN_FLIGHT == 2
    assert results[0].is_ready()


class Device:
    """A device of one of several processes, as far as a layout looks at it."""

    platform = "cpu"

    def __init__(self, index: int, process: int) -> None:
        self.id, self.process_index = index, process


@pytest.mark.parametrize(
    ("cohorts", "shape"),
    [([8], (4, 1)), ([3], (4, 1)), ([2], (2, 2)), ([1], (1, 4))],
)
def test_every_process_takes_part_evenly(cohorts, shape, monkeypatch):
    """Three clients on two processes of two devices: an inert row, not an idle process."""
    devices = [Device(index, index // 2) for index in range(4)]
    meshes = []
    monkeypatch.setattr(parallel, "Mesh", lambda grid, *args, **kwargs: meshes.append(grid))
    parallel.make_layout(cohorts, batch_sizes=(8,), devices=devices)
    (grid,) = meshes
    assert grid.shape == shape
    assert [device.process_index for device in grid.flat] == [0, 0, 1, 1]
    with pytest.raises(ConfigError, match="2 processes can share evenly"):
        parallel.make_layout(cohorts, client_devices=3, devices=devices)


def test_description_counts_inert_rows():
    assert "1 inert rows" in parallel.make_layout([3], client_devices=2).describe()


def test_one_process_owns_all_clients():
    layout = parallel.make_layout([5, 2], client_devices=2)
    assert layout.local_clients() == list(range(7))


def test_a_process_owns_the_clients_of_its_devices(monkeypatch):
    layout = parallel.make_layout([5, 2], client_devices=2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)  # no device here belongs to process 1
    assert layout.local_clients() == []


@pytest.mark.parametrize(
    "settings",
    [
        {"distill__rule": "capped"},
        {"attack__name": "noise", "attack__clients": (1,)},
        {"model__name": "mlp", "model__norm": "batch"},
    ],
)
def test_what_needs_whole_batches_is_not_spread_over_devices(settings, caplog):
    few = {"clients__num": 2, "partition__name": "iid", "parallel__client_devices": 0}
    assert small.build(**few).layout.data_devices == 2
    assert small.build(**few, **settings).layout.data_devices == 1
    asked = small.build(**few, **settings, parallel__data_devices=2)
    assert asked.layout.data_devices == 2
    assert "parallel.data_devices = 2" in caplog.text and "results depend" in caplog.text


class Dropped(nn.Module):
    """A network that draws for a whole batch at once."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(8)(x.reshape(len(x), -1)))


@whole_batch
def my_rule(candidates, confidence, keys):
    return distill.RULES.get("most_confident")(candidates, confidence, keys)


@pytest.mark.parametrize("piece", [{"model": Dropped}, {"rule": my_rule}])
def test_pieces_of_ones_own_are_not_spread_over_devices_either(piece):
    config = small.config(clients__num=2, partition__name="iid", parallel__client_devices=0)
    api.pieces.use(config, piece)
    assert experiment_lib.build(config).layout.data_devices == 1
