# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Work and memory per device as devices grow, read from the compiled steps; nothing is timed.

    python -m experiments.checks.devices --out=experiments/results/digits/scaling_devices.json

The compiled steps are run as well, to see that the number of devices makes no difference.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.harness.stepping import SteppedRun
from mhd_jax import audit, parallel
from mhd_jax.config import default_config, update

Parameters = list[np.ndarray]


def measure(clients: int, devices: int, steps: int) -> tuple[dict[str, Any], Parameters]:
    """One row, and all parameters after `steps` steps, for the first `devices` devices.

    Without an isolated baseline, one step per call; batches are shared between devices where there
    are more of them than clients.
    """
    config = default_config()
    update(config, {"clients.num": clients, "isolated_baseline": False, "train.steps": steps,
                    "train.steps_per_call": 1, "optimizer.warmup_steps": 0})  # fmt: skip
    shape = parallel.make_layout(
        [clients], batch_sizes=(config.data.batch_size, config.data.public_batch_size),
        devices=jax.devices()[:devices],
    )  # fmt: skip
    update(config, {"parallel.client_devices": shape.client_devices,
                    "parallel.data_devices": shape.data_devices})  # fmt: skip
    stepper = SteppedRun(config)
    experiment, compiled = stepper.experiment, stepper.compiled
    found = audit.explain(experiment, audit.parse(compiled.as_text()))
    memory = compiled.memory_analysis()
    row = {
        "clients": clients,
        "devices": devices,
        "mesh": [shape.client_devices, shape.data_devices],
        "idle_devices": devices - shape.mesh.size,
        "inert_rows": sum(shape.rows) - clients,
        "megaflops": compiled.cost_analysis()["flops"] / 1e6,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "received_bytes": sum(f.collective.shape.nbytes for f in found.findings),
        "only_predictions_leave": found.clean,
    }
    stepper.run(steps)
    (cohort,) = stepper.state.clients
    return row, [np.asarray(x)[:, :clients] for x in jax.tree.leaves(cohort)]


def main() -> None:
    """Prints a Markdown table, per device; with --out also writes JSON.

    The difference is the largest one of any parameter or optimiser state to those of the first
    number of devices.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[3, 8, 16])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=50, help="to compare parameters after")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    rows = []
    print("| clients | devices | mesh | idle | inert rows | MFLOP | arguments kB | temporary kB "
          "| difference |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for clients in options.clients:
        expected: Parameters = []
        for devices in options.devices:
            row, found = measure(clients, devices, options.steps)
            expected = expected or found
            pairs = zip(found, expected, strict=True)
            row["steps"] = options.steps
            row["difference"] = max(float(np.abs(a - b).max()) for a, b in pairs)
            rows.append(row)
            mesh = " x ".join(map(str, row["mesh"]))
            print(
                f"| {clients} | {devices} | {mesh} | {row['idle_devices']} | {row['inert_rows']} | "
                f"{row['megaflops']:.2f} | {row['argument_bytes'] / 1e3:,.0f} | "
                f"{row['temporary_bytes'] / 1e3:,.0f} | {row['difference']:.1e} |",
                flush=True,
            )
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
