# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Whether a sweep has come to the committed results.

    python -m experiments.digits_claims --preset=digits --workdir=runs/digits
    python -m experiments.harness.compare runs/digits

The same code on the same kind of processor gives the same numbers. Elsewhere arithmetic is rounded
differently, and runs of many steps end a little apart: compare the difference of the means with
the spread over seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.harness import records as records_lib
from experiments.harness.presets import RESULTS
from experiments.harness.study import Record
from experiments.harness.tables import grid


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far a record is from the committed one.

    Attributes:
      name: preset, study and cell.
      revision: of the code of the committed one.
      largest: difference of the accuracy of any head of any client, isolated baseline included;
        None where the two are not of the same seeds, clients and heads.
      mean: of the shared accuracy of last heads, mean over clients and seeds, new minus committed.
      spread: standard deviation of the committed one over seeds.
    """

    name: str
    revision: str
    largest: float | None
    mean: float | None
    spread: float

    @property
    def equal(self) -> bool:
        """Whether they are the same number by number."""
        return self.largest == 0


def difference(made: Record, kept: Record) -> Difference:
    """How far `made` is from the committed record `kept`."""
    name = f"{kept.preset}/{kept.study}/{kept.cell}"
    ours, theirs = made.found, kept.found
    if ours is None or theirs is None:
        both = 0.0 if ours is theirs else None
        return Difference(name, kept.revision, both, both, 0.0)
    last = theirs.shared_accuracy[..., -1].mean(axis=1)
    spread = float(last.std(ddof=1)) if len(last) > 1 else 0.0
    kinds = [kind for kind in vars(theirs) if kind.endswith("_accuracy")]
    pairs = [(getattr(ours, kind), getattr(theirs, kind)) for kind in kinds]
    same = ours.partition_hash == theirs.partition_hash
    if not (same and all(a.shape == b.shape for a, b in pairs)):
        return Difference(name, kept.revision, None, None, spread)
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    mean = float(ours.shared_accuracy[..., -1].mean() - last.mean())
    return Difference(name, kept.revision, largest, mean, spread)


def differences(workdir: Path) -> Iterator[Difference]:
    """Of all records of a sweep that have a committed counterpart."""
    for made in sorted(workdir.glob("*/*/*.json")):
        kept = RESULTS / made.relative_to(workdir)
        if kept.exists():
            yield difference(*records_lib.read([made, kept]))


def describe(found: list[Difference]) -> str:
    """A table, and how many are equal."""
    header = ("", "committed at", "largest difference", "last head, mean", "its spread over seeds")
    rows = []
    for one in found:
        numbers = ("other clients, seeds or heads", "")
        if one.largest is not None and one.mean is not None:
            numbers = (f"{one.largest:.3g}", f"{round(one.mean, 4) + 0.0:+.4f}")
        rows.append((one.name, one.revision, *numbers, f"{one.spread:.4f}"))
    equal = sum(one.equal for one in found)
    return f"{grid(header, rows)}\n{equal} of {len(found)} equal the committed records"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", type=Path, help="of a sweep")
    found = list(differences(parser.parse_args().workdir))
    print(describe(found) if found else "no records that have a committed counterpart")


if __name__ == "__main__":
    main()
