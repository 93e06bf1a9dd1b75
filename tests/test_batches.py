# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Shuffled epochs as a pure function of (seed, client, step)."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhd_jax.data import batches


@given(
    size=st.integers(1, 40), batch=st.integers(1, 50), start=st.integers(0, 30),
    middle=st.integers(0, 10), rest=st.integers(0, 10),
)  # fmt: skip
def test_a_walk_can_be_entered_anywhere(size, batch, start, middle, rest):
    walk = lambda a, b: batches.batch_indices(7, "private", 2, size, batch, a, b)  # noqa: E731
    whole = walk(start, start + middle + rest)
    parts = [walk(start, start + middle), walk(start + middle, start + middle + rest)]
    assert whole.shape == (middle + rest, batch)
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@given(size=st.integers(1, 40), batch=st.integers(1, 50))
def test_every_epoch_holds_every_sample_once(size, batch):
    steps = -(-3 * size // batch)
    walk = batches.batch_indices(0, "private", 0, size, batch, 0, steps).ravel()[: 3 * size]
    for epoch in walk.reshape(3, size):
        assert sorted(epoch) == list(range(size))


def test_clients_seeds_purposes_and_epochs_differ():
    walk = lambda *which: batches.batch_indices(*which, 50, 50, 0, 2)  # noqa: E731
    base = walk(0, "private", 0)
    others = [walk(1, "private", 0), walk(0, "public", 0), walk(0, "private", 1), base[::-1]]
    assert not any((base == other).all() for other in others)


def test_only_the_last_orders_of_a_walker_stay_in_memory():
    order = lambda epoch, client=0: batches.epoch_order(3, "kept", client, 10, epoch)  # noqa: E731
    first, other = order(0).tolist(), order(0, client=1)
    made = [weakref.ref(order(epoch)) for epoch in range(5)]
    assert [one() is not None for one in made] == [False, False, False, True, True]
    assert order(4) is made[4]() and order(0, client=1) is other
    assert order(0).tolist() == first


@pytest.mark.parametrize("batch_size", [3, 40], ids=["few epochs", "many epochs"])
def test_walks_of_all_clients_are_those_of_each(batch_size):
    sizes = np.random.default_rng(0).integers(1, 40, 60)
    together = batches.walks(2**40 + 3, "private", sizes, batch_size, 5, 12)
    for client, size in enumerate(sizes.tolist()):
        alone = batches.batch_indices(2**40 + 3, "private", client, size, batch_size, 5, 12)
        np.testing.assert_array_equal(together[:, client], alone)


@given(
    count=st.integers(1, 5), every=st.integers(1, 4), blocks=st.integers(1, 4),
    start=st.integers(0, 40), steps=st.integers(1, 12),
)  # fmt: skip
def test_a_public_sample_stays_where_it_came_for_as_many_exchanges(
    count, every, blocks, start, steps
):
    visits, size, batch = batches.Visits(count, every), 37, blocks * count
    read = batches.public_indices(3, size, batch, visits, start, start + steps)
    places = np.arange(batch)
    for step, row in enumerate(read, start):
        exchange = step // every
        came, place = visits.origin(step, places)
        assert (came % every == 0).all() and (came <= step).all()
        assert (exchange - came // every < count).all()
        assert (place % count == came // every % count).all()
        for b in range(batch):
            then = batches.public_indices(3, size, batch, visits, came[b], came[b] + 1)[0]
            assert row[b] == then[place[b]]
        new = visits.sent(exchange, places) == exchange
        fresh = batches.batch_indices(3, "public", 0, size, blocks, exchange, exchange + 1)[0]
        assert (row[new] == np.repeat(fresh, count)[new]).all()
        assert new.sum() == blocks if exchange >= count - 1 else new.sum() > blocks - 1
