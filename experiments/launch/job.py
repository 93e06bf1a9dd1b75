# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What is to be run: a config with its overrides, a workdir, and a name for it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import ml_collections
from absl import flags
from ml_collections import config_flags

from experiments.launch.commands import CommandError, LaunchError, Shell, stop
from mhd_jax import command
from mhd_jax import config as config_lib
from mhd_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

# Exit statuses of `mhd_jax.main` after which the same command resumes where it stopped: it saved
# after SIGTERM, or another process of the run was lost.
SAVED, LOST = 143, 75

LOOKS = 10  # failed ones in a row after which a watcher gives up

Found = TypeVar("Found")

# Names of cloud resources, of Kubernetes objects and of Slurm jobs alike.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


class Stopped(BaseException):
    """A signal to stop came."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to start elsewhere.

    Attributes:
      name: of the machines or the job.
      config: `--config` of `mhd_jax.main`, relative to the checkout.
      settings: overrides, `--config.name=value` each.
      workdir: of the run, where it is executed: a path, or a URL such as gs://bucket/run.
      made: the settings that result.
    """

    name: str
    config: str
    settings: tuple[str, ...]
    workdir: str
    made: ml_collections.ConfigDict = dataclasses.field(repr=False, compare=False)

    def command(self, python: str = "python") -> tuple[str, ...]:
        """The command of one process; all processes of a run take the same one."""
        flags = (f"--config={self.config}", *self.settings, f"--workdir={self.workdir}")
        return (python, "-m", "mhd_jax.main", *flags)

    @property
    def in_bucket(self) -> bool:
        """Whether the workdir is a URL, which every host sees and which outlives them."""
        return "://" in self.workdir


Actions = dict[str, Callable[[Shell, Job, argparse.Namespace], None]]


def parser(description: str | None, actions: Actions) -> argparse.ArgumentParser:
    """A command line with what all launchers have in common."""
    made = argparse.ArgumentParser(
        description=(description or "").splitlines()[0],
        epilog="Overrides of the config are written as for mhd_jax.main: --config.train.steps=100",
        allow_abbrev=False,
    )
    made.add_argument("action", choices=actions)
    made.add_argument("--name", default="mhd", help="of the machines or of the job")
    made.add_argument("--config", default="configs/digits.py", help="as for mhd_jax.main")
    made.add_argument("--workdir", default="", help="of the run; a bucket's URL or a path there")
    made.add_argument("--restarts", type=int, default=20, help="after preemption, at most")
    made.add_argument("--poll_seconds", type=float, default=30.0, help="between two looks")
    made.add_argument("--fetch_to", type=Path, default=Path("runs"), help="local, for results")
    made.add_argument("--checkpoints", action="store_true", help="fetch checkpoints as well")
    made.add_argument("--dry_run", action="store_true", help="print commands and run none")
    return made


def main(made: argparse.ArgumentParser, actions: Actions, argv: Sequence[str] | None) -> None:
    """Reads the command line and does what it says; mistakes end in a message and status 1.

    SIGTERM and SIGHUP, which a closed terminal sends, end it like Ctrl-C: what is paid for is
    given back first.
    """
    options, rest = made.parse_known_args(argv)
    if unknown := [word for word in rest if not word.startswith("--config.")]:
        made.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        with _stopped_by_signals():
            job = make(options.name, options.config, rest, options.workdir)
            actions[options.action](Shell(options.dry_run), job, options)
    except (ConfigError, CommandError, LaunchError) as error:
        stop(error)
    except (KeyboardInterrupt, Stopped) as error:
        number = error.args[0] if isinstance(error, Stopped) else signal.SIGINT
        command.end(Stopped(f"{options.action}, by {number.name}"), 128 + number)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped`; what is ignored, as SIGHUP under `nohup`, stays so."""

    def stop_at(number: int, frame: Any) -> NoReturn:
        del frame
        signal.signal(number, signal.SIG_IGN)  # a second one does not stop the giving back
        raise Stopped(signal.Signals(number))

    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    with command.handled_by(stop_at, *heard):
        yield


def make(name: str, config: str, settings: Sequence[str], workdir: str) -> Job:
    """A job whose name and settings are in order; files are looked for in this checkout.

    Raises:
      ConfigError: a wrong name, file, variant, setting or value.
    """
    if not _NAME.fullmatch(name):
        accepted = "up to 40 of a-z, 0-9 and -, a letter first and no - at the end"
        raise ConfigError("--name", name, accepted)
    file = config.partition(":")[0]
    if Path(file).is_absolute() or not (ROOT / file).is_file():
        raise ConfigError("--config", config, "a file of this checkout, such as configs/digits.py")
    return Job(name, config, tuple(settings), workdir or f"runs/{name}", _read(config, settings))


def _read(config: str, settings: Sequence[str]) -> ml_collections.ConfigDict:
    """The settings that `mhd_jax.main` would read from the same flags, checked."""
    known = config_lib.flatten(config_lib.default_config())
    for setting in settings:
        name, _, value = setting.partition("=")
        config_lib.check_name(name.removeprefix("--config."), value, known)
    values, words = flags.FlagValues(), ["main", f"--config={ROOT / config}", *settings]
    holder = config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=words
    )
    try:
        with warnings.catch_warnings():  # of a deprecated call inside ml_collections
            warnings.simplefilter("ignore", DeprecationWarning)
            values(words)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None:  # an unknown variant, which the flags' parser has wrapped
            if isinstance(cause, ConfigError):
                raise cause from None
            cause = cause.__context__
        shown = " ".join((config, *settings))
        raise ConfigError("--config", shown, f"settings that exist ({error})") from None
    config_lib.validate(holder.value)
    return holder.value


def sources(root: Path) -> list[str]:
    """The files at the top of `root` and in its packages, by relative path, without caches."""
    folders = (root / name for name in ("mhd_jax", "configs", "experiments", "tests", "docs"))
    found = [*root.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    names = (path.relative_to(root) for path in found if path.is_file())
    return sorted(str(name) for name in names if not {"__pycache__", "_build"} & set(name.parts))


def pack(shell: Shell, archive: Path) -> None:
    """Writes the checkout, uncommitted work included and results left out, as a .tar.gz.

    A copy without Git, such as a downloaded archive, sends what `sources` of it finds.
    """
    if (ROOT / ".git").exists():  # a file in a worktree
        listed = shell.ask("git", "-C", str(ROOT), "ls-files", "--cached", "--others",
                           "--exclude-standard", "--deduplicate").splitlines()  # fmt: skip
    else:
        listed = sources(ROOT)
    files = [name for name in listed if not name.startswith("experiments/results/")]
    kept = [name for name in files if (ROOT / name).exists()]  # deleted files are still listed
    names = archive.with_name("files.txt")
    if not shell.dry_run:
        names.write_text("".join(f"{name}\n" for name in kept))
    shell.run("tar", "-czf", str(archive), "-C", str(ROOT), f"--files-from={names}")


def newest(metrics: str) -> str:
    """The last whole line of `metrics.jsonl` in a few words; a run may be stopped within a line.

    >>> newest('{"step": 50, "seconds": 3.2, "loss": [1.0, 2.0]}')
    'step 50 after 3 s, loss 1.5'
    """
    values = next(filter(None, map(_parsed, reversed(metrics.splitlines()))), None)
    if values is None:
        return "no metrics yet"
    text = f"step {values['step']} after {values['seconds']:.0f} s"
    for name in ("loss", "shared_accuracy"):
        if name in values:
            flat = _flat(values[name]) or [math.nan]
            text += f", {name.replace('_', ' ')} {sum(flat) / len(flat):.3g}"
    return text


def _parsed(line: str) -> dict[str, Any] | None:
    """What a line of `metrics.jsonl` says; None for one that is no JSON object."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _flat(value: object) -> list[float]:
    """All numbers in nested lists; null stands for clients that took no part."""
    if isinstance(value, list):
        return [number for one in value for number in _flat(one)]
    return [] if value is None else [float(value)]  # type: ignore[arg-type]


def fetch_bucket(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Copies a run from its bucket to this machine, checkpoints only if asked for.

    Raises:
      LaunchError: the workdir is not a bucket's.
    """
    if not job.workdir.startswith("gs://"):
        raise LaunchError(f"only gs:// workdirs can be fetched like this, not {job.workdir!r}")
    target = options.fetch_to / job.name
    if not shell.dry_run:
        target.mkdir(parents=True, exist_ok=True)
    without = () if options.checkpoints else ("--exclude=^checkpoints/.*",)
    shell.run("gcloud", "storage", "rsync", "--recursive", *without, job.workdir, str(target))


def read_text(shell: Shell, job: Job, name: str, assumed: str = "") -> str:
    """A file of the workdir, "" where there is none yet."""
    if job.in_bucket:
        try:
            return shell.ask("gcloud", "storage", "cat", f"{job.workdir}/{name}", assumed=assumed)
        except CommandError as error:
            if re.search("matched no objects|not found|404", error.said, re.IGNORECASE):
                return ""
            raise
    path = Path(job.workdir) / name
    if shell.dry_run:
        return assumed
    return path.read_text() if path.exists() else ""


def keep_looking(shell: Shell, seconds: float, look: Callable[[], Found]) -> Found:
    """What `look` finds; where its commands fail it is repeated, as networks come back.

    Args:
      shell: where it looks.
      seconds: between two looks.
      look: asks about a run that is under way.

    Raises:
      CommandError: of the last of `LOOKS` looks.
    """
    for _ in range(LOOKS - 1):
        try:
            return look()
        except CommandError as error:
            shell.show(f"{error}; looking again")
            shell.wait(seconds)
    return look()


def check_unfinished(shell: Shell, job: Job) -> None:
    """Refuses a workdir whose run is over: its summary would be taken for that of the new run.

    Raises:
      LaunchError: there is a summary.
    """
    if read_text(shell, job, "summary.json"):
        raise LaunchError(
            f"--workdir={job.workdir} holds a run that is finished; `fetch` copies it. For another "
            "run take another --workdir"
        )


def finished(shell: Shell, job: Job) -> bool:
    """Whether the run has written its summary; a dry run takes it that it has."""
    return bool(read_text(shell, job, "summary.json", assumed="{}"))
