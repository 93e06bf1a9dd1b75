# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What is published, read and counted; stale reading against a loop that keeps real pools."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhd_jax import distill, edges, exchange, graph, methods
from mhd_jax.errors import ConfigError
from mhd_jax.step import program
from tests import reference, small

# --- Encodings ------------------------------------------------------------------------------------


def _log_probs(seed=0, shape=(2, 3, 5, 10)):
    return jax.nn.log_softmax(3 * jax.random.normal(jax.random.key(seed), shape))


def test_float32_travels_unchanged():
    encoding = exchange.AllClasses(jnp.float32)
    scores = _log_probs()
    np.testing.assert_array_equal(encoding.decode(encoding.encode(scores), 10), scores)


def test_bfloat16_travels_as_two_bytes_and_comes_back_rounded():
    encoding = exchange.AllClasses(jnp.bfloat16)
    scores = _log_probs()
    (message,) = encoding.encode(scores)
    assert message.dtype.itemsize == 2
    rounded = scores.astype(jnp.bfloat16).astype(jnp.float32)
    found = encoding.decode((message,), 10)
    np.testing.assert_array_equal(found, rounded)
    assert (jnp.abs(found - scores) <= 2**-8 * jnp.abs(scores)).all()


@pytest.mark.parametrize("k", [1, 3, 10])
def test_top_k_keeps_the_largest_and_spreads_the_rest(k):
    encoding = exchange.TopK(k)
    probs = np.exp(np.asarray(_log_probs(), np.float64))
    found = np.exp(np.asarray(encoding.decode(encoding.encode(_log_probs()), 10)))
    order = np.argsort(-probs, axis=-1)
    kept = np.take_along_axis(probs, order[..., :k], axis=-1)
    np.testing.assert_allclose(np.take_along_axis(found, order[..., :k], axis=-1), kept, rtol=1e-5)
    if k < 10:
        rest = np.take_along_axis(found, order[..., k:], axis=-1)
        even = np.broadcast_to((1 - kept.sum(-1, keepdims=True)) / (10 - k), rest.shape)
        np.testing.assert_allclose(rest, even, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("k", [0, 11])
def test_top_k_outside_the_classes_is_refused(k):
    with pytest.raises(ConfigError, match=rf"exchange\.top_k = {k}: expected between 1 and 10"):
        small.build(exchange__encoding="top_k", exchange__top_k=k)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("classes", [2, 7, 10])
def test_levels_keep_every_class_within_the_bound(bits, spread, classes):
    scores = jax.nn.log_softmax(spread * jax.random.normal(jax.random.key(1), (9, 11, classes)))
    encoding = exchange.Levels(bits)
    levels, scale = encoding.encode(scores)
    assert levels.shape[-1] == (classes if bits == 8 else -(-classes // 2))
    assert levels.dtype == jnp.uint8 and scale.shape == (9, 11) and scale.dtype.itemsize == 2
    found = np.asarray(encoding.decode((levels, scale), classes), np.float64)
    below = lambda x: x.max(axis=-1, keepdims=True) - x  # noqa: E731
    exact = below(np.asarray(scores, np.float64))
    spacing = np.sqrt(exact.max(axis=-1, keepdims=True)) * (1 + 2**-10) / (2**bits - 1)
    bound = spacing * np.sqrt(exact) + spacing**2
    assert (np.abs(below(found) - exact) <= bound + 1e-5 * spread).all()
    np.testing.assert_array_equal(found.argmax(axis=-1), scores.argmax(axis=-1))
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, atol=1e-5)


def test_levels_of_a_prediction_that_favours_no_class_are_exact():
    even = jnp.full((2, 3), -jnp.log(3.0))
    encoding = exchange.Levels(4)
    np.testing.assert_allclose(encoding.decode(encoding.encode(even), 3), even, rtol=1e-6)


def test_levels_of_a_client_that_diverged_spoil_no_others():
    scores = _log_probs().at[1].set(jnp.nan)
    for bits in (4, 8):
        encoding = exchange.Levels(bits)
        found = encoding.decode(encoding.encode(scores), 10)
        assert jnp.isnan(found[1]).all() and jnp.isfinite(found[0]).all()


def test_alignment_finds_in_levels_the_tails_that_top_k_has_lost():
    """A teacher that is nearly always sure of one class, against what it says on average."""
    favoured = 6.0 * jax.nn.one_hot(0, 10)
    scores = jax.nn.log_softmax(favoured + 2 * jax.random.normal(jax.random.key(0), (2, 40, 1, 10)))

    def aligned(scores):
        return np.exp(distill.align(scores, distill.mean_prediction(scores), 1.0))

    def lost(encoding):
        found = encoding.decode(encoding.encode(scores), 10)
        return np.abs(aligned(found) - aligned(scores)).sum(axis=-1).mean() / 2

    of_8, of_4, of_top = map(lost, (exchange.Levels(8), exchange.Levels(4), exchange.TopK(1)))
    assert of_8 < 0.01 and of_4 < 0.1 and of_top > 0.3, (of_8, of_4, of_top)


@pytest.mark.parametrize("encoding", ["top_k", "int8", "int4"])
def test_logits_cannot_travel_as_log_probabilities(encoding):
    expected = rf"exchange\.encoding = '{encoding}': expected float32 or bfloat16: .* mixes logits"
    with pytest.raises(ConfigError, match=expected):
        small.build(method="fedmd", exchange__encoding=encoding)


def test_bits_without_an_encoding_are_refused():
    with pytest.raises(ConfigError, match=r"exchange\.encoding = 'int2': expected one of .*int4"):
        small.build(exchange__encoding="int2")


def test_a_projection_keeps_angles_on_average_and_as_wide_as_the_embedding_exactly():
    draw = np.random.default_rng(0)
    left = draw.normal(size=(2000, 64))
    right = left + draw.normal(size=(2000, 64))

    def cosine(width):
        kept = exchange.projection(64, width)
        np.testing.assert_allclose(kept.T @ kept, np.eye(width), atol=1e-6)
        a, b = left @ kept, right @ kept
        return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    exact = (left * right).sum(axis=1)
    exact /= np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    np.testing.assert_allclose(cosine(64), exact, atol=1e-5)
    for width in (8, 16, 32):
        moved = cosine(width) - exact
        assert np.sqrt((moved**2).mean()) <= 1.3 * (1 - exact.mean() ** 2) / np.sqrt(width)
        assert abs(moved.mean()) < 0.05


@pytest.mark.parametrize("width", [9, 64])
def test_a_projection_wider_than_the_embedding_is_refused(width):
    expected = rf"exchange\.embedding_width = {width}: expected 0 to 8, the width of the narrowest"
    with pytest.raises(ConfigError, match=expected):
        small.build(exchange__embedding_width=width)


def test_projected_embeddings_are_compared_as_they_travel():
    """The loss of the first step, from embeddings, projection and graph."""
    experiment = small.build(exchange__embedding_width=3, train__log_every=1, graph__name="cycle")
    ((state, metrics, _),) = small.walk(experiment, 1)
    images = small.public_batch(experiment)
    predict = lambda client: experiment.parts.models[0].apply(  # noqa: E731
        {"params": _keep(state, client)}, images, train=False
    )[1]
    kept = np.stack([np.asarray(predict(client), np.float64) for client in range(4)])
    kept = kept @ exchange.projection(small.WIDTH, 3)
    reads = experiment.topologies[0].at(0)
    expected = reference.embedding_loss(kept, kept, reads)
    np.testing.assert_allclose(metrics["embedding_loss"][0, 0], expected, rtol=1e-4)


# --- What readers keep ----------------------------------------------------------------------------


def test_a_cache_is_what_a_plain_loop_keeps_in_a_dictionary():
    """Losses and messages of 24 exchanges, two steps apart, where each sample is read 4 times.

    With this seed no sample comes around while it is still there, of which there would be two.
    """
    experiment = small.build(
        seed=2, exchange__cache=4, exchange__every=2, data__public_fraction=0.03, train__steps=48,
        train__log_every=1, distill__alignment=0.0, graph__name="star", isolated_baseline=False,
    )  # fmt: skip
    fed, (model,) = experiment.federations[0], experiment.parts.models
    one = lambda params, images: model.apply({"params": params}, images, train=False)  # noqa: E731
    predict = jax.jit(jax.vmap(one, in_axes=(0, None)))
    reads = experiment.topologies[0].at(0)
    kept: dict[int, list] = {}  # predictions and embeddings of all clients, times read
    again = 0
    for step, (state, metrics, _) in enumerate(small.walk(experiment, 48)):
        if step % 2:
            assert not metrics["embedding_loss"].any()
            continue
        at = experiment.feed.inputs(step, step + 1)[1][0, 0].tolist()
        images = fed.public.images(fed.public_indices[at])
        images = (images - np.float32(fed.mean)) / np.float32(fed.std)
        clients = jax.tree.map(lambda x: x[0], state.clients[0].params["model"])
        logits, embeddings = map(np.asarray, predict(clients, images))
        log_probs, sent = reference.log_softmax(logits), 0
        for place, sample in enumerate(at):
            if sample not in kept or kept[sample][2] == 4:
                again += sample in kept
                kept[sample] = [log_probs[:, place], embeddings[:, place], 0]
                sent += 1
        for sample in set(at):
            kept[sample][2] += 1
        assert sent == 2  # of 8
        told, shown = (np.stack([kept[sample][i] for sample in at], axis=1) for i in (0, 1))
        teachers = reference.select_teachers(told, reference.wiring(reads)[0])
        expected = reference.prediction_loss(log_probs, told, *teachers)
        np.testing.assert_allclose(metrics["head_losses"][0, 0], expected, rtol=1e-4)
        expected = reference.embedding_loss(embeddings, shown, reads)
        np.testing.assert_allclose(metrics["embedding_loss"][0, 0], expected, rtol=1e-4, atol=1e-7)
    assert again  # samples came around
    ledger = experiment.ledger
    assert ledger.predictions.tolist() == [2 * (2 * 10 + small.WIDTH) * 4.0] * 4
    assert ledger.sent(48) == 24 * ledger.predictions.sum()


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"exchange__mode": "stale"}, "1 with exchange.mode = stale"),
        ({"method": "fedmd"}, "1: fedmd distils at times of its own"),
        ({"graph__name": "erdos_renyi", "graph__every": 5}, "1 with a graph that changes"),
        ({"graph__peers_per_step": 1}, "1 with a graph that changes"),
        ({"graph__drop": 0.5}, "1 with a graph that changes"),
        ({"exchange__cache": 3}, "a divisor of 8, the public samples of a step and device"),
        ({"parallel__data_devices": 4}, "a divisor of 2, the public samples of a step and device"),
    ],
)
def test_a_cache_that_readers_cannot_keep_is_refused(changes, accepted):
    with pytest.raises(ConfigError, match=rf"exchange\.cache = \d: expected {accepted}"):
        small.build(**{"exchange__cache": 4, **changes})


# --- The ledger -----------------------------------------------------------------------------------

_BYTES = {"f32": 4, "u16": 2, "u8": 1, "bf16": 2, "s32": 4, "u32": 4}


def _gathered_bytes(experiment) -> int:
    total = 0
    for operation, shapes in small.collectives(small.compiled_text(experiment)):
        assert operation == "all-gather"
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            total += _BYTES[kind] * math.prod(int(n) for n in dims.split(","))
    return total


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"exchange__encoding": "top_k", "exchange__top_k": 2},
        {"exchange__mode": "stale", "exchange__pool_size": 3},
        {"exchange__encoding": "bfloat16", "distill__nu_emb": 0.0, "distill__same_rank": True},
        {"distill__confidence": "energy", "exchange__every": 2},
        {"method": "codistillation", "exchange__encoding": "int8"},
        {"clients__models": (("mlp_small", 2), ("mlp", 2)), "exchange__embedding_width": 4},
        {"method": "fedmd"},
        {"exchange__cache": 4, "exchange__encoding": "int4", "exchange__embedding_width": 3},
        *(
            pytest.param(changes, marks=pytest.mark.slow)  # each of these alone
            for changes in (
                {"exchange__encoding": "bfloat16"},
                {"distill__nu_emb": 0.0},
                {"distill__same_rank": True},
                {"distill__confidence": "energy"},
                {"exchange__every": 2},
                {"method": "codistillation"},
                {"exchange__encoding": "int8"},
                {"clients__models": (("mlp_small", 2), ("mlp_large", 2))},
                {"exchange__encoding": "int4", "exchange__embedding_width": 3},
            )
        ),
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items()) or "fresh",
)
def test_the_ledger_counts_what_the_compiled_program_gathers(changes):
    width = {} if "clients__models" not in changes else {"model__width": 0}
    experiment = small.build(
        parallel__client_devices=2, isolated_baseline=False, **changes, **width
    )
    assert _gathered_bytes(experiment) == experiment.ledger.predictions.sum()


def test_the_ledger_counts_the_parameters_that_the_compiled_program_averages():
    fedavg = {"method": "fedavg", "average__every": 3, "isolated_baseline": False}
    experiment = small.build(parallel__client_devices=2, exchange__encoding="bfloat16", **fedavg)
    (clients,) = experiment.init_state(abstract=True).clients
    parameters = sum(x.size for x in jax.tree.leaves(clients.params))
    assert _gathered_bytes(experiment) == 2 * parameters == experiment.ledger.sent(3)
    assert small.build(**fedavg).ledger.sent(3) == 4 * parameters


def test_only_what_somebody_may_read_is_counted(tmp_path):
    shares = {"distill__publish_label_shares": True}
    assert small.build(graph__name="none", **shares).ledger.sent(6) == 0
    assert small.build(method="gossip", graph__name="none", average__every=1).ledger.sent(6) == 0
    assert small.build(method="isolated", **shares).ledger.sent(6) == 0
    assert small.build(**shares).ledger.sent(1) == small.build().ledger.sent(1) + 4 * 4.0 * 10
    (tmp_path / "all-read-0.edges").write_text("1 0\n2 0\n3 0\n")
    ledger = small.build(
        graph__name="matrix", graph__matrix=str(tmp_path / "all-read-0.edges")
    ).ledger
    for sent in ledger.record().values():
        assert np.flatnonzero(sent).tolist() == [0]


def test_each_seed_has_its_own_bytes():
    unlike = {"clients__models": (("mlp_small", 2), ("mlp_large", 2)), "model__width": 0}
    made = small.build(**unlike, clients__active=2, num_seeds=2)
    alone = [small.build(**unlike, clients__active=2, seed=seed).ledger for seed in (0, 1)]
    assert [each.sent(50) for each in made.ledgers] == [each.sent(50) for each in alone]


def test_both_accountings_and_fedavg():
    experiment = small.build(exchange__refresh_steps=10, average__every=5)
    record = experiment.ledger.record()
    parameters = sum(leaf.nbytes for leaf in small.clients(experiment, experiment.init_state())) / 4
    assert record["predictions"].tolist() == [8 * (2 * 10 + small.WIDTH) * 4.0] * 4
    assert record["snapshots"].tolist() == [parameters / 10] * 4
    assert record["fedavg"].tolist() == [parameters / 5] * 4


def test_bytes_sent_follow_what_happened():
    mhd = small.build().ledger
    assert mhd.sent(6) == 6 * mhd.predictions.sum()
    fedmd = small.build(method="fedmd", rounds__private_steps=3, rounds__public_steps=1).ledger
    assert fedmd.sent(8) == 2 * fedmd.predictions.sum()
    fedavg = small.build(method="fedavg", average__every=4).ledger
    assert fedavg.sent(9) == 2 * 4 * fedavg.fedavg.sum()
    assert small.build(method="isolated").ledger.sent(9) == 0
    seldom = small.build(exchange__every=3).ledger
    assert [seldom.sent(step) / mhd.sent(1) for step in (0, 1, 3, 4, 9)] == [0, 1, 1, 2, 3]


def test_bytes_until_an_accuracy_are_those_of_the_first_evaluation_that_reaches_it():
    ledger = small.build().ledger
    seen = [(0, 0.1), (3, 0.5), (6, 0.4), (9, 0.7)]
    found = ledger.until((0.1, 0.25, 0.5, 0.6, 0.75), seen)
    step = ledger.predictions.sum()
    expected = {"0.1": 0, "0.25": 3 * step, "0.5": 3 * step, "0.6": 9 * step, "0.75": None}
    assert found == expected and ledger.until((), seen) == {}


# --- What nobody reads stays at home --------------------------------------------------------------


def test_the_last_head_travels_only_where_heads_of_one_rank_teach():
    chain = methods.Distillation(wiring="chain")
    assert chain.published_heads(5) == 4
    assert dataclasses.replace(chain, same_rank=True).published_heads(5) == 5
    assert dataclasses.replace(chain, nu_pred=0.0).published_heads(5) == 0
    assert methods.Distillation(wiring="main").published_heads(1) == 1


ROUNDS = {"method": "fedmd", "rounds__private_steps": 1, "rounds__public_steps": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"distill__confidence": "energy"},
        pytest.param(
            {"exchange__mode": "stale", "exchange__pool_size": 2},
            marks=pytest.mark.slow,  # the losses of stale reading are tested below
        ),
        ROUNDS,
    ],
    ids=["mhd", "stale", "rounds"],
)
def test_training_is_the_same_to_the_bit_where_everything_is_published(changes, monkeypatch):
    """All heads in every step, against those that somebody reads in the steps that distil.

    Both programs have the same branches: two that are laid out otherwise round differently.
    """
    experiment = small.build(isolated_baseline=False, exchange__refresh_steps=2, **changes)
    assert experiment.parts.pauses == experiment.parts.rests == (changes is ROUNDS)
    expected = small.clients(experiment, small.run(experiment, calls=2)[0])
    monkeypatch.setattr(methods.Distillation, "published_heads", lambda self, heads: heads)
    monkeypatch.setattr(program, "distils", lambda inputs: inputs.weights[1] >= 0)
    loud = small.build(isolated_baseline=False, exchange__refresh_steps=2, **changes)
    found = small.clients(loud, small.run(loud, calls=2)[0])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_same_bytes_move_where_only_some_steps_distil():
    experiment = small.build(exchange__every=2, parallel__client_devices=2)
    assert experiment.parts.pauses and not experiment.parts.rests
    assert _gathered_bytes(experiment) == experiment.ledger.predictions.sum()


# --- Stale reading --------------------------------------------------------------------------------


def _stale(pool, every, slots=0, drop=0.0, name="complete", clients=5):
    topology = graph.make_topology({"name": name}, clients, 0)
    read = min(slots or pool, pool)
    form = edges.Form("lists", read, clients * read)
    return exchange.Stale(topology, form, 3, pool, every, slots, drop)


@given(
    pool=st.integers(1, 4), every=st.integers(1, 4), slots=st.integers(0, 4),
    start=st.integers(0, 9), n=st.integers(1, 9),
)  # fmt: skip
def test_a_reading_can_be_entered_anywhere(pool, every, slots, start, n):
    reader = _stale(pool, every, slots)
    whole, parts = reader(0, start + n), reader(start, start + n)
    for ours, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs[start:])


@given(pool=st.integers(1, 4), every=st.integers(1, 4), slots=st.integers(0, 4))
def test_the_pool_rolls(pool, every, slots):
    """Every S_P steps the oldest slot is written, and only it changes hands."""
    reader = _stale(pool, every, slots)
    reading = reader(0, 30)
    due = [step for step in range(30) if (step + 1) % every == 0]
    assert np.flatnonzero(reading.write >= 0).tolist() == due
    assert reading.write[due].tolist() == [i % pool for i in range(len(due))]
    for step in range(1, 30):
        for slot in range(pool):
            same = (reader.peers_in_slot(step, slot) == reader.peers_in_slot(step - 1, slot)).all()
            assert same or reading.write[step - 1] == slot
    expected = slots if 0 < slots < pool else pool
    assert reading.versions.shape == (30, expected)


def test_slots_hold_peers_and_lost_messages_leave_them_empty():
    reader = _stale(2, 3, drop=0.5, name="cycle")
    adjacency = reader.topology.at(0)
    held = np.stack([reader.peers_in_slot(step, slot) for step in range(60) for slot in (0, 1)])
    known = held >= 0
    assert 0.2 < 1 - known[60:].mean() < 0.8
    clients = np.broadcast_to(np.arange(5), held.shape)
    assert adjacency[clients[known], held[known]].all()


def _keep(state, client):
    """A copy of one client's parameters."""
    return jax.tree.map(lambda x: x[0, client], state.clients[0].params["model"])


def _learn_from_pools(predict, state, pools, slots):
    """Aux and embedding losses of every client, whose candidates are itself and its own pool."""
    losses = []
    for client, kept in enumerate(pools):
        own, *others = [predict(_keep(state, client)), *(predict(kept[slot]) for slot in slots)]
        log_probs = reference.log_softmax(np.stack([own[0], *(logits for logits, _ in others)]))
        below = np.ones((1, len(log_probs)), bool)
        published = reference.align(log_probs, 1.0)
        teacher, head = reference.select_teachers(published, below)
        aux = reference.prediction_loss(log_probs[:1], published, teacher, head)
        embeddings = np.stack([embedding for _, embedding in others])
        everyone = np.ones((1, len(others)), bool)
        emb = reference.embedding_loss(own[1][None], embeddings, everyone)
        losses.append((aux[0], emb[0]))
    return losses


@pytest.mark.parametrize(
    ("pool", "every", "slots", "devices"),
    [
        pytest.param(1, 1, 0, 1, marks=pytest.mark.slow),  # equals fresh reading, see below
        (2, 2, 0, 2),
        (3, 1, 2, 1),
    ],
    ids=["1 slot every step", "2 slots on 2 devices", "2 of 3 slots a step"],
)
def test_stale_losses_equal_those_of_real_pools(pool, every, slots, devices):
    """The obvious way: each client keeps a list of parameters and learns from those."""
    experiment = small.build(
        exchange__mode="stale", exchange__pool_size=pool, exchange__refresh_steps=every,
        graph__peers_per_step=slots, train__log_every=1, parallel__client_devices=devices,
    )  # fmt: skip
    reader = experiment.readers[0]
    apply = jax.jit(experiment.parts.models[0].apply, static_argnames="train")
    clients, pools = range(experiment.layout.num_clients), None
    for step, (state, metrics, after) in enumerate(small.walk(experiment, 4)):
        if pools is None:
            held = [reader.peers_in_slot(0, slot) for slot in range(reader.pool_slots)]
            pools = [[_keep(state, peers[client]) for peers in held] for client in clients]
        images = small.public_batch(experiment, step)
        predict = lambda params, x=images: [  # noqa: E731
            np.asarray(out, np.float64) for out in apply({"params": params}, x, train=False)
        ]
        reading = reader(step, step + 1)
        losses = _learn_from_pools(predict, state, pools, reading.versions[0])
        for client, (aux, emb) in enumerate(losses):
            np.testing.assert_allclose(metrics["head_losses"][0, 0, client], aux, atol=1e-5)
            np.testing.assert_allclose(metrics["embedding_loss"][0, 0, client], emb, atol=1e-5)
        slot = int(reading.write[0])
        if slot >= 0:
            peers = reader.peers_in_slot(step + 1, slot)
            for client in clients:
                pools[client][slot] = _keep(after, peers[client])


def test_one_slot_refreshed_every_step_is_the_state_the_last_step_left():
    """N_P = S_P = 1: from the second step on, stale teachers predict what fresh ones would."""
    stale = small.build(exchange__mode="stale", exchange__pool_size=1, exchange__refresh_steps=1,
                        graph__name="cycle", train__log_every=1)  # fmt: skip
    fresh = small.build(
        graph__name="cycle", train__log_every=1, distill__alignment_momentum=0.0
    )  # snapshots are aligned with the batch's own mean
    pairs = zip(small.walk(stale, 3), small.walk(fresh, 3), strict=True)
    for (_, old, _), (_, new, _) in pairs:
        np.testing.assert_allclose(old["loss"], new["loss"], rtol=1e-5)
