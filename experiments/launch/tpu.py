# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A run on a TPU VM or a pod slice of Google Cloud, with `gcloud`.

    python -m experiments.launch.tpu up --name=mhd --zone=us-west4-a --type=v5litepod-8 --spot \\
        --config=configs/digits.py --workdir=gs://my-bucket/runs/digits

`up` is all of it: create, install, run, watch, fetch, delete. Each is also an action of its own.
When the slice is taken away, `up` (like `watch`) deletes what is left of it, asks for another one
and starts the same command, which resumes from its last checkpoint. One slice is one queued
resource with one node, both called `--name`; a slice of several hosts runs the command on each.
"""

from __future__ import annotations

import argparse
import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.launch import job as job_lib
from experiments.launch.commands import CommandError, LaunchError, Shell
from experiments.launch.job import Actions, Job

# Runtime versions by the start of the accelerator type.
RUNTIMES = {
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v4": "tpu-ubuntu2204-base",
}
WAITING = ("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
_METRICS = "metrics.jsonl"
LOG, STATUS = "run.log", "run.status"  # on the workers, in the checkout

# Images differ in their Python; where none is new enough, uv brings one.
_INSTALL = """set -e
mkdir -p mhd-jax && tar -xzf mhd-jax.tar.gz -C mhd-jax && cd mhd-jax
python=$(command -v python3.12 || command -v python3.11 || true)
if [ -n "$python" ] && "$python" -m venv .venv 2>/dev/null; then :; else
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --clear --seed --python=3.12 .venv
fi
.venv/bin/pip install --quiet -c requirements.txt -e '.[tpu]' gcsfs"""


class Preempted(Exception):
    """The slice is gone, or one of its workers is."""


def create(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Asks for the slice and waits until it is there.

    Raises:
      LaunchError: it did not come up in time (the request is withdrawn), or was refused.
    """
    _request(shell, job, options)
    _await(shell, job, options)


def _request(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    runtime = options.runtime or _runtime(options.type)
    words = ["create", job.name, f"--node-id={job.name}", f"--accelerator-type={options.type}",
             f"--runtime-version={runtime}", *(["--spot"] if options.spot else [])]  # fmt: skip
    try:
        shell.ask(*_queued(options, *words))
    except CommandError as error:
        raise LaunchError(f"the slice was refused: {error}{_hint(error, options)}") from error


def _await(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    waited = 0.0

    def state_now() -> str:
        return slice_state(shell, job, options)

    while (state := job_lib.keep_looking(shell, options.poll_seconds, state_now)) in WAITING:
        shell.show(f"slice {job.name}: {state}")
        if waited >= 60 * options.wait_minutes:
            break
        shell.wait(options.poll_seconds)
        waited += options.poll_seconds
    if state == "ACTIVE":
        return
    if state:
        delete(shell, job, options)
    raise LaunchError(
        f"no slice of type {options.type} in {options.zone} after {waited / 60:.0f} minutes: "
        f"{state or 'no such request'}; the request is withdrawn. "
        "Try another --zone or --type, --spot, or a longer --wait_minutes"
    )


def _runtime(accelerator: str) -> str:
    """The runtime version of an accelerator type."""
    for start, runtime in RUNTIMES.items():
        if accelerator.startswith(f"{start}-"):
            return runtime
    known = ", ".join(f"{start}-8" for start in RUNTIMES)
    raise LaunchError(f"--type={accelerator} is not known ({known}, ...); give --runtime as well")


def _hint(error: CommandError, options: argparse.Namespace) -> str:
    if re.search("location|zone|permission", error.said, re.IGNORECASE):
        return (
            f"\nWhich types are in the zone: gcloud compute tpus accelerator-types list "
            f"--zone={options.zone}"
        )
    if re.search("already exists", error.said, re.IGNORECASE):
        return "\nUse it (install, run, watch), or delete it first, or choose another --name"
    return ""


def _queued(options: argparse.Namespace, action: str, name: str, *more: str) -> tuple[str, ...]:
    words = ("gcloud", "compute", "tpus", "queued-resources", action, name)
    return (*words, *_place(options), *more)


def _node(options: argparse.Namespace, *words: str) -> tuple[str, ...]:
    return ("gcloud", "compute", "tpus", "tpu-vm", *words, *_place(options))


def _place(options: argparse.Namespace) -> tuple[str, ...]:
    project = (f"--project={options.project}",) if options.project else ()
    return (f"--zone={options.zone}", *project)


def slice_state(shell: Shell, job: Job, options: argparse.Namespace) -> str:
    """State of the request, such as ACTIVE or SUSPENDED; "" where there is none."""
    words = _queued(options, "describe", job.name, "--format=value(state.state)")
    try:
        return shell.ask(*words, assumed="ACTIVE")
    except CommandError as error:
        if re.search("not.found", error.said, re.IGNORECASE):
            return ""
        raise


def _on_workers(
    job: Job, options: argparse.Namespace, script: str, worker: str = "all"
) -> tuple[str, ...]:
    """The command that runs a script on the workers."""
    return (*_node(options, "ssh", job.name), f"--worker={worker}", f"--command={script}")


def install(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Brings this checkout, uncommitted work included, to every worker and installs it."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "mhd-jax.tar.gz"
        job_lib.pack(shell, archive)
        copy = _node(options, "scp", str(archive), f"{job.name}:mhd-jax.tar.gz")
        shell.run(*copy, "--worker=all")
    shell.run(*_on_workers(job, options, _INSTALL))


def run(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Starts the command on every worker and comes back at once.

    Raises:
      LaunchError: a workdir that would not outlive the slice.
    """
    _check_workdir(job)
    shell.run(*_on_workers(job, options, start_script(job)))


def start_script(job: Job) -> str:
    """What a worker does to start the command in the background.

    ssh stays until nobody holds its pipes any more. In braces, `&` is for `nohup` alone: without
    them it would leave a shell behind that waits for all of the list, and holds them.
    """
    command = shlex.join(job.command(".venv/bin/python"))
    inner = f"{command} > {LOG} 2>&1; echo $? > {STATUS}"
    apart = f"nohup sh -c {shlex.quote(inner)} > /dev/null 2>&1 < /dev/null &"
    return f"cd mhd-jax && rm -f {STATUS} && {{ {apart} }}"


def _check_workdir(job: Job) -> None:
    if not job.in_bucket:
        raise LaunchError(
            f"--workdir={job.workdir} would be lost with the slice, and its hosts would not share "
            "it; give a bucket's, such as gs://my-bucket/runs/digits"
        )


def watch(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Looks until the run is finished; survives preemption as often as `--restarts` says.

    Raises:
      LaunchError: the run ended with an error, or was preempted too often.
    """
    _survive(shell, job, options, running=True)


def _survive(shell: Shell, job: Job, options: argparse.Namespace, running: bool) -> None:
    """Starts the run on the slice, unless it is running, and again on another after preemption."""
    for restarted in range(options.restarts + 1):
        try:
            if not running:
                _start(shell, job, options)
            return _watch_one(shell, job, options)
        except Preempted as error:
            if restarted == options.restarts:
                raise LaunchError(f"{error}; given up after {restarted} restarts") from None
            shell.show(f"{error}; starting again ({restarted + 1} of at most {options.restarts})")
            if slice_state(shell, job, options):
                delete(shell, job, options)
            create(shell, job, options)
            running = False


def _start(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Installs and runs on a slice that is there, unless it is taken away meanwhile."""
    try:
        install(shell, job, options)
        run(shell, job, options)
    except CommandError:
        if (state := slice_state(shell, job, options)) == "ACTIVE":
            raise
        raise Preempted(f"slice {job.name} was taken away ({state or 'not there'})") from None


def _watch_one(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Looks until the run is finished or the slice is gone."""
    while not job_lib.keep_looking(
        shell, options.poll_seconds, lambda: _finished(shell, job, options)
    ):
        shell.wait(options.poll_seconds)
    shell.show(f"run {job.name}: finished, {job.workdir}/summary.json")


def _finished(shell: Shell, job: Job, options: argparse.Namespace) -> bool:
    """Whether the run is finished; shows how far it is where not."""
    if job_lib.finished(shell, job):
        return True
    if (state := slice_state(shell, job, options)) != "ACTIVE":
        raise Preempted(f"slice {job.name} was taken away ({state or 'not there'})")
    _check_process(shell, job, options)
    shell.show(f"run {job.name}: {job_lib.newest(job_lib.read_text(shell, job, _METRICS))}")
    return False


def _check_process(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Whether the command still runs on the workers, or ended well; else an exception."""
    look = f"cat mhd-jax/{STATUS} 2> /dev/null || echo running"
    try:
        states = shell.ask(*_on_workers(job, options, look), assumed="running").split()
    except CommandError as error:  # a worker that does not answer is gone
        raise Preempted(f"a worker of {job.name} does not answer: {error}") from error
    ended = {int(state) for state in states if state.isdigit()}
    if ended & {job_lib.SAVED, job_lib.LOST}:
        raise Preempted(f"run {job.name} lost a worker (status {min(ended)})")
    if ended - {0}:
        tail = shell.ask(*_on_workers(job, options, f"tail -n 20 mhd-jax/{LOG}", "0"))
        raise LaunchError(f"run {job.name} ended with status {max(ended)}:\n{tail}")


def fetch(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Copies the run from its bucket to `--fetch_to`."""
    job_lib.fetch_bucket(shell, job, options)


def delete(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Gives the slice back, whatever its state."""
    shell.run(*_queued(options, "delete", job.name, "--force", "--quiet"))


def up(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Everything from creating the slice to giving it back, which also happens after an error."""
    _check_workdir(job)  # before anything is paid for
    job_lib.check_unfinished(shell, job)
    _request(shell, job, options)
    try:
        _await(shell, job, options)
        _survive(shell, job, options, running=False)
        fetch(shell, job, options)
    finally:
        if not options.keep:
            _give_back(shell, job, options)


def _give_back(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Deletes the slice if it is there.

    Raises:
      LaunchError: that cannot be said, or it cannot be deleted.
    """
    try:
        if slice_state(shell, job, options):
            delete(shell, job, options)
    except CommandError as error:
        again = shlex.join(_queued(options, "delete", job.name, "--force"))
        raise LaunchError(
            f"slice {job.name} may still be there, and cost money, until this succeeds: {again}\n"
            f"{error}"
        ) from error


ACTIONS: Actions = {
    "up": up, "create": create, "install": install, "run": run, "watch": watch, "fetch": fetch,
    "delete": delete,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = job_lib.parser(__doc__, ACTIONS)
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", default="", help="default: gcloud's own")
    parser.add_argument("--type", default="v5litepod-8", help="accelerator type")
    parser.add_argument("--runtime", default="", help="runtime version; default: by the type")
    parser.add_argument("--spot", action="store_true", help="cheaper, may be taken away")
    parser.add_argument("--wait_minutes", type=float, default=60.0, help="for the slice")
    parser.add_argument("--keep", action="store_true", help="up: do not delete the slice")
    job_lib.main(parser, ACTIONS, argv)


if __name__ == "__main__":
    main()
