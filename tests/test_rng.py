# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Streams of random numbers: the same words give the same numbers, other words give others."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhd_jax import rng

SEEDS = st.integers(min_value=0, max_value=2**32 - 1)
ID = st.integers(min_value=0, max_value=2**31 - 1) | st.integers(0, 2)
# A purpose always comes with the same number of ids.
PURPOSES = {"partition": 0, "peers": 1, "augment": 2, "pool": 3}
WORDS = st.one_of(
    *(
        st.tuples(SEEDS, st.just(purpose), st.lists(ID, min_size=count, max_size=count))
        for purpose, count in PURPOSES.items()
    )
)


def host_bits(seed: int, purpose: str, ids: list[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.generator(seed, purpose, *ids).integers(2**63, size=2))


def device_bits(seed: int, purpose: str, ids: list[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in jax.random.key_data(rng.stream(seed, purpose, *ids)))


@jax.jit
def stream_of_step_3(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(rng.stream(seed, "augment", 3))


@pytest.mark.parametrize("bits", [host_bits, device_bits])
@given(first=WORDS, second=WORDS)
def test_streams_are_equal_exactly_when_their_words_are(bits, first, second) -> None:
    assert (bits(*first) == bits(*second)) == (first == second)


@pytest.mark.parametrize("bits", [host_bits, device_bits])
def test_nearby_words_never_share_a_stream(bits) -> None:
    words = [
        (seed, purpose, ids)
        for seed in (0, 1, 2)
        for purpose, ids in [
            ("partition", []),
            ("public", []),
            ("peers", [0]),
            ("peers", [1]),
            ("drop", [0]),
            ("augment", [0, 0]),
            ("augment", [0, 1]),
            ("augment", [1, 0]),
            ("pool", [0, 0, 0]),
        ]  # fmt: skip
    ]
    assert len({bits(*each) for each in words}) == len(words)


def test_seeds_wider_than_32_bits_count_in_full_on_the_host() -> None:
    seeds = [0, 1, 2**31, 2**32, 2**32 + 1, 2**40, 2**63 - 1]
    assert len({host_bits(seed, "partition", []) for seed in seeds}) == len(seeds)


@given(SEEDS)
def test_a_seed_may_be_a_number_or_an_array_on_the_device(seed: int) -> None:
    """The compiled step gets its seeds as a uint32 array, one per replica."""
    compiled = stream_of_step_3(jnp.asarray(seed, jnp.uint32))
    assert tuple(int(n) for n in compiled) == device_bits(seed, "augment", [3])


def test_numbers_of_a_stream_do_not_depend_on_those_drawn_from_another() -> None:
    alone = rng.generator(0, "partition").random(4)
    other = rng.generator(0, "peers")
    other.random(1000)
    np.testing.assert_array_equal(rng.generator(0, "partition").random(4), alone)


def test_stream_is_fold_of_the_seed() -> None:
    key = jax.random.key(5)
    assert jnp.issubdtype(rng.stream(5, "augment").dtype, jax.dtypes.prng_key)
    np.testing.assert_array_equal(
        jax.random.key_data(rng.fold(key, "augment", 3, 1)),
        jax.random.key_data(rng.stream(5, "augment", 3, 1)),
    )


def test_stream_inside_a_compiled_map_equals_the_one_outside() -> None:
    @jax.jit
    def inside(step: jax.Array, clients: jax.Array) -> jax.Array:
        key = rng.stream(7, "augment", step)
        return jax.vmap(lambda client: jax.random.key_data(rng.fold(key, "client", client)))(
            clients
        )

    outside = [
        jax.random.key_data(rng.fold(rng.stream(7, "augment", 11), "client", client))
        for client in range(3)
    ]
    np.testing.assert_array_equal(inside(jnp.int32(11), jnp.arange(3)), np.stack(outside))


def test_a_new_process_draws_the_same_numbers() -> None:
    """The name of a purpose must not go through Python's `hash`, which differs per process."""
    program = (
        "import jax; from mhd_jax import rng; "
        "print(rng.generator(3, 'partition', 1).integers(2**32), "
        "*jax.random.key_data(rng.stream(3, 'augment', 1)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    here = [
        int(rng.generator(3, "partition", 1).integers(2**32)),
        *(int(word) for word in jax.random.key_data(rng.stream(3, "augment", 1))),
    ]
    assert printed.split() == [str(number) for number in here]


def test_streams_look_uniform_across_clients_and_steps() -> None:
    """A coarse check that neighbouring ids are not correlated: the mean of 4096 first draws."""
    draws = [
        rng.generator(0, "peers", step, client).random()
        for step in range(64)
        for client in range(64)
    ]
    assert abs(np.mean(draws) - 0.5) < 0.02  # 4.4 standard errors


def test_many_generators_are_those_made_one_by_one():
    clients, epochs = np.arange(40), np.arange(40) * 7 % 11
    for seed in (0, 5, 2**40 + 3):
        many = rng.generators(seed, "private", clients, epochs)
        for made, client, epoch in zip(many, clients.tolist(), epochs.tolist(), strict=True):
            alone = rng.generator(seed, "private", client, epoch)
            np.testing.assert_array_equal(made.permutation(17), alone.permutation(17))
            assert made.random() == alone.random()
