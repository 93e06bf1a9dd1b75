# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who sends what to whom: peers, routes between devices, forms, lies, and bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Int

from mhd_jax import attacks, exchange, graph, methods
from mhd_jax.data.batches import Visits
from mhd_jax.data.order import Federation
from mhd_jax.errors import ConfigError
from mhd_jax.experiment.clients import Clients
from mhd_jax.inputs import network_input
from mhd_jax.models import shapes
from mhd_jax.parallel import Layout
from mhd_jax.routes import Routes
from mhd_jax.step import StepParts

UNUSED = {"sequence": (), "matrix": "", "peers_per_step": 0, "every": 0, "drop": 0.0}
"""Settings of the graph that methods with one of their own do not use."""


def make_topologies(
    config: ml_collections.ConfigDict, method: methods.Method, federations: Sequence[Federation]
) -> list[graph.Topology]:
    """The graphs of all replicas, with as many peers a step as settings or method ask for.

    Frozen clients read nobody: what is sent to them alone counts nowhere.
    """
    own = {**UNUSED, "name": method.own_graph} if method.own_graph else {}
    settings = {**config.graph, **own}
    made = [graph.make_topology(settings, config.clients.num, fed.seed) for fed in federations]
    drawn = [
        _with_drawn_peers(config, method, topology, fed.partition.sizes)
        for topology, fed in zip(made, federations, strict=True)
    ]
    return [topology.without_readers(config.clients.frozen) for topology in drawn]


def _with_drawn_peers(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    topology: graph.Topology,
    sizes: Int[np.ndarray, " K"],
) -> graph.Topology:
    """With as many peers a step as the method draws, where the config leaves it to the method.

    Readers that keep what they have read, and pools of snapshots, stay with all of their peers. So
    does everybody where most clients have few peers, in any of the graphs that take turns: whoever
    has many there, as the centre of a star, is the only one through whom the others hear of each
    other. And where clients have few private samples on average, as two of them know too little.
    """
    own = method.distillation.peers if method.distillation else 0
    left_to_it = config.graph.peers_per_step < 0 and config.exchange.mode == "fresh"
    if not (own and left_to_it) or config.exchange.cache > 1:
        return topology
    if np.mean(sizes) < methods.ENOUGH or topology.usual_degree() <= own:
        return topology  # the samples first: the graph of thousands of clients is large
    return dataclasses.replace(topology, peers_per_step=own)


def make_routes(
    topologies: Sequence[graph.Topology], readers: Sequence[exchange.Reader], parts: StepParts
) -> Routes | None:
    """Which messages go to which device, where that is known before the run and saves traffic.

    None on one device, for several groups of clients, where not everybody takes part in every step,
    for graphs that change, for old teachers, for readers that keep what they have read and where
    clients lie: there all messages go to all devices.
    """
    layout = parts.layout
    anew = parts.method.distillation is not None and parts.visits.count == 1
    fixed = all(isinstance(reader, exchange.Fresh) for reader in readers)
    fixed = fixed and not (parts.roster.attendances or any(each.changes for each in topologies))
    even = layout.rows == layout.groups and len(layout.groups) == 1
    sparse = readers[0].form.kind == "lists"
    if layout.client_devices == 1 or parts.attackers or not (anew and fixed and even and sparse):
        return None
    reads = np.logical_or.reduce([topology.at(0) for topology in topologies])
    routes = Routes(reads, layout.client_devices)
    return routes if routes.worth_it() else None


def sent_width(config: ml_collections.ConfigDict, method: methods.Method, clients: Clients) -> int:
    """Numbers in which an embedding travels, 0 for all it has.

    Raises:
      ConfigError: more than the narrowest embedding has.
    """
    asked, chosen = config.exchange.embedding_width, method.distillation
    if not asked or chosen is None or not chosen.nu_emb:
        return 0
    narrowest = min(clients.embedding_widths)
    if asked > narrowest:
        accepted = f"0 to {narrowest}, the width of the narrowest embedding"
        raise ConfigError("exchange.embedding_width", asked, accepted)
    return int(asked)


def make_visits(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    topologies: Sequence[graph.Topology],
    layout: Layout,
) -> Visits:
    """How often what was sent of a public sample is read.

    Raises:
      ConfigError: readers cannot keep what they have read, or samples cannot take turns.
    """
    count = config.exchange.cache
    if count == 1 or method.distillation is None:
        return Visits()
    accepted = ""
    steps = method.steps_shown(config.train.steps)
    if (method.distils(steps) != (steps % config.exchange.every == 0)).any():
        accepted = f"1: {config.method} distils at times of its own"
    elif config.exchange.mode == "stale":
        accepted = "1 with exchange.mode = stale, or exchange.mode = fresh: snapshots change"
    elif not all(topology.static for topology in topologies):
        accepted = (
            "1 with a graph that changes (graph.every, graph.peers_per_step, graph.drop): a new "
            "reader lacks what was sent before"
        )
    elif config.data.public_batch_size // layout.data_devices % count:
        share = config.data.public_batch_size // layout.data_devices
        accepted = f"a divisor of {share}, the public samples of a step and device"
    if accepted:
        raise ConfigError("exchange.cache", count, accepted)
    return Visits(count, config.exchange.every)


def make_attackers(
    config: ml_collections.ConfigDict, method: methods.Method, clients: Clients, visits: Visits
) -> attacks.Attackers | None:
    """Who lies about what the method sends, tried on shapes of it; see `attacks.make`."""
    chosen = method.distillation
    predictions = chosen is not None and bool(chosen.nu_pred)
    vectors = method.averaging is not None or chosen is not None and bool(chosen.nu_emb)
    liars = attacks.make(config, predictions=predictions, vectors=vectors)
    if liars is None:
        return None
    rows = config.data.public_batch_size // visits.count // clients.layout.data_devices
    heads = chosen.published_heads(clients.models[0].num_heads) if chosen else 0
    scores = (config.clients.num, rows, heads, clients.num_classes)
    liars.check(
        jax.ShapeDtypeStruct(scores, jnp.float32) if predictions else None,
        network_input(clients.sample, rows),
        [
            jax.ShapeDtypeStruct((config.clients.num, *shape), jnp.float32)
            for shape in _vectors(config, method, clients, rows)
        ],
    )
    return liars


def _vectors(
    config: ml_collections.ConfigDict, method: methods.Method, clients: Clients, rows: int
) -> list[tuple[int, ...]]:
    """The different shapes of what a client sends beside predictions."""
    found: set[tuple[int, ...]] = set()
    if method.distillation is not None and method.distillation.nu_emb:
        width = sent_width(config, method, clients)
        found |= {(rows, width or own) for own in clients.embedding_widths}
    if method.averaging is not None:  # of clients that are all alike
        sent = shapes.variable_shapes(clients.models[0], clients.sample)
        found |= {leaf.shape for leaf in jax.tree.leaves(sent)}
    return sorted(found)


def make_ledgers(
    config: ml_collections.ConfigDict,
    parts: StepParts,
    reader: exchange.Reader,
    clients: Clients,
    topologies: Sequence[graph.Topology],
) -> tuple[exchange.Ledger, ...]:
    """What every client sends, in bytes; one for each seed, as peers and attendance differ."""
    predictions, parameters = [], []
    widths = clients.embedding_widths
    for size, model, width in zip(parts.layout.groups, parts.models, widths, strict=True):
        variables = jax.tree.leaves(shapes.variable_shapes(model, clients.sample))
        parameters += [float(sum(leaf.size for leaf in variables))] * size  # statistics included
        heads = model.num_heads
        predictions += [_message_bytes(config, parts, reader, heads, width)] * size
    travels = parts.encoding.embedding_type if parts.method.averaging else jnp.float32
    shares = config.distill.publish_label_shares and parts.method.distillation is not None
    ledger = exchange.Ledger(
        predictions=np.asarray(predictions),
        snapshots=4.0 * np.asarray(parameters) / config.exchange.refresh_steps,
        fedavg=jnp.dtype(travels).itemsize * np.asarray(parameters) / config.average.every,
        method=parts.method,
        average_every=config.average.every,
        once=np.full(len(predictions), 4.0 * parts.num_classes if shares else 0.0),
    )
    attendances = parts.roster.attendances or (None,) * len(topologies)
    return tuple(
        dataclasses.replace(_of_read(ledger, topology), attendance=attendance)
        for topology, attendance in zip(topologies, attendances, strict=True)
    )


def _of_read(ledger: exchange.Ledger, topology: graph.Topology) -> exchange.Ledger:
    """Only what somebody may read; in a graph that changes, everything."""
    if topology.changes:
        return ledger
    reads = topology.at(0)
    if ledger.method.distillation is None:  # neighbours average both ways, whoever reads whom
        reads = reads | reads.T
    read = np.asarray(reads.any(axis=0))[: len(ledger.predictions)]  # a pooled model is one client
    return dataclasses.replace(
        ledger,
        predictions=ledger.predictions * read,
        snapshots=ledger.snapshots * read,
        fedavg=ledger.fedavg * read,
        once=ledger.once * read,
    )


def _message_bytes(
    config: ml_collections.ConfigDict,
    parts: StepParts,
    reader: exchange.Reader,
    heads: int,
    width: int,
) -> float:
    """Bytes of what a client with so many heads and such embeddings publishes in a step."""
    chosen = parts.method.distillation
    if chosen is None:
        return 0.0
    rows = config.data.public_batch_size // parts.visits.count
    rows *= max(reader(0, 1).versions.shape[1], 1)
    shape = (rows, chosen.published_heads(heads), parts.num_classes)
    width = (parts.embedding_width or width) if chosen.nu_emb else 0
    return float(exchange.message_bytes(parts.encoding, shape, width, chosen.publishes_energy))
