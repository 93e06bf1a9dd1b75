# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m mhd_jax.main --config=configs/digits.py --workdir=runs/digits``.

Short on purpose: everything it does can be imported from `mhd_jax.train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from mhd_jax import command

_CONFIG = command.define_config(
    "File with get_config(), or the name of a built-in one such as digits or cifar10:cpu; by "
    "default digits, 8 clients."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; by default runs/ and the name of the config."
)
_ESTIMATE = flags.DEFINE_bool("estimate", False, "Only say what the run needs; train nothing.")
_DEVICES = flags.DEFINE_integer("estimate_devices", 1, "Number of devices.", lower_bound=1)
_MEMORY = flags.DEFINE_float("estimate_memory_gib", 16.0, "Memory of each device.")


def main(argv: Sequence[str]) -> None:
    """Runs one experiment; errors a user can mend end in one line, without a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)

    config, given = _CONFIG.value, config_flags.get_config_filename(flags.FLAGS["config"])
    # Between steps training listens itself; here a signal came earlier or later, or twice.
    stopped = "stopped at once; the same command goes on from the last checkpoint, if there is one"
    with command.told_in_one_line(stopped):
        from mhd_jax import estimate, train  # after flags are parsed, so that --help is quick

        if _ESTIMATE.value:
            print(estimate.on_devices(config, _DEVICES.value, _MEMORY.value).describe())
        else:
            train.train_and_evaluate(config, _WORKDIR.value or default_workdir(given))


def default_workdir(config_file: str) -> str:
    """The default workdir of a config.

    >>> default_workdir("configs/cifar10.py:cpu"), default_workdir("digits")
    ('runs/cifar10_cpu', 'runs/digits')
    """
    path, _, variant = config_file.partition(":")
    name = Path(path).stem
    return f"runs/{name}_{variant}" if variant else f"runs/{name}"


def run() -> None:
    """Entry point with absl's flag parsing."""
    app.run(main, flags_parser=command.parse_flags)


if __name__ == "__main__":
    run()
