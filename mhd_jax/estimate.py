# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What a run would need, from the shapes of its arrays: no step is compiled or run.

Data is read only where a data set of the run is not in `KNOWN`.

    python -m mhd_jax.main --config=configs/imagenet.py --estimate --estimate_devices=8

An estimate for n devices is made on n virtual CPU devices, so a laptop will do for any run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jaxtyping import Array, Int
from numpy.typing import DTypeLike

from mhd_jax import config as config_lib
from mhd_jax import experiment as experiment_lib
from mhd_jax import federation
from mhd_jax.data import sources
from mhd_jax.data.feed import Entries, Feed, Resident, resident_bytes
from mhd_jax.errors import ConfigError
from mhd_jax.experiment import Experiment
from mhd_jax.inputs import Sample, network_input
from mhd_jax.models import bridge, shapes
from mhd_jax.parallel import IN_FLIGHT
from mhd_jax.state import State
from mhd_jax.step import StepParts
from mhd_jax.trees import Variables

GIB = 2**30

KNOWN = {  # classes, stored shape (0 = differs), training and test samples
    "digits": (10, (8, 8, 1), 1297, 500),
    "cifar10": (10, (32, 32, 3), 50_000, 10_000),
    "cifar100": (100, (32, 32, 3), 50_000, 10_000),
    "tiny_imagenet32": (200, (32, 32, 3), 100_000, 10_000),
    "imagenet2012": (1000, (0, 0, 3), 1_281_167, 50_000),
}


class Unread(sources.Split):
    """Samples that are only counted: labels in turn, no images.

    Args:
      size: number of samples.
      num_classes: C.
      image_shape: of what `images` would return.
      dtype: likewise.
    """

    def __init__(
        self, size: int, num_classes: int, image_shape: sources.Shape, dtype: DTypeLike = np.uint8
    ) -> None:
        self._labels = np.arange(size, dtype=np.int32) % num_classes
        self.image_shape = image_shape
        self.dtype = np.dtype(dtype)

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """See `Split`."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, indices: Int[np.ndarray, " n"]) -> Iterator[np.ndarray]:
        """See `Split`; black images."""
        return (np.zeros(self.image_shape, self.dtype) for _ in indices)


def data_sets(config: ml_collections.ConfigDict) -> federation.DataSets | None:
    """Unread stand-ins for the data sets of a config; None where one is not in `KNOWN`."""
    names = [config.data.name, *filter(None, [config.data.public_name])]
    if not all(name in KNOWN for name in names):
        return None
    num_classes, stored, train, test = KNOWN[config.data.name]
    side = config.data.image_size
    shape = (side or stored[0], side or stored[1], stored[2])
    if not all(shape):
        raise ConfigError("data.image_size", side, "a size in pixels, as stored images differ")
    exact = np.float32 if config.data.name == "digits" and not side else np.uint8
    kept = len(range(train)[sources.part(config.data.split, train)])
    source = sources.Source(
        name=config.data.name,
        class_names=tuple(map(str, range(num_classes))),
        train=Unread(kept, num_classes, shape, exact),
        test=Unread(test, num_classes, shape, exact),
        mean=(0.5,) * shape[2],
        std=(0.25,) * shape[2],
    )
    source = sources.first_classes(source, config.data.num_classes)
    if not config.data.public_name:
        return source, None
    return source, Unread(KNOWN[config.data.public_name][2], 1, shape)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
      layout: clients and devices in words.
      feed: which feed and why.
      parameters: of each client, [K].
      state: bytes a device, parameters and optimiser of clients, isolated baseline and snapshots.
      waiting: bytes of the host, the state of all clients where it lies there between steps.
      gradients: bytes a device.
      data: bytes a device, images that stay or that come for the steps on their way.
      activations: bytes a device, what forward passes keep for the backward pass; a bound from
        above, as a compiler may order the clients one after another.
      published: bytes a device, predictions and embeddings of all clients, or of its own and those
        that arrive.
      flops: floating-point operations a step and device, of the program before optimisation.
      sent: bytes a step that all clients of one seed together send, mean over the run.
      memory: bytes of one device, what the estimate is for.
    """

    layout: str
    feed: str
    parameters: tuple[int, ...]
    state: int
    waiting: int
    gradients: int
    data: int
    activations: int
    published: int
    flops: float
    sent: float
    memory: int

    @property
    def total(self) -> int:
        """Bytes a device."""
        return self.state + self.gradients + self.data + self.activations + self.published

    @property
    def fits(self) -> bool:
        """Whether that is at most the memory of a device."""
        return self.total <= self.memory

    def describe(self) -> str:
        """The lines that ``--estimate`` prints."""
        sizes = sorted(set(self.parameters))
        parts = ("state", "gradients", "data", "activations", "published")
        lines = [
            self.layout,
            self.feed,
            "parameters of a client   " + " to ".join(f"{size:,}" for size in sizes),
            f"FLOPs a step and device  {self.flops:.3g}",
            f"sent a step, all clients {self.sent / 2**20:,.2f} MiB",
            *(f"{name:<24} {getattr(self, name) / GIB:8.3f} GiB a device" for name in parts),
            f"{'in all':<24} {self.total / GIB:8.3f} GiB a device",
            f"{'fits' if self.fits else 'does not fit'} {self.memory / GIB:.1f} GiB a device",
        ]
        if self.waiting:
            lines.append(f"{'waiting':<24} {self.waiting / GIB:8.3f} GiB of the host")
        return "\n".join(lines)


def on_devices(config: ml_collections.ConfigDict, devices: int, memory_gib: float) -> Estimate:
    """`estimate` for so many devices; to be called before anything uses JAX's devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    return estimate(config, int(memory_gib * GIB))


def estimate(config: ml_collections.ConfigDict, memory: int) -> Estimate:
    """What a run needs on all devices of this process.

    Args:
      config: see `mhd_jax.config.default_config`; if one of its data sets is not in `KNOWN`, the
        data is read.
      memory: bytes of one device.

    Raises:
      ConfigError: a setting that cannot work, as when the run is started.
    """
    changed = config.copy_and_resolve_references()
    # Convolutions in the form that is quickest to trace: the operations are the same.
    config_lib.update(changed, {"parallel.conv_lowering": "grouped"})
    experiment = experiment_lib.build(changed, data_sets(changed), memory)
    layout, parts = experiment.layout, experiment.parts
    state = experiment.seated_shapes()
    counted = len(parts.method.steps_shown(config.train.steps))
    # What every reader keeps: the average of alignment, and what it was sent.
    rows, routes = layout.client_devices, parts.routes
    everywhere = tree_bytes(state.marginals) // (rows if routes else 1)
    everywhere += tree_bytes(state.cache) // layout.data_devices
    arriving = routes.table.shape[1] / layout.num_clients if routes else _share(parts)
    return Estimate(
        layout=experiment.mesh,
        feed=experiment.feed.why,
        parameters=tuple(experiment.num_params),
        state=everywhere
        + sum(map(tree_bytes, (state.clients, state.baseline, state.pool))) // rows,
        waiting=tree_bytes(experiment.init_state(abstract=True)) if experiment.memory else 0,
        gradients=_gradient_bytes(parts, state),
        data=_data_bytes(experiment),
        activations=_activations(experiment),
        published=round(experiment.ledger.predictions.sum() * arriving * parts.replicas),
        flops=_flops(experiment, state),
        sent=experiment.ledger.sent(counted) / counted,
        memory=memory,
    )


def _share(parts: StepParts) -> float:
    """The share of all clients that take part in a step at most."""
    return parts.places.num_clients / parts.layout.num_clients


def _gradient_bytes(parts: StepParts, state: State) -> int:
    """Bytes a device: gradients of those who take part, and what a step gathers of their state."""
    learners = (*state.clients, *state.baseline)
    whole = sum(tree_bytes(group.params) for group in learners)
    if parts.brought:
        return whole // parts.layout.client_devices
    if parts.roster.attendances:
        whole += sum(map(tree_bytes, learners))
    return round(whole * _share(parts)) // parts.layout.client_devices


def tree_bytes(tree: object) -> int:
    """Bytes of all arrays in a tree of shapes."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _data_bytes(experiment: Experiment) -> int:
    """Images on the fullest device: all of them, or those of calls dispatched and of the next."""
    feed, layout = experiment.feed, experiment.layout
    if isinstance(feed, Resident):
        return resident_bytes(feed, layout)
    private, public = feed.input_shapes(experiment.parts.steps_per_call)
    share = tree_bytes(private) // layout.client_devices + tree_bytes(public)
    return (IN_FLIGHT + 1) * share // layout.data_devices


def _activations(experiment: Experiment) -> int:
    """What forward passes keep: private, public, both where batches normalise, and baseline's."""
    config, layout, parts = experiment.config, experiment.layout, experiment.parts
    sample, total = experiment.sample, 0
    private = config.data.batch_size // layout.data_devices
    public = config.data.public_batch_size // layout.data_devices
    for rows, model in zip(parts.places.rows, parts.models, strict=True):
        one = saved_bytes(model, sample, private)
        if parts.method.distillation:
            one += saved_bytes(model, sample, public, train=False)
            if shapes.has_statistics(model, sample):
                one += saved_bytes(model, sample, private + public)
        total += one * rows
    several = bool(parts.baseline_models)
    for rows, model in zip(parts.places.rows, parts.baseline_models, strict=several):
        total += saved_bytes(model, sample, private) * rows
    return total * parts.replicas // layout.client_devices


def saved_bytes(model: nn.Module, sample: Sample, batch_size: int, train: bool = True) -> int:
    """Bytes that one client's forward pass keeps for the backward pass, parameters not counted.

    Args:
      model: the client's network.
      sample: shape of a sample, or its shape and type.
      batch_size: samples of the pass.
      train: whether dropout and statistics of the batch are those of training.
    """
    # What does not depend on the batch, parameters above all, cancels in the difference.
    twice, once = (_kept_bytes(model, sample, n * batch_size, train) for n in (2, 1))
    return twice - once


def _kept_bytes(model: nn.Module, sample: Sample, batch_size: int, train: bool) -> int:
    """Bytes of the backward pass's inputs, whatever they are."""
    batch = network_input(sample, batch_size)
    variables = shapes.variable_shapes(model, sample, batch_size)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def residuals(params: Variables, rest: Variables, x: Array, key: Array) -> object:
        def forward(params: Variables) -> object:
            both, rngs = {"params": params, **rest}, bridge.keys(key) if train else None
            # New statistics are left out: no gradient passes through them.
            return model.apply(
                both, x, train=train, renormalise=not train, rngs=rngs, mutable=["batch_stats"]
            )[0]

        return jax.vjp(forward, params)[1]

    return tree_bytes(jax.eval_shape(residuals, params, rest, batch, jax.random.key(0)))


class _Shapes:
    """A feed that gives shapes.

    Args:
      feed: the feed that would be used.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def inputs(self, start: int, stop: int) -> Entries:
        """See `Feed.inputs`."""
        return self._feed.input_shapes(stop - start)


def _flops(experiment: Experiment, state: State) -> float:
    """Floating-point operations of one step on one device, from the traced program."""
    feed = experiment.feed
    bare: Any = _Shapes(feed)
    # Without a loop, whose operations are counted once however often it runs.
    one_step = dataclasses.replace(experiment.parts, steps_per_call=1)
    lowered = dataclasses.replace(experiment, parts=one_step).step.lower(
        state,
        feed.data_shapes(),
        dataclasses.replace(experiment.schedule, feed=bare).host_inputs(0, 1),
        jax.ShapeDtypeStruct((len(experiment.seeds),), np.uint32),
        jax.ShapeDtypeStruct((), np.int32),
    )
    return float((lowered.cost_analysis() or {}).get("flops", math.nan))
