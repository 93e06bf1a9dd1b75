# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What leaves a client, read from the compiled program.

    python -m mhd_jax.audit --config=configs/digits.py --devices=4

compiles the training step for n CPU devices and lists every instruction that moves data between
devices: operation, axis of the mesh, shape, bytes and what it carries. Under MHD that is published
predictions and embeddings; a method that averages parameters is told to send them.

The evidence is the optimised program that XLA would run, not the source: a collective that somebody
adds, or that the compiler inserts, is in the list. What it carries is told from its type and size
against the shapes of everything a run has; what fits nothing, or occurs more often than it should,
is not explained away but counts against the verdict.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

import jax
import ml_collections
import numpy as np

from mhd_jax import distill
from mhd_jax import experiment as experiment_lib
from mhd_jax.edges import UNROLLED
from mhd_jax.experiment import Experiment
from mhd_jax.models import shapes
from mhd_jax.models.classifier import MultiHeadClassifier
from mhd_jax.parallel import CLIENTS, DATA, Layout

PREDICTIONS, EMBEDDINGS = "published predictions", "published embeddings"
PARAMETERS, STATISTICS = "parameters or their gradients", "batch statistics"
OPTIMIZER, PRIVATE, METRICS = "optimiser state", "private data", "metrics"
MEANS = "means of predictions over the public batch"
PUBLIC = "public data"
UNKNOWN = "unexplained"
AVERAGES = "averages of published predictions"
PUBLISHED = (PREDICTIONS, EMBEDDINGS, AVERAGES)

_OPERATIONS = (
    "all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all",
    "ragged-all-to-all", "collective-broadcast", "send", "recv", "infeed", "outfeed",
)  # fmt: skip
_INSTRUCTION = re.compile(
    rf"= (?P<type>\([^=]*?\)|\S+) (?P<operation>{'|'.join(_OPERATIONS)})(?:-start)?\((?P<rest>.*)"
)
_CALLBACK = re.compile(r"= (?P<type>\([^=]*?\)|\S+) custom-call\(.*callback")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4,
          "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
    """Element type, as XLA names it, and dimensions.

    >>> str(Shape("f32", (4, 8)))
    'f32[4,8]'
    """

    dtype: str
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Size in bytes; 0 for tokens."""
        return self.size * _BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array that an instruction moves between devices.

    Attributes:
      operation: XLA's name, for example "all-gather".
      shape: the array's, as every receiving device holds it.
      groups: devices that exchange with each other, by their place on the mesh, row by row;
        None for all, or where the program does not say.
    """

    operation: str
    shape: Shape
    groups: tuple[tuple[int, ...], ...] | None

    def axis(self, layout: Layout) -> str:
        """`DATA` when only devices of the same clients exchange, else `CLIENTS`."""
        everyone = (tuple(range(layout.mesh.size)),)
        of_clients = lambda device: device // layout.data_devices  # noqa: E731
        inside = all(len({of_clients(device) for device in group}) == 1
                     for group in self.groups or everyone)  # fmt: skip
        return DATA if inside else CLIENTS


@dataclasses.dataclass(frozen=True)
class Finding:
    """A collective, the axis it runs over and what it carries."""

    collective: Collective
    axis: str
    carries: str

    @property
    def leaks(self) -> bool:
        """Whether it takes something out of a client that is not published."""
        return self.axis == CLIENTS and self.carries not in PUBLISHED


@dataclasses.dataclass(frozen=True)
class Audit:
    """The findings about one step of `experiment` and the verdict on them."""

    experiment: Experiment
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing leaves a client that is not in `PUBLISHED`."""
        return not any(finding.leaks for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One sentence."""
        layout, method = self.experiment.layout, self.experiment.config.method
        if layout.client_devices == 1:
            return (
                "VERDICT: all clients share one device, so the program has nothing to show; "
                "give more devices"
            )
        leaving = sorted({f.carries for f in self.findings if f.axis == CLIENTS})
        if not leaving and self.experiment.parts.routes:
            return (
                "VERDICT: all peers of a client share its device, so the program has nothing to "
                "show; give more devices"
            )
        if not leaving:
            return f"VERDICT: under {method} nothing at all leaves a client"
        if self.clean:
            return (
                f"VERDICT: under {method} only {' and '.join(leaving)} leave a client: "
                f"no data, no weights, no weight updates{self._beforehand}"
            )
        leaks = [finding for finding in self.findings if finding.leaks]
        moved = sum(finding.collective.shape.nbytes for finding in leaks)
        names = " and ".join(sorted({finding.carries for finding in leaks}))
        return (
            f"VERDICT: under {method} {names} leave a client: {len(leaks)} arrays, {moved:,} bytes"
        )

    @property
    def _beforehand(self) -> str:
        """What clients tell before the run, which no collective of the step carries."""
        told = self.experiment.schedule.label_shares is not None
        return ". Before it starts, each also tells its label distribution" if told else ""

    def __str__(self) -> str:
        header = ("operation", "axis", "shape", "bytes", "carries", "times")
        counted = collections.Counter(self.findings)
        rows = [
            (f.collective.operation, f.axis, str(f.collective.shape),
             f"{f.collective.shape.nbytes:,}", f.carries, str(times))
            for f, times in counted.items()
        ]  # fmt: skip
        lines = [f"{self.experiment.config.method}: {self.experiment.mesh}"]
        lines += _table([header, *rows]) if rows else ["no collectives at all"]
        return "\n".join([*lines, self.verdict])


def audit(experiment: Experiment) -> Audit:
    """Compiles the step of an experiment and explains every collective in it."""
    return explain(experiment, parse(compiled_text(experiment)))


def compiled_text(experiment: Experiment) -> str:
    """The optimised program of the step; nothing is run and no state is made."""
    return experiment.step.lower(*abstract_arguments(experiment)).compile().as_text()


def abstract_arguments(experiment: Experiment) -> tuple[object, ...]:
    """Shapes and shardings of what the step takes: state, data, inputs, seeds, count."""
    layout = experiment.layout
    state = experiment.seated_shapes()
    inputs = experiment.schedule.inputs(0, experiment.parts.steps_per_call)
    rest = (experiment.feed.data, inputs, experiment.seed_array, layout.put(np.int32(1)))
    here = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)  # noqa: E731
    return (state, *jax.tree.map(here, rest))


# --- Reading the program --------------------------------------------------------------------------


def parse(text: str) -> list[Collective]:
    """Every array that an instruction of a compiled program moves between devices, or to the host.

    Args:
      text: the program as HLO text.

    >>> parse("%x = f32[4,8]{1,0} all-gather(%y), replica_groups={{0,1},{2,3}}, dimensions={0}")
    [Collective(operation='all-gather', shape=Shape(dtype='f32', dims=(4, 8)),
     groups=((0, 1), (2, 3)))]
    """
    found = []
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        match, operation = _INSTRUCTION.search(line), None
        if match is not None:
            operation = match["operation"]
        elif (match := _CALLBACK.search(line)) is not None:
            operation = "host callback"
        if match is None or operation is None:
            continue
        groups = _groups(line)
        for dtype, dims in _SHAPE.findall(match["type"]):
            shape = Shape(dtype, tuple(int(n) for n in dims.split(",") if n))
            found.append(Collective(operation, shape, groups))
    return found


def _groups(line: str) -> tuple[tuple[int, ...], ...] | None:
    """Devices that exchange, from either notation; None where there is no list of them."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]+\})\}", line)
    if listed:
        return tuple(
            tuple(int(n) for n in group.split(","))
            for group in re.findall(r"\{([\d,]+)\}", listed[1])
        )
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota is None:
        return None
    shape, dims, order = ([int(n) for n in part.split(",")] if part else None
                          for part in iota.groups())  # fmt: skip
    grid = np.arange(math.prod(dims or ())).reshape(dims)
    return tuple(map(tuple, grid.transpose(order).reshape(shape).tolist()))


# --- What it carries ------------------------------------------------------------------------------


def explain(experiment: Experiment, found: Iterable[Collective]) -> Audit:
    """Names what each collective carries.

    Across clients, a collective counts as published only as often as the method publishes an array
    of that type and size; whatever is over counts as what else has that size, or as unexplained.
    """
    layout = experiment.layout
    published = collections.Counter(_published(experiment))
    delivers = "collective-permute" if experiment.parts.routes else "all-gather"
    across, inside = (_holdings(experiment, gathered) for gathered in (True, False))
    findings = []
    for collective in found:
        axis, key = collective.axis(layout), (collective.shape.dtype, collective.shape.size)
        kinds = PUBLISHED if axis == CLIENTS and collective.operation == delivers else ()
        carries = next((kind for kind in kinds if published[kind, *key] > 0), None)
        if carries is None:
            carries = (across if axis == CLIENTS else inside).get(key, UNKNOWN)
        else:
            published[carries, *key] -= 1
        findings.append(Finding(collective, axis, carries))
    return Audit(experiment, tuple(findings))


def _published(experiment: Experiment) -> Iterator[tuple[str, str, int]]:
    """What the method publishes in a step: (kind, type, elements) of every array that arrives."""
    parts, config = experiment.parts, experiment.config
    chosen = parts.method.distillation
    if chosen is None:
        return
    versions = max(experiment.readers[0](0, 1).versions.shape[1], 1)
    sent = config.data.public_batch_size // parts.visits.count
    samples = sent // parts.layout.data_devices * versions
    for rows, model in zip(parts.places.rows, parts.models, strict=True):
        arriving = [rows]
        if parts.routes is not None:
            arriving = [listed.shape[1] for listed in parts.routes.sends.values()]
        for messages in arriving:
            lead = (parts.replicas, messages, samples)
            yield from _message(experiment, model, lead)
            if parts.routes is not None and chosen.aligns:
                heads = chosen.published_heads(model.num_heads)
                yield AVERAGES, "f32", math.prod(lead[:2]) * heads * parts.num_classes


def _message(
    experiment: Experiment, model: MultiHeadClassifier, lead: tuple[int, int, int]
) -> Iterator[tuple[str, str, int]]:
    """The arrays of messages [R, messages, samples] of clients with that network."""
    parts = experiment.parts
    chosen = parts.method.distillation
    assert chosen is not None
    travels = np.dtype(parts.encoding.embedding_type)
    dtype = "u16" if travels.itemsize == 2 else _dtype(travels)
    if chosen.nu_pred:
        heads = chosen.published_heads(model.num_heads)
        scores = jax.ShapeDtypeStruct((*lead, heads, parts.num_classes), np.float32)
        for part in jax.eval_shape(parts.encoding.encode, scores):
            yield PREDICTIONS, _dtype(part), part.size
        if chosen.publishes_energy:
            yield PREDICTIONS, dtype, math.prod(lead) * heads
    if chosen.nu_emb:
        width = parts.embedding_width or shapes.embedding_width(model, experiment.sample)
        yield EMBEDDINGS, dtype, math.prod(lead) * width


def _holdings(experiment: Experiment, gathered: bool) -> dict[tuple[str, int], str]:
    """What clients hold, by (type, elements): of all clients' rows, or one device's.

    Where two things have the same type and size the more private one is told.
    """
    parts = 1 if gathered else experiment.layout.client_devices
    state = experiment.seated_shapes()
    learners = (*state.clients, *state.baseline)
    named: list[tuple[str, object]] = [
        (METRICS, _metric_shapes(experiment)),
        (OPTIMIZER, [group.opt_state for group in learners]),
        (STATISTICS, [group.stats for group in learners]),
        (PARAMETERS, [group.params for group in learners]),
        (PARAMETERS, state.pool),
        (PRIVATE, _private_shapes(experiment)),
    ]
    held = {}
    for name, tree in named:
        for leaf in jax.tree.leaves(tree):
            held[_dtype(leaf), leaf.size // parts] = name
            # One client's leaf alone: what a reduction over clients leaves.
            held.setdefault((_dtype(leaf), leaf.size // leaf.shape[1]), name)
    if experiment.parts.method.averaging:  # as they travel, perhaps
        for leaf in jax.tree.leaves([group.params for group in state.clients]):
            held.setdefault(("u16", leaf.size // parts), PARAMETERS)
    if not gathered:  # devices that share a public batch average over it
        for size in _mean_sizes(experiment):
            held.setdefault(("f32", size), MEANS)
        chosen = experiment.parts.method.distillation
        if chosen is not None and chosen.mixup:  # a border's samples go on to the next device
            passed_on = experiment.parts.replicas * experiment.parts.visits.count
            held.setdefault(("f32", passed_on * math.prod(experiment.image_shape)), PUBLIC)
    return held


def _mean_sizes(experiment: Experiment) -> Iterator[int]:
    """Numbers in what alignment, energies and screening average over the public batch."""
    parts = experiment.parts
    chosen = parts.method.distillation
    if chosen is None or not chosen.nu_pred:
        return
    snapshots = experiment.readers[0](0, 1).versions.shape[1]
    versions = max(snapshots, 1)
    heads = chosen.published_heads(parts.models[0].num_heads)
    clients = parts.replicas * parts.places.num_clients
    students = [rows // parts.layout.client_devices for rows in parts.places.rows]
    if chosen.alignment:
        yield clients * versions * heads * parts.num_classes
        if snapshots:  # what students say themselves is aligned beside them
            yield from (parts.replicas * rows * heads * parts.num_classes for rows in students)
    if chosen.publishes_energy:
        for rows, model in zip(students, parts.models, strict=True):
            yield parts.replicas * rows * model.num_heads
    if chosen.screening:
        width = distill.compared_width(parts.num_classes)
        for rows in students:
            in_front = rows if chosen.include_self and snapshots else 0
            publishers = parts.places.num_clients * versions + in_front
            yield from (parts.replicas * size for size in _view_sizes(rows, 1, width))
            yield from (parts.replicas * size for size in _view_sizes(publishers, heads, width))
            yield from (
                parts.replicas * count * width**2
                for count in (publishers * (heads - 1), *_pairs_at_once(rows, publishers))
            )


def _view_sizes(rows: int, heads: int, width: int) -> tuple[int, ...]:
    """Numbers in the means, variances and second moments of `distill.views`."""
    return tuple(rows * heads * each for each in (width, 1, width**2))


def _pairs_at_once(students: int, publishers: int) -> tuple[int, ...]:
    """Pairs of a student and a publisher that `distill.heard` looks at together."""
    left = publishers % UNROLLED
    return tuple(students * some for some in (1, UNROLLED, left))


def _metric_shapes(experiment: Experiment) -> Sequence[object]:
    """Losses of all clients [R, K] and of all their taught heads [R, K, m]."""
    places, aux = experiment.parts.places, max(experiment.config.heads.aux, 1)
    make = functools.partial(jax.ShapeDtypeStruct, dtype=np.float32)
    lead = [(experiment.parts.replicas, rows) for rows in places.rows]
    return [(make(shape), make((*shape, aux))) for shape in lead]


def _private_shapes(experiment: Experiment) -> Sequence[object]:
    """Private images and labels: whole sets as stored, and batches, stored or normalised."""
    config, source = experiment.config, experiment.federations[0].source
    stored = source.train.images(np.zeros(1, np.int64)).dtype
    longest = max(int(fed.partition.sizes.max()) for fed in experiment.federations)
    found = []
    for rows in {*experiment.layout.rows, *experiment.parts.places.rows}:
        for count in (longest, config.data.batch_size // experiment.layout.data_devices):
            lead = (experiment.parts.replicas, rows, count)
            found.append(jax.ShapeDtypeStruct(lead, np.int32))
            for dtype in (stored, np.float32):
                found.append(jax.ShapeDtypeStruct((*lead, *source.image_shape), dtype))
    return found


def _dtype(x: jax.Array | jax.ShapeDtypeStruct | np.dtype) -> str:
    """XLA's name of an array's or NumPy's type."""
    dtype = np.dtype(getattr(x, "dtype", x))
    names = {"bool": "pred", "bfloat16": "bf16", "float": "f", "uint": "u", "int": "s"}
    return next(
        dtype.name.replace(long, short) for long, short in names.items() if long in dtype.name
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# --- Command line ---------------------------------------------------------------------------------


def main(config: ml_collections.ConfigDict, devices: int, strict: bool) -> int:
    """Prints the audit of `config` on `devices` CPU devices; the exit status.

    With `strict` it is 1 where anything but published predictions and embeddings leaves a client.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    result = audit(experiment_lib.build(config))
    print(result)
    return int(strict and not result.clean)


def run() -> None:
    """Entry point with absl's flags, defined here so that importing the module defines none."""
    from absl import app, flags, logging

    from mhd_jax import command

    config = command.define_config("As for mhd_jax.main.")
    devices = flags.DEFINE_integer("devices", 4, "CPU devices to compile for.", lower_bound=1)
    strict = flags.DEFINE_bool("strict", False, "Exit status 1 where more than predictions leaves.")

    def start(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        logging.set_verbosity(logging.WARNING)
        with command.told_in_one_line("stopped; an audit writes nothing"):
            sys.exit(main(config.value, devices.value, strict.value))

    app.run(start, flags_parser=command.parse_flags)


if __name__ == "__main__":
    run()
