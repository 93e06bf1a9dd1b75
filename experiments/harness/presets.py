# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""At which scale the experiments run: a config, how many seeds, and what a study varies there."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from experiments.harness import keel, many, sequences  # noqa: F401  they register their data
from mhd_jax.config import update
from mhd_jax.errors import ConfigError, suggest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


# A few steps in which every phase of every method comes, with few samples and narrow networks.
_QUICK: dict[str, Any] = {
    "train.steps": 4, "train.steps_per_call": 2, "train.log_every": 2, "train.eval_every": 4,
    "train.checkpoint_every": 4, "data.batch_size": 4, "data.public_batch_size": 8,
    "optimizer.warmup_steps": 1, "average.every": 2, "rounds.private_steps": 1,
    "rounds.public_steps": 1, "model.width": 8, "parallel.client_devices": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Preset:
    """A dataset and a scale.

    Attributes:
      name: what `--preset` says.
      config: a file in `configs/`, with a variant after a colon.
      seeds: seeds 0, 1, ... of every cell.
      num_seeds: how many of them are trained in one run.
      changes: settings that differ from the config in every cell.
      models: the small and large clients of the study of architectures.
      clients: the numbers of clients of the study of scaling.
      alphas: of the Dirichlet partition.
      shares: (clients, percentage of the training data) for scaling at fixed data per client.
      public_names: other data sets to take public images from.
      fixed: settings that no cell can change.
    """

    name: str
    config: str
    seeds: int = 5
    num_seeds: int = 1
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    models: tuple[tuple[str, int], tuple[str, int]] = (("resnet18", 5), ("resnet34", 3))
    clients: tuple[int, ...] = (2, 4, 16, 32, 64)
    alphas: tuple[float, ...] = (1.0, 0.1)
    shares: tuple[tuple[int, int], ...] = ((2, 25), (4, 50))
    public_names: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def base(
        self, changes: Mapping[str, Any] | None = None, config: str = ""
    ) -> ml_collections.ConfigDict:
        """The config of a cell.

        Args:
          changes: settings by dotted name.
          config: a config file with its variant in place of the preset's.

        Raises:
          ConfigError: there is no such config file, variant or setting.
        """
        path, _, variant = (config or self.config).partition(":")
        made = _load(path, variant)
        every = {"num_seeds": self.num_seeds, **self.changes}
        update(made, {**every, **(changes or {}), **self.fixed})
        return made

    def quick(self) -> Preset:
        """The same in a size that proves that everything runs; the figures mean nothing."""
        ends = tuple(dict.fromkeys((self.clients[0], self.clients[-1])))
        return dataclasses.replace(self, seeds=2, num_seeds=2, clients=ends, fixed=_QUICK)


def _load(path: str, variant: str) -> ml_collections.ConfigDict:
    """`get_config(variant)` of a file in the repository."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.exists() or spec is None or spec.loader is None:
        raise ConfigError("preset", path, "a preset whose config file exists")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded: ml_collections.ConfigDict = module.get_config(variant)
    return loaded


_MLPS = (("mlp_small", 5), ("mlp_large", 3))
_SMALL = (("cnn", 5), ("resnet8", 3))
_QUIET = {"train.eval_every": 500, "train.log_every": 500}  # nobody watches a single cell
# Small clients with little data each; see `experiments.many_clients`.
_MANY = {
    "data.name": "many_digits", "data.batch_size": 16, "data.public_batch_size": 64,
    "model.width": 32, "partition.primary_labels": 2, "graph.degree": 4, "train.steps": 800,
    "train.log_every": 400, "train.eval_every": 800, "train.checkpoint_every": 400,
    "parallel.client_devices": 1,
}  # fmt: skip

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "digits",
            "configs/digits.py",
            num_seeds=5,
            changes=_QUIET,
            models=_MLPS,
            public_names=("photos",),
        ),
        Preset("grid", "configs/digits.py", seeds=3, num_seeds=3, changes=_QUIET),
        Preset("held_out", "configs/digits.py", seeds=3, num_seeds=3, changes=_QUIET),
        Preset(
            "tabular",
            "configs/tabular.py",
            num_seeds=5,
            models=(("mlp_small", 2), ("mlp_large", 2)),
        ),
        Preset(
            "many",
            "configs/digits.py",
            seeds=1,
            changes=_MANY,
            clients=(16, 64, 256, 1024, 4096),
        ),
        Preset("smoke", "configs/digits.py:smoke", seeds=2, num_seeds=2, models=_MLPS),
        Preset("cifar10", "configs/cifar10.py", seeds=3, public_names=("tiny_imagenet32",)),
        Preset(
            "cifar10_cpu",
            "configs/cifar10.py:mlp",
            seeds=3,
            num_seeds=3,
            changes=_QUIET,
            models=_MLPS,
            clients=(4,),
            public_names=("tiny_imagenet32",),
        ),
        Preset("cifar10_cnn", "configs/cifar10.py:cpu", seeds=3, clients=(4,), models=_SMALL),
        # Photographs at their full size: one GPU, or half an hour to an hour a cell on two cores.
        Preset(
            "cifar10_resnet8",
            "configs/cifar10.py",
            seeds=1,
            changes={
                "clients.num": 4,
                "model.name": "resnet8",
                "train.steps": 5000,
                "train.eval_every": 500,
                "train.checkpoint_every": 5000,
            },
            clients=(2,),
            models=(("resnet8", 2), ("resnet20", 2)),
        ),
        Preset(
            "cifar10_resnet20",
            "configs/cifar10.py:cpu",
            seeds=1,
            changes={"model.name": "resnet20", "train.steps": 3000},
            clients=(4,),
            public_names=("tiny_imagenet32",),
            models=(("resnet8", 5), ("resnet20", 3)),
        ),
        Preset("tiny_imagenet", "configs/tiny_imagenet.py", seeds=3, public_names=("cifar10",)),
        Preset(
            "tiny_imagenet_cpu",
            "configs/tiny_imagenet.py:cpu",
            seeds=3,
            changes={"data.num_classes": 20},
            clients=(4,),
            models=_SMALL,
        ),
        Preset("imagenet", "configs/imagenet.py", seeds=3),
    )
}


def preset(name: str) -> Preset:
    """The preset of that name; raises `ConfigError` with a hint for an unknown one."""
    if name not in PRESETS:
        raise ConfigError("preset", name, suggest(name, PRESETS))
    return PRESETS[name]
