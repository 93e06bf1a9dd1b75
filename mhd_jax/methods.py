# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A method is three choices: what is distilled, what is averaged, and when.

A method is a value, `Method`, that the one training step reads; adding one adds a function here
(or in a package of your own) that returns such a value, and touches neither step nor loop.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, Literal, Protocol

import ml_collections
import numpy as np
from jaxtyping import Bool, Float, Int

from mhd_jax import aggregation, distill
from mhd_jax import config as config_lib
from mhd_jax.errors import ConfigError, of_piece, suggest
from mhd_jax.registry import Registry

SCREENING = 3.0
"""`Distillation.screening` of mhd: lies that are made without looking hardly ever pass."""

PEERS = 2
"""`Distillation.peers` of mhd: those who always hear all the same teachers learn less.

Where there is more than one auxiliary head: higher ones put together what lower ones have heard.
"""

ENOUGH = 64
"""Private samples of a client, on average, from which on `PEERS` teach enough."""

LONGEST_PERIOD = 100_000
"""Steps in which any method has shown all that it does."""


WEIGHTS = "a Method whose `when` gives weights [n, 2] of steps [n]"


def _check_word(choice: object, field: str, known: tuple[str, ...]) -> None:
    """Raises `ConfigError` where a field of a choice is none of a few words."""
    value = getattr(choice, field)
    if value not in known:
        raise ConfigError(f"{type(choice).__name__}.{field}", value, suggest(str(value), known))


def _check_number(
    choice: object, field: str, check: config_lib.Check, *, whole: bool = False
) -> None:
    """Raises `ConfigError` where a field of a choice is no number, or one that does not pass."""
    value, (holds, accepted) = getattr(choice, field), check
    real = isinstance(value, numbers.Real) and math.isfinite(value)
    if not (real and (config_lib.is_whole(value) or not whole) and holds(value)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{type(choice).__name__}.{field}", value, f"{kind}, {accepted}")


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What is distilled from whom, on the public batch.

    Attributes:
      wiring: "chain", aux head r learns from heads of rank r - 1 of the peers (the paper);
        "main", the main head learns from the peers' main heads.
      rule: a name in `distill.RULES`, from candidates to one target.
      confidence: a name in `distill.CONFIDENCES`.
      loss: "cross_entropy" mixes probabilities; a name in `distill.LOGIT_LOSSES` mixes logits.
      nu_emb: weight of embedding distillation; 0 publishes no embeddings.
      nu_pred: weight of prediction distillation; 0 publishes no predictions.
      include_self: the client's own lower head is a candidate too.
      same_rank: the peers' heads of the same rank are candidates too.
      temperature: exponent 1 / temperature on the target's probabilities.
      alignment: tau, how far published predictions are divided by their own mean; 0 is the paper.
      alignment_momentum: of the moving average of that mean; 0 takes this batch's alone.
      class_frequencies: of the public set, where they are known; () takes them as equal.
      screening: how far a peer's predictions must go together with one's own, in standard
        deviations beyond chance, see `distill.relation`; 0 hears everybody.
      peers: how many of its peers a client hears in a step where the config leaves that to the
        method, drawn at random; 0 for all.
      mixup: how much of another public sample is mixed into one at most; 0 for none.
    """

    wiring: Literal["chain", "main"] = "chain"
    rule: str = "most_confident"
    confidence: str = "max_prob"
    loss: str = "cross_entropy"
    nu_emb: float = 0.0
    nu_pred: float = 1.0
    include_self: bool = False
    same_rank: bool = False
    temperature: float = 1.0
    alignment: float = 0.0
    alignment_momentum: float = 0.0
    class_frequencies: tuple[float, ...] = ()
    screening: float = 0.0
    peers: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a name that is not known, or a number that cannot be."""
        _check_word(self, "wiring", ("chain", "main"))
        for field in ("nu_emb", "nu_pred", "alignment", "screening"):
            _check_number(self, field, config_lib.NOT_BELOW_0)
        for field in ("temperature", "alignment_momentum", "mixup"):
            _check_number(self, field, config_lib.RANGES[f"distill.{field}"])
        _check_number(self, "peers", config_lib.NOT_BELOW_0, whole=True)
        distill.RULES.get(self.rule)
        if not self.publishes_energy:
            distill.CONFIDENCES.get(self.confidence)
        if self.mixes_logits:
            distill.LOGIT_LOSSES.get(self.loss)
            if self.temperature != 1:
                accepted = f"1, as the loss {self.loss} mixes logits"
                raise ConfigError("Distillation.temperature", self.temperature, accepted)

    @property
    def mixes_logits(self) -> bool:
        """Whether raw logits are published and mixed, rather than log-probabilities."""
        return self.loss != "cross_entropy"

    @property
    def aligns(self) -> bool:
        """Whether predictions are divided by their own mean."""
        return bool(self.alignment and self.nu_pred)

    @property
    def publishes_energy(self) -> bool:
        """Whether a standardised energy travels beside every prediction."""
        return self.confidence == distill.ENERGY

    def published_heads(self, num_heads: int) -> int:
        """How many of a client's heads travel, those of the lowest ranks: those somebody may read.

        In the chain nobody learns from the last head, unless heads of the same rank teach too.

        >>> Distillation(wiring="chain").published_heads(5)
        4
        """
        if not self.nu_pred:
            return 0
        if self.wiring == "main":
            return 1
        return num_heads if self.same_rank else num_heads - 1


@dataclasses.dataclass(frozen=True)
class Averaging:
    """Which parameters are averaged with whom: a doubly stochastic matrix, every so many steps.

    Attributes:
      matrix: "uniform", everybody with everybody; "graph", neighbours only, Metropolis weights.
      every: steps between two averages.
      after: steps before the first one; 0 stands for `every`.
      reset_momentum: forget the optimiser's averages of gradients, which belong to other
        parameters now; otherwise they stay with their client.
      rule: a name in `aggregation.AGGREGATORS`, what clients make of the parameters they read.
      trim: the share of liars that this is ready for.
    """

    matrix: Literal["uniform", "graph"]
    every: int
    after: int = 0
    reset_momentum: bool = False
    rule: str = "mean"
    trim: float = 0.25

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a name that is not known, or a number that cannot be."""
        _check_word(self, "matrix", ("uniform", "graph"))
        _check_number(self, "every", config_lib.AT_LEAST_1, whole=True)
        _check_number(self, "after", config_lib.NOT_BELOW_0, whole=True)
        _check_number(self, "trim", config_lib.RANGES["average.trim"])
        aggregation.AGGREGATORS.get(self.rule)

    def due(self, steps: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Which of `steps` end with an average."""
        since_first = steps + 1 - (self.after or self.every)
        return (since_first >= 0) & (since_first % self.every == 0)


class When(Protocol):
    """The weights of the private and the distillation loss at each step, [n] -> [n, 2]."""

    def __call__(self, steps: np.ndarray) -> Float[np.ndarray, "n 2"]:
        """Weights of `steps`."""
        ...


@dataclasses.dataclass(frozen=True)
class EveryStep:
    """Private loss and distillation in every step; distillation fades in over `warmup_steps`."""

    warmup_steps: int = 0

    def __call__(self, steps: np.ndarray) -> Float[np.ndarray, "n 2"]:
        """Weights 1 and min(1, (step + 1) / (warmup_steps + 1))."""
        ramp = np.minimum(1.0, (steps + 1) / (self.warmup_steps + 1))
        return np.stack([np.ones_like(ramp), ramp], axis=1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class EveryNth:
    """Distillation in steps 0, n, 2 n, ... alone, with the weight that it has there anyway.

    The weight is not multiplied by n: over a run, distillation counts for 1 / n of what it would.
    """

    when: When
    every: int

    def __call__(self, steps: np.ndarray) -> Float[np.ndarray, "n 2"]:
        """The weights of `when`, that of distillation 0 in all other steps."""
        distils = steps % self.every == 0
        both = np.stack([np.ones_like(distils), distils], axis=1)
        return (np.asarray(self.when(steps)) * both).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class OfPiece:
    """`when` of a method of one's own: whatever goes wrong in it names the method."""

    when: When
    method: str

    def __call__(self, steps: np.ndarray) -> Float[np.ndarray, "n 2"]:
        """The weights of `when`; raises `ConfigError`."""
        with of_piece("method", self.method, WEIGHTS):
            return np.asarray(self.when(steps), np.float32)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Rounds of `private_steps` on private data, then `public_steps` of distillation."""

    private_steps: int
    public_steps: int

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a number that cannot be."""
        for field in ("private_steps", "public_steps"):
            _check_number(self, field, config_lib.AT_LEAST_1, whole=True)

    @property
    def length(self) -> int:
        """Steps in one round."""
        return self.private_steps + self.public_steps

    def __call__(self, steps: np.ndarray) -> Float[np.ndarray, "n 2"]:
        """Weights (1, 0) in the private part of a round, (0, 1) in the public part."""
        public = steps % self.length >= self.private_steps
        return np.stack([~public, public], axis=1).astype(np.float32)

    def scoring(self, steps: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Which steps end the private part: there everybody scores the public set."""
        return steps % self.length == self.private_steps - 1


@dataclasses.dataclass(frozen=True)
class Method:
    """One method: what is distilled, what is averaged, when, and on which data.

    Attributes:
      distillation: None for no distillation; then nothing runs on the public batch.
      averaging: None for no averaging.
      when: weights of private loss and distillation at each step.
      snapshot_rounds: teachers are everybody's state at the end of the private part of the round,
        one's own among them, rather than what `exchange` says.
      same_start: all clients start from the same parameters, as averaging needs.
      pooled: one client holds all private data (the supervised upper bound).
    """

    distillation: Distillation | None = None
    averaging: Averaging | None = None
    when: When = EveryStep()
    snapshot_rounds: bool = False
    same_start: bool = False
    pooled: bool = False

    @property
    def exchanges(self) -> bool:
        """Whether anything passes between clients."""
        return self.distillation is not None or self.averaging is not None

    @property
    def hears_everybody(self) -> bool:
        """Whether everybody reads everybody, whatever the communication graph is."""
        if self.averaging is None or self.distillation is not None:
            return self.snapshot_rounds
        return self.averaging.matrix == "uniform"

    @property
    def own_graph(self) -> str:
        """The graph of a method that does not follow the settings' one: its name; otherwise ""."""
        if not self.exchanges:
            return "none"
        return "complete" if self.hears_everybody else ""

    def distils(self, steps: np.ndarray) -> Bool[np.ndarray, " n"]:
        """In which of `steps` distillation has weight; in no others is anything published."""
        if self.distillation is None:
            return np.zeros(len(steps), bool)
        return self.weights(steps)[:, 1] > 0

    def weights(self, steps: np.ndarray) -> Float[np.ndarray, "n 2"]:
        """What `when` says of `steps`, which may be nested lists in a method of one's own."""
        return np.asarray(self.when(steps), np.float32)

    def steps_shown(self, steps: int) -> Int[np.ndarray, " n"]:
        """Steps of a run of so many in which it has shown all that it does."""
        return np.arange(min(steps, LONGEST_PERIOD))

    def num_heads(self, aux: int) -> int:
        """Heads a client needs: only the head chain trains auxiliary heads."""
        chain = self.distillation is not None and self.distillation.wiring == "chain"
        return aux + 1 if chain else 1


class MethodFactory(Protocol):
    """Makes the method's value from the settings of a run."""

    def __call__(self, config: ml_collections.ConfigDict) -> Method:
        """The value for these settings."""
        ...


METHODS: Registry[MethodFactory] = Registry("method")


def build(config: ml_collections.ConfigDict) -> Method:
    """The method named `config.method`, distilling in each `exchange.every`-th step.

    Raises:
      ConfigError: an unknown name, or `exchange.every` for a method with rounds of its own.
    """
    method = METHODS.get(config.method)
    with of_piece("method", config.method, "a function from the config to a Method"):
        made = method(config)
    if not isinstance(made, Method):
        accepted = f"a function from the config to a Method, not to {type(made).__name__}"
        raise ConfigError("method", config.method, accepted)
    _check_choices(config.method, made, config.train.steps)
    if not isinstance(made.when, EveryStep | EveryNth | Rounds):
        made = dataclasses.replace(made, when=OfPiece(made.when, config.method))
    every = config.exchange.every
    if every == 1 or made.distillation is None:
        return made
    if isinstance(made.when, Rounds):
        accepted = f"1: {config.method} distils when rounds.private_steps are over"
        raise ConfigError("exchange.every", every, accepted)
    return dataclasses.replace(made, when=EveryNth(made.when, every))


def _check_choices(name: str, made: Method, steps: int) -> None:
    """Raises `ConfigError` where a method's choices are not what they should be for `steps`."""
    for field, kind in (("distillation", Distillation), ("averaging", Averaging)):
        value = getattr(made, field)
        if not isinstance(value, kind | None):
            accepted = f"a Method whose {field} is a {kind.__name__} or None, not {value!r}"
            raise ConfigError("method", name, accepted)
    for shown in (np.arange(3), made.steps_shown(steps)):
        with of_piece("method", name, WEIGHTS):
            given = np.asarray(made.when(shown))
            if given.dtype.kind in "cSU":
                accepted = f"{WEIGHTS}, in real numbers, not {given.dtype}"
                raise ConfigError("method", name, accepted)
            weights = given.astype(np.float32)
        if weights.shape != (len(shown), 2):
            found = f"not of shape {weights.shape} for {len(shown)} steps"
            raise ConfigError("method", name, f"{WEIGHTS}, {found}")
    if len(odd := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)).all(axis=1))):
        accepted = f"{WEIGHTS}, of 0 or more, not {weights[odd[0]].tolist()} in step {odd[0]}"
        raise ConfigError("method", name, accepted)
    if made.snapshot_rounds and not isinstance(made.when, Rounds):
        accepted = "a Method whose `when` is Rounds, as it has snapshot_rounds"
        raise ConfigError("method", name, accepted)
    if made.snapshot_rounds and made.distillation and made.distillation.include_self:
        accepted = "a Method without include_self, as one's own snapshot is read anyway"
        raise ConfigError("method", name, accepted)
    if made.pooled and made.exchanges:
        accepted = "a Method that is pooled or exchanges something: one model has no peers"
        raise ConfigError("method", name, accepted)


@METHODS.register("mhd")
def mhd(config: ml_collections.ConfigDict) -> Method:
    """Multi-headed distillation: head chain, most confident teacher, in every step.

    Source: https://arxiv.org/abs/2211.15774. Aligned and screened teachers are this project's
    addition; `distill.alignment = 0` takes both out.
    """
    chosen, heads = config.distill, config.heads.aux
    nu_pred = chosen.nu_aux if heads else 0.0
    if not (nu_pred or chosen.nu_emb):
        return Method()
    _check_confidence(chosen.confidence)
    distillation = Distillation(
        wiring="chain",
        rule=chosen.rule,
        confidence=chosen.confidence,
        nu_emb=chosen.nu_emb,
        nu_pred=nu_pred / heads if heads and chosen.split_nu_aux else nu_pred,
        include_self=chosen.include_self,
        same_rank=chosen.same_rank,
        temperature=chosen.temperature,
        **_reading(config, alignment=1.0, screening=SCREENING, peers=PEERS if heads > 1 else 0),
    )
    return Method(distillation, when=_fading_in(config))


def _check_confidence(name: str) -> None:
    if name not in distill.CONFIDENCES and name != distill.ENERGY:
        known = [*distill.CONFIDENCES, distill.ENERGY]
        raise ConfigError("distill.confidence", name, suggest(name, known))


def _reading(
    config: ml_collections.ConfigDict,
    alignment: float = 0.0,
    screening: float = 0.0,
    peers: int = 0,
) -> dict[str, Any]:
    """Of what predictions are made, and how they are read: the method's own way unless asked for.

    Args:
      config: of the run.
      alignment: the method's own.
      screening: the method's own where predictions are aligned; otherwise everybody is heard.
      peers: the method's own where the most confident teacher is chosen. Rules that weigh
        teachers against each other need all of them.
    """
    chosen = config.distill
    strength = alignment if chosen.alignment < 0 else chosen.alignment
    by_default = screening if strength else 0.0
    return {
        "alignment": strength,
        "peers": peers if chosen.rule == "most_confident" else 0,
        "screening": by_default if chosen.screening < 0 else chosen.screening,
        "mixup": chosen.mixup,
        "alignment_momentum": chosen.alignment_momentum,
        "class_frequencies": tuple(chosen.class_frequencies),
    }


def _fading_in(config: ml_collections.ConfigDict) -> EveryStep:
    """Distillation in every step, at full weight after the first `distill.fade_in` of the run."""
    return EveryStep(round(config.distill.fade_in * config.train.steps))


@METHODS.register("isolated")
def isolated(config: ml_collections.ConfigDict) -> Method:
    """No peers: each client alone with its private data."""
    del config
    return Method()


@METHODS.register("supervised")
def supervised(config: ml_collections.ConfigDict) -> Method:
    """One model on all private data pooled, same steps and batch as a client: the upper bound."""
    del config
    return Method(pooled=True)


@METHODS.register("fedavg")
def fedavg(config: ml_collections.ConfigDict) -> Method:
    """Local training; parameters averaged over all clients every `average.every` steps.

    Source: B. McMahan et al., 2017, https://arxiv.org/abs/1602.05629. Differs from it in that all
    clients take part with equal weight, and momentum stays with its client.
    """
    averaging = Averaging("uniform", config.average.every, **_robustness(config))
    return Method(averaging=averaging, same_start=True)


@METHODS.register("gossip")
def gossip(config: ml_collections.ConfigDict) -> Method:
    """Local training; parameters averaged with graph neighbours every `average.every` steps.

    theta_i <- sum_j M_ij theta_j with Metropolis weights M, doubly stochastic, on the undirected
    version of the graph. Source: X. Lian et al., 2017, https://arxiv.org/abs/1705.09056.
    """
    averaging = Averaging("graph", config.average.every, **_robustness(config))
    return Method(averaging=averaging, same_start=True)


@METHODS.register("fedmd")
def fedmd(config: ml_collections.ConfigDict) -> Method:
    """Rounds: private training, then fitting the consensus, the mean of everybody's logits.

    The consensus is that of the models as they were at the end of the private part of the round,
    on those public samples that each step would read anyway: the walk through the public set goes
    on in private steps, too. Source: D. Li and J. Wang, 2019, https://arxiv.org/abs/1910.03581.
    Differs from it in that there is no transfer phase on public labels: labels of the public set
    are never read.
    """
    distillation = Distillation(
        wiring="main", rule="mean", loss=config.distill.loss, nu_pred=config.distill.nu_main,
        **_reading(config),
    )  # fmt: skip
    return Method(distillation, when=_rounds(config), snapshot_rounds=True)


@METHODS.register("feddf")
def feddf(config: ml_collections.ConfigDict) -> Method:
    """Rounds: private training, average of parameters, then distillation of the ensemble into it.

    The ensemble is the mean of the logits of the models before averaging, its loss the KL
    divergence. Source: T. Lin et al., 2020, https://arxiv.org/abs/2006.07242. Differs from it in
    that there is no server: every client holds the averaged model and distils it in the same way.
    """
    rounds = _rounds(config)
    distillation = Distillation(
        wiring="main", rule="mean", loss="kl", nu_pred=config.distill.nu_main,
        **_reading(config),
    )  # fmt: skip
    averaging = Averaging(
        "uniform", rounds.length, after=rounds.private_steps, reset_momentum=True,
        **_robustness(config),
    )  # fmt: skip
    return Method(distillation, averaging, when=rounds, snapshot_rounds=True, same_start=True)


@METHODS.register("codistillation")
def codistillation(config: ml_collections.ConfigDict) -> Method:
    """The main head learns from the mean prediction of the peers' main heads, in every step.

    Source: R. Anil et al., 2018, https://arxiv.org/abs/1804.03235. Differs from it in that the
    loss is taken on the public batch, the only one that all clients see.
    """
    distillation = Distillation(
        wiring="main", rule="mean", nu_pred=config.distill.nu_main, **_reading(config)
    )
    return Method(distillation, when=_fading_in(config))


def _robustness(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {"rule": config.average.rule, "trim": config.average.trim}


def _rounds(config: ml_collections.ConfigDict) -> Rounds:
    return Rounds(config.rounds.private_steps, config.rounds.public_steps)
