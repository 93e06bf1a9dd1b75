# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""A run on Kubernetes as a JobSet (https://jobset.sigs.k8s.io), with `kubectl`.

    python -m experiments.launch.kubernetes up --image=registry.example/mhd-jax --hosts=2 \\
        --resource=nvidia.com/gpu=8 --config=configs/cifar10.py --workdir=gs://bucket/runs/cifar10

One pod per host. A pod that is lost, by itself or with its node, restarts all of them (JobSet's
failure policy), and the same command resumes from its last checkpoint. A run that fails, with
status 1, would fail again and is not restarted. The workdir is a bucket's,
or a folder below /runs where `--claim` names a volume that all pods can write.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import yaml

from experiments.launch import job as job_lib
from experiments.launch.commands import LaunchError, Shell
from experiments.launch.job import Actions, Job

PORT = 1234
MOUNT = "/runs"
CONTAINER = "mhd-jax"
WORKERS = "workers"
FAILED = 1  # the exit status of a run that would end the same way again


def manifest(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """The JobSet.

    Raises:
      LaunchError: a workdir that pods would not share.
    """
    if not (job.in_bucket or (options.claim and job.workdir.startswith(f"{MOUNT}/"))):
        raise LaunchError(
            f"--workdir={job.workdir} would be lost with the pods; give a bucket's, or --claim and "
            f"a workdir below {MOUNT}"
        )
    labels = dict(_pair(text, "--node_selector") for text in options.node_selector)
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        # Time to save after SIGTERM.
        "terminationGracePeriodSeconds": options.grace_seconds,
        "containers": [_container(job, options)],
    }
    if labels:
        pod["nodeSelector"] = labels
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.claim:
        claim = {"claimName": options.claim}
        pod["volumes"] = [{"name": "runs", "persistentVolumeClaim": claim}]
    failed = {"containerName": CONTAINER, "operator": "In", "values": [FAILED]}
    work = {
        "parallelism": options.hosts,
        "completions": options.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": failed}]},
        "template": {"spec": pod},
    }
    give_up = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name},
        "spec": {
            "failurePolicy": {"maxRestarts": options.restarts, "rules": [give_up]},
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            "replicatedJobs": [{"name": WORKERS, "replicas": 1, "template": {"spec": work}}],
        },
    }


def _container(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    resources = dict(_pair(text, "--resource") for text in options.resource)
    made: dict[str, Any] = {
        "name": CONTAINER,
        "image": options.image,
        "command": list(job.command("python")),
        "ports": [{"containerPort": PORT}],
    }
    if options.hosts > 1:
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        first = f"{job.name}-{WORKERS}-0-0.{job.name}:{PORT}"
        made["env"] = [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": first},
            {"name": "JAX_NUM_PROCESSES", "value": str(options.hosts)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        ]
    if resources:
        made["resources"] = {"limits": resources, "requests": dict(resources)}
    if options.claim:
        made["volumeMounts"] = [{"name": "runs", "mountPath": MOUNT}]
    return made


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise LaunchError(f"{flag}={text}: expected name=value, such as nvidia.com/gpu=8")
    return name, value


def _kubectl(options: argparse.Namespace, *words: str) -> tuple[str, ...]:
    context = (f"--context={options.context}",) if options.context else ()
    return ("kubectl", *context, f"--namespace={options.namespace}", *words)


def create(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Creates the JobSet; pods start as soon as there are nodes for all of them."""
    text = yaml.safe_dump(manifest(job, options), sort_keys=False)
    shell.run(*_kubectl(options, "create", "--filename=-"), stdin=text)


def watch(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Looks until the JobSet has ended; JobSet itself restarts the pods.

    Raises:
      LaunchError: it failed, or its pods did not start within `--wait_minutes`.
    """
    waited, restarts = 0.0, 0
    while True:
        status = job_lib.keep_looking(
            shell, options.poll_seconds, lambda: _status(shell, job, options)
        )
        if status.get("terminalState") == "Completed":
            shell.show(f"jobset {job.name}: finished, {job.workdir}/summary.json")
            return
        if status.get("terminalState") == "Failed":
            raise LaunchError(f"jobset {job.name} failed:\n{_logs(shell, job, options)}")
        if status.get("restarts", 0) > restarts:
            restarts = status["restarts"]
            shell.show(f"jobset {job.name}: a pod was lost; restart {restarts}")
        running = sum(one.get("active", 0) for one in status.get("replicatedJobsStatus", []))
        ready = sum(one.get("ready", 0) for one in status.get("replicatedJobsStatus", []))
        if ready:
            waited = 0.0
        elif waited >= 60 * options.wait_minutes:
            raise LaunchError(f"the pods of {job.name} do not start:\n{_why(shell, job, options)}")
        state = "running" if ready else "started" if running else "waiting"
        shell.show(f"jobset {job.name}: {state}")
        shell.wait(options.poll_seconds)
        waited += options.poll_seconds


def _status(shell: Shell, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    words = _kubectl(options, "get", "jobset", job.name, "--output=json")
    found = json.loads(shell.ask(*words, assumed='{"status": {"terminalState": "Completed"}}'))
    return found.get("status", {})


def _selector(job: Job) -> str:
    return f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"


def _logs(shell: Shell, job: Job, options: argparse.Namespace) -> str:
    return shell.ask(*_kubectl(options, "logs", _selector(job), "--tail=20", "--prefix"))


def _why(shell: Shell, job: Job, options: argparse.Namespace) -> str:
    """What the scheduler says about the pods."""
    told = "jsonpath={range .items[*]}{.metadata.name}: {.status.conditions[*].message}{'\\n'}{end}"
    return shell.ask(*_kubectl(options, "get", "pods", _selector(job), f"--output={told}"))


def logs(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """The end of every pod's log."""
    shell.show(_logs(shell, job, options))


def fetch(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Copies the run to `--fetch_to`: from its bucket, or through a pod that mounts the claim."""
    if job.in_bucket:
        job_lib.fetch_bucket(shell, job, options)
        return
    reader = f"{job.name}-fetch"
    spec = {"spec": {"containers": [{"name": reader, "image": options.image, "command":
            ["sleep", "3600"], "volumeMounts": [{"name": "runs", "mountPath": MOUNT}]}],
            "volumes": [{"name": "runs", "persistentVolumeClaim":
                         {"claimName": options.claim}}]}}  # fmt: skip
    start = ("run", reader, f"--image={options.image}", "--restart=Never")
    shell.run(*_kubectl(options, *start, f"--overrides={json.dumps(spec)}"))
    try:
        ready = ("wait", "--for=condition=Ready", f"pod/{reader}", "--timeout=300s")
        shell.run(*_kubectl(options, *ready))
        target = options.fetch_to / job.name
        shell.run(*_kubectl(options, "cp", f"{reader}:{job.workdir}", str(target)))
    finally:
        shell.run(*_kubectl(options, "delete", "pod", reader, "--wait=false"))


def delete(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Deletes the JobSet and its pods; the run saves before it ends."""
    shell.run(*_kubectl(options, "delete", "jobset", job.name, "--ignore-not-found"))


def up(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Everything from creating the JobSet to deleting it, which also happens after an error."""
    create(shell, job, options)
    try:
        watch(shell, job, options)
        fetch(shell, job, options)
    finally:
        if not options.keep:
            delete(shell, job, options)


def show(shell: Shell, job: Job, options: argparse.Namespace) -> None:
    """Prints the manifest."""
    shell.show(yaml.safe_dump(manifest(job, options), sort_keys=False).rstrip())


ACTIONS: Actions = {
    "up": up, "show": show, "create": create, "watch": watch, "logs": logs, "fetch": fetch,
    "delete": delete,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = job_lib.parser(__doc__, ACTIONS)
    parser.add_argument("--image", required=True, help="built from Containerfile")
    parser.add_argument("--hosts", type=int, default=1, help="pods, one per host")
    parser.add_argument("--resource", action="append", default=[], help="nvidia.com/gpu=8, ...")
    parser.add_argument("--node_selector", action="append", default=[], help="label=value")
    parser.add_argument("--claim", default="", help=f"volume claim to mount at {MOUNT}")
    parser.add_argument("--service_account", default="", help="that may use the bucket")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--context", default="")
    parser.add_argument("--grace_seconds", type=int, default=120, help="to save after SIGTERM")
    parser.add_argument("--wait_minutes", type=float, default=60.0, help="for the pods")
    parser.add_argument("--keep", action="store_true", help="up: do not delete the JobSet")
    job_lib.main(parser, ACTIONS, argv)


if __name__ == "__main__":
    main()
