# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A run under Slurm; to be typed in a checkout that the compute nodes see.

    python -m experiments.launch.slurm up --partition=gpu --nodes=2 --gpus_per_node=4 \\
        --config=configs/cifar10.py --workdir=runs/cifar10

One task per GPU (one per node without GPUs); JAX finds the others by Slurm's own variables. Two
minutes before its time is over, or when it is preempted, the job gets SIGTERM, saves, and is put
back into the queue, where the same command resumes from the checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.launch import job as job_lib
from experiments.launch.commands import CommandError, LaunchError, Shell
from experiments.launch.job import LOST, ROOT, SAVED, Actions, Job

KILLED = 137  # 128 + SIGKILL
WARNING_SECONDS = 120  # between SIGTERM and the end of the time limit
QUEUED = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD",
          "RESIZING", "SUSPENDED", "PREEMPTED")  # fmt: skip


def script(job: Job, options: argparse.Namespace) -> str:
    """The batch script."""
    tasks = max(1, options.gpus_per_node)
    settings = [
        f"--job-name={job.name}",
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={tasks}",
        *([f"--gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []),
        *([f"--cpus-per-task={options.cpus_per_task}"] if options.cpus_per_task else []),
        *([f"--partition={options.partition}"] if options.partition else []),
        *([f"--account={options.account}"] if options.account else []),
        f"--time={options.time}",
        f"--signal=TERM@{WARNING_SECONDS}",
        "--requeue",
        "--open-mode=append",
        f"--output={options.log or f'{job.name}-%j.log'}",
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {setting}" for setting in settings)]
    lines += [
        f"cd {shlex.quote(str(ROOT))}",
        f"srun --kill-on-bad-exit=1 {shlex.join(job.command(options.python))}",
        "status=$?",
        f"# {SAVED}: saved after SIGTERM; {LOST}: a task was lost; {KILLED}: it was killed, or",
        "# another for it, as srun ends with the highest status of all tasks. All go on when they",
        "# are started again. A job that was cancelled is no longer running, and stays out.",
        f"case $status in {SAVED}|{LOST}|{KILLED})",
        '  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)',
        f'  if [ "$state" = RUNNING ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {options.restarts} ]',
        "  then",
        '    scontrol requeue "$SLURM_JOB_ID"',
        "  fi",
        "esac",
        "exit $status",
    ]
    return "\n".join(lines) + "\n"


def submit(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Puts the job into the queue.

    Raises:
      LaunchError: a job of this name is there already, or the run is finished.
    """
    job_lib.check_unfinished(shell, job)
    if state := _state(shell, job, assumed=""):
        raise LaunchError(f"a job {job.name} is there already ({state}); choose another --name")
    shell.run("sbatch", "--parsable", stdin=script(job, options))


def _state(shell: Shell, job: Job, assumed: str) -> str:
    """State of the newest queued job of this name; "" where there is none."""
    found = shell.ask("squeue", "--me", "--noheader", f"--name={job.name}", "--format=%T",
                      assumed=assumed)  # fmt: skip
    return found.split()[0] if found else ""


def watch(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Looks until the run is finished; Slurm itself requeues it.

    Raises:
      LaunchError: the job left the queue without finishing.
    """
    last = ""
    while not job_lib.finished(shell, job):
        state = job_lib.keep_looking(
            shell, options.poll_seconds, lambda: _state(shell, job, assumed="RUNNING")
        )
        if state not in QUEUED and not job_lib.finished(shell, job):
            raise LaunchError(f"job {job.name} left the queue unfinished: {_end(shell, job, last)}")
        last = state
        newest = job_lib.newest(job_lib.read_text(shell, job, "metrics.jsonl"))
        shell.show(f"job {job.name}: {state}, {newest}")
        shell.wait(options.poll_seconds)
    shell.show(f"job {job.name}: finished, {job.workdir}/summary.json")


def _end(shell: Shell, job: Job, last: str) -> str:
    """How the accounting says it ended."""
    words = ("sacct", "--allocations", "--noheader", f"--name={job.name}",
             "--format=JobID,State,ExitCode,NodeList")  # fmt: skip
    try:
        lines = shell.ask(*words).splitlines()
    except CommandError:  # many clusters keep no accounts
        lines = []
    return " ".join(lines[-1].split()) if lines else f"last seen {last or 'nowhere'}"


def fetch(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Copies the run to `--fetch_to`; only needed where the workdir is a bucket's."""
    if job.in_bucket:
        job_lib.fetch_bucket(shell, job, options)
    else:
        shell.show(f"the run is in {job.workdir}, which this machine sees")


def delete(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Takes the job out of the queue: it gets SIGTERM, and as long to save as the site allows."""
    del options
    shell.run("scancel", "--me", f"--name={job.name}")


def up(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Submits, watches, fetches."""
    submit(shell, job, options)
    watch(shell, job, options)
    fetch(shell, job, options)


ACTIONS: Actions = {"up": up, "submit": submit, "watch": watch, "fetch": fetch, "delete": delete}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = job_lib.parser(__doc__, ACTIONS)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus_per_node", type=int, default=1, help="0: on CPUs")
    parser.add_argument("--cpus_per_task", type=int, default=0, help="0: Slurm's default")
    parser.add_argument("--partition", default="")
    parser.add_argument("--account", default="")
    parser.add_argument("--time", default="04:00:00", help="of one allocation")
    parser.add_argument("--log", type=Path, default=None, help="default: <name>-<job id>.log")
    parser.add_argument("--python", default=sys.executable, help="that the nodes run")
    job_lib.main(parser, ACTIONS, argv)


if __name__ == "__main__":
    main()
