# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""One trained client as files of its own, which predict without the run and its data set.

A folder holds three things: `client.json`, which says what it is; `parameters`, an Orbax
checkpoint; and `predict.jax`, the prediction function from stored samples to probabilities as
`jax.export` writes it, for CPU, CUDA and TPU. Source: https://docs.jax.dev/en/latest/export.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax import export as jax_export
from jaxtyping import Array, Float, Shaped

from mhd_jax import wording
from mhd_jax.data.sources.arrays import as_stored, check_columns
from mhd_jax.errors import ConfigError, WorkdirError, of_file
from mhd_jax.files import absolute

VERSION = 1
"""Of the folder's contents; a folder of another version is refused."""

PLATFORMS = ("cpu", "cuda", "tpu")

BATCH = 64  # samples a call of the exported function takes, the last padded

FACTS, FUNCTION, PARAMETERS = "client.json", "predict.jax", "parameters"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of an exported client.

    Attributes:
      name: its name in the run, or its number as text.
      class_names: one per class, C.
      heads: the heads' names, H.
      shape: of one sample.
      dtype: of samples as the run's data stores them.
      config: the settings of the run.
      versions: of Python and packages that exported it.
      columns: of the tables that it was trained on; () where they have no names.
    """

    name: str
    class_names: Sequence[str]
    heads: Sequence[str]
    shape: Sequence[int]
    dtype: str
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    columns: Sequence[str] = ()


def write(
    path: epath.PathLike,
    facts: Facts,
    variables: Mapping[str, Any],
    forward: Callable[[Any, Array], Array],
) -> epath.Path:
    """Writes a client's folder.

    Args:
      path: the folder, which must be empty or not there yet; a local path or a URL.
      facts: what it is.
      variables: its parameters and batch statistics.
      forward: `(variables, samples [B, ...] as stored) -> probabilities [B, H, C]`.

    Returns:
      The folder.

    Raises:
      WorkdirError: something is there already.
    """
    folder = epath.Path(path).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WorkdirError(f"{folder}: is not empty; a client is exported into a folder of its own")
    kept = {name: tree for name, tree in variables.items() if jax.tree.leaves(tree)}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kept)
    batch = jax.ShapeDtypeStruct((BATCH, *facts.shape), np.dtype(facts.dtype))
    exported = jax_export.export(jax.jit(forward), platforms=PLATFORMS)(shapes, batch)
    folder.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(absolute(folder) / PARAMETERS, kept)
    (folder / FUNCTION).write_bytes(bytes(exported.serialize()))
    # Last: a folder with this file is complete.
    about = {"version": VERSION, **dataclasses.asdict(facts)}
    (folder / FACTS).write_text(json.dumps(about, indent=1))
    return folder


class ExportedClient:
    """A client that predicts, read from its folder; see `load_client`.

    Attributes:
      facts: what is known of it.
    """

    def __init__(self, facts: Facts, variables: Any, function: jax_export.Exported) -> None:
        self.facts = facts
        self._variables = variables
        self._call = jax.jit(function.call)

    def __repr__(self) -> str:
        classes = len(self.facts.class_names)
        return (
            f"ExportedClient({self.facts.name}: {len(self.facts.heads)} heads, {classes} classes)"
        )

    def predict(self, samples: Shaped[np.ndarray, "N ..."]) -> Float[np.ndarray, "N H C"]:
        """Probabilities that every head gives to every class.

        Args:
          samples: as the run's data stored them, before normalisation.

        Raises:
          ConfigError: samples of another shape, of a type that does not fit, or for which the
            network gives NaN, or a table whose columns are others or in another order.
        """
        check_columns([(("samples", type(samples).__name__), [samples])], self.facts.columns)
        dtype = np.dtype(self.facts.dtype)
        samples = as_stored("samples", samples, self.facts.shape, dtype)
        if samples.dtype != dtype:
            accepted = f"pixels of type {dtype}, as in training"
            raise ConfigError("samples", f"an array of {samples.dtype}", accepted)
        found = []
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            padding = [(0, BATCH - len(part))] + [(0, 0)] * (part.ndim - 1)
            found.append(
                np.asarray(self._call(self._variables, np.pad(part, padding)))[: len(part)]
            )
        shape = (0, len(self.facts.heads), len(self.facts.class_names))
        return check_finite("samples", np.concatenate([np.zeros(shape, np.float32), *found]))


def check_finite(
    setting: str, probabilities: Float[np.ndarray, "*k N H C"]
) -> Float[np.ndarray, "*k N H C"]:
    """The same, unless they are NaN for some samples, as of ids that no embedding knows.

    Raises:
      ConfigError: of `setting`, the samples.
    """
    odd = ~np.isfinite(probabilities).all(axis=(-2, -1))
    rows = np.flatnonzero(odd.any(axis=0) if odd.ndim > 1 else odd)
    if len(rows):
        accepted = "samples that the network has a prediction for (not NaN); are ids too large?"
        raise ConfigError(setting, f"row {wording.listed(rows)}", accepted)
    return probabilities


def load_client(path: epath.PathLike) -> ExportedClient:
    """The client that `Run.export` wrote; neither the run nor its data set has to be there.

    Args:
      path: the folder; a local path or a URL.

    Raises:
      WorkdirError: no exported client is there, or one that cannot be read or is of another
        version.
    """
    folder = epath.Path(path).expanduser()
    if not (folder / FACTS).exists():
        raise WorkdirError(f"{folder}: has no {FACTS}, so there is no exported client")
    with of_file(folder / FACTS):
        about = json.loads((folder / FACTS).read_text())
        version = about.pop("version", None)
    if version != VERSION:
        raise WorkdirError(f"{folder}: expected version {VERSION} of its contents")
    with of_file(folder / FACTS):
        facts = Facts(**about)
    if not (folder / FUNCTION).exists():
        raise WorkdirError(f"{folder}: has no {FUNCTION}, so the exported client is not complete")
    with of_file(folder / FUNCTION):
        function = jax_export.deserialize(bytearray((folder / FUNCTION).read_bytes()))
        (shapes, _), _ = jax.tree.unflatten(function.in_tree, function.in_avals)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    place = functools.partial(jax.ShapeDtypeStruct, sharding=here)
    with of_file(folder / PARAMETERS), ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(
            absolute(folder) / PARAMETERS, jax.tree.map(lambda x: place(x.shape, x.dtype), shapes)
        )
    return ExportedClient(facts, variables, function)
