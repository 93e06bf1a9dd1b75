# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Clients that take no part in a step: skipped exactly, drawn reproducibly, refused clearly."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from mhd_jax import distill, edges, participation, train
from mhd_jax import experiment as experiment_lib
from mhd_jax.data import batches
from mhd_jax.edges import Form
from mhd_jax.errors import ConfigError
from mhd_jax.experiment import Experiment
from mhd_jax.optimizer import at_step
from mhd_jax.parallel import make_layout, on_mesh
from mhd_jax.state import State
from mhd_jax.step.parts import network_keys
from tests import small

CLIENTS, STEPS = 6, 6
GRAPH = np.random.default_rng(1).random((CLIENTS, CLIENTS)) < 0.6
np.fill_diagonal(GRAPH, False)
TRACE = np.array([[1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("participation")
    (folder / "graph.json").write_text(json.dumps(GRAPH.astype(int).tolist()))
    np.savetxt(folder / "trace.csv", TRACE, fmt="%d", delimiter=",")
    return {"graph": str(folder / "graph.json"), "trace": str(folder / "trace.csv")}


def config(files: dict[str, str], **changes: Any) -> ml_collections.ConfigDict:
    """Six clients on a random graph, one step a call."""
    settings = {
        "clients__num": CLIENTS, "graph__name": "matrix", "graph__matrix": files["graph"],
        "train__steps": STEPS, "train__steps_per_call": 1, "optimizer__warmup_steps": 2,
        "optimizer__name": "sgd", "optimizer__learning_rate": 0.05, "isolated_baseline": True,
    }  # fmt: skip
    return small.config(**settings | changes)


def build(files: dict[str, str], **changes: Any) -> Experiment:
    return experiment_lib.build(config(files, **changes))


def only(files: dict[str, str]) -> dict[str, Any]:
    """At most four of the clients, less where the trace says so."""
    return {"clients__active": 4, "clients__trace": files["trace"]}


# --- The step -------------------------------------------------------------------------------------


def skipping(whole: Experiment, state: State, step: int, here: np.ndarray) -> State:
    """One step of all clients in which nobody reads the absent, who are then as they were."""
    args = list(small.arguments(whole, _clocks(state, step), step))
    form = whole.readers[0].form
    reads, versions = args[2].reads[0], args[2].versions.shape[-1] or 1
    mask = np.array(reads.mask())[0, 0] & here[:, None] & np.repeat(here, versions)
    made = edges.from_mask(mask, Form("pairs", form.candidates, form.candidates))
    assert form.kind == "pairs"
    args[2] = args[2]._replace(reads=(jax.tree.map(lambda x: x[None, None], made),))
    before = jax.tree.map(np.asarray, state)
    after = jax.tree.map(np.asarray, whole.step(*args)[0])

    def kept(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        return np.where(here.reshape(1, -1, *[1] * (old.ndim - 2)), new, old)

    groups = ("clients", "baseline", "pool", "marginals")
    trees = {
        name: jax.tree.map(kept, getattr(before, name), getattr(after, name)) for name in groups
    }
    return after.replace(**trees)


def _clocks(state: State, step: int) -> State:
    """The learning rate is that of the run's step, however many updates a client has made."""

    def on_time(groups: Any) -> Any:
        return tuple(g.replace(opt_state=at_step(g.opt_state, np.int32(step))) for g in groups)

    return state.replace(clients=on_time(state.clients), baseline=on_time(state.baseline))


@pytest.mark.parametrize(
    "changes",
    [{}, {"exchange__mode": "stale", "exchange__refresh_steps": 2, "isolated_baseline": False}],
    ids=["fresh", "stale"],
)
def test_a_step_equals_that_of_a_loop_which_skips_the_absent(files, changes):
    some = build(files, **only(files), **changes)
    whole = build(files, graph__drop=1e-9, **changes)  # a graph in the form of pairs
    if changes:  # where slots are read, and lists of them would be shorter
        pairs = Form("pairs", CLIENTS, CLIENTS)
        readers = [dataclasses.replace(r, form=pairs) for r in whole.readers]
        whole = dataclasses.replace(whole, readers=readers)
    (who,) = some.parts.roster.attendances
    state = expected = None
    for step in range(4):
        state, _ = some.step(*small.arguments(some, state, step))
        here = np.isin(np.arange(CLIENTS), who.clients(step))
        assert 0 < here.sum() < CLIENTS
        expected = skipping(whole, whole.init_state() if step == 0 else expected, step, here)
    found = _clocks(state, 0)  # whose own clocks differ, and say nothing
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(_clocks(expected, 0)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_devices_and_feed_change_nothing_and_a_run_goes_on_bit_by_bit(files):
    settings = only(files) | {"isolated_baseline": False}
    alone = build(files, **settings)
    states = [alone.init_state()]
    for step in range(3):
        states.append(alone.step(*small.arguments(alone, states[-1], step))[0])
        states[-1] = jax.tree.map(np.asarray, states[-1])
    saved = jax.device_put(states[2])
    again = build(files, **settings)  # whatever it kept of earlier steps is gone
    resumed, _ = alone.step(*small.arguments(again, saved, 2))
    jax.tree.map(np.testing.assert_array_equal, resumed, states[3])
    spread = build(files, **settings, parallel__client_devices=4, data__feed="streaming")
    assert sum(spread.parts.places.groups) == 8  # two places a device: 6 clients, padded to 8 rows
    other, metrics = small.run(spread, 3)
    for ours, theirs in zip(
        small.clients(spread, other), small.clients(alone, states[3]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert np.isfinite(metrics["loss"]).all()


def test_a_whole_run_has_nothing_to_say_of_those_who_stayed_away(files, tmp_path):
    asked = config(files, **only(files), train__log_every=1, train__checkpoint_every=STEPS)
    summary = train.train_and_evaluate(asked, tmp_path)
    (who,) = experiment_lib.build(asked).parts.roster.attendances
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == list(range(1, STEPS + 1))
    for line in logged:
        absent = ~np.isin(np.arange(CLIENTS), who.clients(line["step"] - 1))
        for name in ("loss", "control_loss", "private_gradient", "teaching_share"):
            np.testing.assert_array_equal([x is None for x in line[name]], absent)
        assert [x[0] is None for x in line["top_class_share"]] == absent.tolist()
    assert summary.bytes_sent == sum(
        len(who.clients(step)) * summary.bytes_per_step["predictions"][0] for step in range(STEPS)
    )
    assert summary.shared_accuracy.shape[0] == CLIENTS and (tmp_path / "report.html").exists()


def test_memory_follows_those_who_take_part():
    sizes = {
        "model__width": 8, "heads__aux": 1, "isolated_baseline": False, "train__steps": 1,
        "partition__name": "iid", "data__batch_size": 16, "data__public_batch_size": 16,
    }  # fmt: skip
    few = small.build(clients__num=128, clients__active=4, **sizes)
    all_ = small.build(clients__num=4, **sizes)
    temporary = [
        made.step.lower(*small.arguments(made)).compile().memory_analysis().temp_size_in_bytes
        for made in (few, all_)
    ]
    assert temporary[0] < 3 * temporary[1]  # 32 times the clients


# --- Who ------------------------------------------------------------------------------------------


def roster(**changes: Any) -> participation.Roster:
    config = small.config(clients__num=CLIENTS, **changes)
    return participation.make_roster(config, make_layout([CLIENTS], client_devices=1), [3], 50)


def test_the_draw_is_a_function_of_seed_and_step_and_treats_all_alike():
    (who,) = roster(clients__active=0.5).attendances
    (again,) = roster(clients__active=3).attendances
    drawn = np.stack([who.clients(step) for step in range(600)])
    np.testing.assert_array_equal(drawn[::-1], [again.clients(s) for s in reversed(range(600))])
    assert drawn.shape == (600, 3) and (np.diff(drawn) > 0).all()
    often = np.bincount(drawn.ravel(), minlength=CLIENTS)
    assert abs(often - 300).max() < 60  # five standard deviations of 12


def test_everybody_is_no_participation_at_all(tmp_path):
    np.save(tmp_path / "ones.npy", np.ones((3, CLIENTS)))
    for changes in (
        {},
        {"clients__active": CLIENTS},
        {"clients__trace": str(tmp_path / "ones.npy")},
    ):
        assert not roster(**changes).attendances


def test_a_trace_says_who_is_there(files):
    (who,) = roster(clients__trace=files["trace"]).attendances
    for step in range(9):
        np.testing.assert_array_equal(who.clients(step), np.flatnonzero(TRACE[step % 4]))
    assert who.fewest == 2 and who.num_places == CLIENTS


@pytest.mark.parametrize("active", [0.0, -1.0, 1.5, 2.5, 7.0, float("inf")])
def test_a_number_that_cannot_be_is_refused(active):
    with pytest.raises(ConfigError, match=r"clients\.active = .*whole number from 2 to 6"):
        roster(clients__active=active)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 0, 1]], "a column for each of 6 clients"),
        ([[1, 0, 1, 1, 1, 2]], "entries 0 or 1, not 2.0 in row 0, column 5"),
        ([[1] * 6, [0] * 6], "somebody in every row, not nobody in 1"),
    ],
)
def test_a_trace_that_cannot_be_is_refused(tmp_path, rows, message):
    np.savetxt(tmp_path / "trace.txt", rows)
    with pytest.raises(ConfigError, match=r"clients\.trace = .*" + message):
        roster(clients__trace=str(tmp_path / "trace.txt"))
    with pytest.raises(ConfigError, match=r"clients\.trace = .*readable file"):
        roster(clients__trace=str(tmp_path / "none.csv"))


def test_texts_in_a_trace_are_told_from_numbers(tmp_path):
    (tmp_path / "trace.json").write_text(json.dumps([["1"] * 6]))
    with pytest.raises(ConfigError, match="entries 0 or 1, not '1' in row 0, column 0"):
        roster(clients__trace=str(tmp_path / "trace.json"))


def test_averages_and_liars_need_everybody():
    with pytest.raises(ConfigError, match=r"clients\.active = 0\.5: .*fedavg averages"):
        small.build(method="fedavg", clients__active=0.5)
    assert not small.build(method="supervised", clients__active=0.5).parts.roster.attendances
    lies = {"attack__name": "constant", "attack__clients": (1,)}
    with pytest.raises(ConfigError, match=r"clients\.active = 0\.5: .*attack\.clients lie"):
        small.build(clients__active=0.5, **lies)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exchange__cache": 2}, r"exchange\.cache readers keep what everybody has sent"),
        ({"privacy__clip_norm": 1.0}, "privacy is accounted for in clients that take part"),
        (
            {"clients__frozen": 1, "model__init_from": "weights"},
            r"the clients of clients\.frozen teach in every step",
        ),
    ],
    ids=["cache", "privacy", "frozen"],
)
def test_what_rests_on_everybody_is_refused(files, changes, why):
    with pytest.raises(ConfigError, match=r"clients\.active = 4\.0: .*everybody: .*" + why):
        build(files, **only(files), **changes)
    with pytest.raises(ConfigError, match=r"clients\.trace = .*everybody: .*" + why):
        build(files, clients__trace=files["trace"], **changes)


def test_what_networks_draw_belongs_to_the_client_and_not_to_its_place(files):
    def drawn(made: Experiment, now: int) -> np.ndarray:
        inputs = made.schedule.host_exchange(now, now + 1)
        seated = jax.numpy.asarray(inputs.seated[0, 0])
        find = on_mesh(
            lambda: jax.random.key_data(
                network_keys(
                    made.parts, inputs._replace(seated=seated), jax.numpy.uint32(0), now
                )[0]
            ),
            made.layout, in_specs=(), out_specs=PartitionSpec("clients"),
        )  # fmt: skip
        return np.asarray(jax.jit(find)())

    some, whole = build(files, **only(files)), build(files)
    (who,) = some.parts.roster.attendances
    for now in range(2):
        places = who.places(now)
        taken = places != edges.NOBODY
        assert (places != np.arange(len(places)))[taken].any()
        np.testing.assert_array_equal(drawn(some, now)[taken], drawn(whole, now)[places[taken]])


# --- What the host makes of it --------------------------------------------------------------------


@settings(max_examples=25)
@given(seed=st.integers(0, 2**40), start=st.integers(0, 50), batch=st.integers(1, 9))
def test_walks_of_some_are_those_of_all(seed, start, batch):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, 5)
    clients = rng.integers(-1, 5, (3, 4))
    found = batches.walks_of(seed, "private", sizes, batch, start, clients)
    everybody = batches.walks(seed, "private", sizes, batch, start, start + 3)
    for step, place in np.ndindex(clients.shape):
        client = clients[step, place]
        expected = everybody[step, client] if client >= 0 else np.zeros(batch)
        np.testing.assert_array_equal(found[step, place], expected)


def test_the_ledger_counts_those_who_were_there(files):
    made = build(files, **only(files), exchange__every=2)
    (who,), each = made.parts.roster.attendances, made.ledger.predictions[0]
    expected = [len(who.clients(step)) * (step % 2 == 0) for step in range(230)]
    for steps in (0, 1, 6, 230, 100):
        assert made.ledger.sent(steps) == pytest.approx(each * sum(expected[:steps]))


def test_peers_are_drawn_among_those_who_take_part():
    made = small.build(clients__num=8, clients__active=4, graph__peers_per_step=2)
    (reader,), (who,) = made.readers, made.parts.roster.attendances
    masks = reader(0, 20).reads.mask()
    assert (masks.sum(axis=2) == 2).all() and masks.shape == (20, 4, 4)
    assert len({tuple(who.clients(step)) for step in range(20)}) > 1


def test_numbers_of_places_become_those_of_clients(files):
    made = build(files, **only(files))
    seated = made.parts.roster.seated(0, 2, 1)
    values = np.arange(seated.size * 2.0).reshape(*seated.shape, 2)
    spread = made.parts.roster.spread(values, seated)
    assert spread.shape == (2, 1, CLIENTS, 2)
    for step, place in np.ndindex(2, seated.shape[-1]):
        if seated[step, 0, place] >= 0:
            client = seated[step, 0, place]
            np.testing.assert_array_equal(spread[step, 0, client], values[step, 0, place])
    assert np.isnan(spread).sum() == 2 * (2 * CLIENTS - (seated >= 0).sum())


def test_an_edge_list_is_no_trace(tmp_path):
    (tmp_path / "some.edges").write_text("0 1\n1 2\n")
    with pytest.raises(ConfigError, match=r"clients\.trace = .*\.npy, \.csv, \.txt or \.json"):
        roster(clients__trace=str(tmp_path / "some.edges"))


@pytest.mark.parametrize("mode", ["fresh", "stale"])
def test_a_rule_is_told_the_client_of_every_candidate(mode, monkeypatch):
    """Snapshots have their client's number, and so have students who stand in front."""
    seen: list[np.ndarray] = []

    def spy(candidates, confidence, keys):
        jax.debug.callback(lambda ids: seen.append(np.asarray(ids)), candidates.publishers)
        return distill.most_confident(confidence, candidates.allowed, candidates.unread)

    monkeypatch.setattr(distill.RULES, "_pieces", {**distill.RULES._pieces, "spy": spy})
    experiment = small.build(
        distill__rule="spy", exchange__mode=mode, exchange__pool_size=2, clients__num=6,
        clients__active=3, train__steps_per_call=1, distill__screening=0.0,
    )  # fmt: skip
    here = experiment.schedule.host_exchange(0, 1).seated[0, 0]
    seen.clear()
    jax.block_until_ready(small.run(experiment, calls=1))
    jax.effects_barrier()
    found = {int(client) for ids in seen for client in np.ravel(ids)}
    assert found - {-1} == set(here.tolist())
