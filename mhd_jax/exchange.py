# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What leaves a client, in which form, when others read it, and how many bytes that is.

Publishing is the only exchange: encoded predictions (and embeddings) on the public batch. Fresh
readers see their peers' predictions of this very step. Stale readers see predictions of earlier
states: the peer itself keeps its last snapshots and publishes what they predict, so that stale
teachers need no exchange of parameters either.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mhd_jax import edges, rng
from mhd_jax.edges import Edges, Extent, Form
from mhd_jax.errors import ConfigError
from mhd_jax.graph import Topology
from mhd_jax.methods import Method, Rounds
from mhd_jax.participation import Attendance
from mhd_jax.registry import Registry

# --- Encodings: the form in which predictions travel ----------------------------------------------


class Encoding(Protocol):
    """Turns scores into the arrays that travel and back."""

    @property
    def embedding_type(self) -> jnp.dtype:
        """The type in which embeddings travel, and parameters where these are averaged."""
        ...

    def encode(self, scores: Float[Array, "*shape C"]) -> tuple[Array, ...]:
        """The arrays that travel."""
        ...

    def decode(self, message: tuple[Array, ...], classes: int) -> Float[Array, "*shape C"]:
        """Scores of all C classes again."""
        ...


class AllClasses:
    """All C numbers in one floating-point type.

    Two-byte floats travel as the integers of their bits: compilers may widen bfloat16
    collectives, and then more bytes would move than were promised.
    """

    def __init__(self, dtype: jnp.dtype) -> None:
        self.embedding_type = dtype

    def encode(self, scores: Float[Array, "*shape C"]) -> tuple[Array, ...]:
        """Rounds to the type."""
        return (to_wire(scores, self.embedding_type),)

    def decode(self, message: tuple[Array, ...], classes: int) -> Float[Array, "*shape C"]:
        """Widens to float32."""
        del classes
        return from_wire(message[0], self.embedding_type)


class TopK:
    """The k largest log-probabilities and their classes; the rest of the mass is spread evenly."""

    embedding_type = jnp.float32

    def __init__(self, k: int) -> None:
        self.k = k

    def encode(self, scores: Float[Array, "*shape C"]) -> tuple[Array, ...]:
        """Values float32 [..., k] and class indices [..., k] in the smallest unsigned type."""
        values, classes = jax.lax.top_k(scores, self.k)
        small = scores.shape[-1] <= 256
        return values, classes.astype(jnp.uint8 if small else jnp.uint16)

    def decode(self, message: tuple[Array, ...], classes: int) -> Float[Array, "*shape C"]:
        """Log-probabilities of all classes; the left-out ones share what is missing to 1."""
        values, index = message
        chosen = jax.nn.one_hot(index, classes, dtype=values.dtype)
        left = jnp.maximum(1.0 - jnp.exp(values).sum(axis=-1), 1e-12)
        share = jnp.log(left / max(classes - self.k, 1))[..., None]
        known = jnp.einsum("...kc,...k->...c", chosen, values)
        return jnp.where(chosen.sum(axis=-2) > 0, known, share)


class Levels:
    """Log-probabilities in 8 or 4 bits, tails kept, with a scale of its own for every prediction.

    What travels of class c is d = max log p - log p_c, how far it lies below the likeliest class:
    the square root of d as one of 2^bits evenly spaced levels from 0 to the prediction's largest
    root, which travels as a float16. Levels are thus dense near the top and sparse in the tails.
    With s the distance of two levels, the d' that arrives satisfies

        |d' - d| <= s sqrt(d) + s^2

    and the likeliest class stays the likeliest: level 0 is its alone. Decoding normalises. Two
    4-bit numbers share a byte; embeddings travel as bfloat16.
    """

    embedding_type = jnp.bfloat16

    def __init__(self, bits: Literal[4, 8]) -> None:
        self.bits = bits

    def encode(self, scores: Float[Array, "*shape C"]) -> tuple[Array, ...]:
        """Levels uint8, [..., C] or [..., ceil(C / 2)], and the bits of the scales [...]."""
        roots = jnp.sqrt(scores.max(axis=-1, keepdims=True) - scores)
        scale = to_wire(roots.max(axis=-1), jnp.float16)
        levels = jnp.round(roots / jnp.maximum(self._spacing(scale), 1e-12))
        small = jnp.clip(levels, roots > 0, 2**self.bits - 1).astype(jnp.uint8)
        return (_pack(small) if self.bits == 4 else small), scale

    def decode(self, message: tuple[Array, ...], classes: int) -> Float[Array, "*shape C"]:
        """Log-probabilities of all classes; NaN where the scale is not finite."""
        levels, scale = message
        if self.bits == 4:
            levels = _unpack(levels, classes)
        return jax.nn.log_softmax(-jnp.square(levels * self._spacing(scale)))

    def _spacing(self, scale: Array) -> Float[Array, "*shape 1"]:
        """s, the distance of two levels."""
        return from_wire(scale, jnp.float16)[..., None] / (2**self.bits - 1)


def _pack(levels: Array) -> Array:
    """Two 4-bit numbers a byte, the first in the lower half: [..., C] to [..., ceil(C / 2)]."""
    ends = [(0, 0)] * (levels.ndim - 1) + [(0, levels.shape[-1] % 2)]
    even = jnp.pad(levels, ends)
    return even[..., ::2] | even[..., 1::2] << 4


def _unpack(packed: Array, classes: int) -> Array:
    """The inverse of `_pack`."""
    halves = jnp.stack([packed & 15, packed >> 4], axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)[..., :classes]


ENCODINGS: Registry = Registry("exchange.encoding")
ENCODINGS.register("float32")(lambda config: AllClasses(jnp.float32))
ENCODINGS.register("bfloat16")(lambda config: AllClasses(jnp.bfloat16))
ENCODINGS.register("top_k")(lambda config: TopK(config.exchange.top_k))
ENCODINGS.register("int8")(lambda config: Levels(8))
ENCODINGS.register("int4")(lambda config: Levels(4))


def to_wire(x: Array, dtype: jnp.dtype) -> Array:
    """Casts; two-byte floats become the unsigned integers of their bits."""
    x = x.astype(dtype)
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def from_wire(x: Array, dtype: jnp.dtype) -> Array:
    """The inverse of `to_wire`, as float32."""
    if x.dtype == jnp.uint16:
        x = jax.lax.bitcast_convert_type(x, dtype)
    return x.astype(jnp.float32)


def make_encoding(config: ml_collections.ConfigDict, method: Method, num_classes: int) -> Encoding:
    """The encoding of `config.exchange.encoding`.

    Raises:
      ConfigError: unknown name, top_k outside 1..C, or an encoding of log-probabilities for a
        method that mixes raw logits (which cannot be rebuilt from them).
    """
    name = config.exchange.encoding
    encoding = ENCODINGS.get(name)(config)
    if isinstance(encoding, TopK) and not 1 <= encoding.k <= num_classes:
        raise ConfigError("exchange.top_k", encoding.k, f"between 1 and {num_classes} classes")
    if isinstance(encoding, TopK | Levels):
        if method.distillation and method.distillation.mixes_logits:
            accepted = f"float32 or bfloat16: {config.method} mixes logits"
            raise ConfigError("exchange.encoding", name, accepted)
    _check_encoding(encoding, name, num_classes)
    return encoding


def _check_encoding(encoding: Encoding, name: str, num_classes: int) -> None:
    """Encodes and decodes shapes alone; raises `ConfigError` where the way back misses them."""
    shape = (2, 3, 5, num_classes)
    scores = jax.ShapeDtypeStruct(shape, jnp.float32)

    def there_and_back(scores: Array) -> Array:
        return encoding.decode(encoding.encode(scores), num_classes)

    try:
        found = jax.eval_shape(there_and_back, scores)
        jnp.dtype(encoding.embedding_type)
    except (AttributeError, TypeError) as error:
        accepted = f"an Encoding with encode, decode and embedding_type ({error})"
        raise ConfigError("exchange.encoding", name, accepted) from error
    if found.shape != shape or found.dtype != jnp.float32:
        accepted = (
            f"float32 scores of shape [K, B, H, C] = {shape} after encode and decode, not "
            f"{found.dtype} of shape {found.shape}"
        )
        raise ConfigError("exchange.encoding", name, accepted)


@functools.lru_cache
def projection(width: int, kept: int) -> Float[np.ndarray, "D w"]:
    """A random matrix with orthonormal columns, the same in every run and for every client.

    Multiplied by it, embeddings of D numbers travel as w. Angles survive on average: the cosine of
    two embeddings moves by about (1 - cos^2) / sqrt(w), by nothing where w = D. Source: W. Johnson
    and J. Lindenstrauss, 1984, https://doi.org/10.1090/conm/026/737400.

    Args:
      width: D.
      kept: w, at most D.
    """
    draw = rng.generator(0, "embedding projection", width, kept)
    basis, _ = np.linalg.qr(draw.normal(size=(width, kept)))
    return basis.astype(np.float32)


# --- Reading: whose predictions a client learns from in a step ------------------------------------


class Reading(NamedTuple):
    """The exchange of n steps, as arrays the step consumes.

    Attributes:
      reads: [n, K] in the reader's form; candidate j * V + v is version v of client j. Where not
        everybody takes part, K stands for the places of a step and j for one of them.
      versions: [n, V], the pool slot of every version read (empty when fresh, where V = 1).
      write: [n], the pool slot that gets the state after the step, -1 for none.
    """

    reads: Edges
    versions: Int[np.ndarray, "n V"]
    write: Int[np.ndarray, " n"]


class Reader(Protocol):
    """Who reads whom: a pure function of the step range."""

    @property
    def form(self) -> Form:
        """How it is written down."""
        ...

    def extent(self, steps: int) -> Extent:
        """How much clients read at most and at least in a run of `steps` steps."""
        ...

    @property
    def pool_slots(self) -> int:
        """Snapshots each client keeps of itself; 0 where nobody reads the past."""
        ...

    def __call__(self, start: int, stop: int) -> Reading:
        """The exchange of steps start..stop - 1."""
        ...


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Peers' predictions of this very step, along the edges in force."""

    topology: Topology
    form: Form
    attendance: Attendance | None = None
    pool_slots: int = 0

    def extent(self, steps: int) -> Extent:
        """See `Reader`; of a client's peers at least all take part but those who stay away."""
        least, most = self.topology.degrees(steps)
        clients, who = self.topology.num_clients, self.attendance
        if who is None:
            return Extent(most, least, clients)
        least = max(least + who.fewest - clients, 1)
        return Extent(min(most, who.num_places - 1), least, who.num_places)

    def __call__(self, start: int, stop: int) -> Reading:
        """No pool: versions are empty and nothing is written."""
        n = stop - start
        if self.topology.static and self.attendance is None:
            reads = edges.repeat(self._always, n)
        elif self.topology.only_draws and self.attendance is None:
            drawn = [self.topology.drawn(step) for step in range(start, stop)]
            reads = edges.stack([edges.from_lists(ids, self.form) for ids in drawn])
        else:
            graphs = (self._graph(step) for step in range(start, stop))
            reads = edges.stack([edges.from_mask(graph, self.form) for graph in graphs])
        return Reading(reads, np.zeros((n, 0), np.int32), np.full(n, -1, np.int32))

    @functools.cached_property
    def _always(self) -> Edges:
        """The graph where it stays as it is."""
        return edges.from_mask(self.topology.at(0), self.form)

    def _graph(self, step: int) -> Bool[np.ndarray, "K K"]:
        if self.attendance is None:
            return self.topology.reads(step, step + 1)[0]
        clients, taken = _seated(self.attendance, step)
        mask = np.zeros((len(taken), len(taken)), bool)
        mask[np.ix_(taken, taken)] = self.topology.among(step, clients)
        return mask


def _seated(who: Attendance, step: int) -> tuple[Int[np.ndarray, " a"], Bool[np.ndarray, " N"]]:
    """Who takes part in a step, and which places they take."""
    places = who.places(step)
    taken = places != edges.NOBODY
    return places[taken], taken


@dataclasses.dataclass(frozen=True)
class Stale:
    """A rolling pool of N_P snapshots of peers per client, one replaced every S_P steps.

    At the end of every S_P-th step each client draws a random peer along the edges then in force
    and puts that peer's state (after the step) into its oldest slot; the pool starts with initial
    states of random peers. All clients refresh the same slot at the same time, so a slot is one
    moment in the past, and every client needs to keep only its own N_P past states.

    With `peers_per_step` = Δ > 0, Δ slots are drawn per step, the same for all clients, each of
    which finds its own peers in them. Memory: N_P parameter copies per client. Time: min(Δ, N_P)
    extra forward passes on the public batch per client and step (N_P for Δ = 0), whatever N_P is.

    Lost messages (`graph.drop`) leave the slot empty until it is next replaced. A client that takes
    no part in a step publishes nothing in it, and one that takes none in the step of a refresh
    keeps the snapshot that it has in that slot.
    """

    topology: Topology
    form: Form
    seed: int
    pool_slots: int
    refresh_steps: int
    slots_per_step: int = 0
    drop: float = 0.0
    attendance: Attendance | None = None

    @property
    def slots_read(self) -> int:
        """V."""
        return min(self.slots_per_step or self.pool_slots, self.pool_slots)

    def extent(self, steps: int) -> Extent:
        """See `Reader`: one snapshot a slot."""
        who = self.attendance
        publishers = self.topology.num_clients if who is None else who.num_places
        return Extent(self.slots_read, 1, publishers * self.slots_read)

    def __call__(self, start: int, stop: int) -> Reading:
        """The reading of steps start..stop - 1."""
        steps = range(start, stop)
        versions = np.stack([self._versions(step) for step in steps])
        reads = edges.stack([self._reads(step, versions[step - start]) for step in steps])
        return Reading(reads, versions, self._write(np.arange(start, stop)))

    def _write(self, steps: np.ndarray) -> Int[np.ndarray, " n"]:
        event = (steps + 1) // self.refresh_steps
        due = (steps + 1) % self.refresh_steps == 0
        return np.where(due, (event - 1) % self.pool_slots, -1).astype(np.int32)

    def _versions(self, step: int) -> Int[np.ndarray, " V"]:
        if self.slots_read == self.pool_slots:
            return np.arange(self.pool_slots, dtype=np.int32)
        draw = rng.generator(self.seed, "pool versions", step)
        chosen = draw.choice(self.pool_slots, self.slots_per_step, replace=False)
        return np.sort(chosen).astype(np.int32)

    def _reads(self, step: int, versions: np.ndarray) -> Edges:
        peers = np.stack([self.peers_in_slot(step, int(slot)) for slot in versions], axis=1)
        if self.attendance is not None:
            clients, taken = _seated(self.attendance, step)
            place = np.full(len(peers) + 1, edges.NOBODY)  # the last one is that of nobody
            place[clients] = np.flatnonzero(taken)
            seated = np.full((len(taken), len(versions)), edges.NOBODY)
            seated[taken] = place[peers[clients]]
            peers = seated
        columns = peers * len(versions) + np.arange(len(versions))
        return edges.from_lists(np.where(peers < 0, edges.NOBODY, columns), self.form)

    def peers_in_slot(self, step: int, slot: int) -> Int[np.ndarray, " K"]:
        """Whose snapshot each client has in `slot` when step begins; -1 for an empty slot."""
        event = step // self.refresh_steps  # refreshes so far; event e wrote slot (e - 1) % N_P
        last = event - (event - 1 - slot) % self.pool_slots
        last, drop = (last, self.drop) if last >= 1 else (0, 0.0)
        step = max(last * self.refresh_steps - 1, 0)
        return _drawn_peers(self.topology, self.seed, step, last, slot, drop)


@functools.lru_cache(maxsize=256)
def _drawn_peers(
    topology: Topology, seed: int, step: int, event: int, slot: int, drop: float
) -> Int[np.ndarray, " K"]:
    """A random peer of every client along the edges of `step`; -1 for none, or a lost one."""
    adjacency = topology.at(step)
    draw = rng.generator(seed, "pool peers", event, slot)
    score = np.where(adjacency, draw.random(adjacency.shape), -1.0)
    lost = draw.random(len(adjacency)) < drop
    peers = np.where(adjacency.any(axis=1) & ~lost, score.argmax(axis=1), edges.NOBODY)
    peers.flags.writeable = False  # cached, so shared
    return peers


@dataclasses.dataclass(frozen=True)
class RoundStart:
    """Everybody's state at the end of the private part of a round, for everybody (FedMD)."""

    num_clients: int
    form: Form
    rounds: Rounds
    attendance: Attendance | None = None
    pool_slots: int = 1

    def extent(self, steps: int) -> Extent:
        """See `Reader`: everybody reads everybody."""
        if self.attendance is None:
            return Extent(self.num_clients, self.num_clients, self.num_clients)
        places = self.attendance.num_places
        return Extent(places, self.attendance.fewest, places)

    def __call__(self, start: int, stop: int) -> Reading:
        """One slot, written when a round's scoring is due, read by all, oneself included."""
        steps = np.arange(start, stop)
        if self.attendance is None:
            everybody = np.ones((self.num_clients, self.num_clients), bool)
            reads = edges.repeat(edges.from_mask(everybody, self.form), len(steps))
        else:
            taken = [_seated(self.attendance, step)[1] for step in range(start, stop)]
            graphs = (among[:, None] & among for among in taken)
            reads = edges.stack([edges.from_mask(graph, self.form) for graph in graphs])
        write = np.where(self.rounds.scoring(steps), 0, -1).astype(np.int32)
        return Reading(reads, np.zeros((len(steps), 1), np.int32), write)


def make_readers(
    config: ml_collections.ConfigDict,
    method: Method,
    topologies: Sequence[Topology],
    seeds: Sequence[int],
    steps: int,
    attendances: Sequence[Attendance] = (),
) -> list[Reader]:
    """The readers that method and settings ask for, one a seed, in one form for all `steps`.

    Args:
      config: see `mhd_jax.config.default_config`.
      method: of the run.
      topologies: one per seed.
      seeds: of the run.
      steps: that the readers will be asked for.
      attendances: one per seed; () where everybody takes part in every step.
    """
    pairs = Form("pairs", config.clients.num, config.clients.num)
    readers = [
        _reader(config, method, topology, seed, pairs)
        for topology, seed in zip(topologies, seeds, strict=True)
    ]
    if attendances:
        readers = [
            dataclasses.replace(reader, attendance=who)
            for reader, who in zip(readers, attendances, strict=True)
        ]
    form = edges.choose_form([reader.extent(steps) for reader in readers])
    return [dataclasses.replace(reader, form=form) for reader in readers]


def _reader(
    config: ml_collections.ConfigDict, method: Method, topology: Topology, seed: int, form: Form
) -> Fresh | Stale | RoundStart:
    if method.snapshot_rounds and isinstance(method.when, Rounds):
        return RoundStart(config.clients.num, form, method.when)
    if config.exchange.mode == "fresh" or method.distillation is None:
        return Fresh(topology, form)
    return Stale(
        topology,
        form,
        seed,
        pool_slots=config.exchange.pool_size,
        refresh_steps=config.exchange.refresh_steps,
        slots_per_step=topology.peers_per_step,
        drop=config.graph.drop,
    )


# --- The ledger: bytes, counted both ways ---------------------------------------------------------

BLOCK = 100  # steps whose bytes are kept where not everybody takes part


def message_bytes(
    encoding: Encoding, scores_shape: tuple[int, ...], embedding_width: int, energy: bool = False
) -> int:
    """Bytes one client publishes in one step.

    Args:
      encoding: the form predictions travel in.
      scores_shape: [V * B', H, C]; a zero anywhere means that no predictions are published.
      embedding_width: D, or 0 where no embeddings are published.
      energy: a standardised energy travels beside every prediction, as embeddings do.
    """
    total = 0
    if 0 not in scores_shape:
        scores = jax.ShapeDtypeStruct(scores_shape, jnp.float32)
        for part in jax.eval_shape(encoding.encode, scores):
            total += part.size * part.dtype.itemsize
    width = jnp.dtype(encoding.embedding_type).itemsize
    energies = scores_shape[1] if energy else 0
    return total + scores_shape[0] * (embedding_width + energies) * width


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Bytes per client; each array is [K].

    Attributes:
      predictions: published in a step with distillation, as encoded.
      snapshots: the other accounting: shipping one parameter snapshot every `refresh_steps`.
      fedavg: shipping the parameters every `average.every` steps, as FedAvg does: in float32, or
        where the method averages in the type that it sends.
      method: supplies when distillation and averaging happen.
      average_every: steps between two averages.
      once: published a single time, at the start: label distributions, where a rule needs them.
      attendance: who takes part in which step; None for everybody in every step.
    """

    predictions: Float[np.ndarray, " K"]
    snapshots: Float[np.ndarray, " K"]
    fedavg: Float[np.ndarray, " K"]
    method: Method
    average_every: int
    once: float = 0.0
    attendance: Attendance | None = None

    def sent(self, step: int) -> float:
        """Bytes that all clients together have really sent in the first `step` steps."""
        return self.published(step) + self._averaged(step)

    def published(self, step: int) -> float:
        """Those of them that were not parameters."""
        if not step:
            return 0.0
        once = self.once * len(self.predictions)
        if self.attendance is None:
            distilling = int(self.method.distils(np.arange(step)).sum())
            return once + float(self.predictions.sum()) * distilling
        whole = step // BLOCK
        blocks = sum(map(self._published_block, range(whole)))
        return once + blocks + self._published_in(np.arange(whole * BLOCK, step))

    def _averaged(self, step: int) -> float:
        if self.method.averaging is None:
            return 0.0
        due = int(self.method.averaging.due(np.arange(step)).sum())
        return float(self.fedavg.sum()) * self.average_every * due

    def _published_block(self, block: int) -> float:
        """Bytes published in `BLOCK` steps."""
        if block not in self._blocks:
            steps = np.arange(block * BLOCK, (block + 1) * BLOCK)
            self._blocks[block] = self._published_in(steps)
        return self._blocks[block]

    @functools.cached_property
    def _blocks(self) -> dict[int, float]:
        return {}

    def _published_in(self, steps: Int[np.ndarray, " n"]) -> float:
        assert self.attendance is not None
        distilling = steps[self.method.distils(steps)].tolist()
        return sum(float(self.predictions[self.attendance.clients(s)].sum()) for s in distilling)

    def until(
        self, levels: Iterable[float], evaluations: Sequence[tuple[int, float]]
    ) -> dict[str, float | None]:
        """Bytes that all clients together have sent when an accuracy is first seen.

        Args:
          levels: accuracies.
          evaluations: (step, accuracy), in the order of steps.

        Returns:
          By level, as "0.9", bytes up to the first evaluation that reaches it; None where none
          does.
        """
        found: dict[str, float | None] = {}
        for level in levels:
            reached = (step for step, accuracy in evaluations if accuracy >= level)
            step = next(reached, None)
            found[f"{level:g}"] = None if step is None else self.sent(step)
        return found

    def record(self) -> dict[str, Float[np.ndarray, " K"]]:
        """Bytes per step and client for the run's record."""
        return {
            "predictions": self.predictions,
            "snapshots": self.snapshots,
            "fedavg": self.fedavg,
        }
