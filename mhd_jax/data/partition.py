# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Who owns which training sample: the public set, and one private set per client.

Everything here is a pure function of (labels, settings, seed). A scheme answers one question,
"which client gets this sample?", once for every sample; so whatever a scheme does, no sample is
lost and none is given twice. Letters: N samples, K clients, C classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import numbers
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from mhd_jax import rng as random
from mhd_jax.config import is_whole
from mhd_jax.errors import ConfigError, of_piece
from mhd_jax.registry import Registry

# Redraws of a Dirichlet partition before the smallest clients are topped up instead.
MAX_DRAWS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """The private samples of every client, as indices into the training set.

    Attributes:
      indices: for each client its samples, ascending, int64.
      primary: [K, C], True where a label was handed to a client on purpose; all False in schemes
        that hand out samples rather than labels.
      public: the samples everybody sees, without their labels; empty when the public set is
        another dataset.
    """

    indices: tuple[Int[np.ndarray, " n"], ...]
    primary: Bool[np.ndarray, "K C"]
    public: Int[np.ndarray, " P"] = dataclasses.field(
        default_factory=lambda: np.empty(0, dtype=np.int64)
    )

    @property
    def sizes(self) -> Int[np.ndarray, " K"]:
        """Number of private samples of each client."""
        return np.array([len(owned) for owned in self.indices])

    def histogram(self, labels: Int[np.ndarray, " N"], num_classes: int) -> Int[np.ndarray, "K C"]:
        """Number of private samples of each label that each client holds.

        Args:
          labels: labels of the whole training set, the one `indices` point into.
          num_classes: C.
        """
        return np.stack(
            [np.bincount(labels[owned], minlength=num_classes) for owned in self.indices]
        )

    def hash(self) -> str:
        """SHA-256 of who owns what, equal on every platform: the partition's name in a record."""
        digest = hashlib.sha256()
        for owned in (*self.indices, self.public):
            digest.update(len(owned).to_bytes(8, "little"))
            digest.update(np.asarray(owned, dtype="<i8").tobytes())
        return digest.hexdigest()


class Owners(NamedTuple):
    """What a scheme decides: the client of every sample, and whose primary labels are which.

    `primary` is None in schemes that hand out samples rather than labels.
    """

    client: Int[np.ndarray, " N"]
    primary: Bool[np.ndarray, "K C"] | None = None


Scheme = Callable[[Int[np.ndarray, " N"], int, int, ConfigDict, np.random.Generator], Owners]
"""``(labels, num_classes, num_clients, partition_config, generator) -> Owners``."""

PARTITIONS: Registry[Scheme] = Registry("partition.name")


def split_public(
    num_samples: int, fraction: float, seed: int
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " P"]]:
    """Draws the public set from the training set.

    Args:
      num_samples: size of the training set.
      fraction: `data.public_fraction`, the share of it that becomes public, in (0, 1).
      seed: the run's seed.

    Returns:
      Indices of the private and of the public samples, each ascending.

    Raises:
      ConfigError: the fraction is outside (0, 1), or leaves one of the two sets empty.

    >>> private, public = split_public(1297, 0.1, seed=0)
    >>> len(private), len(public)
    (1167, 130)
    """
    if not (_is_number(fraction) and 0 < fraction < 1):
        raise ConfigError("data.public_fraction", fraction, "a number above 0 and below 1")
    size = round(fraction * num_samples)
    if not 0 < size < num_samples:
        raise ConfigError(
            "data.public_fraction",
            fraction,
            f"a fraction of the {num_samples} training samples that leaves at least one sample"
            " public and one private",
        )
    order = random.generator(seed, "public").permutation(num_samples)
    return np.sort(order[size:]), np.sort(order[:size])


def partition(
    labels: Int[np.ndarray, " N"],
    num_classes: int,
    num_clients: int,
    config: ConfigDict,
    seed: int,
    *,
    private: Int[np.ndarray, " M"] | None = None,
    public: Int[np.ndarray, " P"] | None = None,
    owner: Int[np.ndarray, " N"] | None = None,
) -> Partition:
    """Divides private samples among clients by the scheme `config.name`.

    Args:
      labels: labels of the training set; only those of `private` are looked at.
      num_classes: C; labels lie in 0..C-1.
      num_clients: K.
      config: the settings under `partition`.
      seed: the run's seed.
      private: the samples to divide; None for all.
      public: the public samples, carried along for the record.
      owner: the client that the data set itself gives every sample to, for the scheme `by_key`.

    Returns:
      The partition; its indices are those of the training set.

    Raises:
      ConfigError: a setting is out of range, or a client would be left without samples.

    >>> config = ConfigDict({"name": "iid"})
    >>> partition(np.array([0, 1, 0, 1, 0, 1]), 2, 3, config, seed=0).sizes
    array([2, 2, 2])
    """
    scheme = PARTITIONS.get(config.name)
    private = np.arange(len(labels)) if private is None else np.sort(private)
    labels = np.asarray(labels)[private]
    _check_counts(labels, num_classes, num_clients)
    generator = random.generator(seed, "partition")
    if config.name == BY_KEY and owner is not None:
        owners = Owners(np.asarray(owner)[private])
    else:
        accepted = "a partition (labels, num_classes, num_clients, config, rng)"
        with of_piece("partition.name", config.name, accepted):
            owners = scheme(labels, num_classes, num_clients, config, generator)
    client, primary = _checked(owners, labels, num_classes, num_clients, config.name)
    sizes = np.bincount(client, minlength=num_clients)
    _check_nobody_empty(sizes, config.name)
    # A stable sort by owner leaves every client's samples ascending.
    owned = private[np.argsort(client, kind="stable")].astype(np.int64)
    return Partition(
        indices=tuple(np.split(owned, np.cumsum(sizes)[:-1])),
        primary=primary,
        public=np.sort(np.asarray([] if public is None else public, dtype=np.int64)),
    )


def _checked(
    owners: Owners,
    labels: Int[np.ndarray, " N"],
    num_classes: int,
    num_clients: int,
    name: str,
) -> tuple[Int[np.ndarray, " N"], Bool[np.ndarray, "K C"]]:
    """What a scheme decided as arrays; raises `ConfigError` where it did not keep its contract."""
    if not isinstance(owners, Owners):
        accepted = f"a scheme that returns Owners, not {type(owners).__name__}"
        raise ConfigError("partition.name", name, accepted)
    accepted = (
        f"the client, 0 to {num_clients - 1}, of every sample as integers of shape "
        f"[N] = {labels.shape}"
    )
    with of_piece("partition.name", name, accepted):
        client = np.asarray(owners.client)
    inside = client.dtype.kind in "iu" and np.all((client >= 0) & (client < num_clients))
    if client.shape != labels.shape or not inside:
        accepted += f", not {client.dtype} of shape {client.shape}"
        if client.size and client.dtype.kind in "iuf":
            accepted += f" with values {client.min():g} to {client.max():g}"
        raise ConfigError("partition.name", name, accepted)
    shape = (num_clients, num_classes)
    if owners.primary is None:
        return client, np.zeros(shape, dtype=bool)
    accepted = f"primary labels of shape [K, C] = {shape}"
    with of_piece("partition.name", name, accepted):
        primary = np.asarray(owners.primary)
    if primary.shape != shape:
        raise ConfigError("partition.name", name, f"{accepted}, not {primary.shape}")
    if primary.dtype.kind not in "biuf" or not np.all((primary == 0) | (primary == 1)):
        accepted += f", each True or False (1 or 0), not other values of {primary.dtype}"
        raise ConfigError("partition.name", name, accepted)
    return client, primary.astype(bool)


def pooled(parts: Partition) -> Partition:
    """All private samples in one client's hands: the data of the supervised baseline."""
    everything = np.sort(np.concatenate(parts.indices))
    return Partition((everything,), np.atleast_2d(parts.primary.any(axis=0)), parts.public)


# --- Schemes -------------------------------------------------------------------------------------


@PARTITIONS.register("primary_labels")
def primary_labels(
    labels: Int[np.ndarray, " N"],
    num_classes: int,
    num_clients: int,
    config: ConfigDict,
    generator: np.random.Generator,
) -> Owners:
    """Every client gets random primary labels, and samples of those with greater weight.

    A sample with label l goes to client i with probability w_il / sum_j w_jl, where w = 1 + skew
    for the label's primary clients and 1 for the others. skew = 0 is iid; skew = inf is strictly
    disjoint, but for a label that is nobody's primary label, which all clients share.

    Source: Zhmoginov et al., "Decentralized Learning with Multi-Headed Distillation", CVPR 2023,
    https://arxiv.org/abs/2211.15774.

    Settings: `skew` in [0, inf]; `primary_labels`, the number a client gets, 0 standing for 2 C / K
    (rounded up for the first clients and down for the others, and at least 1), so that a label has
    two primary clients on average.
    """
    skew = _skew(config)
    count = _whole(config, "primary_labels", 0, num_classes, "the number of classes")
    even = [2 * num_classes // num_clients + (i < 2 * num_classes % num_clients)
            for i in range(num_clients)]  # fmt: skip
    counts = [count or min(num_classes, max(1, share)) for share in even]
    chosen = [generator.permutation(num_classes)[:count] for count in counts]
    primary = _mark(chosen, num_classes)
    # Divided by 1 + skew, the weights stay finite up to skew = inf.
    weights = np.where(primary.T, 1.0, 1.0 / (1.0 + skew))
    weights[~primary.any(axis=0)] = 1.0
    return Owners(_draw(labels, weights, generator), primary)


@PARTITIONS.register("iid")
def iid(
    labels: Int[np.ndarray, " N"],
    num_classes: int,
    num_clients: int,
    config: ConfigDict,
    generator: np.random.Generator,
) -> Owners:
    """Shuffled samples dealt out in turn: sizes differ by one at most. No settings."""
    dealt = np.arange(len(labels)) % num_clients
    return Owners(generator.permutation(dealt))


@PARTITIONS.register("dirichlet")
def dirichlet(
    labels: Int[np.ndarray, " N"],
    num_classes: int,
    num_clients: int,
    config: ConfigDict,
    generator: np.random.Generator,
) -> Owners:
    """Each label is spread over the clients in proportions drawn from Dirichlet(alpha).

    The smaller `alpha`, the fewer clients hold most of a label. A draw that leaves a client with
    fewer than `min_size` samples is repeated, `MAX_DRAWS` times at most; after that the last draw
    is kept and the short clients are topped up from the largest ones, which the log says.

    Source: M. Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks",
    ICML 2019, https://arxiv.org/abs/1905.12022, which redraws without a bound.

    Settings: `alpha` > 0; `min_size` >= 1.
    """
    alpha, min_size = _alpha(config), _min_size(config, len(labels), num_clients)
    for _ in range(MAX_DRAWS):
        proportions = generator.dirichlet(np.full(num_clients, alpha), size=num_classes)
        client = _draw(labels, proportions, generator)
        if np.bincount(client, minlength=num_clients).min() >= min_size:
            return Owners(client)
    logging.warning(
        "partition.alpha = %g: %d draws left a client with fewer than partition.min_size = %d"
        " samples; such clients get random samples of the largest clients.",
        alpha,
        MAX_DRAWS,
        min_size,
    )
    return Owners(_top_up(client, num_clients, min_size, generator))


@PARTITIONS.register("shards")
def shards(
    labels: Int[np.ndarray, " N"],
    num_classes: int,
    num_clients: int,
    config: ConfigDict,
    generator: np.random.Generator,
) -> Owners:
    """Samples sorted by label, cut into equal shards; every client gets random ones.

    Source: B. McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, section 3, https://arxiv.org/abs/1602.05629.

    Settings: `shards_per_client` >= 1.
    """
    most = len(labels) // num_clients
    per_client = _whole(config, "shards_per_client", 1, most, "so that no shard is empty")
    order = generator.permutation(len(labels))
    by_label = order[np.argsort(labels[order], kind="stable")]
    holders = generator.permutation(np.repeat(np.arange(num_clients), per_client))
    client = np.empty(len(labels), dtype=np.int64)
    for holder, shard in zip(holders, np.array_split(by_label, len(holders)), strict=True):
        client[shard] = holder
    return Owners(client)


@PARTITIONS.register("classes_per_client")
def classes_per_client(
    labels: Int[np.ndarray, " N"],
    num_classes: int,
    num_clients: int,
    config: ConfigDict,
    generator: np.random.Generator,
) -> Owners:
    """Every client holds exactly so many labels; a label's holders share it evenly.

    Clients choose in turn, each the labels with the fewest holders so far (ties at random), so
    numbers of holders differ by one at most and no label is left out. The chosen labels are the
    primary labels.

    Source: the "#C = k" setting of Q. Li et al., "Federated Learning on Non-IID Data Silos: An
    Experimental Study", ICDE 2022, https://arxiv.org/abs/2102.02079; there, a label that nobody
    chose is thrown away.

    Settings: `classes_per_client` from C / K to C.
    """
    fewest = max(1, math.ceil(num_classes / num_clients))
    why = f"so that each of {num_classes} classes has a holder among {num_clients} clients"
    count = _whole(config, "classes_per_client", fewest, num_classes, why)
    num_holders = np.zeros(num_classes, dtype=np.int64)
    chosen = []
    for _ in range(num_clients):
        order = generator.permutation(num_classes)
        chosen.append(order[np.argsort(num_holders[order], kind="stable")][:count])
        num_holders[chosen[-1]] += 1
    primary = _mark(chosen, num_classes)
    client = np.empty(len(labels), dtype=np.int64)
    for members, holds in zip(_members(labels, num_classes), primary.T, strict=True):
        # In random order, so that the samples left over by the division fall to random holders.
        holders = generator.permutation(np.flatnonzero(holds))
        client[generator.permutation(members)] = np.resize(holders, len(members))
    return Owners(client, primary)


@PARTITIONS.register("quantity")
def quantity(
    labels: Int[np.ndarray, " N"],
    num_classes: int,
    num_clients: int,
    config: ConfigDict,
    generator: np.random.Generator,
) -> Owners:
    """Every client has the same mixture of labels, but sizes are drawn from Dirichlet(alpha).

    Each client gets `min_size` samples first; the others are divided in the drawn proportions.

    Source: the "quantity skew" of Q. Li et al., "Federated Learning on Non-IID Data Silos: An
    Experimental Study", ICDE 2022, https://arxiv.org/abs/2102.02079.

    Settings: `alpha` > 0, smaller is more unequal; `min_size` >= 1.
    """
    alpha, min_size = _alpha(config), _min_size(config, len(labels), num_clients)
    rest = len(labels) - min_size * num_clients
    proportions = generator.dirichlet(np.full(num_clients, alpha))
    bounds = np.rint(np.cumsum(proportions) * rest).astype(np.int64)
    sizes = min_size + np.diff(bounds, prepend=0)
    client = generator.permutation(np.repeat(np.arange(num_clients), sizes))
    return Owners(client)


BY_KEY = "by_key"


@PARTITIONS.register(BY_KEY)
def by_key(
    labels: Int[np.ndarray, " N"],
    num_classes: int,
    num_clients: int,
    config: ConfigDict,
    generator: np.random.Generator,
) -> Owners:
    """Every client has the samples that the data set says are its own. No settings.

    `partition` gives them out by `owner`; this function only refuses data sets without one.

    Raises:
      ConfigError: the data set does not say whose a sample is.
    """
    del labels, num_classes, num_clients, config, generator
    accepted = (
        "another scheme, as data.name does not say whose a sample is. Data sets that do: those of "
        "mhd_jax.from_clients or from_arrays(clients=...), a folder with clients/<name>/<class>/, "
        "and TensorFlow Datasets with data.client_key"
    )
    raise ConfigError("partition.name", BY_KEY, accepted)


# --- Pieces that schemes share -------------------------------------------------------------------


def _draw(
    labels: Int[np.ndarray, " N"],
    weights: Float[np.ndarray, "C K"],
    generator: np.random.Generator,
) -> Int[np.ndarray, " N"]:
    """Gives each sample to a random client, client i with probability ~ weights[label, i]."""
    uniform = generator.random(len(labels))
    client = np.empty(len(labels), dtype=np.int64)
    for members, row in zip(_members(labels, len(weights)), weights, strict=True):
        cumulative = np.cumsum(row)
        # side="right" never picks a client of weight 0, and dividing makes the last bound exactly
        # 1, which the draws from [0, 1) stay below.
        bounds = cumulative / cumulative[-1]
        client[members] = np.searchsorted(bounds, uniform[members], side="right")
    return client


def _members(labels: Int[np.ndarray, " N"], num_classes: int) -> list[Int[np.ndarray, " n"]]:
    """For each class the positions of its samples, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])


def _mark(chosen: list[Int[np.ndarray, " n"]], num_classes: int) -> Bool[np.ndarray, "K C"]:
    """True at the labels that each client chose."""
    marks = np.zeros((len(chosen), num_classes), dtype=bool)
    for row, labels in zip(marks, chosen, strict=True):
        row[labels] = True
    return marks


def _top_up(
    client: Int[np.ndarray, " N"], num_clients: int, min_size: int, generator: np.random.Generator
) -> Int[np.ndarray, " N"]:
    """Moves samples from the largest clients to those below `min_size`, in client order.

    Ends because a client never gives so many that it falls below `min_size` itself, and there are
    at least K * min_size samples: a short client always finds one with samples to spare.
    """
    client = client.copy()
    sizes = np.bincount(client, minlength=num_clients)
    for short in np.flatnonzero(sizes < min_size):
        while sizes[short] < min_size:
            donor = int(np.argmax(sizes))
            count = min(min_size - sizes[short], sizes[donor] - min_size)
            moved = generator.choice(np.flatnonzero(client == donor), size=count, replace=False)
            client[moved] = short
            sizes[donor] -= count
            sizes[short] += count
    return client


# --- Checks --------------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _whole(config: ConfigDict, name: str, low: int, high: int, why: str) -> int:
    """The whole number `partition.<name>`, which must lie in low..high for the reason given."""
    value = config[name]
    if not (is_whole(value) and low <= value <= high):
        raise ConfigError(f"partition.{name}", value, f"a whole number from {low} to {high}, {why}")
    return int(value)


def _alpha(config: ConfigDict) -> float:
    alpha = config.alpha
    if not (_is_number(alpha) and 0 < alpha < math.inf):
        raise ConfigError("partition.alpha", alpha, "a finite number > 0")
    return float(alpha)


def _skew(config: ConfigDict) -> float:
    skew = config.skew
    if not (_is_number(skew) and skew >= 0):
        raise ConfigError("partition.skew", skew, "a number >= 0, or inf")
    return float(skew)


def _min_size(config: ConfigDict, num_samples: int, num_clients: int) -> int:
    why = f"as {num_samples} private samples are shared by {num_clients} clients"
    return _whole(config, "min_size", 1, num_samples // num_clients, why)


def _check_counts(labels: Int[np.ndarray, " N"], num_classes: int, num_clients: int) -> None:
    if not (is_whole(num_clients) and num_clients >= 1):
        raise ConfigError("clients.num", num_clients, "a whole number >= 1")
    if num_clients > len(labels):
        raise ConfigError(
            "clients.num",
            num_clients,
            f"at most {len(labels)}, the number of private samples: each client needs one",
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        bad = labels[(labels < 0) | (labels >= num_classes)][0]
        raise ConfigError(
            "data.split", f"a sample with label {bad}", f"labels from 0 to {num_classes - 1}"
        )


def _check_nobody_empty(sizes: Int[np.ndarray, " K"], name: str) -> None:
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        raise ConfigError(
            "partition.name",
            name,
            f"samples for each of the {len(sizes)} clients, but client {empty[0]} gets none;"
            " use fewer clients (clients.num), more labels per client, a milder skew or"
            " a smaller data.public_fraction",
        )
