# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What the host sends to the devices for every call."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mhd_jax import graph
from mhd_jax.inputs import StepInputs
from tests import small

CALL = 12  # steps


def _planned(start: int = 0, **changes) -> StepInputs:
    return small.build(**changes).schedule.host_exchange(start, start + CALL)


@pytest.mark.parametrize(
    ("changes", "matrices"),
    [
        ({"method": "mhd"}, 0),
        ({"method": "fedavg", "average__every": 2}, 0),
        ({"method": "feddf"}, 0),
        ({"method": "gossip", "average__every": 1, "graph__name": "cycle"}, 1),
        ({"method": "gossip", "average__every": 1, "graph__name": "erdos_renyi"}, 1),
        # A call may begin in the middle of a graph's turn.
        ({"method": "gossip", "average__every": 1, "graph__name": "erdos_renyi",
          "graph__every": 4}, 4),
        ({"method": "gossip", "average__every": 5, "graph__name": "erdos_renyi",
          "graph__every": 1}, 3),
    ],
)  # fmt: skip
def test_no_more_averaging_matrices_are_sent_than_a_call_can_use(changes, matrices):
    sent = _planned(num_seeds=2, **changes).mixing
    assert sent.nbytes == matrices * 2 * 4 * 4 * np.float32().nbytes


@pytest.mark.parametrize("average_every", [1, 3, 5])
@pytest.mark.parametrize("graph_every", [0, 1, 4])
def test_a_step_finds_the_matrix_of_its_own_graph(average_every, graph_every):
    experiment = small.build(
        method="gossip", average__every=average_every, graph__name="erdos_renyi",
        graph__every=graph_every, clients__num=5, num_seeds=2,
    )  # fmt: skip
    shapes = set()
    for start in range(7):
        made = experiment.schedule.host_exchange(start, start + CALL)
        shapes.add(made.mixing.shape)
        for step, which in enumerate(made.average, start):
            assert (which >= 0) == ((step + 1) % average_every == 0)
            for replica, topology in enumerate(experiment.topologies if which >= 0 else ()):
                expected = graph.metropolis_weights(topology.at(step)).astype(np.float32)
                np.testing.assert_array_equal(made.mixing[which, replica], expected)
    assert len(shapes) == 1, "nothing is compiled twice"


@pytest.mark.parametrize("method", ["mhd", "gossip"])
def test_rows_beyond_the_last_step_repeat_it_in_the_same_shapes(method):
    schedule = small.build(
        method=method, average__every=2, graph__name="erdos_renyi", graph__every=3
    ).schedule
    whole, cut = schedule.host_inputs(0, CALL), schedule.host_inputs(0, 6, CALL)
    assert jax.tree.map(np.shape, cut) == jax.tree.map(np.shape, whole)
    whole, cut = (made._replace(mixing=()) for made in (whole, cut))
    same = np.testing.assert_array_equal
    jax.tree.map(lambda x, y: same(x[:6], y[:6]), cut, whole)
    jax.tree.map(lambda x, y: same(x[6:], y[5:6].repeat(6, axis=0)), cut, whole)


def test_a_matrix_that_never_changes_goes_to_the_devices_once():
    changes = {"method": "gossip", "graph__name": "cycle"}
    schedule = small.build(**changes).schedule
    first, second = (schedule.inputs(start, start + CALL) for start in (0, CALL))
    assert first.mixing is second.mixing
    assert first.mixing.sharding == schedule.exchange(3).mixing.sharding
    made = schedule.host_inputs(0, CALL)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first), made)
