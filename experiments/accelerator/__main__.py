# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Everything that wants an accelerator, in one command.

    pip install -c requirements.txt -e ".[cuda,test,bench]"     # [tpu,test] on a TPU
    python -m experiments.accelerator --minutes=40 --out=experiments/results/accelerator

Pieces run in order of worth, each in a process of its own and under nine minutes; every case leaves
a record as soon as it is done, and what has one is skipped. So the same command, in the next short
booking, goes on where the last one stopped. The table at the end is of all records there are.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.accelerator import pieces
from experiments.accelerator.pieces import Context, Piece
from experiments.harness.compiling import quick_environment

NAMES = ("correctness", "speed", "lowerings", "memory", "training", "profile")
PIECE_SECONDS = 530.0  # of a piece's process: under nine minutes, its start and end included
START = "start"  # what is said to have failed where a piece ends before its first case
GRACE_SECONDS = 25.0  # for the case under way to end, before its process is killed


def load(name: str) -> Piece:
    """A piece; importing it imports JAX."""
    import importlib

    module = {"profile": "trace"}.get(name, name)
    return importlib.import_module(f"experiments.accelerator.{module}").PIECE


def child(options: argparse.Namespace) -> None:
    """Does the cases of one piece in this process."""
    context = Context(options.out, options.quick, options.seconds)
    pieces.run_cases(load(options.piece), context, options.skip.split(","))


def run_piece(name: str, options: argparse.Namespace, seconds: float) -> None:
    """Runs a piece in processes of its own: a new one after a case that took its process along."""
    end, skip = time.monotonic() + seconds, list[str]()
    pieces.path(options.out, name, START).unlink(missing_ok=True)
    while (left := end - time.monotonic()) > 0:
        words = ["--piece", name, f"--out={options.out}", f"--seconds={left:.0f}",
                 f"--skip={','.join(skip)}", *(["--quick"] if options.quick else [])]  # fmt: skip
        begin = time.monotonic()
        try:
            status = subprocess.run(
                [sys.executable, "-m", "experiments.accelerator", *words], check=False,
                env=environment(name, options), timeout=left + GRACE_SECONDS,
            ).returncode  # fmt: skip
            reason = f"its process ended with status {status}"
        except subprocess.TimeoutExpired:
            status, reason = 1, "its time was over"
        under_way = pieces.marker(options.out, name)
        if status == 0:
            return
        case = under_way.read_text() if under_way.exists() else START
        under_way.unlink(missing_ok=True)
        skip.append(case)
        took = round(time.monotonic() - begin, 1)
        record = {"piece": name, "case": case, "failed": reason, "wall_seconds": took}
        pieces.write(options.out, name, case, record)
        print(f"{name}/{case}: {reason}", flush=True)
        if case == START:
            return


def environment(name: str, options: argparse.Namespace) -> dict[str, str]:
    """The variables of a piece's process; compiled programs are kept beside the records."""
    made = dict(os.environ)
    made.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.out / "compiled"))
    wanted = dict(load(name).environment)
    if options.quick:  # compiles much and computes little
        quick = quick_environment()
        wanted |= quick | {"XLA_FLAGS": f"{quick['XLA_FLAGS']} {wanted.get('XLA_FLAGS', '')}"}
    for key, value in wanted.items():
        made[key] = f"{made[key]} {value}" if key == "XLA_FLAGS" and key in made else value
    return made


def summary(out: Path, names: Sequence[str]) -> str:
    """A table of all records, Markdown."""
    lines, device, quick = ["| | |", "| --- | --- |"], "", False
    for name in names:
        records, piece = pieces.read(out, name), load(name)
        lines.append(f"| **{piece.title}** | |")
        lines += [f"| {what} | {result} |" for what, result in piece.rows(records)]
        lines += [f"| {case} | failed: {record['failed']} |"
                  for case, record in records.items() if "failed" in record]  # fmt: skip
        lines += [] if records else ["| nothing yet | |"]
        device = device or next((r["device"] for r in records.values() if "device" in r), "")
        quick = quick or any(record.get("quick") for record in records.values())
    where = f"On {device or 'no device yet'}."
    if quick:
        where += " Tiny sizes (--quick): that every piece works is what this shows, no figure is."
    return "\n".join(lines) + f"\n\n{where}\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing; ends with status 1 where something failed."""
    options = _parse(argv)
    if options.piece:
        child(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    chosen = options.pieces.split(",") if options.pieces else list(NAMES)
    for name in chosen:
        left = end - time.monotonic() - GRACE_SECONDS
        if left <= 0:
            print(f"{name}: no time left; the same command goes on", flush=True)
            continue
        begin = time.monotonic()
        run_piece(name, options, min(left, PIECE_SECONDS - GRACE_SECONDS))
        print(f"== {name}: {time.monotonic() - begin:.0f} s", flush=True)
    text = summary(options.out, chosen)
    (options.out / "summary.md").write_text(text)
    print(f"\n{text}")
    failed = [f"{name}/{case}" for name in chosen
              for case, record in pieces.read(options.out, name).items()
              if "failed" in record]  # fmt: skip
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--minutes", type=float, default=40.0, help="of all pieces together")
    parser.add_argument("--out", type=Path, help="folder of the records")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; figures mean nothing")
    parser.add_argument("--pieces", default="", help=f"some of {','.join(NAMES)}")
    parser.add_argument("--piece", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=PIECE_SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--skip", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    for name in filter(None, options.pieces.split(",")):
        if name not in NAMES:
            parser.error(f"--pieces={options.pieces}: expected some of {','.join(NAMES)}")
    if options.out is None:
        if not options.quick:
            parser.error("--out is needed, so that the next command can go on")
        options.out = Path(tempfile.mkdtemp(prefix="mhd_jax_accelerator_"))
    options.out = options.out.resolve()
    return options


if __name__ == "__main__":
    main()
