# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Runs from Python: `fit` a config and look at what came out of it.

    import mhd_jax
    run = mhd_jax.fit({"train.steps": 500}, "runs/mine", head=MyHead)
    run.summary["shared_accuracy"]     # the record, also in runs/mine/summary.json
    run.history                        # one row per step, a pandas frame if pandas is there
    run.predict(images)                # probabilities [K, N, H, C]
    run.plot_accuracy()                # a matplotlib figure
    run.clients[0].private_accuracy    # one client

Pieces of your own (a head, a graph, a data set, ...) are passed as objects; each goes into the
registry of its setting, so that the run's config stays a list of names and numbers. Their shapes
are checked before anything is compiled.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

from mhd_jax import config as config_lib
from mhd_jax import experiment as experiment_lib
from mhd_jax import figures, metrics, train
from mhd_jax import state as state_lib
from mhd_jax.checkpoints import Checkpoints
from mhd_jax.data.feed import Preparation
from mhd_jax.data.partition import PARTITIONS
from mhd_jax.data.sources import SOURCES, Source, from_arrays
from mhd_jax.distill import CONFIDENCES, RULES
from mhd_jax.errors import ConfigError, WorkdirError, suggest
from mhd_jax.evaluate import METRICS
from mhd_jax.exchange import ENCODINGS
from mhd_jax.experiment import Experiment
from mhd_jax.graph import GRAPHS
from mhd_jax.methods import METHODS
from mhd_jax.models import HEADS, MODELS
from mhd_jax.registry import Registry
from mhd_jax.state import State
from mhd_jax.terminal import final_table, head_names
from mhd_jax.workdir import Workdir

__all__ = ["PIECES", "Client", "Run", "fit", "from_arrays", "register"]

CHUNK = 500  # images per forward pass of `Run.predict`

PIECES: dict[str, Registry[Any]] = {
    "head": HEADS,
    "model": MODELS,
    "confidence": CONFIDENCES,
    "rule": RULES,
    "graph": GRAPHS,
    "partition": PARTITIONS,
    "source": SOURCES,
    "method": METHODS,
    "encoding": ENCODINGS,
    "metric": METRICS,
}
"""Every extension point: the argument of `fit` that takes such a piece, and its registry."""


def fit(
    config: ml_collections.ConfigDict | Mapping[str, Any] | None = None,
    workdir: epath.PathLike | None = None,
    *,
    head: Any = None,
    model: Any = None,
    confidence: Any = None,
    rule: Any = None,
    graph: Any = None,
    partition: Any = None,
    source: Any = None,
    method: Any = None,
    encoding: Any = None,
    metric: Any = None,
) -> Run:
    """Runs an experiment to its end, or goes on with the one in `workdir`.

    A piece is the name of a registered one, or an object, which is registered under its own
    ``__name__`` (see `register` for objects without one). What each has to be:

    Args:
      config: a full config, or only the settings that differ from the defaults, by dotted name,
        such as ``{"clients.num": 4, "train.steps": 500}``.
      workdir: the directory of the run; None for a temporary one that lives as long as the `Run`.
      head: a Linen module class with the fields `num_classes` and `num_heads`;
        ``(embedding [B, D], train) -> logits [B, H, C]``.
      model: an embedding network, ``(x [B, ...], train) -> embedding [B, D]``: a Linen module,
        its class, or a function from `ModelSettings` to one.
      confidence: ``log_probs [..., C] -> [...]``, larger is surer.
      rule: a `TeacherRule`, from candidates to an index or weights.
      graph: ``(num_clients, rng, **settings) -> bool [K, K]``, ``(step) -> bool [K, K]`` for a
        graph that changes, or the matrix itself. ``A[i, j]``: client i learns from client j.
      partition: ``(labels, num_classes, num_clients, config, rng) -> Owners``.
      source: a `Source` (see `from_arrays`), or ``(dir, split, shape) -> Source``.
      method: ``config -> Method``.
      encoding: ``config -> Encoding``.
      metric: ``(correct [K, H, C], count [C], owned [K, C]) -> [K, H]``.

    Returns:
      The finished run.

    Raises:
      ConfigError: a setting, or a piece, that cannot work; before any compilation.
      WorkdirError: a workdir that cannot be used, or that holds a run with other settings.
      DivergedError: a loss is no longer finite.
    """
    pieces = {
        "head": head, "model": model, "confidence": confidence, "rule": rule, "graph": graph,
        "partition": partition, "source": source, "method": method, "encoding": encoding,
        "metric": metric,
    }  # fmt: skip
    made = _config(config)
    _use(made, pieces)
    temporary = workdir is None
    path = tempfile.mkdtemp(prefix="mhd_jax_") if workdir is None else workdir
    try:
        train.train_and_evaluate(made, path)
    except BaseException:
        if temporary:
            shutil.rmtree(path, ignore_errors=True)
        raise
    run = Run(path, made)
    if temporary:
        weakref.finalize(run, shutil.rmtree, path, ignore_errors=True)
    return run


def register(setting: str, name: str, piece: Any) -> Any:
    """Files a piece under a name that a config may use, and returns it.

    A name may be used again for a newer version of one's own piece (a notebook cell run twice),
    but not for one that this package brings.

    >>> register("distill.confidence", "always_example", lambda log_probs: 0 * log_probs[..., 0])
    <function ...>
    >>> register("distill.confidence", "max_prob", max)
    Traceback (most recent call last):
    mhd_jax.errors.ConfigError: distill.confidence = 'max_prob': expected a name that no piece of
    mhd_jax has

    Args:
      setting: what picks such pieces in a config, such as "heads.name" or "graph.name".
      name: the name.
      piece: see `fit` for what each setting wants.

    Raises:
      ConfigError: no such setting, or a name that is taken.
    """
    registries = {registry.setting: registry for registry in PIECES.values()}
    if setting not in registries:
        raise ConfigError("setting", setting, suggest(setting, registries))
    registry = registries[setting]
    if name in registry.names() and _is_ours(registry.get(name)) and registry.get(name) != piece:
        raise ConfigError(setting, name, "a name that no piece of mhd_jax has")
    return registry.register(name)(piece)


def _is_ours(piece: Any) -> bool:
    """Whether this package brings the piece, possibly wrapped in `functools.partial`."""
    module = getattr(getattr(piece, "func", piece), "__module__", "") or ""
    return module.partition(".")[0] == "mhd_jax"


# --- From arguments to a config -------------------------------------------------------------------


def _config(config: ml_collections.ConfigDict | Mapping[str, Any] | None) -> Any:
    """A config of our own to change."""
    if isinstance(config, ml_collections.ConfigDict):
        return config.copy_and_resolve_references()
    made = config_lib.default_config()
    config_lib.update(made, config or {})
    return made


def _use(config: ml_collections.ConfigDict, pieces: Mapping[str, Any]) -> None:
    """Writes the names of the given pieces into the config, registering objects."""
    for argument, piece in pieces.items():
        if piece is None:
            continue
        setting = PIECES[argument].setting
        if argument == "graph" and not isinstance(piece, str) and not callable(piece):
            _use_matrix(config, piece)
        elif argument == "metric":
            several = piece if isinstance(piece, tuple | list) else [piece]
            config.metrics = tuple(_name_of(argument, setting, one) for one in several)
        else:
            config_lib.update(config, {setting: _name_of(argument, setting, piece)})


def _use_matrix(config: ml_collections.ConfigDict, matrix: Any) -> None:
    """A matrix stands in the config itself, as rows of 0 and 1."""
    array = np.asarray(matrix)
    rows = array.astype(int) if array.dtype == bool else array
    config.graph.name = "matrix"
    with config.graph.ignore_type():
        config.graph.matrix = tuple(map(tuple, rows.tolist())) if rows.ndim == 2 else rows.tolist()


def _name_of(argument: str, setting: str, piece: Any) -> str:
    """The name of a piece: itself if it is one, else the name it is now registered under."""
    if isinstance(piece, str):
        return piece
    if argument == "source" and isinstance(piece, Source):
        found = piece
        register(setting, found.name, lambda directory, split, shape: found)
        return found.name
    if argument == "model":
        piece = _network_factory(piece)
    name = getattr(piece, "__name__", None)
    if not callable(piece) or name is None or not name.isidentifier():
        raise ConfigError(
            setting, piece, f"a name, or {_WANTED[argument]}. An object without a name of its own "
            f'gets one by mhd_jax.register("{setting}", "a_name", ...)',
        )  # fmt: skip
    register(setting, name, piece)
    return name


_WANTED = {
    "head": "a Linen module class with the fields num_classes and num_heads",
    "model": "a Linen module, its class, or a function from ModelSettings to one",
    "confidence": "a function from log-probabilities [..., C] to confidences [...]",
    "rule": "a function (candidates, confidence, keys) to an index [k, B, m] or weights "
    "[k, N, B, m]",
    "graph": "a matrix [K, K], or a function that returns one",
    "partition": "a function that returns Owners",
    "source": "a Source, or a function that returns one",
    "method": "a function from the config to a Method",
    "encoding": "a function from the config to an Encoding",
    "metric": "a function (correct [K, H, C], count [C], owned [K, C]) to [K, H]",
}


def _network_factory(piece: Any) -> Any:
    """A function from settings to a module, named like the module where one was given."""
    if isinstance(piece, nn.Module):
        module, name = piece, type(piece).__name__

        def factory(settings: Any) -> nn.Module:
            del settings
            return module.clone()

    elif isinstance(piece, type) and issubclass(piece, nn.Module):
        kind, name = piece, piece.__name__

        def factory(settings: Any) -> nn.Module:
            del settings
            return kind()

    else:
        return piece
    factory.__name__ = name
    return factory


# --- What came out --------------------------------------------------------------------------------


class Run:
    """A finished run, or one under way, read from its workdir.

    What is on disk is read when asked for; the trained clients are restored from the last
    checkpoint on the first use of `predict` or of a client's parameters.

    Attributes:
      workdir: the run's directory.
      config: its settings.
    """

    def __init__(self, workdir: epath.PathLike, config: ml_collections.ConfigDict) -> None:
        self._directory = Workdir(workdir)
        self.workdir = self._directory.path
        self.config = config

    @classmethod
    def load(cls, workdir: epath.PathLike, **pieces: Any) -> Run:
        """The run in a directory.

        Args:
          workdir: the directory.
          **pieces: in a new process, the objects that were passed to `fit`, by the same argument
            names; names of installed pieces are found without.

        Raises:
          WorkdirError: there is no run in this directory.
          ConfigError: its config has a setting that this version does not know.
        """
        path = epath.Path(workdir) / "config.json"
        if not path.exists():
            raise WorkdirError(f"{workdir}: has no config.json, so there is no run to load")
        config = config_lib.from_json(path.read_text())
        for argument, piece in pieces.items():
            if argument not in PIECES:
                raise TypeError(f"unknown piece {argument!r}: {suggest(argument, PIECES)}")
            _use(config, {argument: piece})
        return cls(workdir, config)

    def __repr__(self) -> str:
        done = self._directory.finished()
        rows = f"\n\n{final_table(self.summary)}" if done else ""
        return f"Run({str(self.workdir)!r}{'' if done else ', not finished'}){rows}"

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """The contents of `summary.json`; raises `WorkdirError` while the run is not finished."""
        return self._directory.read_summary()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, every number of every client."""
        return self._directory.read_metrics()

    @property
    def history(self) -> Any:
        """Means over clients, one row per logged step.

        A pandas frame where pandas is installed, else a list of dicts. Columns are named like
        the records, with a ``/head_h`` for what there is one of per head; what was not measured
        at a step is missing (NaN in the frame).
        """
        rows: dict[int, dict[str, Any]] = {}
        for line in self.records:
            values = {name: value for name, value in line.items() if name != "step"}
            row = rows.setdefault(line["step"], {"step": line["step"]})
            row.update(metrics.scalars(values))
        table = [rows[step] for step in sorted(rows)]
        try:
            import pandas
        except ImportError:
            return table
        return pandas.DataFrame(table)

    @property
    def head_names(self) -> list[str]:
        """Names of the heads in the order of their ranks."""
        return head_names(np.shape(self.summary["shared_accuracy"])[-1])

    @property
    def clients(self) -> list[Client]:
        """All clients, in order (of the first replica where there are several)."""
        return [Client(self, index) for index in range(len(self.summary["shared_accuracy"]))]

    def predict(
        self, images: Float[np.ndarray, "N ..."], *, replica: int = 0
    ) -> Float[np.ndarray, "K N H C"]:
        """Probabilities that every head of every client gives to every class.

        Args:
          images: as the run's data stores them, before normalisation.
          replica: which of several replicas predicts.

        Raises:
          ConfigError: images of another shape than the clients were trained on.
        """
        return self._restored.predict(np.asarray(images), replica)

    @functools.cached_property
    def _restored(self) -> _Restored:
        return _Restored(self.config, self._directory)

    # Figures: each is a `matplotlib.figure.Figure`, shown by notebooks as it is.

    def plot_accuracy(self) -> Figure:
        """Shared and private accuracy of every head over steps, and the isolated control's."""
        return figures.accuracy_over_steps(self.records)

    def plot_losses(self) -> Figure:
        """The parts of the loss over steps."""
        return figures.losses(self.records)

    def plot_bytes(self) -> Figure:
        """Shared accuracy of the last head over the bytes sent."""
        return figures.accuracy_over_bytes(self.records)

    def plot_classes(self) -> Figure:
        """Accuracy of every client on every class, main and last head."""
        return figures.accuracy_per_class(self.summary)

    def plot_labels(self) -> Figure:
        """Who holds how many samples of which label."""
        return figures.label_distribution(self.summary)

    def plot_graph(self) -> Figure:
        """Who learns from whom."""
        return figures.communication_graph(self.summary)

    def plot_hops(self) -> Figure:
        """Accuracy by how many hops away the nearest holder of a label is."""
        return figures.hop_picture(self.summary)


class Client:
    """One client of a run.

    Attributes:
      index: its place in the client axis.
    """

    def __init__(self, run: Run, index: int) -> None:
        self._run = run
        self.index = index

    def __repr__(self) -> str:
        shared, private = self.shared_accuracy, self.private_accuracy
        return (
            f"Client({self.index}: labels {self.labels}, peers {self.peers}, shared accuracy "
            f"{shared[0]:.3f} to {shared[-1]:.3f}, private {private[0]:.3f})"
        )

    @property
    def labels(self) -> list[int]:
        """Its primary labels; the labels it has samples of where a partition names none."""
        primary = np.array(self._run.summary["primary_labels"][self.index])
        return np.flatnonzero(primary if primary.any() else self.samples).tolist()

    @property
    def samples(self) -> Int[np.ndarray, " C"]:
        """Private samples of each class."""
        return np.array(self._run.summary["label_histogram"][self.index])

    @property
    def peers(self) -> list[int]:
        """The clients it learns from (at the first step, where the graph changes)."""
        return np.flatnonzero(self._run.summary["adjacency"][self.index]).tolist()

    @property
    def shared_accuracy(self) -> Float[np.ndarray, " H"]:
        """Accuracy of each head on the global distribution."""
        return np.array(self._run.summary["shared_accuracy"][self.index])

    @property
    def private_accuracy(self) -> Float[np.ndarray, " H"]:
        """Accuracy of each head on the distribution of its own labels."""
        return np.array(self._run.summary["private_accuracy"][self.index])

    @property
    def model(self) -> nn.Module:
        """Its network: ``client.model.apply(client.params, x, train=False)``."""
        return self._run._restored.client(self.index, 0)[0]

    @property
    def params(self) -> dict[str, Any]:
        """Its trained variables, collections `params` and `batch_stats`, as NumPy arrays."""
        return self._run._restored.client(self.index, 0)[1]

    def predict(self, images: Float[np.ndarray, "N ..."]) -> Float[np.ndarray, "N H C"]:
        """Probabilities that its heads give to every class; see `Run.predict`."""
        return self._run.predict(images)[self.index]


class _Restored:
    """The trained clients of a run, on this machine's devices."""

    def __init__(self, config: ml_collections.ConfigDict, directory: Workdir) -> None:
        local = config.copy_and_resolve_references()
        local.parallel.client_devices, local.parallel.data_devices = 0, 1
        self.experiment = experiment_lib.build(local)
        self.state = _restore(self.experiment, directory)
        source = self.experiment.federations[0].source
        self._prepare = Preparation(config.data.augment, source.mean, source.std).test
        self._predict = [self._forward(model) for model in self.experiment.system.models]

    def _forward(self, model: nn.Module) -> Callable[[Any, Array], Array]:
        """A jitted function from the variables of k clients and images to [k, N, H, C]."""

        def forward(variables: Any, images: Array) -> Array:
            inputs = self._prepare(images)
            one = lambda client: model.apply(client, inputs, train=False)[0]  # noqa: E731
            return jax.nn.softmax(jax.vmap(one)(variables))

        return jax.jit(forward)

    def predict(self, images: np.ndarray, replica: int) -> np.ndarray:
        """See `Run.predict`."""
        shape = self.experiment.image_shape
        if images.shape[1:] != shape:
            raise ConfigError("images", f"an array of shape {images.shape}", f"[N, {_list(shape)}]")
        parts = []
        for size, forward, cohort in zip(
            self.experiment.layout.cohorts, self._predict, self.state.clients, strict=True
        ):
            chosen = jax.tree.map(lambda x, size=size: x[replica, :size], cohort.snapshot)
            chunks = [
                np.asarray(forward(chosen, jnp.asarray(images[start : start + CHUNK])))
                for start in range(0, max(len(images), 1), CHUNK)
            ]
            parts.append(np.concatenate(chunks, axis=1))
        return np.concatenate(parts)

    def client(self, index: int, replica: int) -> tuple[nn.Module, dict[str, Any]]:
        """Model and variables of one client."""
        layout = self.experiment.layout
        cohort = int(np.searchsorted(layout.offsets, index, side="right")) - 1
        row = index - layout.offsets[cohort]
        snapshot = self.state.clients[cohort].snapshot
        variables = jax.tree.map(lambda x: np.asarray(x[replica, row]), snapshot)
        return self.experiment.system.models[cohort], variables


def _list(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _restore(experiment: Experiment, directory: Workdir) -> State:
    """The newest readable checkpoint."""
    strip = functools.partial(state_lib.strip, layout=experiment.layout)
    with Checkpoints(directory.checkpoints, strip=strip) as checkpoints:
        found = checkpoints.restore_latest(experiment.init_state(abstract=True))
    if found is None:
        raise WorkdirError(f"{directory.path}: no checkpoint yet, so there are no trained clients")
    return found[1]
