# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Weights that clients start from (`model.init_from`): of a run, of a checkpoint, or a tree.

A client's weights are a tree {"params": ..., "batch_stats": ...}, or the parameters alone; of the
whole classifier ("network", with or without "head"), or of the embedding network alone, as from
`init` of the network itself. What is not given starts as it would without. An NNX module, or its
`nnx.State`, will do as well.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import nnx, traverse_util
from jaxtyping import Shaped

from mhd_jax import manifest
from mhd_jax.errors import ConfigError
from mhd_jax.files import absolute
from mhd_jax.registry import Registry
from mhd_jax.trees import Variables
from mhd_jax.wording import first_few

SETTING = "model.init_from"

Given: TypeAlias = Variables | epath.PathLike | None
"""One client's weights, where they are, or nothing."""

Flat = Mapping[str, Shaped[np.ndarray, "..."]]
"""One client's weights by path, such as "params/network/Dense_0/kernel"."""

WEIGHTS: Registry[Any] = Registry(SETTING)
"""Weights in memory by name: for all clients, or a sequence with those of each."""

MOST = 5  # differences that an error lists


def named(given: Given | Sequence[Given]) -> str:
    """What `model.init_from` calls these weights: their path, or a name they are filed under.

    The name is a hash of the contents, so a run cannot be resumed with other weights.
    """
    # A path's text: its bytes in an array are those of a pointer, which no other process has.
    given = jax.tree.map(_as_text, _pure_tree(given))
    if isinstance(given, str):
        return given
    digest = 0
    for path, leaf in jax.tree.leaves_with_path(given):
        array = np.asarray(leaf)
        what = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        digest = zlib.crc32(array.tobytes(), zlib.crc32(what.encode(), digest))
    name = f"tree_{digest:08x}"
    WEIGHTS.register(name)(given)
    return name


def _pure_tree(given: Any) -> Any:
    """Parameters and batch statistics of an NNX module or its state, as a tree by kind."""
    if isinstance(given, list | tuple):
        return [_pure_tree(one) for one in given]
    state = nnx.state(given) if isinstance(given, nnx.Module) else given
    if not isinstance(state, nnx.State):
        return given
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {kind: nnx.to_pure_dict(nnx.filter_state(state, of)) for kind, of in kinds.items()}


def _as_text(leaf: Any) -> Any:
    return os.fspath(leaf) if isinstance(leaf, os.PathLike) else leaf


def read(name: str, num_clients: int) -> tuple[Variables | None, ...]:
    """The weights of every client that `model.init_from` names; () for none.

    Args:
      name: "", a name in `WEIGHTS`, or a path: of a run, or one of its checkpoints, whose client
        i gives client i its weights (of a run with one client, all); of a client that `Run.export`
        wrote, or of an Orbax checkpoint of one client's weights, which are those of all.
      num_clients: K.

    Raises:
      ConfigError: there is nothing of the kind, or another number of clients.
    """
    if not name:
        return ()
    given = WEIGHTS.get(name) if name in WEIGHTS else name
    several = not isinstance(given, str | Mapping) and isinstance(given, Sequence)
    found = [tree for one in (given if several else [given]) for tree in _loaded(one)]
    if len(found) not in (1, num_clients):
        accepted = f"weights for all clients alike, or for each of {num_clients}, not {len(found)}"
        raise ConfigError(SETTING, name, accepted)
    return tuple(found * num_clients if len(found) == 1 else found)


def _loaded(given: Given) -> Sequence[Variables | None]:
    """One tree, or those of the clients of a run."""
    if given is None or isinstance(given, Mapping):
        return [given]
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(SETTING, given, "trees of weights by name, or paths")
    path = absolute(given)
    try:
        if not path.exists():  # Orbax would say so in several warnings first
            raise FileNotFoundError(f"there is no {path}")
        if (path / "checkpoints").exists():
            return _of_checkpoint(_newest_sound(path / "checkpoints"))
        if (path / manifest.MANIFEST).exists():
            if problem := manifest.damage(path):
                raise ValueError(f"{path} cannot be read: {problem}")
            return _of_checkpoint(path)
        if (path / "client.json").exists():
            path = path / "parameters"
        return [_restored(path)]
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        accepted = f"a run, an exported client or an Orbax checkpoint of weights ({reason})"
        raise ConfigError(SETTING, str(given), accepted) from error


def _newest_sound(checkpoints: epath.Path) -> epath.Path:
    """The newest checkpoint of a run whose files are what was written, as a restore takes it.

    Raises:
      ValueError: there is none.
    """
    steps = [int(step.name) for step in checkpoints.iterdir() if step.name.isdigit()]
    problems: list[str] = []
    for step in sorted(steps, reverse=True):
        checkpoint = checkpoints / str(step)
        problem = manifest.damage(checkpoint)
        if problem is None:
            return checkpoint
        logging.warning("%s cannot be read (%s): going back to the one before", checkpoint, problem)
        problems.append(f"step {step}: {problem}")
    raise ValueError(f"no checkpoint in {checkpoints} can be read: {'; '.join(problems) or 'none'}")


def _of_checkpoint(checkpoint: epath.Path) -> list[Variables]:
    """The clients of a run's checkpoint, of its first seed."""
    shapes = manifest.read(checkpoint)["leaves"]
    state = _restored(checkpoint / "default", lambda path: path[0] == "clients" and path[2] in KEPT)
    clients = []
    for group, learners in enumerate(state["clients"]):
        size = next(
            int(re.split(r"[\[,\]]", shape)[2])
            for name, shape in shapes.items()
            if name.startswith(f"clients/{group}/params/model/")
        )
        variables = {
            "params": learners["params"]["model"], "batch_stats": learners.get("stats") or {},
        }  # fmt: skip
        clients += [jax.tree.map(lambda x, i=i: x[0, i], variables) for i in range(size)]
    return clients


KEPT = ("params", "stats")  # of a `mhd_jax.state.Learners`


def _restored(path: epath.Path, wanted: Any = lambda path: True) -> Any:
    """Those arrays of a checkpoint whose path is wanted, on the host, wherever they were saved."""
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    there = checkpointer.metadata(path).item_metadata
    if there is None:
        raise ValueError("no checkpoint is there")

    def keep(path: Any, leaf: Any) -> Any:
        names = tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)
        return leaf if wanted(names) else ocp.PLACEHOLDER

    tree = jax.tree_util.tree_map_with_path(keep, there.tree)
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=tree, restore_args=args))


def fitted(given: Variables | None, shapes: Variables, who: str, name: str) -> Flat:
    """One client's weights by path, if they are those of its network.

    Args:
      given: see the module; None for none.
      shapes: of all variables of its classifier.
      who: the client, for the message.
      name: what `model.init_from` says, likewise.

    Raises:
      ConfigError: weights that the network does not have, lacks or has in another shape, or that
        are not finite.
    """
    if given is None:
        return {}
    here = traverse_util.flatten_dict(dict(shapes), sep="/")
    there = {
        path: np.asarray(leaf)
        for path, leaf in traverse_util.flatten_dict(_whole(given), sep="/").items()
    }
    parts = {_part(path) for path in there}
    wanted = {path: here[path] for path in here if _part(path) in parts}
    wrong = [
        f"{path} is {_shape(there.get(path))} there and {_shape(wanted.get(path))} here"
        for path in sorted({*there, *wanted}, key=lambda path: (path not in there, path))
        if _shape(there.get(path)) != _shape(wanted.get(path))
    ]
    if wrong:
        accepted = f"weights of the network of {who}: {first_few(wrong, MOST, between='; ')}"
        raise ConfigError(SETTING, name, accepted)
    odd = [path for path in sorted(there) if not np.isfinite(there[path].astype(np.float32)).all()]
    if odd:
        accepted = f"finite weights, but for {who} NaN or inf is in {first_few(odd, MOST)}"
        raise ConfigError(SETTING, name, accepted)
    return there


def _whole(given: Variables) -> dict[str, Any]:
    """{collection: {"network" or "head": ...}} from any form that weights may have."""
    by_kind = dict(given) if "params" in given else {"params": dict(given)}
    inner = set(by_kind["params"]) <= {"network", "head"}
    return {kind: tree if inner else {"network": tree} for kind, tree in by_kind.items() if tree}


def _part(path: str) -> tuple[str, ...]:
    """Collection and part of the classifier: what is given whole or not at all."""
    return tuple(path.split("/")[:2])


def _shape(leaf: Any) -> str:
    return "missing" if leaf is None else str(tuple(leaf.shape))


def main_head(flat: Flat, shapes: Variables) -> Flat:
    """The weights of a classifier with all heads for the same one with its main head alone.

    Where the two differ in the length of an axis, the main head comes first along it.
    """
    here = traverse_util.flatten_dict(dict(shapes), sep="/")
    # A path that is not here is of a module that auxiliary heads have to themselves: the main head
    # comes first, so what it has, alone or shared, is called the same with and without them.
    return {
        path: leaf[tuple(slice(n) for n in here[path].shape)]
        for path, leaf in flat.items()
        if path in here
    }
