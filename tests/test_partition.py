# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Partitions: nothing lost, nothing twice, always an end, and the weights the method asks for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mhd_jax.data import partition as lib
from mhd_jax.errors import ConfigError

SCHEMES = ["primary_labels", "iid", "dirichlet", "shards", "classes_per_client", "quantity"]


def config(name: str = "primary_labels", **changes: Any) -> ConfigDict:
    values: dict[str, Any] = {
        "name": name,
        "skew": 100.0,
        "primary_labels": 0,
        "alpha": 0.5,
        "min_size": 1,
        "shards_per_client": 2,
        "classes_per_client": 2,
    }
    return ConfigDict({**values, **changes})


def many_labels(num_classes: int = 10, per_class: int = 2000) -> np.ndarray:
    return np.random.default_rng(7).permutation(np.repeat(np.arange(num_classes), per_class))


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    num_classes = draw(st.integers(1, 8))
    labels = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=150))
    return {
        "labels": np.array(labels),
        "num_classes": num_classes,
        "num_clients": draw(st.integers(1, 12)),
        "seed": draw(st.integers(0, 2**40)),
        "config": config(
            draw(st.sampled_from(SCHEMES)),
            skew=draw(st.one_of(st.just(math.inf), st.floats(0, 1e308))),
            primary_labels=draw(st.integers(0, num_classes)),
            alpha=draw(st.floats(1e-300, 1e300)),
            min_size=draw(st.integers(1, 6)),
            shards_per_client=draw(st.integers(1, 4)),
            classes_per_client=draw(st.integers(1, num_classes)),
        ),
    }


@given(problems())
@settings(deadline=None, max_examples=200)
def test_each_sample_goes_to_one_client_whatever_the_settings(problem: dict[str, Any]) -> None:
    labels, num_clients = problem["labels"], problem["num_clients"]
    try:
        parts = lib.partition(**problem)
    except ConfigError as error:
        # Only schemes that hand out labels can leave a client with nothing.
        hands_out_labels = problem["config"].name in ("primary_labels", "classes_per_client")
        assert hands_out_labels or error.setting != "partition.name"
        assert hands_out_labels or len(labels) < 6 * num_clients
        return
    assert len(parts.indices) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts.indices)), np.arange(len(labels)))
    assert all(len(owned) and np.all(np.diff(owned) > 0) for owned in parts.indices)
    assert all(owned.dtype == np.int64 for owned in parts.indices)
    assert parts.primary.shape == (num_clients, problem["num_classes"])
    histogram = parts.histogram(labels, problem["num_classes"])
    assert np.array_equal(histogram.sum(1), parts.sizes)
    assert np.array_equal(histogram.sum(0), np.bincount(labels, minlength=problem["num_classes"]))
    if problem["config"].name in ("dirichlet", "quantity"):
        assert parts.sizes.min() >= problem["config"].min_size
    assert parts.hash() == lib.partition(**problem).hash()


@given(st.integers(2, 500), st.floats(0.01, 0.99), st.integers(0, 2**40))
@settings(deadline=None)
def test_public_and_private_samples_are_all_samples(size: int, fraction: float, seed: int) -> None:
    if not 0 < round(fraction * size) < size:
        with pytest.raises(ConfigError, match="at least one sample public and one private"):
            lib.split_public(size, fraction, seed)
        return
    private, public = lib.split_public(size, fraction, seed)
    assert len(public) == round(fraction * size)
    assert np.array_equal(np.sort(np.concatenate([private, public])), np.arange(size))
    assert np.array_equal(public, lib.split_public(size, fraction, seed)[1])


@pytest.mark.parametrize("name", SCHEMES)
def test_another_seed_is_another_partition(name: str) -> None:
    hashes = {lib.partition(many_labels(), 10, 8, config(name), seed).hash() for seed in range(5)}
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("primary_labels", "caf6562888887401"),
        ("iid", "ef49a073124715ba"),
        ("dirichlet", "65ecd2d7852a0997"),
        ("shards", "cb2eb6183fe7ab5a"),
        ("classes_per_client", "9a77513e665e7deb"),
        ("quantity", "1791f4155a14f8fd"),
    ],
)
def test_hash_is_the_same_on_every_machine_and_version(name: str, start: str) -> None:
    """A recorded hash names a partition only as long as nothing below changes its draws."""
    labels = np.arange(300) % 10
    settings_ = config(name, classes_per_client=3)
    parts = lib.partition(labels, 10, 4, settings_, 3, public=np.arange(300, 310))
    assert parts.hash()[:16] == start


def test_hash_tells_clients_and_public_samples_apart() -> None:
    none = np.zeros((2, 2), dtype=bool)

    def hashed(*owned: list[int], public: tuple[int, ...] = ()) -> str:
        indices = tuple(np.array(mine, dtype=np.int64) for mine in owned)
        return lib.Partition(indices, none, np.array(public, dtype=np.int64)).hash()

    distinct = [hashed([0, 1], [2]), hashed([0], [1, 2]), hashed([2], [0, 1])]
    distinct += [hashed([0, 1], [2], public=(3,)), hashed([0, 1], [2, 3])]
    assert len(set(distinct)) == len(distinct)


# --- Primary-label skew --------------------------------------------------------------------------


def shares(skew: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of each label each client got, and the share the weights promise it. [K, C]"""
    labels = many_labels()
    parts = lib.partition(labels, 10, 8, config(skew=skew), seed)
    histogram = parts.histogram(labels, 10)
    weights = np.where(parts.primary, 1.0 + skew, 1.0)
    return histogram / histogram.sum(0), weights / weights.sum(0)


@pytest.mark.parametrize("skew", [0.0, 1.0, 100.0])
def test_labels_are_shared_by_weight(skew: float) -> None:
    for seed in range(3):
        found, expected = shares(skew, seed)
        # 2000 draws a label: five standard deviations.
        margin = 5 * np.sqrt(expected * (1 - expected) / 2000) + 1e-9
        assert np.all(np.abs(found - expected) < margin)


def test_infinite_skew_is_strictly_disjoint() -> None:
    labels = many_labels()
    for seed in range(5):
        parts = lib.partition(labels, 10, 8, config(skew=math.inf, primary_labels=2), seed)
        histogram = parts.histogram(labels, 10)
        held = parts.primary.any(0)
        assert not np.any(histogram[:, held][~parts.primary[:, held]])
        assert np.all(histogram[:, ~held] > 2000 / 8 * 0.7)  # nobody's labels: everybody has some


def test_a_huge_skew_ends_where_infinity_is() -> None:
    labels = many_labels()
    huge, endless = (
        lib.partition(labels, 10, 8, config(skew=skew), 0).histogram(labels, 10)
        for skew in (1e308, math.inf)
    )
    assert np.array_equal(huge, endless)


@pytest.mark.parametrize(
    ("num_classes", "num_clients", "expected"),
    [
        (10, 8, [3, 3, 3, 3, 2, 2, 2, 2]),
        (1000, 8, [250] * 8),
        (10, 100, [1] * 100),
        (4, 1, [4]),
    ],
)
def test_zero_primary_labels_means_two_clients_a_label(
    num_classes: int, num_clients: int, expected: list[int]
) -> None:
    labels = np.arange(num_classes * 400) % num_classes
    parts = lib.partition(labels, num_classes, num_clients, config(skew=1.0), 0)
    assert parts.primary.sum(1).tolist() == expected


# --- The other schemes ---------------------------------------------------------------------------


def test_iid_deals_evenly() -> None:
    labels = many_labels(per_class=101)
    parts = lib.partition(labels, 10, 8, config("iid"), 0)
    assert np.ptp(parts.sizes) <= 1
    assert np.all(np.abs(parts.histogram(labels, 10) - 101 / 8) < 20)
    assert not parts.primary.any()


def test_dirichlet_is_more_uneven_for_a_smaller_alpha() -> None:
    labels = many_labels()

    def largest_share(alpha: float) -> float:
        parts = lib.partition(labels, 10, 8, config("dirichlet", alpha=alpha), 0)
        return float((parts.histogram(labels, 10).max(0) / 2000).mean())

    assert largest_share(0.05) > 0.6 > 0.4 > largest_share(1.0) > 0.2 > largest_share(1e6)


def test_dirichlet_tops_up_where_no_draw_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(lib.logging, "warning", lambda text, *words: said.append(text % words))
    labels = many_labels(num_classes=2, per_class=50)
    parts = lib.partition(labels, 2, 10, config("dirichlet", alpha=1e-6, min_size=9), 0)
    assert parts.sizes.min() >= 9
    assert parts.sizes.sum() == 100
    assert said == [
        "partition.alpha = 1e-06: 20 draws left a client with fewer than partition.min_size = 9"
        " samples; such clients get random samples of the largest clients."
    ]


def test_topping_up_never_makes_another_client_short() -> None:
    client = np.repeat([1, 2], [4, 5])
    for seed in range(5):
        topped = lib._top_up(client, 3, 3, np.random.default_rng(seed))
        assert np.bincount(topped).tolist() == [3, 3, 3]
        assert np.sum(topped != client) == 3


def test_a_draw_of_zero_picks_no_client_of_weight_zero() -> None:
    class Zeros:
        def random(self, size: int) -> np.ndarray:
            return np.zeros(size)

    weights = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    client = lib._draw(np.array([0, 1, 0]), weights, Zeros())  # type: ignore[arg-type]
    assert client.tolist() == [1, 0, 1]


def test_shards_give_each_client_few_labels_and_equal_sizes() -> None:
    labels = many_labels(per_class=80)
    parts = lib.partition(labels, 10, 20, config("shards", shards_per_client=2), 0)
    assert np.all(parts.sizes == 40)
    assert (parts.histogram(labels, 10) > 0).sum(1).max() <= 2


@pytest.mark.parametrize(("num_clients", "count"), [(8, 2), (5, 2), (4, 10), (30, 3)])
def test_classes_per_client_is_exact_and_shares_are_even(num_clients: int, count: int) -> None:
    labels = many_labels(per_class=101)
    settings_ = config("classes_per_client", classes_per_client=count)
    parts = lib.partition(labels, 10, num_clients, settings_, 0)
    histogram = parts.histogram(labels, 10)
    assert np.array_equal(histogram > 0, parts.primary)
    assert np.all(parts.primary.sum(1) == count)
    assert np.ptp(parts.primary.sum(0)) <= 1
    for column, holders in zip(histogram.T, parts.primary.T, strict=True):
        assert np.ptp(column[holders]) <= 1


def test_quantity_skews_sizes_but_not_labels() -> None:
    labels = many_labels()
    parts = lib.partition(labels, 10, 5, config("quantity", alpha=0.5, min_size=500), 1)
    assert parts.sizes.min() >= 500
    assert parts.sizes.max() > 2 * parts.sizes.min()
    mixture = parts.histogram(labels, 10) / parts.sizes[:, None]
    assert np.all(np.abs(mixture - 0.1) < 0.06)


# --- Public samples, pooling, a scheme of one's own ----------------------------------------------


def test_indices_are_those_of_the_training_set_and_public_labels_are_not_read() -> None:
    labels = many_labels(per_class=30)
    private, public = lib.split_public(len(labels), 0.2, 0)
    given_ = {"private": private, "public": public}
    parts = lib.partition(labels, 10, 4, config(), 0, **given_)
    assert np.array_equal(np.sort(np.concatenate(parts.indices)), private)
    assert np.array_equal(parts.public, public)
    shuffled = labels.copy()
    shuffled[public] = np.random.default_rng(0).permutation(labels[public]) - 100
    again = lib.partition(shuffled, 10, 4, config(), 0, **given_)
    assert again.hash() == parts.hash()
    assert np.array_equal(again.histogram(shuffled, 10), parts.histogram(labels, 10))


def test_pooled_is_one_client_with_everything() -> None:
    labels = many_labels(per_class=30)
    private, public = lib.split_public(len(labels), 0.2, 0)
    parts = lib.partition(labels, 10, 4, config(), 0, private=private, public=public)
    one = lib.pooled(parts)
    assert len(one.indices) == 1
    assert np.array_equal(one.indices[0], private)
    assert np.array_equal(one.public, public)
    assert one.primary.shape == (1, 10)


def test_a_registered_scheme_is_used_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lib.PARTITIONS, "_pieces", dict(lib.PARTITIONS._pieces))

    @lib.PARTITIONS.register("by_parity")
    def by_parity(labels: np.ndarray, *_: Any) -> lib.Owners:
        return lib.Owners(np.arange(len(labels)) % 2)

    @lib.PARTITIONS.register("forgetful")
    def forgetful(labels: np.ndarray, *_: Any) -> lib.Owners:
        return lib.Owners(np.arange(len(labels) - 1) % 2)

    parts = lib.partition(np.zeros(5, int), 1, 2, config("by_parity"), 0)
    assert parts.indices[1].tolist() == [1, 3]
    for num_clients, name in ((2, "forgetful"), (1, "by_parity")):
        with pytest.raises(ValueError, match="the client, 0 to"):
            lib.partition(np.zeros(5, int), 1, num_clients, config(name), 0)


@pytest.mark.parametrize("kind", [list, np.asarray])
def test_a_scheme_may_return_lists(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = lib.Owners([0, 1, 0, 1], kind([[1, 0], [0, 1]]))  # type: ignore[arg-type]
    monkeypatch.setitem(lib.PARTITIONS._pieces, "listed", lambda *_: owners)
    parts = lib.partition(np.arange(4) % 2, 2, 2, config("listed"), 0)
    assert parts.primary.dtype == bool and parts.primary.tolist() == np.eye(2).tolist()
    assert parts.indices[1].tolist() == [1, 3]
    for wrong in (owners._replace(primary=[[1], [1, 0]]), owners._replace(client=[0, [1]])):
        monkeypatch.setitem(lib.PARTITIONS._pieces, "listed", lambda *_, wrong=wrong: wrong)
        with pytest.raises(ConfigError, match="partition.name = 'listed': .*ValueError"):
            lib.partition(np.arange(4) % 2, 2, 2, config("listed"), 0)


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("primary_labels", {"skew": -1}, r"partition.skew = -1: expected a number >= 0, or inf"),
        ("primary_labels", {"skew": math.nan}, "partition.skew = nan: expected a number >= 0"),
        ("primary_labels", {"skew": "high"}, "partition.skew = 'high': expected a number >= 0"),
        ("primary_labels", {"primary_labels": 11}, "partition.primary_labels = 11: .* 0 to 10"),
        ("primary_labels", {"primary_labels": -1}, "partition.primary_labels = -1"),
        ("primary_labels", {"primary_labels": 1.5}, "partition.primary_labels = 1.5"),
        ("dirichlet", {"alpha": 0.0}, "partition.alpha = 0.0: expected a finite number > 0"),
        ("dirichlet", {"alpha": -1.0}, "partition.alpha = -1.0"),
        ("dirichlet", {"alpha": math.nan}, "partition.alpha = nan"),
        ("quantity", {"alpha": math.inf}, "partition.alpha = inf"),
        ("dirichlet", {"min_size": 0}, "partition.min_size = 0: .* 1 to 25"),
        ("dirichlet", {"min_size": 26}, "min_size = 26: .* as 100 private samples are shared by 4"),
        ("quantity", {"min_size": 26}, "partition.min_size = 26"),
        ("shards", {"shards_per_client": 26}, "partition.shards_per_client = 26: .* 1 to 25"),
        ("shards", {"shards_per_client": 0}, "partition.shards_per_client = 0"),
        ("classes_per_client", {"classes_per_client": 2}, "classes_per_client = 2: .* 3 to 10"),
        ("classes_per_client", {"classes_per_client": 11}, "partition.classes_per_client = 11"),
        ("primary_label", {}, "partition.name = 'primary_label': .* did you mean 'primary_labels'"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lib.partition(np.arange(100) % 10, 10, 4, config(name, **changes), 0)


@pytest.mark.parametrize("num_clients", [0, -1, 1.5, True, 101])
def test_impossible_numbers_of_clients_are_refused(num_clients: Any) -> None:
    with pytest.raises(ConfigError, match=f"clients.num = {num_clients}"):
        lib.partition(np.arange(100) % 10, 10, num_clients, config(), 0)


def test_a_client_without_samples_is_named() -> None:
    labels = np.zeros(20, dtype=int)  # of ten labels only one occurs
    with pytest.raises(ConfigError, match=r"partition.name = 'primary_labels': .* client \d gets"):
        lib.partition(labels, 10, 8, config(skew=math.inf, primary_labels=1), 0)


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    with pytest.raises(ConfigError, match=f"a sample with label {label}"):
        lib.partition(np.array([0, 1, label]), 10, 1, config(), 0)


@pytest.mark.parametrize("fraction", [0, 1, 0.0, 1.0, -0.1, 1.5, math.nan, math.inf, "0.1", 0.001])
def test_public_fractions_outside_zero_to_one_are_refused(fraction: Any) -> None:
    with pytest.raises(ConfigError, match="data.public_fraction = "):
        lib.split_public(100, fraction, 0)
