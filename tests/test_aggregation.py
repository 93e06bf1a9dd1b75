# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Averages of parameters against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax import aggregation

READS = np.array([[True] * 6, [True, True, False, True, True, True]])


def everyone() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {"a": rng.normal(size=(6, 3)).astype(np.float32),
            "b": rng.normal(size=(6, 2, 2)).astype(np.float32)}  # fmt: skip


def test_accelerators_do_not_round_what_is_averaged() -> None:
    lowered = jax.jit(aggregation.mean, static_argnums=2).lower(everyone(), READS / 6.0, 0.0)
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert products and all("HIGHEST" in line and "DEFAULT" not in line for line in products)


def flat(tree: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in tree.values()], axis=1)


def nearest(theirs: np.ndarray, liars: int) -> np.ndarray:
    apart = ((theirs[:, None] - theirs[None]) ** 2).sum(axis=-1)
    close = len(theirs) - liars - 2
    scores = [np.sort(np.delete(row, i))[:close].sum() for i, row in enumerate(apart)]
    return theirs[int(np.argmin(scores))]


ORACLES = {
    "mean": lambda theirs: theirs.mean(axis=0),
    "median": lambda theirs: np.median(theirs, axis=0),
    "trimmed_mean": lambda theirs: np.sort(theirs, axis=0)[1 : len(theirs) - 1].mean(axis=0),
    "krum": lambda theirs: nearest(theirs, 1),
}


@pytest.mark.parametrize("rule", aggregation.AGGREGATORS.names())
def test_averages_equal_numpy(rule: str) -> None:
    weights = READS / READS.sum(axis=1, keepdims=True)
    made = aggregation.AGGREGATORS.get(rule)(
        jax.tree.map(jnp.asarray, everyone()), jnp.asarray(weights, jnp.float32), 0.25
    )
    expected = [ORACLES[rule](flat(everyone())[reads]) for reads in READS]
    np.testing.assert_allclose(flat(made), np.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", aggregation.AGGREGATORS.names())
def test_who_reads_one_client_alone_takes_its_parameters(rule: str) -> None:
    weights = np.zeros((2, 6), np.float32)
    weights[0, 3] = weights[1, 5] = 1
    made = aggregation.AGGREGATORS.get(rule)(
        jax.tree.map(jnp.asarray, everyone()), jnp.asarray(weights), 0.25
    )
    np.testing.assert_allclose(flat(made), flat(everyone())[[3, 5]], rtol=1e-6)
