# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The contract of every extension point: kept by all registered pieces, and enforced on others.

The first half runs over all pieces of the package, so a new one is tested by being registered. The
second half holds pieces that break their contract on purpose, each with the error that its author
gets. The last part installs a package with pieces of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mhd_jax import api, distill, evaluate, exchange, graph, methods, models, optimizer
from mhd_jax import experiment as experiment_lib
from mhd_jax.attacks import ATTACKS, Attack, View
from mhd_jax.config import default_config, update
from mhd_jax.data import sources
from mhd_jax.data.feed import Resident
from mhd_jax.data.partition import PARTITIONS, Owners, partition
from mhd_jax.data.streaming import Streaming
from mhd_jax.distill import CONFIDENCES, LOGIT_LOSSES, RULES, Candidates, Target
from mhd_jax.errors import ConfigError
from mhd_jax.exchange import contract
from mhd_jax.models import HEADS, MODELS
from mhd_jax.registry import takes_whole_batch
from mhd_jax.rng import generator
from tests import small

ROOT = Path(__file__).resolve().parent.parent
K, N, B, M, C = 2, 3, 5, 2, 4
# Deeper residual networks are the same code with other numbers: their shapes are checked.
DEEP = {"resnet14", "resnet20", "resnet18", "resnet34", "resnet50"}


def own(registry: Any) -> list[str]:
    """The package's own pieces, whatever else docstrings, experiments and tests registered."""

    def module(piece: Any) -> str:
        return str(getattr(getattr(piece, "func", piece), "__module__", ""))

    return [
        name
        for name in registry
        if module(registry.get(name)).startswith("mhd_jax.") and not name.endswith("_example")
    ]


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    for registry in api.PIECES.values():
        monkeypatch.setattr(registry, "_pieces", dict(registry._pieces))
    yield


# --- Every registered piece keeps its contract ----------------------------------------------------


def log_probs(seed: int, *shape: int) -> jax.Array:
    return jax.nn.log_softmax(3 * jax.random.normal(jax.random.key(seed), shape))


def keys(seed: int = 1) -> jax.Array:
    return jax.random.split(jax.random.key(seed), (K, B))


def check_function(function: Any, x: jax.Array, shape: tuple[int, ...]) -> None:
    """Shape, finite values and gradients, jit equal to no jit, vmap equal to a loop."""
    value = function(x)
    assert value.shape == shape
    assert jnp.isfinite(value).all()
    np.testing.assert_allclose(jax.jit(function)(x), value, rtol=1e-6, atol=1e-6)
    two = jnp.stack([x, jnp.roll(x, 1, axis=0)])
    loop = jnp.stack([function(one) for one in two])
    np.testing.assert_allclose(jax.vmap(function)(two), loop, rtol=1e-6, atol=1e-6)
    if jnp.issubdtype(value.dtype, jnp.floating):
        assert jnp.isfinite(jax.grad(lambda x: function(x).sum())(x)).all()


@pytest.mark.parametrize("name", own(CONFIDENCES))
def test_confidence(name: str) -> None:
    check_function(CONFIDENCES.get(name), log_probs(0, N, B, C), (N, B))
    sure, unsure = jnp.log(jnp.array([[0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]]))
    assert CONFIDENCES.get(name)(sure) > CONFIDENCES.get(name)(unsure)
    never = jnp.log(jnp.array([1.0, 1e-30, 1e-30, 1e-30]))  # as sure as float32 can be
    assert jnp.isfinite(CONFIDENCES.get(name)(never))


@pytest.mark.parametrize("name", own(RULES))
def test_teacher_rule(name: str) -> None:
    allowed = jnp.array([[False, True, True], [False, False, False]])
    scores = log_probs(0, N, B, M, C)
    shares = jnp.full((N, C), 1 / C)

    def choose(scores: jax.Array) -> distill.Choice:
        candidates = Candidates(scores, allowed, M, label_shares=shares, own=scores[:K])
        return RULES.get(name)(candidates, distill.max_prob(scores), keys())

    def numbers(scores: jax.Array) -> jax.Array:
        choice = choose(scores)
        return choice.scores if isinstance(choice, distill.Target) else choice

    choice = choose(scores)
    if isinstance(choice, distill.Target):
        check_function(numbers, scores, (K, B, M, C))
        assert choice.taught[0].all() and not choice.taught[1].any()
        np.testing.assert_allclose(choice.scores[0].sum(axis=-1), 1, rtol=1e-5)
        return
    is_index = jnp.issubdtype(choice.dtype, jnp.integer)
    check_function(numbers, scores, (K, B, M) if is_index else (K, N, B, M))
    np.testing.assert_array_equal(choose(scores), choice)  # a function of its arguments alone
    if is_index:  # thresholds and caps may leave a sample without a teacher
        nobody = name in ("class_thresholds", "capped")
        assert np.isin(choice[0], [1, 2] + [-1] * nobody).all()
        assert (choice[1] == -1).all()
    else:
        np.testing.assert_allclose(choice[0].sum(axis=0), 1, rtol=1e-6)
        assert (choice[0, 0] == 0).all() and (choice[1] == 0).all()


@pytest.mark.parametrize("name", own(RULES))
def test_a_rule_says_so_if_it_compares_the_samples_of_a_batch(name: str) -> None:
    allowed, shares = jnp.ones((K, N), bool), jnp.full((N, C), 1 / C)
    scores, drawn = log_probs(0, N, 32, M, C), jax.random.split(jax.random.key(0), (K, 32))

    def choose(part: slice) -> jax.Array:
        scored = scores[:, part]
        candidates = Candidates(scored, allowed, M, label_shares=shares, own=scored[:K])
        choice = RULES.get(name)(candidates, distill.max_prob(scored), drawn[:, part])
        found = choice.scores if isinstance(choice, distill.Target) else choice
        return found if found.shape[1] == part.stop - part.start else found.swapaxes(1, 2)

    halves = jnp.concatenate([choose(slice(0, 16)), choose(slice(16, 32))], axis=1)
    alike = np.allclose(halves, choose(slice(0, 32)), atol=1e-6)
    assert takes_whole_batch(RULES.get(name)) == (not alike)


@pytest.mark.parametrize("name", own(ATTACKS))
def test_a_lie_says_so_if_it_compares_the_samples_of_a_batch(name: str) -> None:
    honest, images = log_probs(0, N, 64, M, C), jax.random.normal(jax.random.key(1), (64, 4))
    attack = ATTACKS.get(name)
    lie = attack.predictions if isinstance(attack, Attack) else attack
    if lie is None:
        return

    def tell(part: slice) -> jax.Array:
        liars = np.arange(N) == 0
        return lie(honest[:, part], View(np.arange(N), liars, jax.random.key(2), images[part]))

    halves = jnp.concatenate([tell(slice(0, 32)), tell(slice(32, 64))], axis=1)
    alike = np.allclose(halves, tell(slice(0, 64)), atol=1e-6, equal_nan=True)
    assert takes_whole_batch(attack) == (not alike)


@pytest.mark.parametrize("rule", own(RULES))
def test_losses_under_every_rule(rule: str) -> None:
    """Every loss in one program: its values, with another batch under `vmap`, its gradient."""
    allowed = jnp.array([[False, True, True], [False, False, False]])
    teachers, shares = log_probs(0, N, B, M, C), jnp.full((N, C), 1 / C)

    def losses(loss: str, student: jax.Array) -> jax.Array:
        candidates = Candidates(teachers, allowed, M, label_shares=shares, own=teachers[:K])
        return distill.head_losses(student, candidates, keys(), rule=rule, loss=loss)

    def everything(loss: str, students: jax.Array) -> Any:
        function = functools.partial(losses, loss)
        gradient = jax.grad(lambda x: function(x).sum())(students[0])
        return [function(one) for one in students], jax.vmap(function)(students), gradient

    student = log_probs(5, K, B, M, C)
    students = jnp.stack([student, jnp.roll(student, 1, axis=0)])
    names = ["cross_entropy", *own(LOGIT_LOSSES)]
    for found in jax.jit(lambda x: [everything(loss, x) for loss in names])(students):
        one_by_one, together, gradient = found
        assert together.shape == (2, K, M)
        np.testing.assert_allclose(together, jnp.stack(one_by_one), rtol=1e-6, atol=1e-6)
        assert jnp.isfinite(together).all() and jnp.isfinite(gradient).all()
        assert (together[0, 0] > 0).all() and (together[0, 1] == 0).all()


@pytest.mark.parametrize("name", own(HEADS))
def test_head(name: str) -> None:
    head = HEADS.get(name)(num_classes=C, num_heads=M)
    embedding = jax.random.normal(jax.random.key(0), (B, 6))
    init = lambda seed: head.init(jax.random.key(seed), embedding, train=False)  # noqa: E731
    variables = init(0)
    jax.tree.map(np.testing.assert_array_equal, variables, init(0))
    check_function(lambda x: head.apply(variables, x, train=False), embedding, (B, M, C))
    check_gradients(head, variables, embedding)


@pytest.mark.parametrize("name", own(MODELS))
def test_network(name: str) -> None:
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    depth = 2 if name == "vit" else 0  # all of its blocks are alike
    model = MODELS.get(name)(models.ModelSettings(width=8, depth=depth))
    init = lambda key: model.init(key, images, train=False)  # noqa: E731
    apply = lambda variables, x: model.apply(variables, x, train=False)  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0))
    embedding = jax.eval_shape(apply, shapes, images)
    assert embedding.shape[0] == 2 and embedding.ndim == 2
    stacked = jax.eval_shape(jax.vmap(init), jax.random.split(jax.random.key(0), 3))
    many = jax.eval_shape(jax.vmap(apply, in_axes=(0, None)), stacked, images)
    assert many.shape == (3, *embedding.shape)
    if name in DEEP:
        return
    variables = jax.jit(init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, variables, jax.jit(init)(jax.random.key(0)))
    value = apply(variables, images)
    np.testing.assert_allclose(jax.jit(apply)(variables, images), value, rtol=1e-4, atol=1e-5)
    two = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), variables)
    vmapped = jax.jit(jax.vmap(apply, in_axes=(0, None)))(two, images)
    np.testing.assert_allclose(vmapped[0], value, rtol=1e-4, atol=1e-5)
    check_gradients(model, variables, images)


def check_gradients(module: nn.Module, variables: Any, x: jax.Array) -> None:
    """Finite, and not all zero, in training mode."""

    def total(params: Any) -> jax.Array:
        everything = {**variables, "params": params}
        out, _ = module.apply(everything, x, train=True, mutable=["batch_stats"])
        return (out**2).sum()

    gradient = jax.tree.leaves(jax.jit(jax.grad(total))(variables["params"]))
    assert all(jnp.isfinite(leaf).all() for leaf in gradient)
    assert any((leaf != 0).any() for leaf in gradient)


@pytest.mark.parametrize("name", own(graph.GRAPHS))
def test_graph(name: str) -> None:
    settings = {**default_config().graph, "name": name}
    if name == "matrix":
        settings["matrix"] = np.eye(6)[[1, 2, 3, 4, 5, 0]]
    adjacency = graph.make_topology(settings, 6, seed=3).at(0)
    assert adjacency.shape == (6, 6) and adjacency.dtype == bool and not adjacency.diagonal().any()
    np.testing.assert_array_equal(graph.make_topology(settings, 6, seed=3).at(0), adjacency)
    if name not in graph.FIXED:
        others = [graph.make_topology(settings, 6, seed=seed).at(0) for seed in range(4, 9)]
        assert any((other != adjacency).any() for other in others)


@pytest.mark.parametrize("name", own(PARTITIONS))
def test_partition(name: str) -> None:
    config = default_config().partition
    config.name = name
    labels = generator(0, "labels").integers(0, C, 200)
    owner = np.arange(200) % 3 if name == "by_key" else None

    def made(seed: int) -> Any:
        return partition(labels, C, 3, config, seed=seed, owner=owner)

    found = made(1)
    np.testing.assert_array_equal(np.sort(np.concatenate(found.indices)), np.arange(200))
    assert found.primary.shape == (3, C) and found.sizes.min() >= 1
    assert made(1).hash() == found.hash()
    assert (made(2).hash() == found.hash()) == (owner is not None)  # what data say, no seed changes


@pytest.mark.parametrize("name", own(sources.SOURCES))
def test_source(name: str, tmp_path: Path) -> None:
    from PIL import Image

    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for index in range(3):
                pixels = np.full((8, 8), 40 * index, np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{index}.png")
    config = default_config().data
    config.name, config.dir = name, str(tmp_path)
    found, again = sources.source(config), sources.source(config)
    sources.check_source(found, name)
    every = np.arange(len(found.train))
    np.testing.assert_array_equal(found.train.images(every), again.train.images(every))
    np.testing.assert_array_equal(found.train.images(every[::-1])[0], found.train.images(every)[-1])


@pytest.mark.parametrize("name", own(exchange.ENCODINGS))
def test_encoding(name: str) -> None:
    config = default_config()
    config.exchange.encoding = name
    encoding = exchange.make_encoding(config, methods.build(config), C)
    scores = log_probs(0, N, B, M, C)

    def there_and_back(scores: jax.Array) -> jax.Array:
        return encoding.decode(encoding.encode(scores), C)

    decoded = there_and_back(scores)
    assert decoded.shape == scores.shape and decoded.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(there_and_back)(scores), decoded, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(decoded.argmax(axis=-1), scores.argmax(axis=-1))
    np.testing.assert_allclose(jnp.exp(decoded).sum(axis=-1), 1, atol=0.02)
    assert exchange.message_bytes(encoding, scores.shape[1:], 0) > 0


@pytest.mark.parametrize("name", own(methods.METHODS))
def test_method(name: str) -> None:
    config = default_config()
    config.method = name
    made = methods.build(config)
    assert made == methods.build(config)
    assert made.when(np.arange(7)).shape == (7, 2)
    assert 1 <= made.num_heads(4) <= 5
    chosen = made.distillation
    if chosen is not None:
        distill.check_pieces(
            rule=chosen.rule, confidence=chosen.confidence, loss=chosen.loss, num_classes=C
        )


@pytest.mark.parametrize("name", own(evaluate.METRICS))
def test_metric(name: str) -> None:
    count = np.array([10, 20, 0, 5])
    correct = np.minimum(generator(0, "metric").integers(0, 21, (K, M, C)), count)
    value = evaluate.measure(name, correct, count, np.ones((K, C)))
    assert value.shape == (K, M) and np.isfinite(value).all()


# --- Pieces that break their contract, and what their author is told ------------------------------


class WrongShape(nn.Module):
    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(self.num_classes)(embedding)


class NoFields(nn.Module):
    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        return embedding


class KeepsImages(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.Dense(3)(x)


def no_network(settings: Any) -> Any:
    return "a string"


def forgets_classes(log_probs: jax.Array) -> jax.Array:
    return log_probs


def weights_of_nobody(candidates: Candidates, confidence: jax.Array, keys: jax.Array) -> jax.Array:
    return confidence


def float_index(candidates: Candidates, confidence: jax.Array, keys: jax.Array) -> jax.Array:
    shape = (len(candidates.allowed), *confidence.shape[1:])
    return jnp.zeros(shape)


def scores_of(scores: Any, taught: Any = None) -> Any:
    """A rule whose target is made by `scores` of what its first candidate has published."""

    def rule(candidates: Candidates, confidence: jax.Array, keys: jax.Array) -> Any:
        first = jnp.broadcast_to(
            candidates.by_rank(candidates.published)[:1],
            (len(candidates.allowed), *confidence.shape[1:], candidates.published.shape[-1]),
        )
        some = jnp.broadcast_to(candidates.allowed.any(axis=1)[:, None, None], first.shape[:-1])
        return scores(first, some if taught is None else some.astype(taught))

    rule.__name__ = "made_up"
    return rule


def no_optimizer(config: Any) -> Any:
    return "a string"


def sums_up(config: Any) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.sum, updates))


def grows(config: Any) -> optax.GradientTransformation:
    return optax.GradientTransformation(
        lambda params: jnp.zeros(1), lambda updates, state, params: (updates, jnp.zeros(2))
    )


def updates_times(number: Any) -> Any:
    """An optimiser whose updates are gradients times a number, in its type."""

    def factory(config: Any) -> optax.GradientTransformation:
        made = lambda grads, _: jax.tree.map(lambda x: x.astype(number.dtype) * number, grads)  # noqa: E731
        return optax.stateless(made)

    return named(f"updates_{number.dtype}", factory)


def mean_of_type(dtype: Any) -> Any:
    """The plain mean of parameters, in numbers of that type."""

    def mean(everyone: Any, weights: jax.Array, trim: float) -> Any:
        return jax.tree.map(lambda x: jnp.tensordot(weights, x, 1).astype(dtype), everyone)

    return named(f"mean_{jnp.dtype(dtype)}", mean)


def loss_of_type(dtype: Any) -> Any:
    """A loss of logits in numbers of that type."""

    def loss(student: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(student - target).sum(axis=-1).astype(dtype)

    return named(f"loss_{jnp.dtype(dtype)}", loss)


def of_logarithms(student: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.abs(jnp.log(student) - jnp.log(target)).mean(axis=-1)


def lie_of_type(dtype: Any) -> Any:
    """Honest predictions in numbers of that type."""
    return named(f"lie_{jnp.dtype(dtype)}", lambda honest, view: honest.astype(dtype))


def weighs(weights: Any) -> Any:
    """A method of mhd that weighs its losses alike in every step."""

    def method(config: Any) -> methods.Method:
        made = methods.METHODS.get("mhd")(config)
        return dataclasses.replace(made, when=lambda steps: np.tile(weights, (len(steps), 1)))

    return method


def marks(primary: Any) -> Any:
    """A partition with the same primary label, marked like this, for every client and class."""

    def scheme(labels: np.ndarray, classes: int, clients: int, *_: Any) -> Owners:
        return Owners(np.arange(len(labels)) % clients, np.full((clients, classes), primary))

    return named("marks", scheme)


def one_client(everyone: Any, weights: jax.Array, trim: float) -> Any:
    return jax.tree.map(lambda x: x[2], everyone)


def no_trim(everyone: Any, weights: jax.Array) -> Any:
    return everyone


def means(student: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.abs(student - target).mean(axis=0)


def selfish(num_clients: int, rng: np.random.Generator, **_: Any) -> np.ndarray:
    return np.ones((num_clients, num_clients), bool)


def too_large(num_clients: int, rng: np.random.Generator, **_: Any) -> np.ndarray:
    return np.zeros((num_clients + 1, num_clients + 1), bool)


def grows_self(step: int) -> np.ndarray:
    return np.ones((4, 4), bool)


def loses_samples(labels: np.ndarray, *_: Any) -> Owners:
    return Owners(np.zeros(len(labels) - 1, int))


def unknown_client(labels: np.ndarray, *_: Any) -> Owners:
    return Owners(np.full(len(labels), 99))


def no_owners(labels: np.ndarray, *_: Any) -> Any:
    return np.zeros(len(labels), int)


def not_a_source(directory: str, split: str, shape: Any) -> Any:
    return np.zeros(3)


def labels_too_large(directory: str, split: str, shape: Any) -> sources.Source:
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4)
    split_ = sources.ArraySplit(images, labels)
    return sources.Source("labels_too_large", ("a", "b"), split_, split_, (0.0,), (1.0,))


def not_a_method(config: Any) -> Any:
    return {"rule": "mean"}


def loses_classes(config: Any) -> Any:
    decode = lambda message, classes: message[0]  # noqa: E731
    encode = lambda scores: (scores[..., :2],)  # noqa: E731
    return SimpleNamespace(encode=encode, decode=decode, embedding_type=jnp.float32)


def no_decoder(config: Any) -> Any:
    return SimpleNamespace(encode=lambda scores: (scores,))


def one_number(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> Any:
    return correct.mean()


def complex_numbers(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> Any:
    return correct.mean(axis=-1) * 1j


def words(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> Any:
    return np.full(correct.shape[:2], "good")


def of_type(dtype: Any) -> Any:
    """A confidence in numbers of that type."""

    def confidence(log_probs: jax.Array) -> jax.Array:
        return log_probs.max(axis=-1).astype(dtype)

    confidence.__name__ = jnp.dtype(dtype).name
    return confidence


def encoding(encode: Any, decode: Any = None, embedding_type: Any = jnp.float32) -> Any:
    """A factory of an encoding with these methods."""
    made = SimpleNamespace(
        encode=encode, decode=decode or (lambda message, _: message[0]),
        embedding_type=embedding_type,
    )  # fmt: skip
    return named("made_up", lambda config: made)


def named(name: str, function: Any) -> Any:
    function.__name__ = name
    return function


def sends(scores: jax.Array) -> tuple[jax.Array]:
    return (scores,)


def writes_correct(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> Any:
    correct /= count
    return correct.mean(axis=-1)


def writes_count(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> Any:
    count[count == 0] = 1
    return (correct / count).mean(axis=-1)


def writes_owned(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> Any:
    owned.sort()
    return correct.mean(axis=-1)


def never_right(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> Any:
    return np.where(correct.any(axis=-1), np.nan, 0.0)


def of_the_wrong(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> Any:
    return 1 / (owned - owned).sum(axis=-1, keepdims=True) + correct.sum(axis=-1)


def needs_all_classes(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> Any:
    if not owned.all():
        raise ValueError("a class without samples")
    return correct.mean(axis=-1)


def whole_numbers(config: Any) -> Any:
    return exchange.AllClasses(jnp.int8)


def fewer_classes(honest: jax.Array, view: View) -> jax.Array:
    return honest[..., :3]


def unknown_word(honest: jax.Array, view: View) -> jax.Array:
    return {}["word"]


LIES: dict[str, Any] = {"attack__clients": (1,)}


class CountsCalls(nn.Module):
    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        self.variable("counter", "calls", jnp.zeros, ())
        logits = nn.Dense(self.num_heads * self.num_classes)(embedding)
        return logits.reshape(-1, self.num_heads, self.num_classes)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        x = nn.Dense(4)(x.reshape(len(x), -1))
        return nn.Dropout(0.5, deterministic=deterministic)(x)


class OfType(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        self.param("scale", lambda key: jnp.ones((), self.dtype))
        return nn.Dense(4)(x.reshape(len(x), -1))


BROKEN = [
    ("head", WrongShape, r"heads.name = 'WrongShape': .* \(1, 3, 10\), not \(1, 10\)"),
    ("head", NoFields, "heads.name = 'NoFields': .* num_classes and num_heads"),
    ("head", CountsCalls, "heads.name = 'CountsCalls': expected a head .*, not counter too"),
    ("model", Deterministic, "'Deterministic': .* that takes `train`, not `deterministic`"),
    ("model", OfType(jnp.int32), "model.name = 'OfType': .* float32 or bfloat16, not int32"),
    ("model", OfType(jnp.complex64), "model.name = 'OfType': .* bfloat16, not complex64"),
    ("model", OfType(jnp.float16), "model.name = 'OfType': .* bfloat16, not float16"),
    ("head", 3, r"heads.name = 3: expected a name, or a Linen module class"),
    ("model", KeepsImages, r"model.name = 'KeepsImages': .* \[B, D\] .*, not \(1, 8, 8, 3\)"),
    ("model", no_network, "model.name = 'no_network': .* makes a module of Flax, not str"),
    ("confidence", forgets_classes, r"distill.confidence = 'forgets_classes': .* \[K, B, H\] = "),
    ("confidence", of_type(jnp.complex64), "confidence = 'complex64': .* floating .*, not complex"),
    ("confidence", of_type(jnp.int32), "confidence = 'int32': .* floating point, not int32"),
    ("confidence", of_type(bool), "confidence = 'bool': .* floating point, not bool"),
    ("rule", weights_of_nobody, r"distill.rule = 'weights_of_nobody': .* \[k, B, m\] = "),
    ("rule", float_index, r"distill.rule = 'float_index': .*weights of shape \[k, N, B, m\]"),
    ("rule", scores_of(lambda s, t: Target(jnp.exp(s) * jnp.nan, t)), "rule = .* finite scores"),
    ("rule", scores_of(lambda s, t: Target(s, t)), "rule = .* probabilities as scores"),
    ("rule", scores_of(lambda s, t: Target(jnp.exp(s), t), float), "`taught` is True or False"),
    ("rule", scores_of(lambda s, t: Target(jnp.exp(s) + 0j, t)), "`scores` are of .* not complex"),
    ("rule", scores_of(lambda s, t: Target((s == s.max(-1, keepdims=True)).astype(int), t)),
     "rule = 'made_up': .* `scores` are of floating point, not int32"),
    ("rule", scores_of(lambda s, t: (jnp.exp(s), t)), r"mhd_jax.distill.Target, not a tuple"),
    ("optimizer", no_optimizer, "optimizer.name = 'no_optimizer': .* optax.Grad.*, not to str"),
    ("optimizer", sums_up, "optimizer.name = 'sums_up': .* of the shapes of the parameters"),
    ("optimizer", grows, "optimizer.name = 'grows': .* the same shapes and types after"),
    ("optimizer", updates_times(jnp.complex64(1)), "updates of floating point, .* not complex64"),
    ("optimizer", updates_times(jnp.int32(1)), "updates of floating point, .* not int32"),
    ("graph", selfish, "graph.name = 'selfish': .* client 0 cannot distil from itself"),
    ("graph", too_large, r"graph.name = 'too_large': expected shape \(4, 4\), .* not \(5, 5\)"),
    ("graph", grows_self, "graph.name = 'grows_self, at step 0': .* distil from itself"),
    ("graph", np.zeros((3, 3)), r"graph.matrix = .*: expected shape \(4, 4\), .* not \(3, 3\)"),
    ("partition", loses_samples, r"partition.name = 'loses_samples': .* of shape \[N\] = "),
    ("partition", unknown_client, r"partition.name = 'unknown_client': .*0 to 3.* 99 to 99"),
    ("partition", no_owners, "partition.name = 'no_owners': .* returns Owners, not ndarray"),
    ("partition", marks("no"), r"'marks': .* \[K, C\] = .*True or False \(1 or 0\), .* of <U2"),
    ("partition", marks(0.5), "'marks': .*True or False .*, not other values of float64"),
    ("partition", marks(np.nan), "'marks': .*True or False .*, not other values of float64"),
    ("source", not_a_source, "data.name = 'not_a_source': .* returns a Source, not ndarray"),
    ("source", labels_too_large, r"data.name = 'labels_too_large': .*labels in 0..1.* not 0..3"),
    ("method", not_a_method, "method = 'not_a_method': .* to a Method, not to dict"),
    ("method", weighs([1, 1j]), "method = 'method': .* of steps .*, in real .*, not complex128"),
    ("method", weighs(["1", "1"]), "method = 'method': .* of steps .*, in real numbers, not <U1"),
    ("encoding", loses_classes, r"exchange.encoding = 'loses_classes': .* \[K, B, H, C\] = "),
    ("encoding", no_decoder, "exchange.encoding = 'no_decoder': .* encode, decode and embedding"),
    ("encoding", named("nothing", lambda config: None), "not NoneType without encode and decode"),
    ("encoding", encoding(lambda x: x, lambda x, _: x), "encode returns a tuple .*, not one array"),
    ("encoding", encoding(lambda x: None), "encode returns a tuple of arrays .*, not NoneType"),
    ("encoding", encoding(lambda x: {"x": x}), "encode returns a tuple of arrays .*, not dict"),
    ("encoding", encoding(lambda x: (x, None)), "encode returns .*, not one with NoneType"),
    ("encoding", encoding(lambda x: (x, x.max())), r"encode returns .* K = 2 clients, not \(\)"),
    ("encoding", encoding(lambda: 0), r"encode\(scores\), called .*\[K, B, H, C\].*0 positional"),
    ("encoding", encoding(sends, lambda x: x), r"decode\(message, num_classes\), .* and 10 .*Type"),
    ("encoding", encoding(sends, lambda x, _: x), r"\[K, B, H, C\] = .* decode, not tuple"),
    ("encoding", encoding(sends, embedding_type="words"), "embedding_type of floating .*TypeError"),
    ("encoding", encoding(sends, embedding_type=None), "floating point, of 32 bits .*, not None"),
    ("encoding", encoding(sends, embedding_type=np.float64), "of 32 bits at most, not float64"),
    ("encoding", encoding(sends, lambda x, _: x[0] * jnp.nan), "finite scores .* -100, not nan"),
    ("encoding", encoding(lambda x: (jnp.exp(x),)), "encoding = 'made_up': .*add up to 1 .*, not"),
    ("encoding", encoding(lambda x: (x.astype(jnp.float16) - 1,), lambda x, _: jnp.float32(x[0])),
     "log-probabilities .* add up to 1 over the classes, not to 0.368"),
    ("encoding", encoding(lambda x: (jnp.exp(x),), lambda x, _: jnp.log(x[0])),
     "finite scores .* log-probabilities down to -100, not -inf"),
    ("metric", writes_correct, "metrics = 'writes_correct': .* arrays to read .*read-only"),
    ("metric", writes_count, "metrics = 'writes_count': .* arrays to read .*read-only"),
    ("metric", writes_owned, "metrics = 'writes_owned': .* arrays to read .*read-only"),
    ("metric", never_right, "metrics = 'never_right': .* finite metric .* every class, not nan"),
    ("metric", of_the_wrong, "metrics = 'of_the_wrong': .* finite metric .* every class, not inf"),
    ("metric", one_number, r"metrics = 'one_number': .* \[K, H\] = \(4, 3\), not \(\)"),
    ("encoding", whole_numbers, "exchange.encoding = 'whole_numbers': .* floating .*, not int8"),
    ("metric", complex_numbers, "metrics = 'complex_numbers': .* real numbers, not complex64"),
    ("metric", words, "metrics = 'words': .* real numbers, not <U4"),
    ("metric", lambda *_: 0, r"metrics = .*a name of its own.*mhd_jax.register\(\"metrics\""),
]  # fmt: skip


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("kind", "piece", "message"),
    BROKEN,
    ids=[f"{kind}-{getattr(piece, '__name__', 'object')}" for kind, piece, _ in BROKEN],
)
def test_a_broken_piece_is_refused_before_anything_is_compiled(
    kind: str, piece: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment_lib.Experiment, "init_state", _nothing_may_run)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        api.fit(small.config(), tmp_path / "run", **{kind: piece})
    assert not (tmp_path / "run" / "config.json").exists()


def _nothing_may_run(self: Any) -> Any:
    raise AssertionError("the broken piece got as far as the first compilation")


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("changes", "kind", "piece", "message"),
    [
        ({"method": "fedavg"}, "aggregator", one_client, r"rule = 'one_client': .* leaves \[k"),
        (
            LIES,
            "attack",
            fewer_classes,
            r"name = 'fewer_classes': .* \(4, 8, 2, 10\), not \(4, 8, 2, 3",
        ),
        (
            LIES,
            "attack",
            lie_of_type(jnp.complex64),
            "'lie_complex64': .*real numbers, not complex64",
        ),
        (LIES, "attack", lie_of_type(bool), "'lie_bool': expected a lie of real numbers, not bool"),
        (LIES, "attack", unknown_word, "attack.name = 'unknown_word': .*KeyError"),
        ({"method": "fedavg"}, "aggregator", no_trim, r"rule = 'no_trim': .* leaves \[k, .*Type"),
        *(
            ({"method": "fedavg"}, "aggregator", mean_of_type(kind), f"point, not {kind.__name__}")
            for kind in (np.complex64, np.int32)
        ),
        *(
            ({"method": "fedmd"}, "loss", loss_of_type(kind), f"point, not {kind.__name__}")
            for kind in (np.complex64, np.int32, bool)
        ),
        ({"method": "fedmd"}, "loss", of_logarithms, "'of_logarithms': .*finite losses .* not nan"),
        (
            {"method": "fedmd"},
            "loss",
            means,
            r"distill.loss = 'means': .* losses \[...\], of shape",
        ),
    ],
)
def test_a_broken_piece_of_some_methods_is_refused(
    changes: dict[str, Any], kind: str, piece: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        api.fit(small.config(**changes), tmp_path / "run", **{kind: piece})
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("changes", "kind", "piece"),
    [
        ({}, "exchange.encoding", encoding(lambda x: [x], embedding_type="bfloat16")),
        ({}, "partition.name", marks(1.0)),
        ({}, "method", weighs([1, True])),
        (LIES, "attack.name", lie_of_type(int)),
        (LIES, "attack.name", lambda honest, view: jnp.full_like(honest, jnp.nan)),
        ({"method": "fedavg"}, "average.rule", mean_of_type(jnp.bfloat16)),
        ({}, "optimizer.name", updates_times(jnp.bfloat16(1))),
        ({"method": "fedmd"}, "distill.loss", loss_of_type(jnp.bfloat16)),
        ({}, "distill.rule", scores_of(lambda s, t: Target(jnp.exp(s).astype(jnp.float16), t))),
    ],
)
def test_numbers_of_other_types_are_taken_where_nothing_is_lost(
    changes: dict[str, Any], kind: str, piece: Any
) -> None:
    api.register(kind, "mine", piece)
    small.build(**changes, **{kind.replace(".", "__"): "mine"})


@pytest.mark.usefixtures("registries")
def test_a_metric_that_lacks_what_the_data_lack_is_refused() -> None:
    """Metrics are tried on the run's own counts, too: here every client has three classes."""
    api.register("metrics", "needs_all", needs_all_classes)
    of_three = {"partition__name": "classes_per_client", "partition__classes_per_client": 3}
    with pytest.raises(ConfigError, match="metrics = 'needs_all': .*a class without samples"):
        small.build(metrics=("needs_all",), **of_three)


@pytest.mark.usefixtures("registries")
def test_a_metric_may_be_undefined_for_clients_that_lack_classes() -> None:
    """It may also divide by what a client has, as every client has some samples."""

    def worst_owned(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> np.ndarray:
        shares = [
            np.average(of, weights=own, axis=-1) for of, own in zip(correct, owned, strict=True)
        ]
        by_class = (correct / count) * (owned / owned)[:, None] + np.stack(shares)[..., None]
        return by_class.min(axis=-1)

    api.register("metrics", "worst_owned", worst_owned)
    of_three = {"partition__name": "classes_per_client", "partition__classes_per_client": 3}
    small.build(metrics=("worst_owned",), **of_three)


@pytest.mark.usefixtures("registries")
def test_metrics_are_tried_on_arrays_as_evaluations_give_them() -> None:
    seen: list[list[tuple[Any, ...]]] = []

    def looks(correct: np.ndarray, count: np.ndarray, owned: np.ndarray) -> np.ndarray:
        arrays = (correct, count, owned)
        seen.append([(x.shape, x.dtype, x.flags.writeable) for x in arrays])
        return correct.mean(axis=-1)

    api.register("metrics", "looks", looks)
    experiment = small.build(metrics=("looks",))
    tried = list(seen)
    experiment.evaluator.evaluate(experiment.init_state())
    assert len(seen) > len(tried) > 0
    assert all(each == seen[-1] for each in tried)
    assert not any(writeable for _, _, writeable in seen[-1])


@pytest.mark.parametrize("classes", [2, 3, 7, 10, 33, 100])
@pytest.mark.parametrize("name", own(exchange.ENCODINGS))
def test_encodings_can_be_read_however_many_classes_there_are(name: str, classes: int) -> None:
    """Also where predictions are almost certain; those of logits alike."""
    config = default_config()
    config.exchange.encoding, config.exchange.top_k = name, 1
    made = exchange.make_encoding(config, methods.build(config), classes)
    contract.check_numbers(made, name, classes, logits=False)
    if isinstance(made, exchange.AllClasses):
        contract.check_numbers(made, name, classes, logits=True)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("method", ["fedmd", "feddf"])
def test_encodings_of_ones_own_are_tried_on_logits_where_these_travel(method: str) -> None:
    config = default_config()
    update(config, {"method": method, "exchange.encoding": "mine"})
    chosen = methods.build(config)
    api.register("exchange.encoding", "mine", encoding(sends))  # logits add up to nothing
    exchange.make_encoding(config, chosen, C)
    api.register("exchange.encoding", "mine", encoding(lambda x: (jnp.log(x),)))
    with pytest.raises(ConfigError, match="finite scores .* logits up to 100, not nan"):
        exchange.make_encoding(config, chosen, C)
    config.method = "fedavg"  # no predictions travel
    assert exchange.make_encoding(config, methods.build(config), C)


@pytest.mark.parametrize("rule", [*own(RULES)])
def test_rules_of_probabilities_are_refused_where_logits_are_mixed(rule: str) -> None:
    given = {"rule": rule, "confidence": "max_prob", "num_classes": C, "label_shares": True}
    distill.check_pieces(**given, loss="cross_entropy")
    mixes = {"mean", "most_confident", "random", "capped"}
    if rule in mixes:
        distill.check_pieces(**given, loss="mae")
        return
    with pytest.raises(ConfigError, match=f"distill.rule = '{rule}': .*logits, as the loss is mae"):
        distill.check_pieces(**given, loss="mae")


@pytest.mark.usefixtures("registries")
def test_pieces_of_training_are_used(tmp_path: Path) -> None:
    """An optimiser that pulls towards the last average, as in FedProx, and a mean of one's own."""
    anchored = []

    def proximal(config: Any) -> optax.GradientTransformation:
        def update(updates: Any, state: Any, params: Any) -> Any:
            count, anchor = state
            due = count % config.average.every == 0
            anchor = jax.tree.map(lambda a, p: jnp.where(due, p, a), anchor, params)
            pull = jax.tree.map(lambda g, p, a: g + 0.1 * (p - a), updates, params, anchor)
            return pull, (count + 1, anchor)

        start = lambda params: (jnp.zeros((), jnp.int32), params)  # noqa: E731
        anchored.append(config.optimizer.name)
        rate = optimizer.learning_rate(config)
        return optax.chain(optax.GradientTransformation(start, update), optax.sgd(rate))

    def everybody(everyone: Any, weights: jax.Array, trim: float) -> Any:
        return jax.tree.map(lambda x: jnp.einsum("ij,j...->i...", weights, x), everyone)

    config = small.config(method="fedavg", average__every=2, train__steps=4)
    api.fit(config, tmp_path / "run", optimizer=proximal, aggregator=everybody)
    assert set(anchored) == {"proximal"}
    summary = api.Run.load(tmp_path / "run").summary
    assert np.ptp(summary.shared_accuracy, axis=0).max() == 0  # all clients are the same


@pytest.mark.usefixtures("registries")
def test_a_broken_array_source_is_refused() -> None:
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    for train, message in (
        ((images[:, 0, 0], labels), r"at least one sample, in an array of shape \[N, F\]"),
        ((images, labels[:3]), r"labels of shape \[N\] = \(4,\), one a sample, not \(3,\)"),
        ((images, labels.astype(float)), "labels that are integers, not float64"),
        ((images.astype(int), labels), "int32"),
        ((images[..., None] + 16.0, labels), "floating-point images in 0..1, not 16..16"),
        ((images, labels - 1), "labels in 0..3"),
    ):
        with pytest.raises(ConfigError, match=message):
            sources.from_arrays("mine", train, (images, labels))


# --- Pieces that an installed package brings ------------------------------------------------------

PACKAGE = '''
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from mhd_jax.data.sources import from_arrays

class Halves(nn.Module):
    """Every head sees one half of the embedding."""
    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding, train):
        half = embedding[:, : embedding.shape[-1] // 2]
        logits = nn.Dense(self.num_heads * self.num_classes)(half)
        return logits.reshape(-1, self.num_heads, self.num_classes)

def first_allowed(candidates, confidence, keys):
    first = jnp.argmax(candidates.allowed, axis=1).astype(jnp.int32)
    first = jnp.where(candidates.allowed.any(axis=1), first, -1)
    return jnp.broadcast_to(first[:, None, None], (len(first), *confidence.shape[1:]))

def mirror(num_clients, rng, **_):
    """Client i learns from client K - 1 - i."""
    return np.fliplr(np.eye(num_clients)) * (1 - np.eye(num_clients))

def darker(key, image):
    return image // 2

def noisy(draw, image, shape):
    return np.minimum(image, draw.integers(128, 255, image.shape, np.uint8))

def stripes(directory, split, shape):
    labels = np.arange(400) % 4
    images = np.zeros((400, 8, 8, 1), np.uint8)
    for image, label in zip(images, labels):
        image[2 * label : 2 * label + 2] = 255
    return from_arrays("stripes", (images[:300], labels[:300]), (images[300:], labels[300:]))
'''
ENTRY_POINTS = """
[mhd_jax.heads.name]
halves = outside_pieces:Halves
[mhd_jax.distill.rule]
first_allowed = outside_pieces:first_allowed
[mhd_jax.graph.name]
mirror = outside_pieces:mirror
[mhd_jax.data.name]
stripes = outside_pieces:stripes
[mhd_jax.data.augment]
darker = outside_pieces:darker
[mhd_jax.data.augment.host]
noisy = outside_pieces:noisy
"""
OUTSIDE = {
    "heads.name": "halves",
    "distill.rule": "first_allowed",
    "graph.name": "mirror",
    "data.name": "stripes",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory like `site-packages`, with a package that brings four pieces."""
    metadata = tmp_path / "site" / "outside_pieces-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata.parent / "outside_pieces.py").write_text(PACKAGE)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: outside-pieces\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return metadata.parent


@pytest.mark.usefixtures("registries")
def test_an_installed_package_is_used_by_name_from_a_config(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    invalidate_caches()
    config = small.config()
    update(config, OUTSIDE)
    experiment = experiment_lib.build(config)
    assert type(experiment.parts.models[0].head).__name__ == "Halves"
    assert experiment.parts.method.distillation.rule == "first_allowed"
    assert experiment.topologies[0].at(0).sum() == 4
    assert experiment.federations[0].source.name == "stripes"
    sys.modules.pop("outside_pieces", None)


@pytest.mark.usefixtures("registries")
def test_augmentations_of_device_and_host_are_told_apart(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    invalidate_caches()
    config = small.config()
    update(config, {"data.name": "stripes", "data.augment": "darker"})
    device = experiment_lib.build(config).feed
    assert isinstance(device, Resident) and device._preparation.augment == "darker"
    update(config, {"data.augment": "noisy"})
    host = experiment_lib.build(config).feed
    assert isinstance(host, Streaming) and host._preparation.augment == "none"
    update(config, {"data.augment": "noizy"})
    with pytest.raises(ConfigError, match="random_resized_crop, noisy; did you mean 'noisy'"):
        experiment_lib.build(config)
    sys.modules.pop("outside_pieces", None)


def test_an_installed_package_is_used_by_name_from_the_command_line(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smoke config with these pieces ends with the table and a report."""
    monkeypatch.setenv("PYTHONPATH", f"{site}:{ROOT}")
    settings = [f"--config.{name}={value}" for name, value in OUTSIDE.items()]
    done = subprocess.run(
        [sys.executable, "-m", "mhd_jax.main", "--config=configs/digits.py:smoke", *settings,
         "--config.clients.num=4", "--config.heads.aux=1", f"--workdir={tmp_path}/run"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "data       stripes, 4 classes" in done.stdout
    assert "graph      mirror: 4 edges" in done.stdout
    assert "shared accuracy" in done.stdout and "isolated" in done.stdout
    assert (tmp_path / "run" / "report.html").exists()


def test_the_package_is_what_its_text_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text above is a module of its own; its head keeps the contract too."""
    module = types.ModuleType("outside_text")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look it up
    exec(textwrap.dedent(PACKAGE), module.__dict__)
    head = module.Halves(num_classes=C, num_heads=M)
    logits, _ = head.init_with_output(jax.random.key(0), jnp.ones((B, 6)), train=False)
    assert logits.shape == (B, M, C)
