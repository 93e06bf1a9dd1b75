# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m mhd_jax.main --config=configs/digits.py --workdir=runs/digits``.

Short on purpose: everything it does can be imported from `mhd_jax.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from mhd_jax.config import default_config
from mhd_jax.errors import ConfigError, DivergedError, WorkdirError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(); without one the defaults: digits, 8 clients.",
    lock_config=True,
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Directory of the run.")
_PLAN = flags.DEFINE_bool("plan", False, "Only say what the run needs; reads no data.")
_PLAN_DEVICES = flags.DEFINE_integer("plan_devices", 1, "Devices to plan for.", lower_bound=1)
_PLAN_MEMORY = flags.DEFINE_float("plan_memory_gib", 16.0, "Memory of each, to plan for.")


def main(argv: Sequence[str]) -> None:
    """Runs one experiment; errors a user can mend end in one line, without a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)

    from mhd_jax import plan, train  # after flags are parsed, so that --help is quick

    config = _CONFIG.value or default_config()
    try:
        if _PLAN.value:
            print(plan.on_devices(config, _PLAN_DEVICES.value, _PLAN_MEMORY.value).describe())
            return
        train.train_and_evaluate(config, _WORKDIR.value)
    except (ConfigError, WorkdirError, DivergedError, train.Interrupted) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(143 if isinstance(error, train.Interrupted) else 1)


def run() -> None:
    """Entry point with absl's flag parsing."""
    app.run(main)


if __name__ == "__main__":
    run()
