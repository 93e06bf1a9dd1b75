# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Shared and private accuracy of every client and head, each test sample counted exactly once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

from mhd_jax import rng
from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.parallel import CLIENTS, DATA, InFlight, Layout, on_mesh
from mhd_jax.registry import Registry
from mhd_jax.seating import HostMemory
from mhd_jax.state import Learners
from mhd_jax.trees import Variables


def shared_and_private(
    correct: Float[np.ndarray, "K H C"],
    count: Int[np.ndarray, " C"],
    private_histogram: Float[np.ndarray, "K C"],
) -> tuple[Float[np.ndarray, "K H"], Float[np.ndarray, "K H"]]:
    """The two accuracies from counts.

    acc_c = correct_c / count_c. Shared accuracy beta_sh = mean over classes of acc_c, the
    performance on the global distribution; private accuracy beta_priv = sum_c q(c) acc_c with q
    the label distribution of the client's private data. Classes without a test sample are left
    out of both. Source: https://arxiv.org/abs/2211.15774.

    Args:
      correct: test samples of each class that a client's head gets right.
      count: test samples of each class.
      private_histogram: private samples of each class that a client holds, or their shares.

    Returns:
      beta_sh [K, H] and beta_priv [K, H].

    >>> import numpy as np
    >>> shared, private = shared_and_private(
    ...     np.array([[[9, 1]]]), np.array([10, 10]), np.array([[3, 1]]))
    >>> round(float(shared[0, 0]), 6), round(float(private[0, 0]), 6)
    (0.5, 0.7)
    """
    correct, count = np.asarray(correct, np.float64), np.asarray(count, np.float64)
    seen = count > 0
    accuracy = correct[..., seen] / count[seen]
    owned = np.asarray(private_histogram, np.float64)[:, seen]
    total = owned.sum(axis=1, keepdims=True)
    share = owned / np.where(total > 0, total, 1)
    return accuracy.mean(axis=-1), np.einsum("khc,kc->kh", accuracy, share)


class Metric(Protocol):
    """A further number for every client and head, from counts on the test set."""

    def __call__(
        self,
        correct: Float[np.ndarray, "K H C"],
        count: Int[np.ndarray, " C"],
        owned: Float[np.ndarray, "K C"],
    ) -> Float[np.ndarray, "K H"]:
        """One number per client and head.

        Args:
          correct: test samples of each class that a client's head gets right.
          count: test samples of each class.
          owned: private samples of each class that a client holds.
        """
        ...


METRICS: Registry[Metric] = Registry("metrics")


@METRICS.register("worst_class")
def worst_class(
    correct: Float[np.ndarray, "K H C"],
    count: Int[np.ndarray, " C"],
    owned: Float[np.ndarray, "K C"],
) -> Float[np.ndarray, "K H"]:
    """Accuracy on the class a head knows least; classes without a test sample are left out.

    >>> worst_class(np.array([[[9, 1]]]), np.array([10, 10]), np.array([[3, 1]]))
    array([[0.1]])
    """
    del owned
    seen = count > 0
    return (correct[..., seen] / count[seen]).min(axis=-1)


def chosen_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics of the setting `metrics`, by name.

    Raises:
      ConfigError: an unknown name.
    """
    if isinstance(names, str):
        raise ConfigError("metrics", names, f"names in a tuple, such as ({names!r},)")
    return {name: METRICS.get(name) for name in names}


def measure(
    name: str,
    correct: Float[np.ndarray, "K H C"],
    count: Int[np.ndarray, " C"],
    owned: Float[np.ndarray, "K C"],
) -> Float[np.ndarray, "K H"]:
    """The named metric, which gets arrays that it cannot write to: others read them too.

    Raises:
      ConfigError: whatever goes wrong in it, or a result that is not [K, H] real numbers.
    """
    metric = METRICS.get(name)
    read_only = [np.broadcast_to(array, np.shape(array)) for array in (correct, count, owned)]
    with of_piece("metrics", name, "a metric (correct, count, owned) of arrays to read"):
        value = np.asarray(metric(*read_only))
    if value.shape != correct.shape[:2]:
        accepted = f"a metric of shape [K, H] = {correct.shape[:2]}, not {value.shape}"
        raise ConfigError("metrics", name, accepted)
    if value.dtype.kind not in "fiub":
        raise ConfigError("metrics", name, f"a metric of real numbers, not {value.dtype}")
    return value


def check_metric(
    name: str, num_heads: int, count: Int[np.ndarray, " C"], owned: Int[np.ndarray, "K C"]
) -> None:
    """Calls the named metric on counts as evaluations give them, before there are any.

    First of heads that are always wrong, on the classes that test set and clients really have. Then
    of heads that know a part of every class, where all clients have samples of all: there nothing
    excuses NaN or infinity.

    Args:
      name: in `METRICS`.
      num_heads: H.
      count: test samples of each class.
      owned: private samples of each class that a client holds.

    Raises:
      ConfigError: see `measure`; or a metric that is not finite.
    """
    (clients, classes), most = owned.shape, 200
    shape = (clients, num_heads, classes)
    drawn = rng.generator(0, "check metric").integers(1, most, shape, np.uint8)
    full = most + np.arange(classes)
    turns = 1 + np.add.outer(np.arange(clients), np.arange(classes)) % classes
    with np.errstate(all="ignore"):
        measure(name, np.zeros(shape, np.float32), count, owned)
        value = measure(name, drawn.astype(np.float32), full, turns)
    if not np.isfinite(value).all():
        accepted = "a finite metric where every client has samples of every class"
        raise ConfigError("metrics", name, f"{accepted}, not {value[~np.isfinite(value)][0]:g}")


Chunk = tuple[jax.Array, jax.Array, jax.Array]
"""Samples [B, ...], labels [B] (-1 for padding) and what they are counted by, [B]."""


def make_counter(
    layout: Layout,
    models: tuple[nn.Module, ...],
    num_bins: int,
    prepare: Callable[[Array], Array],
) -> Callable[..., tuple[Array, ...]]:
    """Returns `count(learners, images, labels, bins)` for one chunk of test samples, jitted.

    Args:
      layout: who owns which client.
      models: one per group.
      num_bins: C, the number of classes where samples are counted by their labels.
      prepare: stored samples [B, ...] to normalised ones for every replica, [R, B, ...].

    Returns:
      A function of the learners of every group and of a `Chunk` to the number of correct
      predictions per group, [R, K, H, C]. Every device evaluates its own clients only.
    """

    def count(
        learners: tuple[Learners, ...], images: Array, labels: Array, bins: Array
    ) -> tuple[Array, ...]:
        inputs = prepare(images)
        found = tuple(
            _count_group(model, group, inputs, labels, bins, num_bins)
            for model, group in zip(models, learners, strict=True)
        )
        return jax.lax.psum(found, DATA) if layout.data_devices > 1 else found

    rows = P(None, CLIENTS)
    specs = (rows, P(DATA), P(DATA), P(DATA))
    return jax.jit(on_mesh(count, layout, in_specs=specs, out_specs=rows))


def _count_group(
    model: nn.Module,
    learners: Learners,
    inputs: Float[Array, "R B ..."],
    labels: Array,
    bins: Array,
    num_bins: int,
) -> Float[Array, "R k H C"]:
    """Correct predictions by client, head and bin."""
    places = jax.nn.one_hot(bins, num_bins)  # a bin of -1 is a row of zeros

    def one(snapshot: Variables, inputs: Array) -> Float[Array, "H C"]:
        logits, _ = model.apply(snapshot, inputs, train=False)
        hits = jnp.argmax(logits, axis=-1) == labels[:, None]
        return jnp.einsum("bh,bc->hc", hits.astype(jnp.float32), places)

    return jax.vmap(jax.vmap(one, in_axes=(0, None)))(learners.snapshot, inputs)


OwnChunk = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
"""Per group, samples of every client's own, [k, B, ...], and their labels, [k, B] (-1 for none)."""


def make_own_counter(
    layout: Layout, models: tuple[nn.Module, ...], prepare: Callable[[Array], Array]
) -> Callable[..., tuple[Array, ...]]:
    """Returns `count(learners, images, labels)` for one `OwnChunk`, jitted.

    Args:
      layout: who owns which client.
      models: one per group.
      prepare: stored samples [B, ...] to normalised ones for every replica, [R, B, ...].

    Returns:
      A function of the learners of every group and of an `OwnChunk` to the number of correct
      predictions per group, [R, K, H]. Every client predicts its own samples and no others.
    """

    def count(
        learners: tuple[Learners, ...], images: tuple[Array, ...], labels: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        found = tuple(
            _count_own(model, group, samples, truth, prepare)
            for model, group, samples, truth in zip(models, learners, images, labels, strict=True)
        )
        return jax.lax.psum(found, DATA) if layout.data_devices > 1 else found

    rows = P(None, CLIENTS)
    specs = (rows, P(CLIENTS, DATA), P(CLIENTS, DATA))
    return jax.jit(on_mesh(count, layout, in_specs=specs, out_specs=rows))


def _count_own(
    model: nn.Module,
    learners: Learners,
    images: Shaped[Array, "k B ..."],
    labels: Int[Array, "k B"],
    prepare: Callable[[Array], Array],
) -> Float[Array, "R k H"]:
    """Correct predictions by client and head."""
    flat = prepare(images.reshape(-1, *images.shape[2:]))
    inputs = flat.reshape(len(flat), *labels.shape, *flat.shape[2:])

    def one(snapshot: Variables, inputs: Array, labels: Array) -> Float[Array, " H"]:
        logits, _ = model.apply(snapshot, inputs, train=False)
        hits = jnp.argmax(logits, axis=-1) == labels[:, None]
        return hits.astype(jnp.float32).sum(axis=0)

    return jax.vmap(jax.vmap(one), in_axes=(0, 0, None))(learners.snapshot, inputs, labels)


def count_all(
    count: Callable[..., tuple[Array, ...]],
    layout: Layout,
    learners: tuple[Learners, ...],
    chunks: Callable[[Int[np.ndarray, " N"]], Iterable[Chunk | OwnChunk]],
    memory: HostMemory | None = None,
) -> Float[np.ndarray, "R K H ..."]:
    """Correct predictions over the whole test set, clients of all groups in order.

    Args:
      count: as `make_counter` or `make_own_counter` makes it.
      layout: who owns which client.
      learners: one per group.
      chunks: of the test set, for the clients at the places of the devices, -1 for nobody; asked
        once, and with `memory` once for every turn.
      memory: of the host, where clients wait in it; they take turns on the devices.
    """
    if memory is None:
        return _count_all(count, layout, learners, chunks(np.arange(layout.num_clients)))
    total: Any = 0.0
    for seated, some in memory.turns(learners):
        found = _count_all(count, memory.devices, some, chunks(seated))
        here = np.broadcast_to(seated, (len(found), len(seated)))
        total = total + memory.roster.spread(found, here, missing=0)
    return total


def _count_all(
    count: Callable[..., tuple[Array, ...]],
    layout: Layout,
    learners: tuple[Learners, ...],
    chunks: Iterable[Chunk | OwnChunk],
) -> Float[np.ndarray, "R K H ..."]:
    total: tuple[Array, ...] | None = None
    in_flight = InFlight()
    for chunk in chunks:
        found = count(learners, *chunk)
        total = found if total is None else _add(total, found)
        in_flight.add(total)
    if total is None:
        raise ValueError("a test set without a sample")
    return layout.join(layout.fetch(total), axis=1)


_add = jax.jit(functools.partial(jax.tree.map, jnp.add))
