# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""`join`: a client that comes later learns from what a finished run's clients publish."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from mhd_jax import config as config_lib
from mhd_jax import federation, methods
from mhd_jax.api.fitting import fit
from mhd_jax.api.pieces import Piece, use
from mhd_jax.api.run import Run, index_of
from mhd_jax.data.sources import Source
from mhd_jax.data.sources.interface import SubSplit
from mhd_jax.data.sources.silos import Pair, with_client
from mhd_jax.errors import ConfigError, WorkdirError


def join(
    run: Run,
    samples: Pair,
    workdir: epath.PathLike | None = None,
    *,
    name: str = "new",
    peers: Sequence[int | str] | None = None,
    model: Piece | None = None,
    test: Pair | None = None,
    config: Mapping[str, object] | None = None,
) -> Run:
    """Trains one client more against the published predictions of a finished run.

    The clients of the run publish what their trained networks predict on the run's public samples,
    and stay what they are to the last bit. The new client comes last. Everything that is not said
    here is as in the run, the first of its seeds.

    Args:
      run: the finished run, with its data set at hand.
      samples: samples [N, ...] and labels [N] of the new client, such as those of the run.
      workdir: the directory of the new run; None for a temporary one.
      name: the new client's name.
      peers: clients it learns from, by index or name; None for all.
      model: its network, see `fit`; None for `model.name`.
      test: test samples and labels of its own.
      config: settings that differ from the run's, by dotted name, such as "train.steps". Those that
        joining fixes, such as "num_seeds" = 1, are refused.

    Returns:
      The finished run with all clients, and the new client alone in its isolated baseline.

    Raises:
      ConfigError: no run, samples or settings that cannot work, or a method without distillation.
      WorkdirError: the run is not finished.
    """
    if not isinstance(run, Run):
        raise ConfigError("run", run, "a Run, from fit or from Run.load")
    if not run._directory.finished():
        raise WorkdirError(f"{run.workdir}: is not finished; a client joins a run that is")
    made = run.config.copy_and_resolve_references()
    if methods.build(made).distillation is None:
        raise ConfigError("method", made.method, "one that distils, as a client joins by learning")
    trained = config_lib.client_models(made)
    config_lib.update(made, config or {})
    asked = {setting: config_lib.flatten(made)[setting] for setting in config or {}}
    use(made, {"model": model})
    num = run.config.clients.num
    config_lib.update(made, {
        "num_seeds": 1, "clients.num": num + 1, "clients.frozen": num,
        "clients.models": (*trained, (made.model.name, 1)),
        "data.public_name": "", "data.num_classes": 0, "data.client_key": "",
        "data.split": "train", "data.image_size": 0,
        "data.public_fraction": config_lib.default_config().data.public_fraction,
        "graph.sequence": (), "graph.every": 0, "exchange.mode": "fresh",
        "clients.active": 1.0, "clients.trace": "", "clients.offload": "none",
        "model.init_from": "",
    })  # fmt: skip
    graph = np.zeros((num + 1, num + 1), bool)
    graph[num, _indices(run, peers)] = True
    source = _source(run, name, samples, test)
    use(made, {"source": source, "graph": graph})
    _check_asked(asked, config_lib.flatten(made))
    return fit(made, workdir, source=source, init_from=(str(run.workdir), None))


def _check_asked(asked: Mapping[str, object], fixed: Mapping[str, object]) -> None:
    """Raises `ConfigError` where a setting that was asked for is another one in the new run."""
    for setting, value in asked.items():
        if fixed[setting] == value:
            continue
        if setting in ARGUMENTS:
            raise ConfigError(
                setting, value, f"the argument {ARGUMENTS[setting]!r} of join instead"
            )
        raise ConfigError(setting, value, f"{fixed[setting]!r}, as whenever a client joins a run")


ARGUMENTS = {
    "graph.name": "peers", "graph.matrix": "peers", "data.name": "samples",
    "model.name": "model", "clients.models": "model",
}  # fmt: skip
"""Settings that `join` makes from an argument of its own."""


def _indices(run: Run, peers: Sequence[int | str] | None) -> list[int]:
    """Clients by index; all where none are named.

    Raises:
      ConfigError: no sequence, or a client that there is not.
    """
    names = run.summary.names
    if peers is None:
        return list(range(len(names)))
    if isinstance(peers, str) or not np.iterable(peers):
        raise ConfigError("peers", peers, "a sequence of clients, by index or name; None for all")
    return [index_of("peers", peer, names) for peer in peers]


def _source(run: Run, name: str, samples: Pair, test: Pair | None) -> Source:
    """The run's data, divided as it was, and the new client's."""
    divided = run._restored.experiment.federations[0]
    known = dataclasses.replace(
        divided.source,
        # Tests of the clients that the data set comes with are not those of others.
        silos=federation.kept_silos(run.config, divided.source),
        public=SubSplit(divided.public, divided.public_indices),
        mean=divided.mean,
        std=divided.std,
    )
    owned = divided.partition.indices
    return with_client(known, owned, run.summary.names, name, samples, test)
