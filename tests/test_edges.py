# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Selection and losses along edges: the same in every form, and of the size of the edges."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhd_jax import distill, edges, graph
from mhd_jax.edges import Edges, Extent, Form
from mhd_jax.record import describe
from tests import reference, small

B, H, C, D = 3, 3, 4, 5
FORMS = {"lists": (6, 3), "all_but": (5, 2), "pairs": (6, 6)}  # kind: (clients, width)


def adjacency_of(kind: str, seed: int) -> np.ndarray:
    """A graph that the form can hold; some clients read nobody."""
    rng, (clients, width) = np.random.default_rng(seed), FORMS[kind]
    few = np.zeros((clients, clients), bool)
    for client in range(clients):
        others = np.delete(np.arange(clients), client)
        few[client, rng.choice(others, rng.integers(0, width), replace=False)] = True
    if kind == "lists":
        return few
    read = ~few if kind == "all_but" else rng.random(few.shape) < 0.6
    read &= ~np.eye(clients, dtype=bool)
    return read & (rng.random(clients) < 0.8)[:, None]


def written(adjacency: np.ndarray, kind: str) -> Edges:
    clients, width = FORMS[kind]
    return jax.tree.map(jnp.asarray, edges.from_mask(adjacency, Form(kind, width, clients)))


def published(seed: int, clients: int, tied: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(clients, B, H, C))
    if tied:  # three degrees of confidence only
        steep = rng.choice([0.3, 1.0, 2.5], size=(clients, B, H, 1))
        logits = steep * np.arange(C)
    return reference.log_softmax(logits).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("own", "same_rank", "rule"))
def choose(
    scores: Any, reads: Edges, keys: Any, *, own: bool, same_rank: bool, rule: str
) -> tuple[distill.Target, Any]:
    """Targets, and for rules that pick one candidate the client and head picked."""
    below = reads.including(jnp.arange(len(scores))) if own else reads
    candidates = distill.candidates_along(
        scores, below, reads if same_rank else None, H - 1, own=scores
    )
    choice = distill.choose(candidates, keys, rule=rule, confidence="max_prob")
    target = distill.targets(candidates, choice, jnp.exp)
    if isinstance(choice, distill.Target) or not jnp.issubdtype(choice.dtype, jnp.integer):
        return target, None
    client = jnp.where(choice < 0, -1, candidates.publisher(jnp.maximum(choice, 0)))
    rank = jnp.arange(H - 1) + choice // candidates.per_block
    return target, (client, jnp.where(choice < 0, -1, rank))


def keys_of(clients: int) -> Any:
    return jax.random.split(jax.random.key(0), (clients, B))


select_teachers = jax.jit(distill.select_teachers)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize(("own", "same_rank"), [(True, False), (False, True), (True, True)])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), tied=st.booleans())
def test_teachers_equal_those_of_the_mask_and_the_oracle(kind, own, same_rank, seed, tied):
    adjacency = adjacency_of(kind, seed)
    clients = len(adjacency)
    scores = published(seed, clients, tied)
    below, same = reference.wiring(adjacency, own, same_rank)
    pairs = select_teachers(scores, below, same)
    _, found = choose(
        scores, written(adjacency, kind), keys_of(clients),
        own=own, same_rank=same_rank, rule="most_confident",
    )  # fmt: skip
    expected = reference.select_teachers(scores, below, same, "max_prob")
    for ours, theirs, oracle in zip(found, pairs, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(ours, oracle)


RULES = [name for name in distill.RULES.names() if name != "label_share"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["lists", "all_but"])
def test_every_rule_gives_the_same_targets_in_every_form(kind, rule):
    for seed in range(2):
        adjacency = adjacency_of(kind, seed)
        scores = published(seed, len(adjacency), tied=False)
        results = [
            choose(scores, made, keys_of(len(adjacency)), own=True, same_rank=True, rule=rule)
            for made in (edges.from_pairs(adjacency), written(adjacency, kind))
        ]
        (expected, teachers), (found, chosen) = results
        np.testing.assert_array_equal(found.taught, expected.taught)
        taught = np.asarray(found.taught)
        ours, theirs = np.asarray(found.scores), np.asarray(expected.scores)
        np.testing.assert_allclose(ours[taught], theirs[taught], atol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, chosen, teachers)


@pytest.mark.parametrize("kind", FORMS)
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_embedding_loss_equals_the_oracle(kind, seed):
    adjacency = adjacency_of(kind, seed)
    vectors = np.random.default_rng(seed).normal(size=(len(adjacency), B, D)).astype(np.float32)
    everybody = np.ones(len(vectors), bool)
    found = embedding_loss(vectors, vectors, written(adjacency, kind), everybody)
    expected = reference.embedding_loss(vectors, vectors, adjacency)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    halves = [embedding_loss(vectors, part, written(adjacency, kind), everybody, first)
              for part, first in ((vectors[:2], 0), (vectors[2:], 2))]  # fmt: skip
    np.testing.assert_allclose(sum(halves), expected, atol=1e-6)


embedding_loss = jax.jit(distill.embedding_loss_along, static_argnums=4)


@pytest.mark.parametrize("kind", FORMS)
def test_a_message_that_cannot_be_read_enters_no_mean_of_embeddings(kind):
    adjacency = adjacency_of(kind, 3)
    clients = len(adjacency)
    vectors = np.random.default_rng(0).normal(size=(clients, B, D)).astype(np.float32)
    readable, others = np.arange(clients) != 0, adjacency.copy()
    others[:, 0] = False
    blank = vectors * readable[:, None, None]
    found = embedding_loss(vectors, blank, written(adjacency, kind), readable)
    expected = reference.embedding_loss(vectors, vectors, others)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@jax.jit
def changed(made: Edges) -> tuple[jax.Array, jax.Array]:
    """Masks with oneself read too, and behind two more candidates."""
    return made.including(jnp.arange(len(made.count))).mask(), made.behind(2).mask()


@pytest.mark.parametrize("kind", FORMS)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_forms_hold_the_same_graph(kind, seed):
    adjacency = adjacency_of(kind, seed)
    made = written(adjacency, kind)
    np.testing.assert_array_equal(made.mask(), adjacency)
    np.testing.assert_array_equal(made.count, adjacency.sum(axis=1))
    own, behind = changed(made)
    below, _ = reference.wiring(adjacency, True, False)
    np.testing.assert_array_equal(own, below)
    np.testing.assert_array_equal(behind, np.pad(adjacency, ((0, 0), (2, 0))))


@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 3))
def test_lists_in_any_order_make_the_same_edges(seed, width):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(7)[:width] for _ in range(5)])
    ids[rng.random(ids.shape) < 0.3] = edges.NOBODY
    made = [
        edges.from_lists(ids, Form(kind, wide, 7)) for kind, wide in (("lists", 3), ("pairs", 7))
    ]
    np.testing.assert_array_equal(made[0].mask(), made[1].mask())
    assert made[0].mask().sum() == (ids != edges.NOBODY).sum() == made[0].count.sum()


def test_a_graph_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="4 entries do not fit into lists of 2"):
        edges.from_mask(~np.eye(5, dtype=bool), Form("lists", 2, 5))


# --- Which form -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kind", "width"),
    [
        ({"name": "complete"}, "all_but", 1),
        ({"name": "cycle"}, "lists", 1),
        ({"name": "random_regular", "degree": 4, "every": 1}, "lists", 4),
        ({"name": "complete", "peers_per_step": 2}, "lists", 2),
        ({"name": "complete", "drop": 0.1}, "pairs", 16),
        ({"name": "star"}, "pairs", 16),
        ({"name": "none"}, "lists", 1),
        ({"sequence": ("cycle", "undirected_cycle"), "every": 5}, "lists", 2),
        ({"sequence": ("cycle", "complete"), "every": 5}, "pairs", 16),
    ],
    ids=lambda value: str(value),
)  # fmt: skip
def test_the_graph_decides(settings, kind, width):
    topology = graph.make_topology(settings, 16, 0)
    least, most = topology.degrees(20)
    form = edges.choose_form([Extent(most, least, 16)])
    assert (form.kind, form.width) == (kind, width)
    for reads in topology.reads(0, 20):  # and every graph of the run fits
        np.testing.assert_array_equal(edges.from_mask(reads, form).mask(), reads)


def test_a_long_sequence_of_graphs_is_not_drawn_in_advance():
    topology = graph.make_topology({"name": "erdos_renyi", "every": 1}, 8, 0)
    assert topology.degrees(10**9) == (1, 8)


def test_the_header_says_the_form():
    text = describe(small.build(graph__name="cycle"))
    assert "teachers   up to 1 a client, as far as they are heard" in text
    assert "teachers   teachers from" not in describe(small.build(method="isolated"))


# --- The compiled step ----------------------------------------------------------------------------


def _largest(text: str) -> int:
    """Elements of the largest array of a compiled program."""
    shapes = re.findall(r"\b(?:f32|s32|pred|u32|f64|s64|u8|u16|bf16)\[([\d,]+)\]", text)
    return max(math.prod(int(n) for n in dims.split(",")) for dims in shapes)


def test_no_array_has_an_element_for_every_pair_and_sample():
    clients, samples = 256, 8
    experiment = small.build(
        clients__num=clients, data__public_batch_size=samples, data__batch_size=1,
        graph__name="random_regular", graph__degree=4, partition__name="iid",
        isolated_baseline=False, train__steps=1, model__width=4, heads__aux=1,
    )  # fmt: skip
    assert _largest(small.compiled_text(experiment)) < clients * clients * samples


def test_graphs_that_change_compile_once():
    steps = 50
    experiment = small.build(
        clients__num=16, graph__name="erdos_renyi", graph__probability=0.1, graph__every=1,
        train__steps=steps, train__log_every=1, train__eval_every=steps, model__width=4,
        train__checkpoint_every=steps, isolated_baseline=False,
    )  # fmt: skip
    assert experiment.readers[0].form.kind == "lists"
    widths = {int(experiment.topologies[0].at(step).sum(1).max()) for step in range(steps)}
    assert len(widths) > 1
    args = small.arguments(experiment)
    compiled = experiment.step.lower(*args).compile()  # as training does; takes no other shapes
    state, metrics = compiled(*args)
    for start in range(1, steps):
        state, metrics = compiled(*small.arguments(experiment, state, start))
    assert np.isfinite(np.asarray(metrics["loss"][0])).all()
