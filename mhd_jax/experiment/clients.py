# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Which networks clients have, on which devices they are, and who takes part in a step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Bool

from mhd_jax import attacks, distill, federation, methods, models, parallel, participation
from mhd_jax import config as config_lib
from mhd_jax import privacy as privacy_lib
from mhd_jax.data import sources
from mhd_jax.data.sources import Source
from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.inputs import Sample
from mhd_jax.models import bridge, heads, shapes
from mhd_jax.models.classifier import MultiHeadClassifier
from mhd_jax.parallel import Layout
from mhd_jax.participation import Roster
from mhd_jax.registry import is_ours, takes_whole_batch
from mhd_jax.trees import PyTree

VARIABLES = ("params", "batch_stats")
"""Kinds of variables that a client's state keeps."""

TRAINABLE = ("float32", "bfloat16")
"""Types of parameters: float16 has no number as small as those that optimisers divide by."""


@dataclasses.dataclass(frozen=True)
class Clients:
    """The clients of a run.

    Attributes:
      models: one per group.
      baseline_models: one per group, with a main head only; () without an isolated baseline.
      roster: who owns which client, and who takes part in a step.
      sample: one sample as the networks see it.
      num_classes: C.
    """

    models: tuple[MultiHeadClassifier, ...]
    baseline_models: tuple[MultiHeadClassifier, ...]
    roster: Roster
    sample: Sample
    num_classes: int

    @property
    def layout(self) -> Layout:
        """Who owns which client."""
        return self.roster.layout

    @functools.cached_property
    def embedding_widths(self) -> tuple[int, ...]:
        """D of every group."""
        return tuple(shapes.embedding_width(model, self.sample) for model in self.models)

    @functools.cached_property
    def parameters(self) -> tuple[PyTree, ...]:
        """Shapes of a client's in every group, without projections of embeddings."""
        found = [shapes.variable_shapes(model, self.sample) for model in self.models]
        return tuple({"model": v.get("params", {}), "projections": {}} for v in found)

    @functools.cached_property
    def convolutional(self) -> bool:
        """Whether a network has convolutions."""
        return any(shapes.has_convolutions(model, self.sample) for model in self.models)

    @functools.cached_property
    def by_batch(self) -> Bool[np.ndarray, " K"]:
        """Whose network normalises with statistics of the batch."""
        statistics = [shapes.has_statistics(model, self.sample) for model in self.models]
        return np.repeat(statistics, self.layout.groups)


def make_clients(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    source: Source,
    seeds: Sequence[int],
    horizon: int,
) -> Clients:
    """Networks, devices and attendance, as the settings ask for them.

    Args:
      config: see `mhd_jax.config.default_config`.
      method: of the run.
      source: of private samples.
      seeds: of the run.
      horizon: steps for which attendance will be asked.

    Raises:
      ConfigError: a network that does not take such samples, clients that do not fit the devices or
        the method, or partial participation in what rests on everybody.
    """
    sample, num_classes = federation.sample_of(source), source.num_classes
    built = _classifiers(config, num_classes, method.num_heads(config.heads.aux))
    _check_networks([name for name, _ in config_lib.client_models(config)], built, source)
    alone = _classifiers(config, num_classes, 1) if _wants_baseline(config, method) else ()
    _warn_of_another_start(config.heads.name, built, alone, sample)
    layout = _layout(config, method, built, sample)
    roster = _roster(config, method, layout, seeds, horizon)
    return Clients(built, alone, roster, sample, num_classes)


def _classifiers(
    config: ml_collections.ConfigDict, num_classes: int, num_heads: int
) -> tuple[MultiHeadClassifier, ...]:
    """One classifier per group."""
    settings = config.model.to_dict()
    return tuple(
        models.build(
            {**settings, "name": name},
            num_classes,
            num_heads,
            head=config.heads.name,
            conv_lowering=config.parallel.conv_lowering,
        )  # fmt: skip
        for name, _ in config_lib.client_models(config)
    )


def _warn_of_another_start(
    name: str,
    built: Sequence[MultiHeadClassifier],
    alone: Sequence[MultiHeadClassifier],
    sample: Sample,
) -> None:
    """Warns where the isolated baseline does not start from the clients' main heads."""
    if is_ours(models.HEADS.get(name)):
        return
    for many, one in zip(built, alone, strict=False):
        width = shapes.embedding_width(many, sample)
        if not heads.starts_alike(many.head, one.head, width):
            logging.warning(
                "heads.name = %s: the main head has other initial values without auxiliary heads, "
                "and so the isolated baseline starts from other ones; "
                "mhd_jax.models.heads.per_head draws the same", name,
            )  # fmt: skip
            return


def _check_networks(
    names: Sequence[str], built: Sequence[MultiHeadClassifier], source: Source
) -> None:
    """Traces every network on one sample.

    Args:
      names: of the networks, as settings call them.
      built: the classifiers with these networks.
      source: of private samples.

    Raises:
      ConfigError: a network that cannot take such samples, or with another output than [B, D]; or
        of network or head, another flag than `train`, or variables that a state does not keep or
        that cannot be trained.
    """
    for name, model in zip(names, built, strict=True):
        variables = _variables(name, model, source)
        parts = {
            "network": ("model.name", name, "a network"),
            "head": ("heads.name", type(model.head).__name__, "a head"),
        }
        for part, (setting, piece, what) in parts.items():
            if flag := bridge.misnamed_flag(getattr(model, part)):
                accepted = f"{what} that takes `train`, not `{flag}`, to know that it is trained"
                raise ConfigError(setting, piece, accepted)
            kinds = {kind: tree[part] for kind, tree in variables.items() if part in tree}
            if other := set(kinds) - set(VARIABLES):
                accepted = f"{what} whose variables are of the kinds {', '.join(VARIABLES)}, not "
                raise ConfigError(setting, piece, f"{accepted}{', '.join(sorted(other))} too")
            types = {str(leaf.dtype) for leaf in jax.tree.leaves(kinds.get("params", {}))}
            if other := types - set(TRAINABLE):
                accepted = f"{what} whose parameters are of type {' or '.join(TRAINABLE)}, not "
                raise ConfigError(setting, piece, accepted + ", ".join(sorted(other)))


def _variables(name: str, model: MultiHeadClassifier, source: Source) -> PyTree:
    """Shapes of a client's variables; a network that fails is told what its samples are taken for.

    Raises:
      ConfigError: a network that cannot take such samples, as ours cannot take ids.
    """
    stored, dimensions = source.train.dtype, len(source.image_shape)
    if sources.is_ids(stored) and is_ours(type(model.network)):
        accepted = (
            "a network of yours for ids, such as one that begins with flax.linen.Embed: integers "
            "are taken for ids of words or letters. Give a table as floating point, and pixels as "
            "uint8"
        )
        raise ConfigError("model.name", name, accepted)
    try:
        with of_piece("model.name", name, "a network that can be built"):
            return shapes.variable_shapes(model, federation.sample_of(source))
    except ConfigError as error:
        if error.setting != "model.name":
            raise
        hint = ""
        if stored == np.uint8 and dimensions != 3:
            hint = "; uint8 is taken for pixels, ids are of another integer type"
        elif dimensions == 2 and not sources.is_ids(stored):
            hint = "; images have the shape [H, W, C], and this counts as series [T, F]"
        raise ConfigError("model.name", name, error.accepted + hint) from error


def _wants_baseline(config: ml_collections.ConfigDict, method: methods.Method) -> bool:
    """An isolated baseline makes sense beside clients that exchange something."""
    return config.isolated_baseline and method.exchanges and not method.pooled


def _layout(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    built: Sequence[MultiHeadClassifier],
    sample: Sample,
) -> Layout:
    sizes = [count for _, count in config_lib.client_models(config)]
    if len(sizes) > 1 and (method.pooled or method.averaging is not None):
        does = "trains one model" if method.pooled else "averages parameters"
        accepted = f"one architecture: {config.method} {does}"
        raise ConfigError("clients.models", config.clients.models, accepted)
    data_devices = config.parallel.data_devices
    if data_devices != 1 and jax.device_count() > 1:
        needing = _need_whole_batches(config, method, built, sample)
        if needing and data_devices:
            logging.warning(
                "parallel.data_devices = %d: results depend on the number of devices, because of "
                "%s: each device sees only its part of a batch", data_devices,
                " and ".join(needing),
            )  # fmt: skip
        data_devices = data_devices or int(bool(needing))
    return parallel.make_layout(
        [1] if method.pooled else sizes,
        client_devices=0 if method.pooled else config.parallel.client_devices,
        data_devices=data_devices,
        batch_sizes=(config.data.batch_size, config.data.public_batch_size),
    )


def _need_whole_batches(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    built: Sequence[MultiHeadClassifier],
    sample: Sample,
) -> list[str]:
    """What compares the samples of a batch or draws for all of them at once, in words."""
    needing = []
    if any(shapes.has_statistics(model, sample) for model in built):
        needing.append("batch statistics")
    if any(shapes.draws(model, sample) for model in built):
        needing.append("dropout")
    chosen = method.distillation
    if chosen is not None and takes_whole_batch(distill.RULES.get(chosen.rule)):
        needing.append(f"distill.rule = {chosen.rule!r}")
    if takes_whole_batch(attacks.ATTACKS.get(config.attack.name)):
        needing.append(f"attack.name = {config.attack.name!r}")
    return needing


def _roster(
    config: ml_collections.ConfigDict,
    method: methods.Method,
    layout: Layout,
    seeds: Sequence[int],
    horizon: int,
) -> Roster:
    """Who takes part in a step.

    Raises:
      ConfigError: not everybody does, and something in the run rests on everybody.
    """
    roster = participation.make_roster(config, layout, seeds, horizon)
    why = ""
    if method.averaging is not None:
        why = f"{config.method} averages the parameters of all clients"
    elif config.attack.name != attacks.NONE:
        why = "attack.clients lie in every step"
    elif config.clients.frozen:
        why = "the clients of clients.frozen teach in every step"
    elif config.exchange.cache > 1 and method.distillation is not None:
        why = "with exchange.cache readers keep what everybody has sent"
    elif privacy_lib.build(config) is not None:
        why = "privacy is accounted for in clients that take part in every step"
    if roster.attendances and why:
        everybody = participation.active_clients(config) == layout.num_clients
        name, accepted = ("trace", "'', everybody") if everybody else ("active", "everybody")
        raise ConfigError(f"clients.{name}", config.clients[name], f"{accepted}: {why}")
    return roster
