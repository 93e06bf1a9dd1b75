# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Command line: ``python -m mhd_jax.main --config=configs/digits.py --workdir=runs/digits``.

Short on purpose: everything it does can be imported from `mhd_jax.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from mhd_jax.config import check_name, default_config, flatten
from mhd_jax.errors import ConfigError, DivergedError, WorkdirError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(); without one the defaults: digits, 8 clients.",
    lock_config=True,
)  # fmt: skip
_WORKDIR = flags.DEFINE_string("workdir", "runs/digits", "Directory of the run.")
_ESTIMATE = flags.DEFINE_bool("estimate", False, "Only say what the run needs; reads no data.")
_DEVICES = flags.DEFINE_integer("estimate_devices", 1, "Number of devices.", lower_bound=1)
_MEMORY = flags.DEFINE_float("estimate_memory_gib", 16.0, "Memory of each device.")


def main(argv: Sequence[str]) -> None:
    """Runs one experiment; errors a user can mend end in one line, without a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)

    from mhd_jax import estimate, train  # after flags are parsed, so that --help is quick

    config = _CONFIG.value or default_config()
    try:
        if _ESTIMATE.value:
            print(estimate.on_devices(config, _DEVICES.value, _MEMORY.value).describe())
            return
        train.train_and_evaluate(config, _WORKDIR.value)
    except (ConfigError, WorkdirError, DivergedError, train.Interrupted) as error:
        _end(error, 143 if isinstance(error, train.Interrupted) else 1)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, except that a mistyped setting or variant ends in one line."""
    known = flatten(default_config())
    try:
        for argument in argv[1:]:
            name, _, value = argument.lstrip("-").partition("=")
            if argument.startswith("-") and name.startswith("config."):
                check_name(name.removeprefix("config."), value, known)
        return flags.FLAGS(argv)
    except (ConfigError, flags.Error) as error:
        # What a config file raises, the flag's parser raises anew as an error of its own.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__context__
        _end(cause or error, 1)


def _end(error: BaseException, status: int) -> NoReturn:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(status)


def run() -> None:
    """Entry point with absl's flag parsing."""
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
