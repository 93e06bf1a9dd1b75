# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Clients that wait in the memory of the host: trained, measured and saved as on the devices."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest

from mhd_jax import estimate, train
from mhd_jax import experiment as experiment_lib
from mhd_jax import state as state_lib
from mhd_jax.api import Run
from mhd_jax.errors import ConfigError
from mhd_jax.experiment import Experiment
from mhd_jax.runtime.checkpoints import Checkpoints
from mhd_jax.state import State
from tests import small

CLIENTS = 6
ASKED = {
    "clients__num": CLIENTS, "clients__active": 3, "heads__aux": 1, "train__steps_per_call": 1,
}  # fmt: skip
HOST = {"clients__offload": "host"}
UNLIKE = {"clients__models": (("mlp_small", 2), ("mlp", 4)), "parallel__client_devices": 2}


def walked(
    experiment: Experiment, steps: int, state: State | None = None, start: int = 0
) -> list[State]:
    """The state of all clients after every step, on the host."""
    state, found = state or experiment.init_state(), []
    for step in range(start, steps):
        seated = experiment.seat(state, step)
        changed, _ = experiment.step(*small.arguments(experiment, seated, step))
        state = experiment.unseat(state, changed, step)
        found.append(jax.tree.map(np.array, state))
    return found


def trained(state: State) -> tuple[Any, ...]:
    return state.clients, state.baseline, state.pool, state.marginals


@pytest.mark.parametrize(
    "changes",
    [
        {"distill__alignment_momentum": 0.9, "isolated_baseline": True},
        {**UNLIKE, "exchange__mode": "stale", "exchange__refresh_steps": 2},
    ],
    ids=["moving averages", "unlike networks and snapshots on two devices"],
)
def test_it_does_not_matter_where_clients_wait(changes):
    here, there = (small.build(**ASKED, **changes, **host) for host in ({}, HOST))
    assert "wait in host memory" in there.mesh and "wait" not in here.mesh
    found = walked(there, 4)
    for ours, theirs in zip(found, walked(here, 4), strict=True):
        for x, y in zip(
            jax.tree.leaves(trained(ours)), jax.tree.leaves(trained(theirs)), strict=True
        ):
            np.testing.assert_allclose(x[:, : y.shape[1]], y[:, : x.shape[1]], atol=2e-6)
    kernels = [state.clients[0].params["model"]["head"]["kernel"] for state in found]
    assert not np.array_equal(kernels[0], kernels[-1])
    measured = there.evaluator.evaluate(found[-1]), here.evaluator.evaluate(found[-1])
    np.testing.assert_array_equal(measured[0].correct, measured[1].correct)
    for ours, theirs in zip(measured[0].baseline or (), measured[1].baseline or (), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_devices_hold_those_of_one_step_alone():
    made = small.build(**ASKED, **HOST)
    shapes = made.seated_shapes()
    assert {leaf.shape[1] for leaf in jax.tree.leaves(trained(shapes))} == {3}
    everyone = made.init_state()
    seated = made.seat(everyone, 0)
    assert jax.tree.map(lambda x: (x.shape, x.sharding), seated) == jax.tree.map(
        lambda x: (x.shape, x.sharding), shapes
    )
    (who,) = made.parts.roster.attendances
    for ours, theirs in zip(
        jax.tree.leaves(trained(everyone)), jax.tree.leaves(trained(seated)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(ours)[:, who.clients(0)], theirs)
    found = [estimate.estimate(small.config(**ASKED, **host), 2**30) for host in ({}, HOST)]
    assert found[0].waiting == 0 and found[1].waiting > found[1].state
    assert found[1].state + found[1].gradients < (found[0].state + found[0].gradients) * 0.6
    assert [one.describe().count("GiB of the host") for one in found] == [0, 1]


def test_a_checkpoint_goes_on_bit_by_bit_wherever_clients_waited(tmp_path):
    here, there = (small.build(**ASKED, **host) for host in ({}, HOST))
    whole = walked(there, 4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, jax.device_put(whole[1], state_lib.shardings(whole[1], there.home)))
        for made in (there, here):
            found = checkpoints.restore_latest(made.init_state(abstract=True))
            assert found is not None and found[0] == 2
            jax.tree.map(np.testing.assert_array_equal, found[1], whole[1])
            if made is there:
                again = walked(there, 4, found[1], 2)
                jax.tree.map(np.testing.assert_array_equal, again[-1], whole[-1])


def test_a_whole_run(tmp_path):
    asked = small.config(**ASKED, **HOST, train__log_every=1)
    summary = train.train_and_evaluate(asked, tmp_path, with_report=False)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert len(logged) == asked.train.steps
    assert all(sum(x is None for x in line["teaching_share"]) == CLIENTS - 3 for line in logged)
    assert summary.shared_accuracy.shape[0] == CLIENTS
    predicted = Run.load(tmp_path).predict(np.zeros((2, 8, 8, 1), np.uint8))
    assert np.isfinite(predicted).all()


def test_where_nobody_waits_or_nobody_can_it_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"clients\.offload = .*everybody takes part"):
        small.build(**HOST)
    with pytest.raises(ConfigError, match=r"clients\.offload = .*one of none, host"):
        small.build(**ASKED, clients__offload="disk")

    def no_such_backend(*_: object, **__: object) -> None:
        raise RuntimeError("Unknown backend cpu")

    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", no_such_backend)
        with pytest.raises(ConfigError, match=r"clients\.offload = .*cpu in JAX_PLATFORMS"):
            experiment_lib.build(small.config(**ASKED, **HOST), memory=2**30)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"clients\.offload = .*several processes"):
        small.build(**ASKED, **HOST)
