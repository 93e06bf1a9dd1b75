# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Is distillation going well? What predictions on public images tell, and the warnings they raise.

At every log point a fixed sample of the public set goes through all clients (`probe.make_probe`),
beside training and without a trace in it. What the heads say of it gives six measures: how spread
out a head's predictions are, what share of the images it gives to one class, how often teachers
agree, who teaches, who is not heard, and, where the public images happen to have labels, how often
the chosen teacher is right. `Watch` turns them into one line on the terminal when something has
gone wrong, once per kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mhd_jax import distill
from mhd_jax.wording import first_few

# --- What the probe measures ----------------------------------------------------------------------


def prediction_entropy(log_probs: Float[Array, "K B H C"]) -> Float[Array, "K H"]:
    """Entropy in nats of each head's mean prediction: log C when all classes are named alike.

    >>> one_class = jnp.log(jnp.array([0.998, 0.001, 0.001]))
    >>> round(float(prediction_entropy(jnp.broadcast_to(one_class, (1, 5, 1, 3)))[0, 0]), 2)
    0.02
    """
    return -distill.neg_entropy(jnp.log(distill.mean_prediction(log_probs)))


def top_class_share(log_probs: Float[Array, "K B H C"]) -> Float[Array, "K H"]:
    """Share of the images that a head gives to the class it names most; 1 is a collapsed head."""
    named = jax.nn.one_hot(jnp.argmax(log_probs, axis=-1), log_probs.shape[-1])
    return named.mean(axis=1).max(axis=-1)


def agreement(
    log_probs: Float[Array, "N B H C"],
    present: Bool[Array, " N"] | None = None,
    versions: int = 1,
) -> Float[Array, " H"]:
    """Chance that two different clients' heads of one rank name the same class of an image.

    1 for a single client. Source: pairwise agreement, as in the churn literature; from counts
    n_kc of the versions of client k that name class c, n_c in all, it is
    sum_c (n_c^2 - sum_k n_kc^2) / (V^2 K (K - 1)).

    Args:
      log_probs: what they say.
      present: what to count; None for everything.
      versions: V, of each client, which stand together.
    """
    here = jnp.ones(len(log_probs), bool) if present is None else present
    clients = here.sum() / versions
    named = jax.nn.one_hot(jnp.argmax(log_probs, axis=-1), log_probs.shape[-1])
    named = jnp.where(here[:, None, None, None], named, 0.0)
    each = named.reshape(-1, versions, *named.shape[1:]).sum(axis=1)
    pairs = (each.sum(axis=0) ** 2 - (each**2).sum(axis=0)).sum(axis=-1)
    all_pairs = versions**2 * clients * (clients - 1)
    return jnp.where(clients > 1, pairs.mean(axis=0) / jnp.maximum(all_pairs, 1), 1.0)


def taught_shares(
    choice: distill.Choice,
    candidates: distill.Candidates,
    num_clients: int,
    ids: Int[Array, " k"],
    in_front: int = 0,
) -> Float[Array, "k K"]:
    """How each student's lessons are divided among clients, over samples and ranks.

    Candidates are one or more versions of every client, those of a client together; students'
    own present states may stand in front.

    Args:
      choice: what a teacher rule returned; a `Target` has no single teachers and gives zeros.
      candidates: that it chose from.
      num_clients: K.
      ids: which clients the students are.
      in_front: how many of the candidates are the students themselves: k where teachers are
        snapshots and oneself may teach, else 0.
    """
    if isinstance(choice, distill.Target):
        return jnp.zeros((len(ids), num_clients))
    num = candidates.allowed.shape[1]
    if jnp.issubdtype(choice.dtype, jnp.integer):
        index = choice.reshape(len(ids), -1)
        given, scale = (index >= 0).astype(jnp.float32), 1.0 / index.shape[1]
    else:
        index = jnp.broadcast_to(jnp.arange(num), (len(ids), num))
        given, scale = choice.mean(axis=(2, 3)), 1.0
    client = _clients_of(index, candidates, num_clients, ids, in_front)
    shares = jnp.zeros((len(ids), num_clients)).at[jnp.arange(len(ids))[:, None], client]
    return shares.add(given) * scale


def of_all_lessons(shares: Float[np.ndarray, "k K"]) -> Float[np.ndarray, " K"]:
    """Which share of all lessons each client gives; students without any do not count.

    >>> of_all_lessons(np.array([[0.0, 1.0], [0.0, 0.0]]))
    array([0., 1.])
    """
    return shares.sum(axis=0) / max(shares.sum(), 1e-9)


def _clients_of(
    index: Int[Array, "k n"],
    candidates: distill.Candidates,
    num_clients: int,
    ids: Int[Array, " k"],
    in_front: int,
) -> Int[Array, "k n"]:
    """Which clients the candidates `index` of each student are; see `taught_shares`."""
    publisher = candidates.publisher(jnp.maximum(index, 0))
    versions = (candidates.published.shape[0] - in_front) // num_clients
    return jnp.where(
        publisher < in_front,
        ids[jnp.minimum(publisher, len(ids) - 1)],
        (publisher - in_front) // versions,
    )


def ignored(
    peers: distill.Candidates,
    heard: distill.Candidates,
    num_clients: int,
    ids: Int[Array, " k"],
    in_front: int = 0,
) -> Float[Array, "k K"]:
    """1 for a client that a student could learn from but does not hear, 0 for one that it hears.

    NaN for a client that it cannot learn from, and for itself. A client is heard if any version of
    it is.

    Args:
      peers: whom students may learn from.
      heard: the same after screening.
      num_clients: K.
      ids: which clients the students are.
      in_front: see `taught_shares`.
    """
    students, num = peers.allowed.shape
    index = jnp.broadcast_to(jnp.arange(num), (students, num))
    client = _clients_of(index, peers, num_clients, ids, in_front)
    nobody = jnp.zeros((students, num_clients), bool).at[jnp.arange(students)[:, None], client]
    may, does = nobody.max(peers.allowed), nobody.max(heard.allowed)
    other = jnp.arange(num_clients) != ids[:, None]
    return jnp.where(may & other, 1.0 - does, jnp.nan)


def teacher_accuracy(target: distill.Target, labels: Int[Array, " B"]) -> Float[Array, "k m"]:
    """How often the target's likeliest class is right, over the taught samples; NaN for none."""
    right = (jnp.argmax(target.scores, axis=-1) == labels[None, :, None]) & target.taught
    return right.sum(axis=1) / target.taught.sum(axis=1)


# --- When to say something ------------------------------------------------------------------------

COLLAPSED = 0.95  # of the images in one class; more where most samples are of one class
DOMINANT = 0.5  # of all lessons from one client, and ...
UNEVEN = 3.0  # ... so many times its share if every reader chose at random
IGNORED = 0.5  # of the readers of a client that do not hear it
BEHIND = 0.05  # of private accuracy that the main head lacks, mean over clients
BELOW = 0.01  # of shared accuracy that the last head lacks at the end, mean over clients


@dataclasses.dataclass
class Watch:
    """Remembers what has been said, so that each kind of trouble is told once in a run.

    Attributes:
      patience: steps before anything is said: until then heads know too little to be judged.
      names: what clients are called; () for their numbers.
      aligned: predictions are aligned already.
      largest: share of the class that most samples are of.
    """

    patience: int = 0
    names: Sequence[str] = ()
    aligned: bool = False
    largest: float = 0.0
    _told: set[str] = dataclasses.field(default_factory=set)

    def look(
        self,
        step: int,
        *,
        top_share: Float[np.ndarray, "K H"],
        shares: Float[np.ndarray, "k K"],
        reads: Bool[np.ndarray, "k K"],
        ignored_by: Float[np.ndarray, " K"],
        clients: Int[np.ndarray, " K"] | None = None,
    ) -> list[str]:
        """What the probe of this step gives reason to say, a line each.

        Args:
          step: steps done.
          top_share: see `top_class_share`.
          shares: see `taught_shares`.
          reads: who may learn from whom.
          ignored_by: which share of its readers does not hear a client.
          clients: whom the rows are about; None for all clients.
        """
        if step < self.patience:
            return []
        who = np.arange(len(top_share)) if clients is None else clients
        lines = [
            self._collapsed(step, top_share, reads, who),
            self._dominant(step, shares, reads, who),
            self._ignored(step, ignored_by, who),
        ]
        return [line for line in lines if line]

    def compare(
        self,
        step: int,
        private: Float[np.ndarray, " K"],
        baseline: Float[np.ndarray, " K"],
        judged: Bool[np.ndarray, " K"] | None = None,
    ) -> list[str]:
        """What the main heads' private accuracies against the isolated baseline's say.

        Args:
          step: steps done.
          private: of the main heads.
          baseline: of the same clients in isolation.
          judged: whom to judge; None for everybody.
        """
        missing = np.where(True if judged is None else judged, baseline - private, np.nan)
        behind = float(np.nanmean(missing))
        if step < self.patience or behind <= BEHIND or not self._first("behind"):
            return []
        worst = int(np.nanargmax(missing))
        return [
            f"step {step}: main heads lie {behind:.2f} behind the isolated baseline in private "
            f"accuracy (client {self._name(worst)} most, {private[worst]:.2f} against "
            f"{baseline[worst]:.2f}): "
            "distillation crowds out the private task. Try a smaller distill.nu_emb or "
            "distill.nu_aux, or a longer distill.fade_in"
        ]

    def at_end(
        self,
        step: int,
        shared: Float[np.ndarray, " K"],
        baseline: Float[np.ndarray, " K"],
        judged: Bool[np.ndarray, " K"],
    ) -> list[str]:
        """What the last heads' shared accuracies against the isolated baseline's say.

        Args:
          step: the last one.
          shared: of the last heads.
          baseline: of the same clients in isolation.
          judged: whom to judge.
        """
        below = float(np.mean((baseline - shared)[judged]))
        if below <= BELOW or not self._first("below"):
            return []
        return [
            f"step {step}: last heads end {below:.2f} below the isolated baseline in shared "
            "accuracy: peers taught less than the clients' own labels do. What helps most are more "
            "public samples (data.public_fraction, or a larger pool where the data bring one), and "
            "such that look like the clients'"
        ]

    def unreadable(self, step: int, shares: Float[np.ndarray, " K"]) -> list[str]:
        """Whose messages were dropped in the steps before, told once.

        Args:
          step: steps done.
          shares: of these steps in which each client's message could not be read; empty for none.
        """
        clients = np.flatnonzero(shares)
        if not len(clients) or not self._first("unreadable"):
            return []
        who = _clients([self._name(int(client)) for client in clients])
        return [
            f"step {step}: messages of {who} are not finite, or no probabilities; nobody reads "
            f"them ({shares[clients].max():.0%} of the steps)"
        ]

    def _collapsed(
        self,
        step: int,
        top_share: Float[np.ndarray, "K H"],
        reads: Bool[np.ndarray, "k K"],
        who: Int[np.ndarray, " K"],
    ) -> str:
        readers = np.any(reads, axis=1, keepdims=True)
        limit = max(COLLAPSED, 1 - (1 - self.largest) / 4)
        collapsed = np.asarray(top_share[:, 1:] >= limit) & readers
        if not collapsed.any() or not self._first("collapsed"):
            return ""
        rank = int(collapsed.sum(axis=0).argmax()) + 1
        clients = np.flatnonzero(collapsed[:, rank - 1])
        named = _clients([self._name(int(client)) for client in who[clients]])
        return (
            f"step {step}: auxiliary head {rank} of {named} gives one class to "
            f"{top_share[clients, rank].min():.0%} of public images or more: it has collapsed. "
            "Try a longer distill.fade_in"
            + ("" if self.aligned else ", distill.alignment = 1")
            + ", or a smaller distill.nu_aux"
        )

    def _dominant(
        self,
        step: int,
        shares: Float[np.ndarray, "k K"],
        reads: Bool[np.ndarray, "k K"],
        who: Int[np.ndarray, " K"],
    ) -> str:
        if not reads.any() or not shares.any():
            return ""
        shares = np.where(reads, shares, 0.0)  # one's own lessons are no news
        given = of_all_lessons(shares)
        fair = (reads / np.maximum(reads.sum(axis=1, keepdims=True), 1)).sum(axis=0)
        fair = fair / max(fair.sum(), 1e-9)
        teacher = int(given.argmax())
        unusual = given[teacher] > max(DOMINANT, UNEVEN * fair[teacher])
        if not unusual or not self._first("dominant"):
            return ""
        name = self._name(int(who[teacher]))
        return (
            f"step {step}: client {name} gives {given[teacher]:.0%} of all lessons (chosen at "
            f"random it would give {fair[teacher]:.0%}): it is surest of everything, or it lies. "
            "Try "
            + ("" if self.aligned else "distill.alignment = 1 or ")
            + "distill.rule = reputation"
        )

    def _ignored(
        self, step: int, ignored_by: Float[np.ndarray, " K"], who: Int[np.ndarray, " K"]
    ) -> str:
        clients = who[np.flatnonzero(ignored_by > IGNORED)]
        if not len(clients) or not self._first("ignored"):
            return ""
        if 2 * len(clients) > len(who):
            return (
                f"step {step}: most clients do not hear each other: what they say of public images "
                "does not go together. Their data are very unlike, or hardly of more than one "
                "class (distill.screening = 0 hears everybody)"
            )
        named = _clients([self._name(int(client)) for client in clients])
        return (
            f"step {step}: most of its readers do not hear {named}: what is said there of public "
            "images does not go together with what they say themselves. It is a lie, or from a "
            "client that has learned nothing (distill.screening = 0 hears everybody)"
        )

    def _name(self, client: int) -> str:
        return self.names[client] if self.names else str(client)

    def _first(self, kind: str) -> bool:
        """Whether this kind is new."""
        new = kind not in self._told
        self._told.add(kind)
        return new


def _clients(names: Sequence[str]) -> str:
    """A short list: "client 3", "clients 0, 1 and 5", "clients 0, 1, 2 and 61 more"."""
    if len(names) == 1:
        return f"client {names[0]}"
    if len(names) > 4:
        return f"clients {first_few(names, 3)}"
    return f"clients {', '.join(names[:-1])} and {names[-1]}"
