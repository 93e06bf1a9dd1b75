# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Launchers, against stand-ins of gcloud, sbatch and kubectl that record what they are asked."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
import yaml

from experiments.launch import job, kubernetes, slurm, tpu
from experiments.launch.commands import Shell
from tests import stand_in

CONFIG = ["--config=configs/digits.py:smoke", "--config.train.steps=40", "--poll_seconds=0"]
BUCKET = "--workdir=gs://bucket/runs/digits"
TPU = ["--name=mhd", "--zone=us-west4-a", *CONFIG, BUCKET]
POD = ["--image=registry.example/mhd-jax", *CONFIG, BUCKET]
METRICS = '{"step": 20, "seconds": 4.2, "loss": [1.0, 2.0]}'
GONE = ("", "ERROR: matched no objects", 1)

ACTION = re.compile(r"queued-resources \w+|tpu-vm \w+|storage \w+")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stand_in.StandIns:
    names = ("gcloud", "sbatch", "squeue", "sacct", "scancel", "kubectl")
    return stand_in.install(tmp_path / "bin", names, monkeypatch)


def actions(programs: stand_in.StandIns) -> list[str]:
    """What gcloud was asked to do, in order, looks at files left out."""
    found = [match[0] for command in programs.asked if (match := ACTION.search(command))]
    return [action.split()[-1] for action in found if action != "storage cat"]


# --- What is launched ----------------------------------------------------------------------------


def test_a_job_is_the_command_of_a_run() -> None:
    made = job.make("mhd", "configs/digits.py", ["--config.heads.aux=2"], "gs://b/run")
    assert made.command("py") == ("py", "-m", "mhd_jax.main", "--config=configs/digits.py",
                                  "--config.heads.aux=2", "--workdir=gs://b/run")  # fmt: skip
    assert made.made.heads.aux == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/digit.py"], "--config = 'configs/digit.py': expected a file of this"),
        (["--config=/etc/passwd"], "--config = '/etc/passwd': expected a file of this checkout"),
        (["--config=configs/digits.py:smok"], "did you mean 'smoke'"),
        (["--config.heads.axu=1"], "heads.axu = '1': .*did you mean .*heads.aux"),
        (["--config.heads.aux=many"], "settings that exist .*many"),
        (["--config.heads.aux=-1"], "heads.aux = -1: expected 0 or more"),
        (["--name=MHD_1"], "--name = 'MHD_1': expected up to 40 of a-z"),
    ],
)
def test_mistakes_are_found_before_anything_is_asked_of_a_cluster(
    programs: stand_in.StandIns, flags: list[str], message: str
) -> None:
    for launcher, needed in ((tpu, ["--zone=z"]), (slurm, []), (kubernetes, ["--image=i"])):
        with pytest.raises(SystemExit, match=message):
            launcher.main(["up", *needed, BUCKET, *flags])
    assert programs.asked == []


def test_an_unknown_flag_is_refused(programs: stand_in.StandIns) -> None:
    with pytest.raises(SystemExit):
        tpu.main(["up", "--zone=z", "--stpes=3"])
    assert programs.asked == []


def test_a_dry_run_prints_every_command_and_runs_none(
    programs: stand_in.StandIns, capsys: pytest.CaptureFixture
) -> None:
    tpu.main(["up", *TPU, "--spot", "--dry_run"])
    slurm.main(["up", *CONFIG, "--dry_run", "--name=mhd"])
    kubernetes.main(["up", *POD, "--dry_run"])
    said = capsys.readouterr().out
    for part in ("queued-resources create mhd", "--spot", "tpu-vm scp", "--worker=all",
                 "--config.train.steps=40", "storage rsync", "queued-resources delete mhd",
                 "sbatch --parsable", "#SBATCH --requeue", "kind: JobSet",
                 "delete jobset mhd"):  # fmt: skip
        assert part in said, part
    assert programs.asked == []


@pytest.mark.parametrize("with_git", (True, False))
def test_what_is_sent_is_the_checkout_with_uncommitted_work_and_without_results(
    tmp_path: Path, with_git: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_git and not (job.ROOT / ".git").exists():
        pytest.skip("these sources are a copy without Git")
    if not with_git:  # as in a downloaded archive
        copy = tmp_path / "copy"
        for name in ("mhd_jax", "configs", "experiments", "setup.py"):
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).symlink_to(job.ROOT / name)
        monkeypatch.setattr(job, "ROOT", copy)
    job.pack(Shell(show=lambda line: None), tmp_path / "x.tar.gz")
    with tarfile.open(tmp_path / "x.tar.gz") as archive:
        names = archive.getnames()
    assert {"setup.py", "mhd_jax/main.py", "configs/digits.py"} <= set(names)
    assert not any(name.startswith(("experiments/results/", ".git/")) for name in names)


def test_the_newest_line_of_the_metrics_in_words() -> None:
    assert job.newest(f"{METRICS}\n") == "step 20 after 4 s, loss 1.5"
    assert job.newest("") == "no metrics yet"
    some = '{"step": 7, "seconds": 1.0, "loss": [null, 2.0, null]}'
    assert job.newest(some) == "step 7 after 1 s, loss 2"
    assert job.newest('{"step": 7, "seconds": 1.0, "loss": [null]}').endswith("loss nan")


def test_a_half_written_last_line_is_passed_over() -> None:
    half = '{"step": 30, "seco'
    assert job.newest(f"{METRICS}\n{half}") == "step 20 after 4 s, loss 1.5"
    assert job.newest(half) == "no metrics yet"


# --- TPU -----------------------------------------------------------------------------------------

UP = {
    r"queued-resources describe": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
    r"cat gs://bucket/runs/digits/summary.json": [GONE, GONE, "{}"],
    r"cat gs://bucket/runs/digits/metrics.jsonl": [METRICS],
    r"run.status 2>": ["running"],
}


def test_a_slice_is_created_used_and_given_back(
    programs: stand_in.StandIns, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    programs.answer(UP)
    tpu.main(["up", *TPU, "--spot", "--project=p", f"--fetch_to={tmp_path / 'runs'}"])
    assert actions(programs) == [
        "create", "describe", "describe", "describe", "scp", "ssh", "ssh", "describe", "ssh",
        "rsync", "describe", "delete",
    ]  # fmt: skip
    created = programs.asked[1]
    assert created.startswith("gcloud compute tpus queued-resources create mhd --zone=us-west4-a")
    for word in ("--project=p", "--node-id=mhd", "--accelerator-type=v5litepod-8", "--spot",
                 "--runtime-version=v2-alpha-tpuv5-lite"):  # fmt: skip
        assert word in created
    (started,) = [asked for asked in programs.asked if "nohup" in asked]
    assert "--worker=all" in started
    assert (
        ".venv/bin/python -m mhd_jax.main --config=configs/digits.py:smoke "
        "--config.train.steps=40 --workdir=gs://bucket/runs/digits > run.log" in started
    )
    said = capsys.readouterr().out
    assert "slice mhd: WAITING_FOR_RESOURCES" in said
    assert "run mhd: step 20 after 4 s, loss 1.5" in said


def test_starting_on_a_worker_does_not_wait_for_the_run(tmp_path: Path) -> None:
    """The script itself: ssh is done when nobody writes to its pipe any more."""
    checkout = tmp_path / "mhd-jax"
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nsleep 4\nexit 75\n')
    python.chmod(0o755)
    settings = ["--config.graph.matrix=runs/my graph.npy", "--config.graph.sequence=('a','b')"]
    made = job.make("mhd", "configs/digits.py", [], "gs://b/run")
    made = dataclasses.replace(made, settings=tuple(settings))
    command = ["bash", "-c", tpu.start_script(made)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=3, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    status, deadline = checkout / tpu.STATUS, time.monotonic() + 30
    while not (status.exists() and status.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert status.read_text() == "75\n"
    said = (checkout / tpu.LOG).read_text().splitlines()
    assert said[2:] == ["--config=configs/digits.py", *settings, "--workdir=gs://b/run"]


def test_a_wrong_zone_is_said_with_the_command_that_lists_types(
    programs: stand_in.StandIns,
) -> None:
    complaint = "ERROR: (gcloud) INVALID_ARGUMENT: Location us-west4-z is not found"
    programs.answer({"queued-resources create": [("", complaint, 1)]})
    with pytest.raises(SystemExit, match="Location us-west4-z is not found") as caught:
        tpu.main(["up", *TPU, "--zone=us-west4-z"])
    assert "accelerator-types list --zone=us-west4-z" in str(caught.value)
    assert actions(programs) == ["create"]  # there is nothing to delete


def test_a_slice_that_is_there_already_is_left_alone(programs: stand_in.StandIns) -> None:
    programs.answer({"queued-resources create": [("", "ERROR: mhd already exists", 1)]})
    with pytest.raises(SystemExit, match="delete it first, or choose another --name"):
        tpu.main(["up", *TPU])
    assert actions(programs) == ["create"]


@pytest.mark.parametrize("states", [["WAITING_FOR_RESOURCES"], ["PROVISIONING", "FAILED"]])
def test_a_slice_that_does_not_come_up_is_withdrawn(
    programs: stand_in.StandIns, states: list[str]
) -> None:
    programs.answer({"queued-resources describe": states})
    with pytest.raises(SystemExit, match=f"no slice of type v5p-8 .*{states[-1]}; .* withdrawn"):
        tpu.main(["create", *TPU, "--type=v5p-8", "--wait_minutes=0"] if len(states) == 1
                 else ["create", *TPU, "--type=v5p-8"])  # fmt: skip
    assert actions(programs)[-1] == "delete"
    assert "--runtime-version=v2-alpha-tpuv5" in programs.asked[0]


def test_a_preempted_slice_is_replaced_and_the_same_command_goes_on(
    programs: stand_in.StandIns, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"]
    summary = r"cat gs://bucket/runs/digits/summary.json"
    programs.answer({**UP, r"queued-resources describe": states, summary: [GONE] * 3 + ["{}"]})
    tpu.main(["up", *TPU, f"--fetch_to={tmp_path}"])
    assert actions(programs) == [
        "create", "describe", "scp", "ssh", "ssh", "describe", "describe",  # preempted
        "delete", "create", "describe", "scp", "ssh", "ssh", "describe", "ssh",
        "rsync", "describe", "delete",
    ]  # fmt: skip
    first, second = [asked for asked in programs.asked if "nohup" in asked]
    assert first == second
    assert "taken away (SUSPENDED); starting again (1 of at most 20)" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["143\nrunning", "0\n75", ("", "ssh: connection refused", 255)])
def test_a_preempted_worker_restarts_the_run(
    programs: stand_in.StandIns, answer: str | tuple
) -> None:
    programs.answer({**UP, "describe": ["ACTIVE"], "run.status 2>": [answer, "running"],
                     "summary.json": [GONE, GONE, "{}"]})  # fmt: skip
    tpu.main(["watch", *TPU])
    assert [action for action in actions(programs) if action in ("create", "delete")] == [
        "delete", "create",
    ]  # fmt: skip


def test_a_slice_that_is_gone_is_replaced_and_not_deleted(programs: stand_in.StandIns) -> None:
    gone = ("", "NOT_FOUND: no such request", 1)
    states = ["ACTIVE", gone, gone, "ACTIVE"]
    programs.answer({**UP, "queued-resources describe": states,
                     "summary.json": [GONE, GONE, "{}"]})  # fmt: skip
    tpu.main(["watch", *TPU])
    assert "delete" not in actions(programs) and "create" in actions(programs)


def test_preemption_while_installing_is_survived(
    programs: stand_in.StandIns, tmp_path: Path
) -> None:
    programs.answer({**UP, "tpu-vm scp": [("", "connection reset", 1), ""],
                     "queued-resources describe": ["ACTIVE", "SUSPENDING", "ACTIVE"]})  # fmt: skip
    tpu.main(["up", *TPU, f"--fetch_to={tmp_path}"])
    assert actions(programs).count("create") == 2


def test_an_endless_preemption_is_given_up(programs: stand_in.StandIns) -> None:
    programs.answer({**UP, "describe": ["ACTIVE"], "run.status 2>": ["143"],
                     "summary.json": [GONE]})  # fmt: skip
    with pytest.raises(SystemExit, match="given up after 2 restarts"):
        tpu.main(["up", *TPU, "--restarts=2"])
    assert actions(programs).count("create") == 3 and actions(programs)[-1] == "delete"


def test_a_run_that_fails_shows_its_log_and_gives_the_slice_back(
    programs: stand_in.StandIns,
) -> None:
    programs.answer({**UP, "describe": ["ACTIVE"], "run.status 2>": ["1\n1"],
                     "tail -n 20": ["ConfigError: data.dir = ''"],
                     "summary.json": [GONE]})  # fmt: skip
    with pytest.raises(SystemExit, match="(?s)ended with status 1:.*ConfigError: data.dir = ''"):
        tpu.main(["up", *TPU])
    assert actions(programs).count("create") == 1 and actions(programs)[-1] == "delete"


def test_a_workdir_that_would_be_lost_is_refused_before_anything_is_paid_for(
    programs: stand_in.StandIns,
) -> None:
    with pytest.raises(SystemExit, match="--workdir=runs/x would be lost with the slice"):
        tpu.main(["up", "--zone=z", *CONFIG, "--workdir=runs/x"])
    assert programs.asked == []


def test_without_gcloud_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="gcloud: there is no such program"):
        tpu.main(["create", *TPU])


def test_a_finished_run_is_not_taken_for_the_new_one(programs: stand_in.StandIns) -> None:
    programs.answer({"summary.json": ["{}"]})
    for launcher, flags in ((tpu, TPU), (slurm, [*CONFIG, BUCKET])):
        with pytest.raises(SystemExit, match="digits holds a run that is finished; `fetch` copies"):
            launcher.main(["up", *flags])
    assert all("summary.json" in asked for asked in programs.asked)


@pytest.mark.parametrize("look", ["storage cat", "queued-resources describe"])
def test_a_network_that_comes_back_costs_nothing(
    programs: stand_in.StandIns, look: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    away = ("", "ERROR: Unable to find the server at tpu.googleapis.com", 1)
    answers = {"storage cat": [GONE, away, away, GONE, GONE, "{}"],
               "queued-resources describe": [away, "ACTIVE", away, "ACTIVE"]}  # fmt: skip
    programs.answer({**UP, "queued-resources describe": ["ACTIVE"], look: answers[look]})
    tpu.main(["up", *TPU, f"--fetch_to={tmp_path}"])
    assert actions(programs).count("create") == actions(programs).count("delete") == 1
    assert "looking again" in capsys.readouterr().out


def test_a_slice_that_cannot_be_given_back_is_said_with_the_command(
    programs: stand_in.StandIns,
) -> None:
    away = ("", "ERROR: Unable to find the server at tpu.googleapis.com", 1)
    programs.answer({**UP, "describe": [away]})
    with pytest.raises(SystemExit, match="(?s)may still be there, .*: gcloud .* delete mhd .*find"):
        tpu.main(["up", *TPU])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], indirect=True)
def test_a_launcher_that_is_stopped_gives_the_slice_back(
    programs: stand_in.StandIns,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    before = signal.getsignal(number)
    programs.answer({**UP, "describe": ["PROVISIONING"]})
    monkeypatch.setattr(Shell, "wait", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit, match=f"^{128 + number}$"):
        tpu.main(["up", *TPU])
    assert actions(programs) == ["create", "describe", "describe", "delete"]
    assert capsys.readouterr().err == f"Stopped: up, by {number.name}\n"
    assert signal.getsignal(number) == before


# --- Slurm ---------------------------------------------------------------------------------------


def test_a_slurm_job_goes_into_the_queue_and_is_watched(
    programs: stand_in.StandIns, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    programs.answer({"squeue": ["", "PENDING", "RUNNING"],
                     "summary.json": [GONE, GONE, "{}"], "metrics.jsonl": [METRICS]})  # fmt: skip
    slurm.main(["up", *CONFIG, BUCKET, "--nodes=2", "--gpus_per_node=4", "--partition=gpu",
                f"--fetch_to={tmp_path}"])  # fmt: skip
    (script,) = [given for asked, given in programs.calls if asked == "sbatch --parsable"]
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu",
                 "--signal=TERM@120", "--requeue"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "-m mhd_jax.main --config=configs/digits.py:smoke --config.train.steps=40" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    said = capsys.readouterr().out
    assert "job mhd: PENDING, step 20" in said and "job mhd: finished" in said


@pytest.mark.parametrize(
    ("status", "restarts", "state", "requeued"),
    [(143, 0, "RUNNING", True), (75, 0, "RUNNING", True), (137, 0, "RUNNING", True),
     (143, 20, "RUNNING", False),
     (143, 0, "COMPLETING", False), (137, 0, "COMPLETING", False), (253, 0, "RUNNING", False),
     (1, 0, "RUNNING", False), (0, 0, "RUNNING", False)],
)  # fmt: skip
def test_the_slurm_script_requeues_what_can_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    restarts: int,
    state: str,
    requeued: bool,
) -> None:
    """The script itself, with stand-ins of what Slurm offers inside a job."""
    programs = stand_in.install(tmp_path / "bin", ("srun", "scontrol", "squeue"), monkeypatch)
    programs.answer({"^srun": [("", "", status)], "^squeue": [state]})
    made = job.make("mhd", "configs/digits.py", [], "runs/x")
    file = tmp_path / "batch"
    file.write_text(slurm.script(made, slurm_options("submit")))
    done = subprocess.run(
        ["bash", str(file)], check=False, stdin=subprocess.DEVNULL,
        env=os.environ | {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)},
    )  # fmt: skip
    assert done.returncode == status
    assert ("scontrol requeue 7" in programs.asked) == requeued


def slurm_options(action: str) -> argparse.Namespace:
    return argparse.Namespace(
        action=action, nodes=1, gpus_per_node=0, cpus_per_task=2, partition="", account="a",
        time="1:00", log=None, python="python", restarts=20,
    )  # fmt: skip


def test_a_slurm_job_that_fails_is_said_with_its_end(programs: stand_in.StandIns) -> None:
    programs.answer({"squeue": ["RUNNING", ""], "summary.json": [GONE],
                     "sacct": ["7 FAILED 1:0 node3"]})  # fmt: skip
    with pytest.raises(SystemExit, match="left the queue unfinished: 7 FAILED 1:0 node3"):
        slurm.main(["watch", *CONFIG, BUCKET])


def test_two_slurm_jobs_of_one_name_are_refused(programs: stand_in.StandIns) -> None:
    programs.answer({"squeue": ["RUNNING"]})
    with pytest.raises(SystemExit, match="a job mhd is there already"):
        slurm.main(["submit", *CONFIG, BUCKET])
    slurm.main(["delete", *CONFIG, BUCKET])
    assert programs.asked[-1] == "scancel --me --name=mhd"


# --- Kubernetes ----------------------------------------------------------------------------------


def status(**values: object) -> str:
    return json.dumps({"status": values})


def test_a_jobset_is_created_survives_a_lost_pod_and_is_deleted(
    programs: stand_in.StandIns, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ready = [{"name": "workers", "ready": 1, "active": 2}]
    programs.answer({"get jobset": [status(), status(replicatedJobsStatus=ready),
                                    status(restarts=1, replicatedJobsStatus=ready),
                                    status(restarts=1, terminalState="Completed")]})  # fmt: skip
    kubernetes.main(["up", *POD, "--hosts=2", "--resource=nvidia.com/gpu=8",
                     "--node_selector=pool=gpus", "--namespace=ml",
                     f"--fetch_to={tmp_path}"])  # fmt: skip
    (made,) = [yaml.safe_load(given) for asked, given in programs.calls if " create " in asked]
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert made["spec"]["failurePolicy"] == {
        "maxRestarts": 20,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    work = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (work["parallelism"], work["completions"], work["backoffLimit"]) == (2, 2, 0)
    (rule,) = work["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1])
    pod = work["template"]["spec"]
    (container,) = pod["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert pod["nodeSelector"] == {"pool": "gpus"}
    assert container["command"][:3] == ["python", "-m", "mhd_jax.main"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    values = {one["name"]: one.get("value") for one in container["env"]}
    assert values["JAX_COORDINATOR_ADDRESS"] == "mhd-workers-0-0.mhd:1234"
    assert values["JAX_NUM_PROCESSES"] == "2" and "JAX_PROCESS_ID" in values
    said = capsys.readouterr().out
    assert "a pod was lost; restart 1" in said and "finished" in said
    assert programs.asked[-1] == "kubectl --namespace=ml delete jobset mhd --ignore-not-found"


def test_one_host_needs_no_coordinator_and_a_claim_is_mounted(
    programs: stand_in.StandIns, tmp_path: Path
) -> None:
    claimed = ["--image=i", *CONFIG, "--claim=shared", "--workdir=/runs/digits"]
    programs.answer({"get jobset": [status(terminalState="Completed")]})
    kubernetes.main(["up", *claimed, f"--fetch_to={tmp_path}"])
    (made,) = [yaml.safe_load(given) for asked, given in programs.calls if " create " in asked]
    pod = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert "env" not in pod["containers"][0]
    copied = [asked for asked in programs.asked if " cp " in asked]
    assert copied == [f"kubectl --namespace=default cp mhd-fetch:/runs/digits {tmp_path}/mhd"]
    assert any("delete pod mhd-fetch" in asked for asked in programs.asked)


def test_a_failed_jobset_shows_the_pods_logs(programs: stand_in.StandIns) -> None:
    programs.answer({"get jobset": [status(terminalState="Failed")],
                     "logs": ["[pod/mhd-workers-0-0] ConfigError: heads.aux"]})  # fmt: skip
    with pytest.raises(SystemExit, match="(?s)jobset mhd failed:.*ConfigError: heads.aux"):
        kubernetes.main(["up", *POD])
    assert programs.asked[-1].endswith("delete jobset mhd --ignore-not-found")


def test_pods_that_do_not_start_are_said_with_the_schedulers_reason(
    programs: stand_in.StandIns,
) -> None:
    programs.answer({"get jobset": [status()], "get pods": ["mhd: Insufficient nvidia.com/gpu"]})
    with pytest.raises(SystemExit, match="(?s)do not start:.*Insufficient nvidia.com/gpu"):
        kubernetes.main(["watch", *POD, "--wait_minutes=0"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=runs/x"], "--workdir=runs/x would be lost with the pods"),
        (["--workdir=/runs/x"], "give a bucket's, or --claim"),
        ([BUCKET, "--resource=gpu"], "--resource=gpu: expected name=value"),
    ],
)
def test_a_jobset_that_could_not_work_is_refused(
    programs: stand_in.StandIns, flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        kubernetes.main(["up", "--image=i", *CONFIG, *flags])
    assert programs.asked == []
