# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What arrives at a device, by graph, read from the compiled steps; nothing is timed.

    python -m experiments.checks.deliveries --out=experiments/results/digits/deliveries.json

Every step is compiled twice: as it is, and with messages that all go to all devices. Both are run
as well, to see that they train the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.harness.stepping import SteppedRun
from mhd_jax import audit
from mhd_jax.config import default_config, update
from mhd_jax.experiment import Experiment

GRAPHS: dict[str, Mapping[str, Any]] = {
    "islands, one a device": {"graph.name": "islands"},
    "directed cycle": {"graph.name": "cycle"},
    "undirected cycle": {"graph.name": "undirected_cycle"},
    "grid": {"graph.name": "grid"},
    "small world, 4 peers": {"graph.name": "small_world", "graph.degree": 4,
                             "graph.probability": 0.05},
    "random, 2 peers": {"graph.name": "random_regular", "graph.degree": 2},
    "random, 4 peers": {"graph.name": "random_regular", "graph.degree": 4},
    "complete": {"graph.name": "complete"},
}  # fmt: skip


def to_all_devices(experiment: Experiment) -> Experiment:
    """The same experiment, in which every message goes to every device."""
    parts = dataclasses.replace(experiment.parts, routes=None)
    return dataclasses.replace(experiment, parts=parts)


def measure(graph: Mapping[str, Any], clients: int, devices: int, steps: int) -> dict[str, Any]:
    """One row: bytes that arrive at the device that most arrive at, and temporary memory."""
    config = default_config()
    settings = {"clients.num": clients, "parallel.client_devices": devices, "train.steps": steps,
                "isolated_baseline": False, "train.steps_per_call": 1, "partition.name": "iid",
                "graph.peers_per_step": 0, "optimizer.warmup_steps": 0}  # fmt: skip
    update(config, settings | {"graph.islands": devices} | dict(graph))
    ours, everything = SteppedRun(config), SteppedRun(config, change=to_all_devices)
    routes = ours.experiment.parts.routes
    row: dict[str, Any] = {
        "clients": clients,
        "devices": devices,
        "messages": routes.received if routes else clients - clients // devices,
        "permutations": len(routes.sends) if routes else None,
    }
    for name, stepper in (("", ours), ("all_", everything)):
        found = audit.explain(stepper.experiment, audit.parse(stepper.compiled.as_text()))
        row.setdefault("only_predictions_leave", found.clean)  # in our form, which comes first
        row[f"{name}received_bytes"] = _received(found, devices)
        memory = stepper.compiled.memory_analysis()
        row[f"{name}temporary_bytes"] = memory.temp_size_in_bytes
        stepper.run(steps)
    states = (jax.tree.leaves(stepper.state.clients) for stepper in (ours, everything))
    pairs = zip(*states, strict=True)
    row["difference"] = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
    return row


def _received(found: audit.Audit, devices: int) -> int:
    """Bytes from other devices at the device that most arrive at."""
    arriving = np.zeros(devices)
    for collective in (finding.collective for finding in found.findings):
        nbytes = collective.shape.nbytes
        if collective.operation == "collective-permute":
            for _, receiver in collective.groups or ():
                arriving[receiver] += nbytes
        else:
            arriving += nbytes * (devices - 1) / devices
    return int(arriving.max())


def main() -> None:
    """Prints a Markdown table; with --out also writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="to compare parameters after")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices)
    rows = []
    print("| graph | messages that arrive | permutations | kB that arrive | all to all devices, kB "
          "| temporary kB | all to all devices | difference |")  # fmt: skip
    print("|---" * 8 + "|")
    for name, graph in GRAPHS.items():
        row = {"graph": name} | measure(graph, options.clients, options.devices, options.steps)
        rows.append(row)
        kilobytes = [
            f"{row[f'{every}{kind}_bytes'] / 1e3:,.0f}"
            for kind in ("received", "temporary") for every in ("", "all_")
        ]  # fmt: skip
        operations = "all-gather" if row["permutations"] is None else row["permutations"]
        print(f"| {name} | {row['messages']} | {operations} | {' | '.join(kilobytes)} | "
              f"{row['difference']:.1e} |", flush=True)  # fmt: skip
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
