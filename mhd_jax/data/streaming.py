# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Samples read while training goes on, for data that does not fit on the devices.

Grain reads the batches of coming steps ahead on threads or in worker processes. What a step reads
is a function of (seed, step) alone, the same as with resident data, so a run resumes at any step
without reading what came before. A process reads the private images of its own clients only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from absl import flags
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Shaped, UInt8
from PIL import Image

from mhd_jax import rng
from mhd_jax.data import batches
from mhd_jax.data.feed import DeviceData, Entries, Preparation
from mhd_jax.data.order import Federation, SampleOrder
from mhd_jax.data.sources import Split, fit
from mhd_jax.data.sources.interface import to_pillow
from mhd_jax.errors import ConfigError
from mhd_jax.inputs import Batch, StepInputs
from mhd_jax.parallel import CLIENTS, DATA
from mhd_jax.participation import Attendance
from mhd_jax.registry import Registry

if TYPE_CHECKING:
    import grain

HostBatch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Private images [R, k, B, ...] and labels [R, k, B], public images [R, B', ...], of one step."""

STEPS_AHEAD = 4
THREADS = 4

# --- Augmentation on the host ---------------------------------------------------------------------

HostAugment = Callable[
    [np.random.Generator, UInt8[np.ndarray, "h w c"], Sequence[int]], UInt8[np.ndarray, "H W C"]
]
"""``(draws of the sample, image at its stored size, shape to deliver) -> image``."""

HOST_AUGMENTS: Registry[HostAugment] = Registry("data.augment", group="data.augment.host")


@HOST_AUGMENTS.register("random_resized_crop")
def random_resized_crop(
    draw: np.random.Generator, image: UInt8[np.ndarray, "h w c"], shape: Sequence[int]
) -> UInt8[np.ndarray, "H W C"]:
    """A random part of the image at a random aspect ratio, resized; half of them mirrored.

    Area uniform in 8 % to 100 %, logarithm of the aspect ratio uniform in 3/4 to 4/3, the centre
    where ten draws do not fit. Source: C. Szegedy et al., "Going Deeper with Convolutions", 2015,
    https://arxiv.org/abs/1409.4842, section 6.

    >>> picture = np.zeros((40, 30, 3), np.uint8)
    >>> random_resized_crop(np.random.default_rng(0), picture, (8, 8, 3)).shape
    (8, 8, 3)
    """
    height, width = image.shape[:2]
    mirror = draw.random() < 0.5
    for _ in range(10):
        area = draw.uniform(0.08, 1.0) * height * width
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top = int(draw.integers(height - tall + 1))
            left = int(draw.integers(width - wide + 1))
            image = image[top : top + tall, left : left + wide]
            break
    else:
        image = fit(image, (min(height, width),) * 2 + (image.shape[2],))
    resized = _resize(image, shape)
    return resized[:, ::-1] if mirror else resized


def _resize(image: UInt8[np.ndarray, "h w c"], shape: Sequence[int]) -> np.ndarray:
    """The whole image at another size, antialiased bilinear."""
    height, width, channels = shape
    picture = to_pillow(image, channels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


# --- Reading --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StepReader:
    """Random access to the batches of steps, for Grain; holds nothing of JAX.

    Attributes:
      federations: one per replica.
      clients: whose private samples are read; or which places of a step are, where not everybody
        takes part.
      batch_size: private samples of a client.
      public_batch_size: public samples.
      visits: how long these stay.
      augment: a name in `HOST_AUGMENTS`, or "" for images as resident data has them.
      attendances: who takes part in a step, one per replica; () for everybody.
    """

    federations: Sequence[Federation]
    clients: Sequence[int]
    batch_size: int
    public_batch_size: int
    visits: batches.Visits
    augment: str = ""
    attendances: Sequence[Attendance] = ()

    def __len__(self) -> int:
        return 2**31 - 1  # steps; Grain needs an end

    def __getitem__(self, step: int) -> HostBatch:
        """The batch of one step."""
        images, labels, public = [], [], []
        for number, fed in enumerate(self.federations):
            clients = self.clients
            if self.attendances:
                clients = self.attendances[number].places(step)[list(clients)].tolist()
            rows = [self._private(fed, client, step) for client in clients]
            images.append(np.stack([row[0] for row in rows]))
            labels.append(np.stack([row[1] for row in rows]))
            public.append(self._public(fed, step))
        return np.stack(images), np.stack(labels), np.stack(public)

    def _private(self, fed: Federation, client: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        if client < 0:  # nobody is at this place
            shape = (self.batch_size, *fed.source.image_shape)
            labels = np.zeros(self.batch_size, np.int32)
            return np.zeros(shape, fed.source.train.dtype), labels
        owned = fed.partition.indices[client]
        walk = batches.batch_indices(
            fed.seed, "private", client, len(owned), self.batch_size, step, step + 1
        )[0]
        train = fed.source.train
        draws = [(fed.seed, "augment private", step, client, at) for at in range(len(walk))]
        return self._images(train, owned[walk], draws), train.labels[owned[walk]].astype(np.int32)

    def _public(self, fed: Federation, step: int) -> np.ndarray:
        size = len(fed.public_indices)
        walk = batches.public_indices(
            fed.seed, size, self.public_batch_size, self.visits, step, step + 1
        )[0]
        came = zip(*self.visits.origin(step, np.arange(len(walk))), strict=True)
        draws = [(fed.seed, "augment public", int(when), 0, int(at)) for when, at in came]
        return self._images(fed.public, fed.public_indices[walk], draws)

    def _images(
        self,
        split: Split,
        indices: Int[np.ndarray, " B"],
        draws: Sequence[tuple[int, str, int, int, int]],
    ) -> Shaped[np.ndarray, "B H W C"]:
        """Images as the device gets them; every sample has draws of its own by its position."""
        if not self.augment:
            return split.images(indices)
        change = HOST_AUGMENTS.get(self.augment)
        return np.stack(
            [
                change(rng.generator(*drawn), image, split.image_shape)
                for drawn, image in zip(draws, split.read(indices), strict=True)
            ]
        )


# --- The feed -------------------------------------------------------------------------------------


class Streaming:
    """Implements `feed.Feed` with images that arrive with the inputs of every step.

    Args:
      order: the order of samples.
      preparation: what happens to them on the device.
      augment: a name in `HOST_AUGMENTS`, or "".
      workers: processes that read; 0 reads on threads of this process.

    Attributes:
      why: what made this feed the chosen one, for people.
      seconds_waiting: how long `inputs` has waited for images so far.

    Raises:
      ConfigError: an augmentation of the host on images that are not stored as uint8.
    """

    def __init__(
        self, order: SampleOrder, preparation: Preparation, augment: str = "", workers: int = 0
    ) -> None:
        splits = [s for fed in order.federations for s in (fed.source.train, fed.public)]
        if augment and any(split.dtype != np.uint8 for split in splits):
            raise ConfigError("data.augment", augment, "images stored with 8 bits a channel")
        self._order = order
        self._preparation = preparation
        self._layout, places = order.layout, order.roster.places
        self._clients = places.local_clients()
        self._reader = StepReader(
            order.federations, self._clients, order.batch_size, order.public_batch_size,
            order.visits, augment, order.roster.attendances,
        )  # fmt: skip
        self._workers = workers
        self._iterator: grain.DatasetIterator[HostBatch] | None = None
        self._next = -1  # the step that the iterator gives next
        self._read: dict[int, HostBatch] = {}  # steps of the last call: the next may end early
        self.seconds_waiting = 0.0
        self.why = "data.feed = streaming"

    @functools.cached_property
    def data(self) -> DeviceData:
        """No images stay on the devices, only how they are normalised."""
        return {"statistics": self._layout.put(self._preparation.statistics)}

    def data_shapes(self) -> DeviceData:
        """Of the statistics."""
        statistics = self._preparation.statistics
        return {"statistics": jax.ShapeDtypeStruct(statistics.shape, statistics.dtype)}

    def data_specs(self) -> DeviceData:
        """Everywhere."""
        return {"statistics": P()}

    def inputs(self, start: int, stop: int) -> Entries:
        """Images and labels of steps start..stop - 1, [n, R, K, B, ...], and public images."""
        begin = time.monotonic()
        self._read = {step: batch for step, batch in self._read.items() if step >= start}
        for step in range(start, stop):
            if step not in self._read:
                self._read[step] = self._read_step(step)
        self.seconds_waiting += time.monotonic() - begin
        steps = [self._read[step] for step in range(start, stop)]
        images, labels, public = (np.stack(part) for part in zip(*steps, strict=True))
        private = zip(self._groups(images), self._groups(labels), strict=True)
        return tuple(private), public

    def _read_step(self, step: int) -> HostBatch:
        if self._iterator is None or step != self._next:
            if self._iterator is not None:
                self._iterator.close()
            self._iterator = self._start(step)
        self._next = step + 1
        return next(self._iterator)

    def _start(self, step: int) -> grain.DatasetIterator[HostBatch]:
        """Begins to read ahead from a step on."""
        import grain  # half a second, which runs on resident data need not pay

        threads = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=STEPS_AHEAD)
        steps = grain.MapDataset.source(self._reader).slice(slice(step, None))
        dataset = steps.to_iter_dataset(threads)
        if self._workers:
            _check_workers_start(self._workers)
            if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, from Python too
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return iter(dataset)

    def _groups(self, local: np.ndarray) -> tuple[np.ndarray, ...]:
        """[n, R, k, B, ...] of this process's clients to all clients' padded rows per group.

        Rows of clients that live elsewhere stay untouched zeros, which take no memory.
        """
        places = self._order.roster.places
        if len(self._clients) == places.num_clients:
            return places.split(local, axis=2)
        shape = (*local.shape[:2], places.num_clients, *local.shape[3:])
        everyone = np.zeros(shape, local.dtype)
        everyone[:, :, self._clients] = local
        return places.split(everyone, axis=2)

    def input_shapes(self, count: int) -> Entries:
        """Shapes and types of `inputs` for `count` steps, nothing read."""
        first, order = self._order.federations[0], self._order
        lead = (count, len(order.federations))
        train, public = first.source.train, first.public

        def images(split: Split, *shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*lead, *shape, *split.image_shape), split.dtype)

        private = tuple(
            (
                images(train, rows, order.batch_size),
                jax.ShapeDtypeStruct((*lead, rows, order.batch_size), np.int32),
            )
            for rows in self._order.roster.places.rows
        )
        return private, images(public, order.public_batch_size)

    def input_specs(self) -> Entries:
        """Clients over devices, batches over the data axis."""
        rows = P(None, None, CLIENTS, DATA)
        return ((rows, rows),) * len(self._layout.groups), P(None, None, DATA)

    def load(self, data: DeviceData, inputs: StepInputs, seed: Array, step: Array) -> Batch:
        """Augments and normalises what came with the inputs."""
        images, statistics = [], data["statistics"]
        for group, (stored, _) in enumerate(inputs.private):
            clients = self._order.roster.ids(group, inputs.seated)
            images.append(self._preparation.private(stored, statistics, seed, step, clients))
        labels = tuple(owned for _, owned in inputs.private)
        public = self._preparation.public(inputs.public, statistics, seed, step)
        return Batch(tuple(images), labels, public)


def _check_workers_start(workers: int) -> None:
    """Starts a process that has nothing to do, as one that cannot start keeps Grain waiting.

    Raises:
      ConfigError: the script is not meant to be imported, which every worker does.
    """
    this = multiprocessing.current_process()
    # A process has no parent yet while it imports the script.
    is_worker = getattr(this, "_inheriting", False) or multiprocessing.parent_process() is not None
    if is_worker or not _process_starts():
        raise ConfigError(
            "data.workers", workers,
            'a script whose work is below `if __name__ == "__main__":`, as every worker imports it '
            "anew",
        )  # fmt: skip


def _process_starts() -> bool:
    idle = multiprocessing.get_context("spawn").Process(target=int)
    idle.start()
    idle.join()
    return not idle.exitcode
