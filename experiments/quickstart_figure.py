# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The README's figure, from a finished run of the quickstart.

python -m experiments.quickstart_figure --run=runs/digits
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.harness import plots
from mhd_jax.api import Run

FOLDER = Path(__file__).parent / "figures"


def main() -> None:
    """Writes `experiments/figures/quickstart.png`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/digits", help="directory of the run")
    run = Run.load(parser.parse_args().run)
    FOLDER.mkdir(exist_ok=True)
    plots.save(run.plot_classes(), FOLDER / "quickstart.png")


if __name__ == "__main__":
    main()
