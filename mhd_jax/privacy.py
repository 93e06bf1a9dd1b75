# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Differential privacy: DP-SGD on the private loss of every client, and what may be claimed of it.

A step draws each of a client's n samples with probability q = batch_size / n, clips the gradient
of every sample to norm C, adds normal noise of standard deviation sigma C to their sum, and
divides by the expected batch. Everything a client publishes is computed from parameters that saw
its private samples through this alone. Source: M. Abadi et al., 2016,
https://arxiv.org/abs/1607.00133; the accountant is Google's `dp-accounting`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from jaxtyping import Array, Float, Int, Key

from mhd_jax import distill
from mhd_jax.errors import ConfigError
from mhd_jax.methods import Method
from mhd_jax.results import epsilon_range
from mhd_jax.trees import Variables

DISCRETIZATION = 1e-3
"""Of privacy losses; the accountant rounds up, so epsilon is never too small."""


@dataclasses.dataclass(frozen=True)
class Privacy:
    """What happens to private gradients.

    Attributes:
      noise_multiplier: sigma; standard deviation of the noise on a sum of gradients, over C.
      clip_norm: C, the norm that a sample's gradient is clipped to; inf for no clipping.
      batch_size: expected number of samples in a client's batch.
    """

    noise_multiplier: float
    clip_norm: float
    batch_size: int

    def clip(self, norms: Float[Array, "*k B"]) -> Float[Array, "*k B"]:
        """What each sample's gradient is multiplied by, min(1, C / norm)."""
        return jnp.minimum(1.0, self.clip_norm / norms)

    def noise(self, keys: Key[Array, " k"], grads: Variables) -> Variables:
        """Noise for gradients divided by the batch, leaves [k, ...], each client's from its key.

        None on what the private loss cannot reach whatever the samples are; see `reached`.
        """
        if not self.noise_multiplier:
            return jax.tree.map(jnp.zeros_like, grads)
        scale = self.noise_multiplier * self.clip_norm / self.batch_size

        def of_client(key: Array, tree: Variables) -> Variables:
            return optax.tree.random_like(key, tree, jax.random.normal)

        drawn = jax.vmap(of_client)(keys, grads)
        return jax.tree.map(lambda x: scale * x, drawn)


def build(config: ml_collections.ConfigDict) -> Privacy | None:
    """What the settings ask for; None where private gradients stay as they are.

    Raises:
      ConfigError: noise without a norm to scale it by, or a claim without noise.
    """
    chosen = config.privacy
    clip = chosen.clip_norm or math.inf
    if chosen.noise_multiplier and math.isinf(clip):
        accepted = "above 0 and finite: noise is a multiple of it"
        raise ConfigError("privacy.clip_norm", chosen.clip_norm, accepted)
    if chosen.delta and not chosen.noise_multiplier:
        accepted = (
            f"above 0: without noise nothing can be claimed at privacy.delta = {chosen.delta}"
        )
        raise ConfigError("privacy.noise_multiplier", chosen.noise_multiplier, accepted)
    if math.isinf(clip):
        return None
    return Privacy(chosen.noise_multiplier, clip, config.data.batch_size)


def reached(model: nn.Module, tree: Variables) -> Variables:
    """1 on every parameter that the main head's output depends on, 0 on those of other heads.

    The private loss reads the main head alone, so that its gradient on the others is 0 for all
    samples and needs no noise. A head says along which axis of its parameters heads lie
    (`head_axes`, by parameter); where it says nothing, all of it counts as reached.

    Args:
      model: a `MultiHeadClassifier`.
      tree: its parameters, leaves [k, ...].
    """
    axes = getattr(getattr(model, "head", None), "head_axes", {})

    def mask(path: tuple[jax.tree_util.DictKey, ...], leaf: Array) -> Array:
        names = [part.key for part in path]
        if names[0] != "head" or names[-1] not in axes:
            return jnp.ones((1,) * leaf.ndim)
        axis = 1 + axes[names[-1]]  # clients come first
        shape = [leaf.shape[axis] if at == axis else 1 for at in range(leaf.ndim)]
        return (jnp.arange(leaf.shape[axis]) == 0).astype(leaf.dtype).reshape(shape)

    return jax.tree_util.tree_map_with_path(mask, tree)


def protect(
    privacy: Privacy,
    model: nn.Module,
    grads: Variables,
    keys: Key[Array, " k"],
    weight: Float[Array, ""],
) -> Variables:
    """Clipped gradients of a group's private loss, with noise.

    Args:
      privacy: how much.
      model: of the group.
      grads: `{"model": ..., "projections": ...}`, leaves [k, ...]; the private loss reads no
        projections.
      keys: one per client, the same on all devices that share its batch.
      weight: of the private loss in the objective.
    """

    def add(gradient: Array, noise: Array, mask: Array) -> Array:
        return mask * (gradient + weight * noise)

    mine = grads["model"]
    noisy = jax.tree.map(add, mine, privacy.noise(keys, mine), reached(model, mine))
    return {**grads, "model": noisy}


# --- The claim ------------------------------------------------------------------------------------


def check(
    config: ml_collections.ConfigDict,
    sizes: Sequence[Int[np.ndarray, " K"]],
    *,
    batch_statistics: bool,
    draws: bool,
    own_public: bool,
) -> None:
    """Refuses what DP-SGD cannot do and what would make a claim void; warns of a weak one.

    Args:
      config: with `privacy` in use.
      sizes: private samples of every client, by seed.
      batch_statistics: a network normalises with statistics of the batch.
      draws: a network draws random numbers in training.
      own_public: the public set is a part of what the clients came with.

    Raises:
      ConfigError: naming the setting, its value and what is accepted.
    """
    smallest = min(int(of_seed.min()) for of_seed in sizes)
    if batch_statistics:
        accepted = "a norm of each sample alone (layer, group, none) with privacy: statistics of a "
        accepted += "private batch mix its samples and are not clipped"
        raise ConfigError("model.norm", config.model.norm, accepted)
    if draws:
        accepted = (
            "a network without dropout with privacy: gradients would not be those whose norms "
        )
        accepted += "were found"
        raise ConfigError("model.name", config.model.name, accepted)
    if config.data.batch_size > smallest:
        accepted = f"at most {smallest}, the samples of the smallest client, with privacy"
        raise ConfigError("data.batch_size", config.data.batch_size, accepted)
    if config.privacy.delta:
        _check_claim(config, smallest, own_public)


def _check_claim(config: ml_collections.ConfigDict, smallest: int, own_public: bool) -> None:
    delta, chosen = config.privacy.delta, config.distill
    if importlib.util.find_spec("dp_accounting") is None:
        accepted = 'the accountant to be installed: pip install "mhd-jax[privacy]"; or 0, no claim'
        raise ConfigError("privacy.delta", delta, accepted)
    if config.model.dtype != "float32":
        accepted = "float32 with privacy.delta: norms would be rounded, and gradients not within C"
        raise ConfigError("model.dtype", config.model.dtype, accepted)
    if chosen.publish_label_shares:
        accepted = "False with privacy.delta: label shares are counted, not noised"
        raise ConfigError("distill.publish_label_shares", True, accepted)
    if getattr(distill.RULES.get(chosen.rule), "reads_private_data", False):
        accepted = "a rule that reads no private data, with privacy.delta"
        raise ConfigError("distill.rule", chosen.rule, accepted)
    if own_public and not config.privacy.public_from_clients:
        accepted = "a public set of its own with privacy.delta: this one is made of the clients'"
        accepted += " own samples, which no noise covers (privacy.public_from_clients = True if "
        accepted += "that is known)"
        raise ConfigError("data.public_name", config.data.public_name, accepted)
    if config.model.init_from:
        logging.warning(
            "privacy.delta = %g: what the weights in model.init_from have learned is not covered; "
            "the claim holds if they have not seen the private samples of clients that learn here",
            delta,
        )  # fmt: skip
    if delta >= 1 / smallest:
        logging.warning(
            "privacy.delta = %g is not below 1/%d, one over the samples of the smallest client: "
            "publishing one of them at random would satisfy it",
            delta, smallest,
        )  # fmt: skip


def private_steps(method: Method, steps: int) -> int:
    """Steps of a run in which the private loss has weight; no others read private samples."""
    return int((method.weights(np.arange(steps))[:, 0] > 0).sum())


def epsilons(
    config: ml_collections.ConfigDict, method: Method, sizes: Int[np.ndarray, " K"]
) -> Float[np.ndarray, " K"] | None:
    """Epsilon of every client at `privacy.delta` after the whole run; None without a claim.

    NaN for frozen clients: they learn nothing here, and nothing is known of where they learned.

    Args:
      config: of the run.
      method: says in which steps private samples are read.
      sizes: private samples of every client.
    """
    chosen = config.privacy
    if not chosen.delta:
        return None
    steps, batch = private_steps(method, config.train.steps), config.data.batch_size
    found = [
        epsilon(chosen.noise_multiplier, batch / n, steps, chosen.delta) for n in sizes.tolist()
    ]
    return np.where(np.arange(len(found)) < config.clients.frozen, np.nan, found)


@functools.cache
def epsilon(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon at `delta` of `steps` steps of DP-SGD, for one sample more or less.

    By privacy loss distributions of the Poisson-subsampled Gaussian mechanism. Source: S. Meiser
    and E. Mohammadi, 2018, https://eprint.iacr.org/2017/1034, as `dp-accounting` has it.

    Args:
      noise_multiplier: sigma, above 0.
      rate: q, the probability of a sample to be in a batch.
      steps: composed.
      delta: in (0, 1).
    """
    import dp_accounting

    if not steps:
        return 0.0
    step = dp_accounting.PoissonSampledDpEvent(
        rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    accountant = dp_accounting.pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=DISCRETIZATION,
    )
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


def describe(privacy: Privacy, delta: float, found: Float[np.ndarray, " K"] | None) -> str:
    """One line about what is done and claimed.

    >>> describe(Privacy(1.0, 0.5, 32), 1e-5, np.array([1.31, 1.42]))
    'DP-SGD, noise 1, clip 0.5: epsilon 1.31 to 1.42 at delta 1e-05, by client, for one sample'
    """
    done = f"DP-SGD, noise {privacy.noise_multiplier:g}, clip {privacy.clip_norm:g}"
    if found is None:
        return f"{done}: no claim without privacy.delta"
    return f"{done}: epsilon {epsilon_range(found)} at delta {delta:g}, by client, for one sample"
