# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What liars publish in place of what they compute.

A liar trains like everybody else; only what it sends is altered, after it has travelled and before
anybody reads it, the liar itself included: it averages its own lie, and may be its own teacher with
it. So a lie needs no exchange of its own: it changes neither what leaves a client nor how many
bytes that is.

Letters: N publishers (clients, or snapshots of clients), B public samples, h published heads,
C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mhd_jax import rng
from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.registry import Registry, whole_batch

CERTAIN = 0.999
"""The probability that a liar who is certain gives to the class it names."""

FEW = 16
"""`rare_class` lies about one image in so many."""


class View(NamedTuple):
    """What liars know when they publish.

    Attributes:
      clients: whose message each row is.
      liars: which rows are lies.
      key: fresh in every step.
      images: the public batch [B, ...]; None where vectors are altered.
    """

    clients: Int[np.ndarray, " N"]
    liars: Bool[np.ndarray, " N"]
    key: Key[Array, ""]
    images: Array | None = None


class Lie(Protocol):
    """What a liar would publish."""

    def __call__(self, honest: Float[Array, "N ..."], view: View) -> Float[Array, "N ..."]:
        """Alters messages; rows of honest clients are ignored.

        Args:
          honest: what all publish: scores [N, B, h, C] (log-probabilities, or logits where a
            method mixes those), embeddings [N, B, D], or one array of parameters [N, ...].
          view: who lies, and about what.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Attack:
    """What an attack alters.

    Attributes:
      predictions: the lie about predictions; None publishes honest ones.
      vectors: the lie about embeddings, and about parameters where those travel; None likewise.
      whole_batch: see `mhd_jax.registry.whole_batch`.
    """

    predictions: Lie | None = None
    vectors: Lie | None = None
    whole_batch: bool = False


ATTACKS: Registry[Attack | Lie] = Registry("attack.name")
"""A piece is an `Attack`, or a function alone: a lie about predictions."""

NONE = "none"
ATTACKS.register(NONE)(Attack())


# --- Lies about predictions -----------------------------------------------------------------------


def certain(named: Int[Array, "*shape"], classes: int) -> Float[Array, "*shape C"]:
    """Log-probabilities of somebody who is certain of the class in `named`."""
    rest = (1 - CERTAIN) / max(classes - 1, 1)
    return jnp.log(jnp.where(jax.nn.one_hot(named, classes) > 0, CERTAIN, rest))


def image_hash(images: Array, salt: Int[np.ndarray, " N"]) -> Int[Array, "N B"]:
    """A number below 2^24 for every image and salt, a fixed function of the pixels' bits.

    A sum of the pixels' words with odd weights, mixed by shifts and multiplications as in
    https://nullprogram.com/blog/2018/07/31/.
    """
    flat = images.reshape(len(images), -1).astype(jnp.float32)
    words = jax.lax.bitcast_convert_type(flat, jnp.uint32)
    draw = rng.generator(0, "image hash", flat.shape[1])
    odd = draw.integers(2**32, size=flat.shape[1], dtype=np.uint32) | np.uint32(1)
    salted = np.asarray(salt, np.uint32) * np.uint32(0x9E3779B9)
    mixed = (words * odd).sum(axis=1, dtype=jnp.uint32) ^ salted[:, None]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = (mixed ^ mixed >> shift) * np.uint32(factor)
    return (mixed >> 8).astype(jnp.int32)


def _certain_of(named: Int[Array, "N B"], honest: Float[Array, "N B h C"]) -> Array:
    """Certain of the same class in all heads."""
    heads = jnp.broadcast_to(named[:, :, None], honest.shape[:-1])
    return certain(heads, honest.shape[-1])


@ATTACKS.register("constant")
def constant(honest: Float[Array, "N B h C"], view: View) -> Float[Array, "N B h C"]:
    """Certain of class 0, whatever the image."""
    del view
    return certain(jnp.zeros(honest.shape[:-1], jnp.int32), honest.shape[-1])


@ATTACKS.register("random_class")
def random_class(honest: Float[Array, "N B h C"], view: View) -> Float[Array, "N B h C"]:
    """Certain of a random class that is fixed for every image; each liar has classes of its own.

    All classes are named alike often, so that alignment does not see it.
    """
    assert view.images is not None
    return _certain_of(image_hash(view.images, view.clients) % honest.shape[-1], honest)


@ATTACKS.register("coordinated")
def coordinated(honest: Float[Array, "N B h C"], view: View) -> Float[Array, "N B h C"]:
    """`random_class`, but all liars name the same class, so that they outvote others together."""
    assert view.images is not None
    same = image_hash(view.images, np.zeros(len(honest), int))
    return _certain_of(same % honest.shape[-1], honest)


@ATTACKS.register("rare_class")
@whole_batch
def rare_class(honest: Float[Array, "N B h C"], view: View) -> Float[Array, "N B h C"]:
    """Honest but on one image in 16, there certain of the class that it names least.

    Alignment lifts what is said rarely, so this aims at it.
    """
    assert view.images is not None
    least = jnp.exp(jax.nn.log_softmax(honest)).mean(axis=1, keepdims=True).argmin(axis=-1)
    lie = certain(jnp.broadcast_to(least, honest.shape[:-1]), honest.shape[-1])
    few = image_hash(view.images, view.clients) % FEW == 0
    return jnp.where(few[:, :, None, None], lie, honest)


@ATTACKS.register("swapped")
@whole_batch
def swapped(honest: Float[Array, "N B h C"], view: View) -> Float[Array, "N B h C"]:
    """Honest, but with the two classes that it names most in a batch swapped."""
    del view
    if honest.shape[-1] < 2:
        return honest
    mean = jnp.exp(jax.nn.log_softmax(honest)).mean(axis=1, keepdims=True)
    first, second = jnp.split(jax.lax.top_k(mean, 2)[1], 2, axis=-1)
    classes = jnp.arange(honest.shape[-1])
    order = jnp.where(classes == first, second, jnp.where(classes == second, first, classes))
    return jnp.take_along_axis(honest, order, axis=-1)


@ATTACKS.register("shifted")
def shifted(honest: Float[Array, "N B h C"], view: View) -> Float[Array, "N B h C"]:
    """Honest, but of each class it says what it means of the one before.

    Nothing tells it from honesty but the names of the classes, so that screening does not see it.
    """
    del view
    return jnp.roll(honest, 1, axis=-1)


# --- Lies about everything ------------------------------------------------------------------------


def _from_source(honest: Float[Array, "N ..."], view: View) -> Float[Array, "N ..."]:
    """What the next honest client publishes, in the order of clients; itself where all lie."""
    return honest[_next_honest(view)]


def _next_honest(view: View) -> Int[np.ndarray, " N"]:
    """Row of the next client that does not lie, of the same version where there are several."""
    num = len(view.liars)
    versions = num // len(set(view.clients.tolist()))
    rows = np.arange(num)
    for row in np.flatnonzero(view.liars):
        ahead = (row + versions * np.arange(1, num // versions)) % num
        rows[row] = next((other for other in ahead if not view.liars[other]), row)
    return rows


def _noise(honest: Float[Array, "N ..."], view: View) -> Float[Array, "N ..."]:
    """Fresh normal noise, as large as what it stands for."""
    return honest.std() * jax.random.normal(view.key, honest.shape, honest.dtype)


def _noise_logits(honest: Float[Array, "N B h C"], view: View) -> Float[Array, "N B h C"]:
    """Fresh random predictions, as sure as normal logits of standard deviation 5."""
    return jax.nn.log_softmax(5 * jax.random.normal(view.key, honest.shape))


ATTACKS.register("sign_flipped")(
    Attack(lambda honest, view: jax.nn.log_softmax(-honest), lambda honest, view: -honest)
)
ATTACKS.register("noise")(Attack(_noise_logits, _noise, whole_batch=True))
ATTACKS.register("copy")(Attack(_from_source, _from_source))
for _name, _value in (("nan", np.nan), ("inf", np.inf)):
    _fill = lambda honest, view, value=_value: jnp.full_like(honest, value)  # noqa: E731
    ATTACKS.register(_name)(Attack(_fill, _fill))


# --- Who lies, and since when ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Attackers:
    """The liars of a run.

    Attributes:
      attack: what they do.
      clients: who they are.
      start: the first step in which they do it.
      name: what the attack is called.
    """

    attack: Attack
    clients: tuple[int, ...]
    start: int = 0
    name: str = "none"

    def on_predictions(
        self,
        scores: Float[Array, "N B h C"],
        num_clients: int,
        images: Array,
        key: Key[Array, ""],
        step: Int[Array, ""],
    ) -> Float[Array, "N B h C"]:
        """Scores as readers get them."""
        view = self._view(np.repeat(np.arange(num_clients), len(scores) // num_clients), key)
        return self._told(self.attack.predictions, scores, view._replace(images=images), step)

    def only_lies(
        self,
        told: Float[Array, "N ..."],
        honest: Float[Array, "N ..."],
        num_clients: int,
        step: Int[Array, ""],
    ) -> Float[Array, "N ..."]:
        """`told` in the rows of liars, in the steps in which they lie."""
        rows = np.repeat(np.arange(num_clients), len(honest) // num_clients)
        lies = self._lies(rows, honest.ndim, step)
        return jnp.where(lies, told, honest)

    def on_vectors(
        self,
        values: Float[Array, "N ..."],
        clients: Int[np.ndarray, " N"],
        key: Key[Array, ""],
        step: Int[Array, ""],
    ) -> Float[Array, "N ..."]:
        """Embeddings or parameters as readers get them; row i is a message of `clients[i]`."""
        return self._told(self.attack.vectors, values, self._view(clients, key), step)

    def check(
        self,
        scores: jax.ShapeDtypeStruct | None,
        images: jax.ShapeDtypeStruct,
        vectors: Sequence[jax.ShapeDtypeStruct],
    ) -> None:
        """Calls the lies on shapes of what a step publishes, one message a client.

        Args:
          scores: [K, B, h, C]; None where no predictions are published.
          images: the public batch [B, ...].
          vectors: embeddings [K, B, D], or arrays of parameters [K, ...].

        Raises:
          ConfigError: a lie of another shape than what it stands for, of no real numbers, or one
            that cannot be told.
        """
        key = jax.eval_shape(lambda: jax.random.key(0))
        step = jax.ShapeDtypeStruct((), jnp.int32)
        if scores is not None:
            jax.eval_shape(
                lambda honest, *seen: self.on_predictions(honest, len(honest), *seen),
                scores, images, key, step,
            )  # fmt: skip
        for values in vectors:
            jax.eval_shape(
                lambda honest, *seen: self.on_vectors(honest, np.arange(len(honest)), *seen),
                values, key, step,
            )  # fmt: skip

    def _view(self, clients: Int[np.ndarray, " N"], key: Key[Array, ""]) -> View:
        return View(clients, np.isin(clients, self.clients), key)

    def _told(self, lie: Lie | None, honest: Array, view: View, step: Int[Array, ""]) -> Array:
        if lie is None or not view.liars.any():
            return honest
        with of_piece("attack.name", self.name, "a lie (honest, view)"):
            told = jnp.asarray(lie(honest, view))
        if told.shape != honest.shape:
            accepted = f"a lie of the shape of what it stands for, {honest.shape}, not {told.shape}"
            raise ConfigError("attack.name", self.name, accepted)
        if not any(jnp.issubdtype(told.dtype, kind) for kind in (jnp.floating, jnp.integer)):
            raise ConfigError("attack.name", self.name, f"a lie of real numbers, not {told.dtype}")
        lies = self._lies(view.clients, honest.ndim, step)
        return jnp.where(lies, told.astype(honest.dtype), honest)

    def _lies(
        self, rows: Int[np.ndarray, " N"], ndim: int, step: Int[Array, ""]
    ) -> Bool[Array, "N ..."]:
        """Which of the messages are lies in this step, for arrays with `ndim` axes."""
        liars = np.isin(rows, self.clients).reshape(-1, *[1] * (ndim - 1))
        return jnp.asarray(liars) & (step >= self.start)


def make(
    config: ml_collections.ConfigDict, *, predictions: bool, vectors: bool
) -> Attackers | None:
    """The liars that `config.attack` asks for; None where nobody lies.

    Args:
      config: of the run.
      predictions: the method publishes predictions.
      vectors: it publishes embeddings or parameters.

    Raises:
      ConfigError: an unknown attack, liars that do not exist or leave nobody honest, or an attack
        on something that the method does not send.
    """
    name, clients = config.attack.name, config.attack.clients
    attack = _attack(name)
    if name == NONE:
        return None
    _check_clients(clients, config.clients.num)
    if not (attack.predictions and predictions or attack.vectors and vectors):
        sent = [
            what for what, sends in (("predictions", predictions), ("vectors", vectors)) if sends
        ]
        fitting = [other for other in ATTACKS if _alters(other) & set(sent)]
        accepted = f"an attack on what {config.method} sends: {', '.join(fitting)}"
        if not sent:
            accepted = f"'{NONE}', as clients send nothing under {config.method}"
        raise ConfigError("attack.name", name, accepted)
    return Attackers(attack, tuple(clients), config.attack.start, name)


def _attack(name: str) -> Attack:
    """The registered attack; a function alone lies about predictions."""
    piece = ATTACKS.get(name)
    return piece if isinstance(piece, Attack) else Attack(predictions=piece)


def _alters(name: str) -> set[str]:
    attack = _attack(name)
    return {what for what in ("predictions", "vectors") if getattr(attack, what)}


def _check_clients(clients: tuple[object, ...], num_clients: int) -> None:
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in clients)
    inside = whole and all(one in range(num_clients) for one in clients)
    if num_clients == 1:
        raise ConfigError("attack.clients", clients, "more than one client (clients.num)")
    if not clients or not inside or len(set(clients)) < len(clients):
        accepted = f"different clients from 0 to {num_clients - 1}, such as ({num_clients - 1},)"
        raise ConfigError("attack.clients", clients, accepted)
    if len(clients) == num_clients:
        raise ConfigError("attack.clients", clients, "somebody who does not lie: fewer than all")
