# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Command lines that take a config: its flag, built-in configs by name, mistakes in one line."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import ml_collections
from absl import flags
from ml_collections.config_flags import config_flags

from mhd_jax.config import RENAMED, check_name, default_config, flatten, like
from mhd_jax.errors import ConfigError, DivergedError, Interrupted, WorkdirError, suggest

RENAMED_FLAGS = {
    "plan": "estimate",
    "plan_devices": "estimate_devices",
    "plan_memory_gib": "estimate_memory_gib",
}
"""Flags of earlier versions and what they are called now."""


def built_in() -> dict[str, Path]:
    """The config files that come with the package, by name.

    `configs/` lies beside the package in a checkout, and in it where the package is installed.
    """
    package = Path(__file__).parent
    inside = package / "configs"
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def config_file(given: str) -> str:
    """The path, with its variant, of the config that `--config` names.

    Args:
      given: a path or the name of a built-in config; a variant may follow after a colon.

    Raises:
      ConfigError: there is no such file.

    >>> config_file("digits:smoke").endswith("configs/digits.py:smoke")
    True
    >>> config_file("digit")
    Traceback (most recent call last):
    mhd_jax.errors.ConfigError: --config = 'digit': expected a file, or one of cifar10, cifar100,
    digits, imagenet, tabular, tiny_imagenet; did you mean 'digits'?
    """
    name, colon, variant = given.partition(":")
    if Path(name).is_file():
        return given
    known = built_in()
    if name not in known:
        raise ConfigError("--config", given, f"a file, or {suggest(name, known)}")
    return f"{known[name]}{colon}{variant}"


class _Parser(config_flags.ConfigFileFlagParser):
    """Finds built-in configs by name, and names the setting that a file should not set."""

    def parse(self, path: str) -> ml_collections.ConfigDict:
        try:
            return super().parse(config_file(path))
        except AttributeError as error:
            found = re.search(r'Key "(\w+)" does not exist', str(error))
            if found is None:
                raise
            raise _unknown(path, found[1]) from error


def _unknown(path: str, key: str) -> ConfigError:
    """The error of a file that assigns to a setting `key`, whose group is not known."""
    renamed = [new for old, new in RENAMED.items() if old.rpartition(".")[2] == key]
    hint = f"which is now called {renamed[0]}" if renamed else "which is none"
    return ConfigError("--config", path, f"a file that sets known settings, not {key!r}, {hint}")


def define_config(about: str) -> flags.FlagHolder:
    """Defines the flag `--config`; `parse_flags` has to parse it."""
    holder = config_flags.DEFINE_config_file("config", None, about, lock_config=True)
    flags.FLAGS["config"].parser = _Parser("config")
    return holder


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with digits as the config by default and mistakes told in one line.

    Args:
      argv: the command line, the program's name first.

    Returns:
      The arguments that are no flags.
    """
    words = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
    try:
        _check_names(words)
        if not any(re.match("--?config(=|$)", word) for word in words):
            words = ["--config=digits", *words]
        return flags.FLAGS([argv[0], *words])
    except SystemExit:  # after --help, which absl ends as if it were a mistake
        raise SystemExit(0) from None
    except (ConfigError, flags.Error) as error:
        # What a config file raises, the flag's parser raises anew as an error of its own.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__context__
        end(cause or _unreadable(error), 1)


def _unreadable(error: BaseException) -> BaseException:
    """What is accepted, where a setting's value on the command line cannot be read."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    known = flatten(default_config())
    if found is None or found[1] not in known:
        return error
    return ConfigError(found[1], found[2], like(known[found[1]]))


def _check_names(words: list[str]) -> None:
    """Raises `ConfigError` for a flag of an earlier version, and for an unknown setting."""
    known = flatten(default_config())
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            continue
        if name.startswith("config."):
            check_name(name.removeprefix("config."), value, known)
        elif name in RENAMED_FLAGS:
            raise ConfigError(f"--{name}", value, f"its new name, --{RENAMED_FLAGS[name]}")


@contextlib.contextmanager
def told_in_one_line(stopped: str, *more: type[Exception]) -> Iterator[None]:
    """Ends the program without a traceback where a user can mend the error, or stops it.

    After SIGTERM it leaves at once, as it would without this: an exception may get lost on its way
    through a finaliser or a callback, and nobody sends the signal again.

    Args:
      stopped: what to say after Ctrl-C or SIGTERM, where nothing else listens for them.
      *more: errors of the program's own that say all there is to know.
    """
    known = (ConfigError, WorkdirError, DivergedError, Interrupted)
    mendable: tuple[type[Exception], ...] = (*known, *more)

    def leave(number: int, frame: Any) -> NoReturn:
        del frame
        # Not printed: the signal may have come in the middle of a line.
        os.write(2, f"Interrupted: {signal.Signals(number).name}: {stopped}\n".encode())
        os._exit(128 + number)

    try:
        with handled_by(leave, signal.SIGTERM):
            yield
    except mendable as error:
        end(error)
    except KeyboardInterrupt:
        end(KeyboardInterrupt(stopped), 128 + signal.SIGINT)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, Any], NoReturn], *numbers: int) -> Iterator[None]:
    """These signals go to `handler` meanwhile, and to whom they went before afterwards."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def end(error: BaseException, status: int = 1) -> NoReturn:
    """Ends the program with one line about `error`, and with its own status where it has one."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    status = error.status if isinstance(error, Interrupted) else status
    if processes := sys.modules.get("mhd_jax.runtime.processes"):  # else there is but this one
        processes.exit_soon(status)
    sys.exit(status)
