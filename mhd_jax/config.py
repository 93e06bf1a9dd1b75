# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every setting of a run, its default, and the checks made before any work is done."""

from __future__ import annotations

import difflib
import json
import math
import numbers
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import ml_collections
import numpy as np

from mhd_jax.errors import ConfigError, suggest
from mhd_jax.wording import first_few

RENAMED = {
    "control": "isolated_baseline",
    "replicas": "num_seeds",
    "cohorts": "clients.models",
    "parallel.conv": "parallel.conv_lowering",
    "distill.warmup_steps": "distill.fade_in",
}
"""Settings of earlier versions and what they are called now."""


def default_config() -> ml_collections.ConfigDict:
    """The quickstart's settings: 8 clients with skewed labels on scikit-learn's digits.

    Returns a locked `ConfigDict`: a mistyped name is an error. `configs/` holds one file per
    family of experiments; each starts from this and changes what differs.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0  # all randomness of the run is a function of it
    config.method = "mhd"  # what is distilled and averaged, and when
    config.isolated_baseline = True  # also train the same clients without peers, to compare with
    config.num_seeds = 1  # independent runs with seeds seed, seed + 1, ..., trained in one step
    config.metrics = ()  # further evaluation metrics [a tuple of names, such as ("worst_class",)]
    # shared accuracies of the last head for which the summary says how many bytes were sent until
    # they were reached [a tuple of numbers above 0, at most 1]
    config.bytes_to = (0.5, 0.6, 0.7, 0.8, 0.9)
    _add_data(config)
    _add_clients(config)
    _add_exchange(config)
    _add_training(config)
    _add_privacy(config)
    return config.lock()


def _add_data(config: ml_collections.ConfigDict) -> None:
    config.data = ml_collections.ConfigDict()
    # the data set [or the name of a TensorFlow data set, such as cifar10]
    config.data.name = "digits"
    # where it is; "" = $TFDS_DATA_DIR, else the default of TFDS [a path, gs:// too]
    config.data.dir = ""
    # the part of the training set to use [train, or a slice such as "train[:2000]"]
    config.data.split = "train"
    # TensorFlow data sets: the feature that names a sample's client; "" = none [a name]
    config.data.client_key = ""
    config.data.image_size = 0  # side in pixels that images are resized to; 0 = as stored
    config.data.num_classes = 0  # only so many classes, the first ones; 0 = all
    # share of the training set that becomes public, without labels [above 0, below 1]
    config.data.public_fraction = 0.1
    # data set that public images come from; "" = a fraction of the training set [as data.name]
    config.data.public_name = ""
    config.data.public_dir = ""  # where that one is; "" = data.dir [a path]
    config.data.batch_size = 64  # private samples per client and step
    config.data.public_batch_size = 64  # public samples per step, the same for all clients
    # random changes to images; random_resized_crop needs feed = streaming
    config.data.augment = "none"
    # samples kept on the devices, or streamed from the host; auto = resident if they fit
    config.data.feed = "auto"
    config.data.workers = 0  # streaming: processes that read images; 0 = threads of this one

    config.partition = ml_collections.ConfigDict()
    # how private samples are divided among clients; by_key = as the data set says
    config.partition.name = "primary_labels"
    # primary_labels: a label's primary clients get 1 + skew times the others' share; 0 = iid, inf =
    # disjoint [0 or more, inf too]
    config.partition.skew = 100.0
    # primary_labels: labels per client; 0 = two primary clients per label on average [0 to the
    # number of classes]
    config.partition.primary_labels = 0
    # dirichlet, quantity: concentration; smaller is more unequal [above 0]
    config.partition.alpha = 0.5
    config.partition.min_size = 1  # dirichlet, quantity: fewest samples of a client [at least 1]
    config.partition.shards_per_client = 2  # shards: shards that each client gets [at least 1]
    # classes_per_client: labels that each client holds [from classes / clients.num to the number of
    # classes]
    config.partition.classes_per_client = 2


def _add_clients(config: ml_collections.ConfigDict) -> None:
    config.clients = ml_collections.ConfigDict()
    config.clients.num = 8  # number of clients, K
    # how many clients have which network; () = all have model.name [pairs such as (("mlp_small",
    # 5), ("mlp_large", 3)) that add up to clients.num]
    config.clients.models = ()
    # clients that take part in a step, drawn afresh in each: a share of them, or a number; the
    # others neither train nor publish [above 0, at most 1, or a whole number from 2 on]
    config.clients.active = 1.0
    # file that says which clients are available: one row of 0s and 1s per step (starting over after
    # the last), one column per client; "" = everybody [a path: .npy, .csv, .txt or .json]
    config.clients.trace = ""
    # where clients that take no part in a step wait: on the devices, or in the memory of the host,
    # so that the devices hold those of one step alone
    config.clients.offload = "none"
    # so many clients, the first ones, publish but never learn; what they know is in
    # model.init_from [0 or more, below clients.num]
    config.clients.frozen = 0
    config.model = ml_collections.ConfigDict()
    config.model.name = "mlp"  # the embedding network
    config.model.width = 0  # features of the first hidden layer; 0 = the network's own
    config.model.depth = 0  # hidden layers (mlp) or stages (cnn); 0 = the network's own [0 or more]
    config.model.norm = "default"  # normalisation; default = the network's own
    # first layers of a residual network: 3x3 for small images, 7x7 and a pool for large ones
    config.model.stem = "default"
    # residual networks: leave out the ReLU on the embedding, with which training can diverge
    config.model.signed_embedding = True
    config.model.dtype = "float32"  # type of activations and arithmetic; parameters are float32
    # residual networks: less memory for more time; blocks are computed again in the backward pass
    config.model.remat = False
    # weights that clients start from: of a run (client by client), an exported client or an Orbax
    # checkpoint (the same for all); "" = none [a path]
    config.model.init_from = ""
    config.heads = ml_collections.ConfigDict()
    config.heads.name = "linear"  # the classifier on top of the embedding
    config.heads.aux = 4  # auxiliary heads per client, m; rank r hears from up to r hops away


def _add_exchange(config: ml_collections.ConfigDict) -> None:
    config.graph = ml_collections.ConfigDict()
    config.graph.name = "complete"  # who learns from whom
    # random_regular, small_world: peers of a client [0 or more, below clients.num; even for
    # small_world]
    config.graph.degree = 2
    config.graph.islands = 2  # islands: number of complete graphs [a divisor of clients.num]
    # islands: edges from each island to the next [0 to the clients of an island]
    config.graph.bridges = 0
    config.graph.probability = 0.3  # erdos_renyi: of an edge; small_world: of rewiring one [0 to 1]
    # matrix: file with the adjacency [a path: .npy, .csv, .txt, .json or .edges]
    config.graph.matrix = ""
    # peers that a client reads in a step, drawn at random; 0 = all, -1 is the method's own: 2 for
    # mhd with two heads.aux or more and the most confident teacher, unless teachers are
    # snapshots, exchange.cache keeps what they sent, or most clients have two peers at most,
    # or clients fewer than 64 private samples on average; otherwise all [0 or more, or -1]
    config.graph.peers_per_step = -1
    # steps until the graph is drawn anew, or the next in sequence takes over; 0 = one for the run
    # [0 or more]
    config.graph.every = 0
    config.graph.sequence = ()  # graphs that take turns [a tuple of names as in graph.name]
    config.graph.drop = 0.0  # probability that an edge is silent in a step [0 to 1]

    config.exchange = ml_collections.ConfigDict()
    # teachers are predictions of this step, or those of a pool of earlier states
    config.exchange.mode = "fresh"
    config.exchange.pool_size = 1  # stale: earlier states of random peers that a client learns from
    # stale: steps until one of them is replaced by a current one
    config.exchange.refresh_steps = 200
    # steps between two that distil; nothing is published in the others, and the weights of
    # distillation stay what they are
    config.exchange.every = 1
    # how many distilling steps in a row use the same message about a public sample; 1 = a new one
    # each time [a divisor of the public samples of a step and device]
    config.exchange.cache = 1
    # the form in which predictions travel; parameters that are averaged travel as embeddings do
    config.exchange.encoding = "float32"
    # top_k: largest probabilities that are sent [1 to the number of classes]
    config.exchange.top_k = 3
    # numbers in which an embedding travels, after a fixed random projection; 0 = all of it [0 to
    # the width of the narrowest embedding]
    config.exchange.embedding_width = 0

    config.distill = ml_collections.ConfigDict()
    config.distill.nu_emb = 0.2  # weight of embedding distillation; 0 publishes no embeddings
    config.distill.nu_aux = 1.0  # weight of prediction distillation in the head chain
    # the aux heads share nu_aux, each having nu_aux / heads.aux; False gives it whole to each
    config.distill.split_nu_aux = True
    # fedmd, feddf, codistillation: weight of the main head's distillation
    config.distill.nu_main = 1.0
    # fraction of the run over which the weight of distillation rises to its full value [0 to 1]
    config.distill.fade_in = 0.3
    # tau: teachers' predictions are divided by their own mean to this power; 0 is none, as in the
    # paper, -1 the method's own: 1 for mhd, 0 for the others [0 or more, or -1]
    config.distill.alignment = -1.0
    # momentum of the moving average of that mean over steps; 0 takes each batch's own, as stale
    # teachers always do [0 or more, below 1]
    config.distill.alignment_momentum = 0.9
    # how far a peer's predictions must go together with one's own to be learned from, in standard
    # deviations beyond chance; 0 hears everybody, -1 is the method's own: 3 for mhd where
    # teachers are aligned, otherwise 0 [0 or more, or -1]
    config.distill.screening = -1.0
    # how much of another public sample is mixed into one at most, the same for all clients; 0 is
    # none [0 to 0.5; 0 for ids]
    config.distill.mixup = 0.0
    # how often each class occurs in the public set, where that is known; () = all alike [a number
    # of 0 or more for each class, not all 0]
    config.distill.class_frequencies = ()
    # how sure a prediction is; the surest candidate teaches [or "energy", which is published too]
    config.distill.confidence = "max_prob"
    config.distill.include_self = True  # a client's own head of the rank below may be its teacher
    config.distill.same_rank = False  # peers' heads of the same rank may be teachers too
    config.distill.rule = "most_confident"  # how teachers are chosen or weighted, sample by sample
    # each client publishes its label distribution once, for rules that weigh by it
    config.distill.publish_label_shares = False
    # targets are raised to the power 1 / temperature; below 1 sharpens [above 0]
    config.distill.temperature = 1.0
    config.distill.loss = "mae"  # fedmd: distance of logits from the consensus

    config.average = ml_collections.ConfigDict()
    config.average.every = 200  # fedavg, gossip: steps between two averages of parameters
    config.average.rule = "mean"  # what clients make of the parameters that they read
    # trimmed_mean, krum: share of the clients read that may be liars [0 or more, below 0.5]
    config.average.trim = 0.25
    config.rounds = ml_collections.ConfigDict()
    config.rounds.private_steps = 40  # fedmd, feddf: steps on private data in a round
    config.rounds.public_steps = 10  # fedmd, feddf: steps on public data that follow them

    config.attack = ml_collections.ConfigDict()
    config.attack.name = "none"  # what lying clients publish in place of what they compute
    config.attack.clients = ()  # who lies [a tuple of their numbers, such as (7,), not all clients]
    config.attack.start = 0  # the first step in which they do


def _add_training(config: ml_collections.ConfigDict) -> None:
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"  # the optimiser; each client has its own state
    config.optimizer.learning_rate = 0.002  # highest learning rate [above 0]
    config.optimizer.warmup_steps = 50  # steps over which the learning rate rises to it
    # momentum of sgd, first decay rate of adamw [0 or more, below 1]
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0  # added to the gradient in sgd, decoupled in adamw
    # global norm that each client's gradient is clipped to; 0 = no clipping
    config.optimizer.clip_norm = 1.0
    # how the learning rate falls after the warm-up, to 0 unless constant
    config.optimizer.schedule = "cosine"

    config.train = ml_collections.ConfigDict()
    config.train.steps = 1500  # length of the run
    config.train.log_every = 50  # steps between two lines of losses in metrics.jsonl
    config.train.eval_every = 250  # steps between two evaluations on the test set
    config.train.checkpoint_every = 500  # steps between two checkpoints
    config.train.keep_checkpoints = 3  # latest checkpoints that are kept
    config.train.steps_per_call = 0  # steps per call of the compiled program; 0 = chosen

    config.parallel = ml_collections.ConfigDict()
    config.parallel.client_devices = 0  # devices that clients are spread over; 0 = chosen
    # devices that share a client's batches; 0 = chosen, more than 1 where devices outnumber clients
    # and nothing needs a batch as a whole
    config.parallel.data_devices = 0
    # how the convolutions of stacked clients are compiled; auto = by platform
    config.parallel.conv_lowering = "auto"
    # several processes: auto = if JAX finds a cluster, on = an error without one
    config.parallel.distributed = "auto"


def _add_privacy(config: ml_collections.ConfigDict) -> None:
    config.privacy = ml_collections.ConfigDict()
    # DP-SGD: standard deviation of the noise on every client's private gradient, in units of
    # privacy.clip_norm; 0 = none [0 or more]
    config.privacy.noise_multiplier = 0.0
    # norm that the gradient of each private sample is clipped to; 0 = no clipping [0 or more]
    config.privacy.clip_norm = 0.0
    # epsilon is reported at this delta, and what would make it void refused; 0 = no claim [0 or
    # more, below 1; needs the extra [privacy] if above 0]
    config.privacy.delta = 0.0
    # says that public samples drawn from the clients' own (partition.name = by_key, or
    # data.public_name = data.name) are known not to be covered by the claim
    config.privacy.public_from_clients = False


def variant(
    name: str, variants: Mapping[str, Mapping[str, Any]], file: str
) -> ml_collections.ConfigDict:
    """The settings of a config file in one of its variants.

    Args:
      name: what follows the colon in ``--config=configs/digits.py:smoke``; "" for none.
      variants: settings by dotted name for every variant; those of "" hold in all of them.
      file: the config file, for the message.

    Raises:
      ConfigError: an unknown variant or setting.

    >>> variant("smoke", {"": {"heads.aux": 1}, "smoke": {"train.steps": 5}}, "x.py").train.steps
    5
    """
    if name not in variants:
        known = [other for other in variants if other]
        raise ConfigError(os.path.basename(file), name, "no variant or " + suggest(name, known))
    config = default_config()
    update(config, variants[""])
    update(config, variants[name])
    return config


def update(config: ml_collections.ConfigDict, settings: Mapping[str, Any]) -> None:
    """Sets dotted names in place, for example ``{"graph.name": "cycle", "heads.aux": 2}``.

    Raises:
      ConfigError: an unknown name (with the nearest known one) or a value of another type.
    """
    known = flatten(config)
    for name, value in settings.items():
        check_name(name, value, known)
        *path, leaf = name.split(".")
        node = config
        for part in path:
            node = node[part]
        value = _without_numpy(value)
        if value is None or isinstance(value, bool) is not isinstance(node[leaf], bool):
            raise ConfigError(name, value, like(node[leaf]))
        try:
            node[leaf] = value
        except TypeError as error:
            raise ConfigError(name, value, like(node[leaf])) from error


def _without_numpy(value: Any) -> Any:
    """The same without types of NumPy, at any depth.

    >>> _without_numpy((np.int64(1), np.ones(2)))
    (1, (1.0, 1.0))
    """
    if isinstance(value, np.ndarray) and value.ndim:
        return tuple(map(_without_numpy, value))
    if isinstance(value, np.generic | np.ndarray):
        return value.item()
    return tuple(map(_without_numpy, value)) if isinstance(value, tuple) else value


def like(value: object) -> str:
    """What a setting accepts, from the value that it has.

    >>> like(3), like(""), like(())
    ('a whole number like 3', 'a string', "a tuple like ('a',) or (1, 2)")
    >>> like(True)
    'True or False'
    """
    kinds = {
        bool: "True or False", int: "a whole number", float: "a number", str: "a string",
        tuple: "a tuple",
    }  # fmt: skip
    if value == "" or isinstance(value, bool):
        return kinds[type(value)]
    example = "('a',) or (1, 2)" if value == () else repr(value)
    return f"{kinds.get(type(value), 'a value')} like {example}"


def check_name(name: str, value: object, known: Collection[str]) -> None:
    """Raises `ConfigError` unless `name` is one of the `known` settings.

    >>> check_name("replicas", 3, flatten(default_config()))
    Traceback (most recent call last):
    mhd_jax.errors.ConfigError: replicas = 3: expected its new name, num_seeds
    """
    if name in known:
        return
    if name in RENAMED:
        raise ConfigError(name, value, f"its new name, {RENAMED[name]}")
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    raise ConfigError(name, value, f"a known setting; did you mean {' or '.join(near)}?")


def from_json(text: str) -> ml_collections.ConfigDict:
    """The config of a run from its `config.json`; settings younger than it have their defaults.

    >>> from_json('{"graph": {"name": "cycle"}}').graph.name
    'cycle'

    Raises:
      ConfigError: a setting that is not known.
    """
    made = default_config()
    flat = {name: _tuples(value) for name, value in flatten(json.loads(text)).items()}
    matrix = flat.get("graph.matrix", "")
    if not isinstance(matrix, str):  # rows instead of a file's name
        with made.graph.ignore_type():
            made.graph.matrix = flat.pop("graph.matrix")
    update(made, flat)
    return made


def _tuples(value: Any) -> Any:
    """JSON knows lists only."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All settings by dotted name.

    >>> flatten({"graph": {"name": "cycle"}, "seed": 0})
    {'graph.name': 'cycle', 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


# --- Checks ---------------------------------------------------------------------------------------


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number of any type, which True and False are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


Check = tuple[Callable[[Any], bool], str]
"""What a value has to pass, and in words."""

AT_LEAST_1: Check = ((lambda x: x >= 1), "at least 1")
NOT_BELOW_0: Check = ((lambda x: x >= 0), "0 or more")
ABOVE_0: Check = ((lambda x: x > 0), "above 0")


def _checks(check: Check, *names: str) -> dict[str, Check]:
    return dict.fromkeys(names, check)


RANGES: dict[str, Check] = {
    **_checks(
        AT_LEAST_1,
        "clients.num", "num_seeds", "train.steps", "train.log_every", "train.eval_every",
        "train.checkpoint_every", "train.keep_checkpoints", "data.batch_size",
        "data.public_batch_size", "exchange.every", "exchange.cache", "exchange.pool_size",
        "exchange.refresh_steps", "average.every", "rounds.private_steps", "rounds.public_steps",
        "partition.min_size", "partition.shards_per_client", "partition.classes_per_client",
    ),
    **_checks(
        NOT_BELOW_0,
        "seed", "heads.aux", "model.width", "data.image_size", "data.num_classes", "data.workers",
        "clients.frozen", "exchange.embedding_width", "attack.start", "distill.nu_emb",
        "distill.nu_aux", "distill.nu_main", "optimizer.warmup_steps", "optimizer.weight_decay",
        "optimizer.clip_norm", "train.steps_per_call", "parallel.client_devices",
        "parallel.data_devices", "privacy.noise_multiplier", "privacy.clip_norm",
        "partition.skew", "partition.primary_labels",
    ),
    **_checks(ABOVE_0, "optimizer.learning_rate", "distill.temperature", "partition.alpha"),
    **_checks(
        ((lambda x: 0 <= x < 1), "in [0, 1)"),
        "optimizer.momentum", "distill.alignment_momentum", "privacy.delta",
    ),
    **_checks(
        ((lambda x: x >= 0 or x == -1), "0 or more, or -1 for the method's own"),
        "distill.alignment", "distill.screening",
    ),
    "distill.fade_in": ((lambda x: 0 <= x <= 1), "a fraction of the run, 0 to 1"),
    "distill.mixup": ((lambda x: 0 <= x <= 0.5), "0 to 0.5"),
    "average.trim": ((lambda x: 0 <= x < 0.5), "0 or more, below 0.5"),
    "data.public_fraction": ((lambda x: 0 < x < 1), "inside (0, 1)"),
}  # fmt: skip
"""What the values of settings have to pass."""

ONE_OF = {
    "clients.offload": ("none", "host"),
    "data.feed": ("auto", "resident", "streaming"),
    "exchange.mode": ("fresh", "stale"),
    "optimizer.schedule": ("constant", "cosine", "linear"),
    "parallel.distributed": ("auto", "on", "off"),
}
"""Settings that are one of a few words."""

_MAY_BE_INFINITE = ("partition.skew", "privacy.clip_norm")


def check_names(config: ml_collections.ConfigDict) -> None:
    """Raises `ConfigError` where a config has a setting that is not known, or lacks one."""
    known, given = flatten(default_config()), flatten(config)
    for name, value in given.items():
        check_name(name, value, known)
    if missing := [name for name in known if name not in given]:
        accepted = "all settings, as of default_config(), or a dict of those that differ from it"
        raise ConfigError("config", f"a ConfigDict without {first_few(missing, 3)}", accepted)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every setting that needs no data; the data's own checks follow when it is read.

    Raises:
      ConfigError: naming the setting, its value and what is accepted.
    """
    check_names(config)
    flat = flatten(config)
    for name, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            if name not in _MAY_BE_INFINITE:
                raise ConfigError(name, value, "a finite number")
            if math.isnan(value):
                raise ConfigError(name, value, "a number")
    for name, (holds, accepted) in RANGES.items():
        if not holds(flat[name]):
            raise ConfigError(name, flat[name], accepted)
    for name, known in ONE_OF.items():
        if flat[name] not in known:
            raise ConfigError(name, flat[name], suggest(str(flat[name]), known))
    if flat["seed"] + flat["num_seeds"] > 2**32:
        raise ConfigError("seed", flat["seed"], f"at most 2**32 - {flat['num_seeds']}")
    _check_frequencies(flat["distill.class_frequencies"])
    for level in flat["bytes_to"]:
        if not _is_number(level) or not 0 < level <= 1:
            raise ConfigError("bytes_to", flat["bytes_to"], "shared accuracies above 0, at most 1")
    client_models(config)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_frequencies(frequencies: Sequence[Any]) -> None:
    """Raises unless they are none, or numbers of which one at least is above 0."""
    fitting = [value for value in frequencies if _is_number(value) and value >= 0]
    if frequencies and (len(fitting) < len(frequencies) or not any(fitting)):
        accepted = "finite numbers of 0 or more, not all of them 0"
        raise ConfigError("distill.class_frequencies", tuple(frequencies), accepted)


def client_models(config: ml_collections.ConfigDict) -> tuple[tuple[str, int], ...]:
    """The (model name, number of clients) of every group of clients, in client order.

    No group has both frozen and learning clients.

    Raises:
      ConfigError: not pairs of a name and a count >= 1, or counts that do not add up to
        `clients.num`.
    """
    if not config.clients.models:
        return _parted([(config.model.name, config.clients.num)], config.clients.frozen)
    accepted = 'pairs like (("mlp_small", 5), ("mlp_large", 3)) with counts of at least 1'
    for pair in config.clients.models:
        named = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)
        if not named or type(pair[1]) is not int or pair[1] < 1:
            raise ConfigError("clients.models", config.clients.models, accepted)
    pairs = tuple((name, count) for name, count in config.clients.models)
    total = sum(count for _, count in pairs)
    if total != config.clients.num:
        raise ConfigError("clients.models", pairs, f"counts that add up to clients.num = "
                          f"{config.clients.num}, not {total}")  # fmt: skip
    return _parted(pairs, config.clients.frozen)


def _parted(pairs: Iterable[tuple[str, int]], frozen: int) -> tuple[tuple[str, int], ...]:
    """The same clients, with the group that the first learning client is in begun there.

    >>> _parted([("mlp", 3), ("cnn", 1)], 2)
    (('mlp', 2), ('mlp', 1), ('cnn', 1))
    """
    parted: list[tuple[str, int]] = []
    for name, count in pairs:
        first = min(frozen, count)
        parted += [(name, size) for size in (first, count - first) if size]
        frozen -= first
    return tuple(parted)
