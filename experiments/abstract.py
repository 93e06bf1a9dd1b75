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
    """A sentence, the cells it needs and those it uses where they exist, and how they decide it."""

    sentence: str
    needs: tuple[str, ...]
    decide: Callable[..., Finding]
    also: tuple[str, ...] = ()

    def row(self, records: Records) -> tuple[str, ...]:
        """A line of a table."""
        names = [*self.needs, *(name for name in self.also if name in records)]
        if any(name not in records for name in names):
            found = Finding("not measured yet", "–")
        else:
            found = self.decide(*(records[name] for name in names))
        studies = ", ".join(sorted({f"`{name.partition('/')[0]}`" for name in names}))
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


def _clear(values: Float[np.ndarray, " R"]) -> bool:
    """Whether the mean over seeds is above zero by more than the seeds spread."""
    return bool(values.mean() > values.std(ddof=1))


def _private(ours: Record, published: Record, *crowds: Record) -> Finding:
    """Preserved to 0.01, with and without alignment, and with how many clients."""
    few = [_gain(record, "private", head=0) for record in (ours, published)]
    many = {r.config["clients"]["num"]: _gain(r, "private", head=0) for r in crowds}
    holds = "yes" if all(map(_clear, few)) else "preserved"
    holds = "no" if min(one.mean() for one in few) < -0.01 else holds
    lost = [str(number) for number, gain in many.items() if gain.mean() < -0.01]
    shown = [f"{over_seeds(gain)} with {number}" for number, gain in many.items()]
    clients = ours.config["clients"]["num"]
    return Finding(
        "; ".join((
            f"private accuracy of the main head {over_seeds(few[0])} over isolation with {clients} "
            f"clients, {over_seeds(few[1])} without alignment", *shown,
        )),
        f"{holds}, but not with {' and '.join(lost)} clients" if lost else holds,
    )  # fmt: skip


def _heads(none: Record, one: Record, four: Record, *sparse: Record) -> Finding:
    """On the complete graph, and, where measured, the most heads against one on sparse graphs."""
    gains = [_gain(record) for record in (none, one, four)]
    more = gains[2] - gains[1]
    measured = (
        f"gain over isolation with 0, 1 and 4 auxiliary heads: {', '.join(map(over_seeds, gains))}"
        f"; 4 minus 1 {over_seeds(more)}"
    )
    on_sparse = []
    for group in dict.fromkeys(record.group for record in sparse):
        few, many = sorted((r for r in sparse if r.group == group), key=_number_of_heads)
        ahead = _gain(many) - _gain(few)
        heads = f"{_number_of_heads(many)} minus {_number_of_heads(few)}"
        measured += f"; on a {group}, {heads} {over_seeds(ahead)}"
        on_sparse.append(_clear(ahead))
    if gains[2].mean() <= gains[0].mean():
        holds = "no"
    elif on_sparse and all(on_sparse):
        holds = "yes on sparse graphs; on a complete one the first brings most of it"
    else:
        holds = "the first brings most of it" if _clear(more) else "one head does; more add nothing"
    return Finding(measured, holds)


def _number_of_heads(record: Record) -> int:
    heads: int = record.config["heads"]["aux"]
    return heads


def _chain(cycle: Record) -> Finding:
    ranks = cycle.accuracy("shared").mean(axis=(0, 1))[1:]
    grows = bool((np.diff(ranks) > 0).all())
    shown = ", ".join(f"{value:.3f}" for value in ranks)
    return Finding(f"on a directed cycle, by rank: {shown}", "yes" if grows else "no")


def _topology(*graphs: Record) -> Finding:
    gains = {record.label: _gain(record) for record in graphs}
    best, *_, worst = sorted(gains.values(), key=np.mean, reverse=True)
    shown = ", ".join(f"{label} {over_seeds(gain)}" for label, gain in gains.items())
    return Finding(
        f"gain over isolation: {shown}; best minus worst {over_seeds(best - worst)}",
        "yes" if _clear(best - worst) else "no",
    )


def _kinds(together: Record, own_kind: Record) -> Finding:
    few = together.config["clients"]["models"][0][1]
    shared = [record.accuracy("shared")[..., -1] for record in (together, own_kind)]
    small = (shared[0] - shared[1])[:, :few].mean(axis=1)
    large = (shared[0] - shared[1])[:, few:].mean(axis=1)
    return Finding(
        "last head, all together minus each among its own kind: small clients "
        f"{over_seeds(small)}, large clients {over_seeds(large)}",
        ("no", "for one kind alone", "yes")[_clear(small) + _clear(large)],
    )


def _bytes(plain: Record, small: Record, fedavg: Record) -> Finding:
    """The small form counts if its last head is within 0.01 of float32's.

    What it sends does not depend on the network, and what FedAvg sends is in proportion to it. So
    the claim holds from that size on at which both send the same.
    """
    lost = (small.accuracy("shared") - plain.accuracy("shared"))[..., -1].mean(axis=1)
    every = fedavg.config["average"]["every"]
    parameters, sent = fedavg.num_params[0], fedavg.results.bytes_per_client_and_step
    size = short(parameters * small.results.bytes_per_client_and_step / sent)
    return Finding(
        f"{small.label}: a client sends {kilobytes(small)} kB per step, whatever the network's "
        f"size, for {kilobytes(plain)} in float32; last head {over_seeds(lost)}. FedAvg every "
        f"{every} steps sends {kilobytes(fedavg)} kB for {parameters:,} parameters",
        f"yes, from {size} parameters on" if lost.mean() >= -0.01 else "not at this accuracy",
    )


def _heterogeneity(*skews: Record) -> Finding:
    """From identically distributed clients to disjoint labels."""
    gains = [_gain(record) for record in skews]
    grows = bool((np.diff([gain.mean() for gain in gains]) > 0).all())
    return Finding(
        "gain over isolation at s = 0, 10, 100 and with disjoint labels: "
        f"{', '.join(map(over_seeds, gains))}",
        "yes" if grows else "no",
    )


CLAIMS = (
    Claim("Clients improve a lot on the global distribution over learning in isolation.",
          ("main_comparison/aligned_s100",), _learning),
    Claim("Their private tasks are preserved, and may gain.",
          ("main_comparison/aligned_s100", "main_comparison/mhd_s100"), _private,
          ("scaling/total_16", "scaling/total_32", "scaling/total_64")),
    Claim("Several auxiliary heads per client make the difference when data are heterogeneous.",
          tuple(f"auxiliary_heads/m{heads}_aux1_emb0.2" for heads in (0, 1, 4)), _heads,
          tuple(f"sparse_graphs/{graph}_m{heads}"
                for graph in ("directed_cycle_of_16", "chain_of_16", "small_world_of_16",
                              "small_world_of_64") for heads in (1, 6))),
    Claim("Deeper heads hear from further away.", ("topology/cycle",), _chain),
    Claim("The more unlike the data, the more there is to gain.",
          tuple(f"data_heterogeneity/{skew}" for skew in ("s0", "s10", "s100", "s_inf")),
          _heterogeneity),
    Claim("The communication graph matters.",
          tuple(f"topology/{graph}" for graph in ("complete", "star", "islands", "cycle")),
          _topology),
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
