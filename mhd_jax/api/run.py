# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What came out of a run: its record, its figures and its trained clients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from mhd_jax import attacks, federation
from mhd_jax import config as config_lib
from mhd_jax import experiment as experiment_lib
from mhd_jax import state as state_lib
from mhd_jax.api import export
from mhd_jax.api.pieces import PIECES, Pieces, use
from mhd_jax.data.sources import Source, first_classes
from mhd_jax.data.sources.arrays import as_stored, check_columns
from mhd_jax.errors import ConfigError, WorkdirError, of_file, suggest
from mhd_jax.evaluator import chunk_size
from mhd_jax.experiment import Experiment
from mhd_jax.files import absolute
from mhd_jax.reporting import charts
from mhd_jax.reporting.graph_drawing import communication_graph
from mhd_jax.reporting.terminal import final_table
from mhd_jax.results import History, Line, Summary, counted, head_names, of_counted
from mhd_jax.runtime import tensorboard
from mhd_jax.runtime.checkpoints import Checkpoints
from mhd_jax.runtime.workdir import Workdir
from mhd_jax.state import State
from mhd_jax.trees import Variables


class Run:
    """A finished run, or one under way, read from its workdir.

    What is on disk is read when asked for; the trained clients are restored from the last
    checkpoint on the first use of `predict` or of a client's parameters.

    Attributes:
      workdir: the run's directory.
      config: its settings.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: ml_collections.ConfigDict,
        source: Source | None = None,
    ) -> None:
        self._directory = Workdir(workdir, read_only=True)
        self.workdir = self._directory.path
        self.config = config
        self._pieces = Pieces()  # names stand for whatever was registered under them last
        self._data = None
        if source is not None and not config.data.public_name:
            # Kept here, like all other pieces.
            known = first_classes(source, config.data.num_classes)
            self._data = known, known.public

    @classmethod
    def load(cls, workdir: epath.PathLike, **pieces: object) -> Run:
        """The run in a directory.

        Args:
          workdir: the directory.
          **pieces: in a new process, the objects that were passed to `fit`, by the same argument
            names; names of installed pieces are found without.

        Raises:
          WorkdirError: there is no run in this directory, or its config cannot be read.
          ConfigError: its config has a setting that this version does not know.
        """
        path = absolute(workdir) / "config.json"
        if not path.exists():
            raise WorkdirError(f"{workdir}: has no config.json, so there is no run to load")
        with of_file(path):
            config = config_lib.from_json(path.read_text())
        for argument in pieces:
            if argument not in PIECES:
                raise TypeError(f"unknown piece {argument!r}: {suggest(argument, PIECES)}")
        # Without a partition, clients that a source comes with would take the place of the run's.
        partition = pieces.get("partition") or config.partition.name
        use(config, {**pieces, "partition": partition})
        source = pieces.get("source")
        return cls(workdir, config, source if isinstance(source, Source) else None)

    def __repr__(self) -> str:
        done = self._directory.finished()
        rows = f"\n\n{final_table(self.summary)}" if done else ""
        return f"Run({str(self.workdir)!r}{'' if done else ', not finished'}){rows}"

    @functools.cached_property
    def summary(self) -> Summary:
        """The contents of `summary.json`, by attribute or by key.

        Raises:
          WorkdirError: the run is not finished.
        """
        return self._directory.read_summary()

    @property
    def records(self) -> list[Line]:
        """The lines of `metrics.jsonl`, every number of every client."""
        return self._directory.read_metrics()

    @property
    def _told(self) -> History:
        """The same without clients that lie or are frozen."""
        attack = self.config.attack
        liars = () if attack.name == attacks.NONE else attack.clients
        clients = self.config.clients
        return of_counted(self.records, counted(clients.num, liars, clients.frozen))

    @property
    def history(self) -> Any:
        """Means over all clients that learn and do not lie, one row per logged step.

        What is said of teachers is the mean over all of them, and beyond 512 clients everything.
        A pandas frame where pandas is installed, else a list of dicts. Columns are named like
        the records, with a ``/head_h`` for what there is one of per head, counted from the first
        that the record has: of `head_losses` and `teacher_accuracy` that is the first head that is
        taught. What was not measured at a step is missing (NaN in the frame). Of more than 512
        clients the records have quantiles, and these are means of them.
        """
        rows: dict[int, dict[str, Any]] = {}
        for line in self._told:
            values = {name: value for name, value in line.items() if name != "step"}
            row = rows.setdefault(line["step"], {"step": line["step"]})
            row.update(tensorboard.scalars(values))
        table = [rows[step] for step in sorted(rows)]
        try:
            import pandas
        except ImportError:
            return table
        return pandas.DataFrame(table)

    @property
    def head_names(self) -> list[str]:
        """Names of the heads in the order of their ranks."""
        return head_names(self.summary.shared_accuracy.shape[-1])

    @property
    def clients(self) -> list[Client]:
        """All clients, in order (of the first replica where there are several)."""
        return [Client(self, index, name) for index, name in enumerate(self.summary.names)]

    def predict(
        self, images: Float[np.ndarray, "N ..."], *, replica: int = 0
    ) -> Float[np.ndarray, "K N H C"]:
        """Probabilities that every head of every client gives to every class.

        Args:
          images: samples as the run's data stores them, before normalisation.
          replica: which of several replicas predicts.

        Raises:
          ConfigError: samples of another shape or kind than the clients were trained on, or for
            which a network gives NaN, a table whose columns are others or in another order, or no
            such replica.
          WorkdirError: the data by this name are not those of the run.
        """
        return self._restored.predict(images, replica)

    def export(self, client: int | str, path: epath.PathLike, *, replica: int = 0) -> epath.Path:
        """Writes one client as files of its own, for `mhd_jax.load_client`.

        Args:
          client: its index or its name.
          path: the folder to write, which must be empty or not there yet.
          replica: which of several replicas it is taken from.

        Returns:
          The folder.

        Raises:
          ConfigError: there is no such client, or no such replica.
          WorkdirError: something is in the folder already, or the run has no checkpoint.
        """
        index = index_of("client", client, self.summary.names)
        return self._restored.export(index, replica, path, self.summary)

    @functools.cached_property
    def _restored(self) -> _Restored:
        try:
            with self._pieces.in_place():
                return _Restored(self.config, self._directory, self._data)
        except ConfigError as error:
            for argument, registry in PIECES.items():
                if error.setting == registry.setting and error.value not in registry:
                    accepted = f"{error.accepted}; pieces of your own, all of them, are passed to "
                    accepted += f"Run.load again, this one as {argument!r}"
                    raise ConfigError(error.setting, error.value, accepted) from error
            raise

    # Figures: each is a `matplotlib.figure.Figure`, shown by notebooks as it is.

    def plot_accuracy(self) -> Figure:
        """Shared and private accuracy of every head over steps, and the isolated baseline's."""
        return charts.accuracy_over_steps(self._told)

    def plot_losses(self) -> Figure:
        """The parts of the loss over steps."""
        return charts.losses(self._told)

    def plot_bytes(self) -> Figure:
        """Shared accuracy of the last head over the bytes sent."""
        return charts.accuracy_over_bytes(self._told)

    def plot_classes(self) -> Figure:
        """Accuracy of every client on every class, main and last head."""
        return charts.accuracy_per_class(self.summary)

    def plot_labels(self) -> Figure:
        """Who holds how many samples of which label."""
        return charts.label_distribution(self.summary)

    def plot_graph(self) -> Figure:
        """Who learns from whom."""
        return communication_graph(self.summary)

    def plot_hops(self) -> Figure:
        """Accuracy by how many hops away the nearest holder of a label is."""
        return charts.hop_picture(self.summary)


def index_of(setting: str, client: object, names: Sequence[str]) -> int:
    """The place of a client that is given by its index or its name.

    Args:
      setting: what the message of an error calls it.
      client: an index or a name.
      names: of all clients.

    Raises:
      ConfigError: there is no such client.
    """
    if isinstance(client, str) and client in names:
        return names.index(client)
    if config_lib.is_whole(client) and 0 <= client < len(names):
        return int(client)
    accepted = f"an index below {len(names)}, or {suggest(str(client), names)}"
    raise ConfigError(setting, client, accepted)


class Client:
    """One client of a run.

    Attributes:
      index: its place in the client axis.
      name: its name, or its index as text.
    """

    def __init__(self, run: Run, index: int, name: str) -> None:
        self._run = run
        self.index = index
        self.name = name

    def __repr__(self) -> str:
        shared, private = self.shared_accuracy, self.private_accuracy
        return (
            f"Client({self.name}: labels {self.labels}, peers {self.peers}, shared accuracy "
            f"{shared[0]:.3f} to {shared[-1]:.3f}, private {private[0]:.3f})"
        )

    @property
    def labels(self) -> list[int]:
        """Its primary labels; the labels it has samples of where a partition names none."""
        primary = self._run.summary.primary_labels[self.index]
        return np.flatnonzero(primary if primary.any() else self.samples).tolist()

    @property
    def samples(self) -> Int[np.ndarray, " C"]:
        """Private samples of each class."""
        return self._run.summary.label_histogram[self.index]

    @property
    def peers(self) -> list[int]:
        """The clients it learns from (at the first step, where the graph changes)."""
        return np.flatnonzero(self._run.summary.adjacency[self.index]).tolist()

    @property
    def shared_accuracy(self) -> Float[np.ndarray, " H"]:
        """Accuracy of each head on the global distribution."""
        return self._run.summary.shared_accuracy[self.index]

    @property
    def private_accuracy(self) -> Float[np.ndarray, " H"]:
        """Accuracy of each head on the distribution of its own labels."""
        return self._run.summary.private_accuracy[self.index]

    @property
    def model(self) -> nn.Module:
        """Its network: ``client.model.apply(client.params, x, train=False)``."""
        return self._run._restored.client(self.index, 0)[0]

    @property
    def params(self) -> Variables:
        """Its trained variables, collections `params` and `batch_stats`, as NumPy arrays."""
        return self._run._restored.client(self.index, 0)[1]

    def predict(self, images: Float[np.ndarray, "N ..."]) -> Float[np.ndarray, "N H C"]:
        """Probabilities that its heads give to every class; see `Run.predict`."""
        return self._run._restored.predict_one(self.index, images, 0)


class _Restored:
    """The trained clients of a run, on this machine's devices."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        directory: Workdir,
        data: federation.DataSets | None,
    ) -> None:
        local = config.copy_and_resolve_references()
        local.parallel.client_devices, local.parallel.data_devices = 0, 1
        self.experiment = experiment_lib.build(local, data)
        first = self.experiment.federations[0]
        directory.check_data(first.source.name, first.fingerprint)
        self._dtype = first.source.train.dtype
        self.state = _restore(self.experiment, directory)
        self._prepare = federation.preparation(config, self.experiment.federations).test
        self._predict = [self._forward(model) for model in self.experiment.parts.models]

    def _forward(self, model: nn.Module) -> Callable[[Variables, Array, int], Array]:
        """A jitted function: variables of k clients, images and their replica to [k, N, H, C]."""

        def forward(variables: Variables, images: Array, replica: int) -> Array:
            inputs = self._prepare(images, replica)
            one = lambda client: model.apply(client, inputs, train=False)[0]  # noqa: E731
            return jax.nn.softmax(jax.vmap(one)(variables))

        return jax.jit(forward, static_argnames="replica")

    def predict(self, images: np.ndarray, replica: int) -> np.ndarray:
        """See `Run.predict`."""
        images = self._checked(images, replica)
        parts = [
            self._probabilities(group, slice(0, size), images, replica)
            for group, size in enumerate(self.experiment.layout.groups)
        ]
        # One pooled model stands for every client.
        clients = len(self.experiment.federations[0].partition.sizes)
        return np.concatenate(parts * (clients // self.experiment.layout.num_clients))

    def predict_one(self, index: int, images: np.ndarray, replica: int) -> np.ndarray:
        """The same of one client, [N, H, C]."""
        images = self._checked(images, replica)
        group, row = self._place(index)
        return self._probabilities(group, slice(row, row + 1), images, replica)[0]

    def _checked(self, images: np.ndarray, replica: int) -> np.ndarray:
        """Samples as the run's data stores them, of which there is one at least."""
        self._check_replica(replica)
        columns = self.experiment.federations[0].source.columns
        check_columns([(("images", type(images).__name__), [images])], columns)
        images = as_stored("images", images, self.experiment.image_shape, self._dtype)
        if not len(images):
            raise ConfigError("images", f"an array of shape {images.shape}", "at least 1 sample")
        return images

    def _probabilities(
        self, group: int, rows: slice, images: np.ndarray, replica: int
    ) -> Float[np.ndarray, "k N H C"]:
        """What some clients of a group say of samples, as many at a time as in evaluations."""
        size = chunk_size(len(images), rows.stop - rows.start)
        chosen = jax.tree.map(lambda x: x[replica, rows], self.state.clients[group].snapshot)
        forward = self._predict[group]
        chunks = [
            np.asarray(forward(chosen, jnp.asarray(images[start : start + size]), replica))
            for start in range(0, len(images), size)
        ]
        return export.check_finite("images", np.concatenate(chunks, axis=1))

    def export(
        self, index: int, replica: int, path: epath.PathLike, summary: Summary
    ) -> epath.Path:
        """See `Run.export`."""
        self._check_replica(replica)
        model, variables = self.client(index, replica)
        source = self.experiment.federations[0].source

        def forward(variables: Any, samples: Array) -> Array:
            inputs = self._prepare(samples, replica)
            return jax.nn.softmax(model.apply(variables, inputs, train=False)[0])

        facts = export.Facts(
            name=summary.names[index],
            class_names=source.class_names,
            heads=head_names(self.experiment.parts.models[0].num_heads),
            shape=source.image_shape,
            dtype=str(source.train.dtype),
            config=self.experiment.config.to_dict(),
            versions=summary.versions,
            columns=source.columns,
        )
        return export.write(path, facts, variables, forward)

    def _check_replica(self, replica: object) -> None:
        """Raises `ConfigError` where there is no such replica."""
        replicas = len(self.experiment.seeds)
        if not (config_lib.is_whole(replica) and 0 <= replica < replicas):
            raise ConfigError("replica", replica, f"0 to {replicas - 1}, one for each seed")

    def client(self, index: int, replica: int) -> tuple[nn.Module, Variables]:
        """Model and variables of one client."""
        group, row = self._place(index)
        snapshot = self.state.clients[group].snapshot
        variables = jax.tree.map(lambda x: np.asarray(x[replica, row]), snapshot)
        return self.experiment.parts.models[group], variables

    def _place(self, index: int) -> tuple[int, int]:
        """Group and row of a client; one pooled model stands for every client."""
        layout = self.experiment.layout
        index = min(index, layout.num_clients - 1)
        group = int(np.searchsorted(layout.offsets, index, side="right")) - 1
        return group, index - layout.offsets[group]


def _restore(experiment: Experiment, directory: Workdir) -> State:
    """The newest readable checkpoint."""
    strip = functools.partial(state_lib.strip, layout=experiment.home)
    found = None
    if directory.checkpoints.exists():
        with Checkpoints(directory.checkpoints, strip=strip, read_only=True) as checkpoints:
            found = checkpoints.restore_latest(experiment.init_state(abstract=True))
    if found is None:
        raise WorkdirError(f"{directory.path}: no checkpoint yet, so there are no trained clients")
    return found[1]
