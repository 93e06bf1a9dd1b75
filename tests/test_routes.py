# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Messages that go to those devices alone where somebody reads them."""

from __future__ import annotations

import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from experiments.checks.deliveries import to_all_devices
from mhd_jax import audit, parallel, train
from mhd_jax import state as state_lib
from mhd_jax.edges import NOBODY, choose_form, from_mask, stack
from mhd_jax.errors import Interrupted
from mhd_jax.exchange import Fresh
from mhd_jax.graph import Topology
from mhd_jax.routes import MOST_SHIFTS, Routes
from mhd_jax.runtime.checkpoints import Checkpoints
from mhd_jax.step import program
from tests import small

SPREAD = {"clients__num": 8, "parallel__client_devices": 4, "train__steps_per_call": 3}
CYCLE = {"graph__name": "cycle", **SPREAD}


def _graph(draw: np.random.Generator, clients: int, share: float) -> np.ndarray:
    return (draw.random((clients, clients)) < share) & ~np.eye(clients, dtype=bool)


# --- The plan -------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]), st.floats(0, 1))
def test_every_place_of_a_table_gets_the_message_of_its_client(seed, each, share):
    routes = Routes(_graph(np.random.default_rng(seed), 4 * each, share), 4)
    arrived = _delivered(routes, np.arange(1, 4 * each + 1, dtype=np.float32))
    for device, clients in enumerate(routes.table):
        read = routes.reads[device * each : (device + 1) * each].any(axis=0)
        read[device * each : (device + 1) * each] = True
        known = clients[clients != NOBODY]
        np.testing.assert_array_equal(known, np.flatnonzero(read))
        np.testing.assert_array_equal(arrived[device][: len(known)], known + 1)


def _delivered(routes: Routes, messages: np.ndarray) -> np.ndarray:
    """What arrives at each device, by a loop over senders, shifts and rows."""
    arrived = [list(own) for own in messages.reshape(routes.devices, routes.each)]
    for shift, rows in routes.sends.items():
        for device in range(routes.devices):
            home = (device - shift) % routes.devices
            arrived[device] += [messages[home * routes.each + row] for row in rows[home]]
    return np.stack([np.array(x)[at] for x, at in zip(arrived, routes._arrival, strict=True)])


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_devices_deliver_what_the_plan_says(share):
    routes = Routes(_graph(np.random.default_rng(1), 8, share), 4)
    layout = parallel.make_layout([8], client_devices=4)
    messages = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    sent = parallel.on_mesh(
        lambda x: (routes.deliver(x), routes.own(), routes.clients()), layout,
        P("clients"), P("clients"),
    )  # fmt: skip
    arrived, own, clients = jax.jit(sent)(layout.put(messages, "clients"))
    np.testing.assert_array_equal(clients, routes.table.ravel())
    known = routes.table.ravel() != NOBODY
    expected = messages[routes.table.ravel()[known]]
    np.testing.assert_array_equal(np.asarray(arrived)[known], expected)
    home = np.repeat(np.arange(4), 2)
    np.testing.assert_array_equal(routes.table[home, np.asarray(own)], np.arange(8))


@given(st.integers(0, 10_000), st.floats(0, 0.4))
def test_translated_lists_name_the_same_clients_in_the_same_order(seed, share):
    mask = _graph(np.random.default_rng(seed), 8, share)
    topology = Topology(8, 0, (mask,))
    form = choose_form([Fresh(topology, None).extent(1)])  # type: ignore[arg-type]
    if form.kind != "lists":
        return
    routes = Routes(mask, 4)
    reads = stack([from_mask(mask, form)] * 2)
    found = routes.translate(reads)
    assert found.form.candidates == routes.table.shape[1]
    for client, (before, after) in enumerate(zip(reads.ids[0], found.ids[1], strict=True)):
        kept = after[after != NOBODY]
        np.testing.assert_array_equal(kept, np.sort(kept))
        np.testing.assert_array_equal(routes.table[client // 2, kept], before[before != NOBODY])


def test_a_plan_is_worth_it_where_it_carries_half_at_most_in_few_permutations():
    assert Routes(np.roll(np.eye(8, dtype=bool), 1, axis=0), 4).worth_it()
    assert not Routes(~np.eye(8, dtype=bool), 4).worth_it()
    clients = 2 * (MOST_SHIFTS + 2)
    far = np.zeros((clients, clients), bool)
    far[0, 1:] = True  # a star's centre reads from every device
    assert not Routes(far, clients).worth_it()


# --- Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"num_seeds": 2, "exchange__encoding": "int8", "graph__name": "undirected_cycle",
         "graph__peers_per_step": 1},
        {"graph__drop": 0.4, "distill__same_rank": True, "distill__confidence": "energy"},
        {"distill__rule": "label_share", "distill__publish_label_shares": True},
        pytest.param({"distill__rule": "reputation", "graph__name": "chain",
                      "distill__alignment": 0.0}, marks=pytest.mark.slow),
        pytest.param({"graph__name": "islands", "graph__islands": 4}, marks=pytest.mark.slow),
        pytest.param({"method": "codistillation"}, marks=pytest.mark.slow),
    ],
    ids=["drawn", "lost", "shares", "by name", "islands", "main head"],
)  # fmt: skip
def test_training_is_the_same_as_where_all_messages_go_to_all_devices(changes):
    routed = small.build(**CYCLE | changes)
    assert routed.parts.routes is not None
    (state, metrics), (expected, same) = (small.run(x) for x in (routed, to_all_devices(routed)))
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for name, values in metrics.items():
        np.testing.assert_allclose(values, same[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_training_is_that_of_one_device():
    found, _ = small.run(many := small.build(**CYCLE, parallel__data_devices=1))
    alone, _ = small.run(one := small.build(**CYCLE | {"parallel__client_devices": 1}))
    assert many.parts.routes is not None and one.parts.routes is None
    for ours, theirs in zip(small.clients(many, found), small.clients(one, alone), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_devices_that_share_a_batch_deliver_their_part_of_it():
    changes = {"clients__num": 6, "graph__name": "islands", "graph__islands": 2}
    shared = {"parallel__client_devices": 2, "parallel__data_devices": 2}
    found, _ = small.run(many := small.build(**changes, **shared))
    alone, _ = small.run(one := small.build(**changes))
    assert many.parts.routes is not None
    for ours, theirs in zip(small.clients(many, found), small.clients(one, alone), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"graph__name": "complete"},
        {"graph__every": 2, "graph__name": "random_regular"},
        {"exchange__mode": "stale"},
        {"exchange__cache": 2},
        {"clients__active": 0.5},
        {"clients__num": 7},
        {"clients__models": (("mlp_small", 4), ("mlp_large", 4))},
        {"attack__name": "constant", "attack__clients": (1,)},
        {"method": "fedmd"},
        {"method": "isolated"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_all_messages_go_to_all_devices_where_who_reads_them_is_not_fixed(changes):
    assert small.build(**CYCLE | changes).parts.routes is None


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices_and_says_what_travels(tmp_path, monkeypatch, capsys):
    """Averages that lie with their publishers are found on one device, and the other way round."""
    settings = {**CYCLE, "train__steps_per_call": 1, "train__checkpoint_every": 2}
    advance = train.Passage._advance

    def interrupted(self, call, step):
        if step in (1, 3):
            signal.raise_signal(signal.SIGTERM)
        return advance(self, call, step)

    expected = train.train_and_evaluate(small.config(**settings), tmp_path / "once")
    assert "; a device receives 1 of 6 messages of other devices" in expected["mesh"]
    assert "a device receives 1 of 6 messages" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(train.Passage, "_advance", interrupted)
    for devices in (4, 1):
        part = small.config(**settings | {"parallel__client_devices": devices})
        with pytest.raises(Interrupted):
            train.train_and_evaluate(part, tmp_path / "often")
    found = train.train_and_evaluate(small.config(**settings), tmp_path / "often")
    np.testing.assert_array_equal(found["shared_accuracy"], expected["shared_accuracy"])
    final = [_final_averages(tmp_path / name, settings) for name in ("often", "once")]
    np.testing.assert_allclose(*final, atol=1e-6)


def _final_averages(folder: Path, settings: dict) -> np.ndarray:
    state = state_lib.abstract(small.build(**settings).init_state(abstract=True))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        step, restored = checkpoints.restore_latest(state)
    assert step == 6
    return np.asarray(restored.marginals)


# --- What travels ---------------------------------------------------------------------------------


def test_a_device_is_sent_what_its_clients_read_and_nothing_else():
    experiment = small.build(**CYCLE)
    found = audit.audit(experiment)
    assert found.clean and "no weights" in found.verdict
    across = [f for f in found.findings if f.axis == parallel.CLIENTS]
    assert {f.collective.operation for f in across} == {"collective-permute"}
    assert {f.carries for f in across} == set(audit.PUBLISHED)
    elements = {f.carries: f.collective.shape.size for f in across}
    assert elements[audit.PREDICTIONS] == 1 * 8 * 2 * 10  # one client's message
    gathered = audit.audit(to_all_devices(experiment))
    assert {f.collective.operation for f in gathered.findings} == {"all-gather"}


def test_where_all_peers_share_a_device_nothing_travels():
    found = audit.audit(small.build(**CYCLE | {"graph__name": "islands", "graph__islands": 4}))
    assert not found.findings and "nothing to show" in found.verdict


def test_weights_that_go_along_are_found(monkeypatch):
    update = program._update

    def leaking(parts, state, learners, grads, stats):
        arrived = parts.routes.deliver(learners[0].params["model"]["head"]["kernel"])
        grads = jax.tree.map(lambda g: g + 1e-30 * arrived.sum(), grads)
        return update(parts, state, learners, grads, stats)

    monkeypatch.setattr(program, "_update", leaking)
    found = audit.audit(small.build(**CYCLE))
    assert not found.clean and "leave a client: 1 arrays" in found.verdict
