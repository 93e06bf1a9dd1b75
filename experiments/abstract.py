# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The claims of the paper's abstract, in our words, and what our own tables say about each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from experiments.harness.study import Kind, Record
from experiments.harness.tables import grid, kilobytes, over_seeds, short

Records = Mapping[str, Record]  # by "study/cell"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was measured, in a sentence, and whether it bears the claim out."""

    measured: str
    holds: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence, the cells it needs, and how they decide it."""

    sentence: str
    needs: tuple[str, ...]
    decide: Callable[..., Finding]

    def row(self, records: Records) -> tuple[str, ...]:
        """A line of a table."""
        if any(name not in records for name in self.needs):
            found = Finding("not measured yet", "–")
        else:
            found = self.decide(*(records[name] for name in self.needs))
        studies = ", ".join(sorted({f"`{name.partition('/')[0]}`" for name in self.needs}))
        return self.sentence, found.measured, studies, found.holds


def _gain(record: Record, kind: Kind = "shared", head: int = -1) -> Float[np.ndarray, " R"]:
    """Mean over clients of a head's gain over isolation, seed by seed."""
    return record.gain(kind, head).mean(axis=1)


def _learning(complete: Record) -> Finding:
    gain = _gain(complete)
    lowest = complete.gain()
    return Finding(
        f"shared accuracy of the last head {over_seeds(gain)} over isolation; of {lowest.size} "
        f"clients of all seeds {int((lowest > 0).sum())} gain, the least {lowest.min():+.3f}",
        "yes" if gain.min() > 0 else "not in every seed",
    )


def _private(skewed: Record) -> Finding:
    kept = _gain(skewed, "private", head=0)
    return Finding(
        f"private accuracy of the main head {over_seeds(kept)} over isolation at s = 100",
        "preserved" if kept.mean() >= -0.01 else "no",
    )


def _heads(none: Record, one: Record, four: Record) -> Finding:
    gains = [_gain(record) for record in (none, one, four)]
    return Finding(
        f"gain over isolation with 0, 1 and 4 auxiliary heads: {', '.join(map(over_seeds, gains))}",
        "one head does; more do not add on a complete graph"
        if gains[2].mean() <= gains[1].mean() + 0.02
        else "yes",
    )


def _chain(cycle: Record) -> Finding:
    ranks = cycle.accuracy("shared").mean(axis=(0, 1))[1:]
    grows = bool((np.diff(ranks) > 0).all())
    shown = ", ".join(f"{value:.3f}" for value in ranks)
    return Finding(f"on a directed cycle, by rank: {shown}", "yes" if grows else "no")


def _topology(complete: Record, star: Record, islands: Record, cycle: Record) -> Finding:
    gains = {"complete": complete, "star": star, "two islands": islands, "directed cycle": cycle}
    means = [_gain(record).mean() for record in gains.values()]
    shown = ", ".join(f"{name} {over_seeds(_gain(r))}" for name, r in gains.items())
    return Finding(f"gain over isolation: {shown}", "yes" if max(means) == means[0] else "no")


def _kinds(together: Record, own_kind: Record) -> Finding:
    few = together.config["clients"]["models"][0][1]
    shared = [record.accuracy("shared")[..., -1] for record in (together, own_kind)]
    small = (shared[0] - shared[1])[:, :few].mean(axis=1)
    large = (shared[0] - shared[1])[:, few:].mean(axis=1)
    clear = sum(kind.mean() > kind.std(ddof=1) for kind in (small, large))  # beyond its spread
    return Finding(
        "last head, all together minus each among its own kind: small clients "
        f"{over_seeds(small)}, large clients {over_seeds(large)}",
        ("no", "for one kind alone", "yes")[clear],
    )


def _bytes(plain: Record, small: Record, fedavg: Record) -> Finding:
    """The small form counts if its last head is within 0.01 of float32's.

    What it sends does not depend on the network; FedAvg sends 4 bytes of every parameter in
    `average.every` steps. So the claim holds from sent * every / 4 parameters on.
    """
    lost = (small.accuracy("shared") - plain.accuracy("shared"))[..., -1].mean(axis=1)
    every = fedavg.config["average"]["every"]
    size = short(small.results.bytes_per_client_and_step * every / 4)
    return Finding(
        f"{small.label}: a client sends {kilobytes(small)} kB per step, whatever the network's "
        f"size, for {kilobytes(plain)} in float32; last head {over_seeds(lost)}. FedAvg every "
        f"{every} steps sends 4 / {every} bytes per parameter and step, {kilobytes(fedavg)} kB for "
        f"{fedavg.num_params[0]:,} parameters",
        f"yes, from {size} parameters on" if lost.mean() >= -0.01 else "not at this accuracy",
    )


def _heterogeneity(skewed: Record, iid: Record) -> Finding:
    far, near = _gain(skewed), _gain(iid)
    return Finding(
        f"gain over isolation {over_seeds(far)} at s = 100 and {over_seeds(near)} at s = 0",
        "yes" if far.mean() > near.mean() else "no",
    )


_S100, _S0 = "main_comparison/mhd_s100", "main_comparison/mhd_s0"

CLAIMS = (
    Claim("Clients improve a lot on the global distribution over learning in isolation.",
          ("digits_claims/complete",), _learning),
    Claim("Their private tasks are preserved, and may gain.", (_S100,), _private),
    Claim("Several auxiliary heads per client make the difference when data are heterogeneous.",
          ("auxiliary_heads/m0_aux3_emb1", "auxiliary_heads/m1_aux3_emb1",
           "auxiliary_heads/m4_aux3_emb1"), _heads),
    Claim("Deeper heads hear from further away.", ("topology/cycle",), _chain),
    Claim("The more unlike the data, the more there is to gain.", (_S100, _S0), _heterogeneity),
    Claim("The communication graph matters.",
          ("topology/complete", "topology/star", "topology/islands", "topology/cycle"), _topology),
    Claim("Clients of unlike architectures learn from each other.",
          ("architectures/together", "architectures/own_kind"), _kinds),
    Claim("It is communication efficient.",
          ("communication/float32", "communication/int4_w4_cache_8", "communication/fedavg_200"),
          _bytes),
)  # fmt: skip


def table(records: Records) -> str:
    """Every claim with its measured value and verdict, as a Markdown table."""
    header = ("claim", "measured here", "table", "holds here?")
    return grid(header, [claim.row(records) for claim in CLAIMS])
