# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The audit: what each method is found to send, and that a planted leak does not pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from mhd_jax import audit, parallel
from mhd_jax.audit import CLIENTS, DATA, EMBEDDINGS, PARAMETERS, PREDICTIONS, PUBLIC, UNKNOWN, Shape
from mhd_jax.step import private, program
from tests import small

ROOT = Path(__file__).resolve().parent.parent
SHORT = {"train__steps_per_call": 1, "train__steps": 1, "isolated_baseline": False}


def _audit(**changes) -> audit.Audit:
    return audit.audit(small.build(**{"parallel__client_devices": 4, **SHORT, **changes}))


def _across(found: audit.Audit) -> set[str]:
    return {finding.carries for finding in found.findings if finding.axis == CLIENTS}


def test_label_distributions_are_told_though_no_collective_carries_them():
    found = _audit(distill__publish_label_shares=True, distill__rule="label_share")
    assert found.clean and found.verdict.endswith("each also tells its label distribution")
    assert "label distribution" not in _audit().verdict


@pytest.mark.parametrize(
    ("changes", "carried", "clean"),
    [
        ({}, {PREDICTIONS, EMBEDDINGS}, True),
        ({"exchange__encoding": "bfloat16", "num_seeds": 2}, {PREDICTIONS, EMBEDDINGS}, True),
        ({"exchange__encoding": "top_k", "exchange__mode": "stale"}, {PREDICTIONS, EMBEDDINGS},
         True),
        ({"exchange__encoding": "int4", "exchange__embedding_width": 3, "exchange__every": 2,
          "exchange__cache": 4}, {PREDICTIONS, EMBEDDINGS}, True),
        ({"distill__confidence": "energy", "distill__same_rank": True}, {PREDICTIONS, EMBEDDINGS},
         True),
        ({"method": "isolated"}, set(), True),
        ({"method": "fedmd"}, {PREDICTIONS}, True),
        ({"method": "fedavg", "exchange__encoding": "bfloat16"}, {PARAMETERS}, False),
        ({"method": "gossip"}, {PARAMETERS}, False),
        ({"method": "feddf"}, {PREDICTIONS, PARAMETERS}, False),
    ],
    ids=["mhd", "mhd bf16 replicas", "mhd stale top k", "mhd int4", "mhd energy", "isolated",
         "fedmd", "fedavg", "gossip", "feddf"],
)  # fmt: skip
def test_what_each_method_sends(changes, carried, clean):
    found = _audit(**changes)
    assert _across(found) == carried
    assert found.clean is clean
    assert ("no weights" in found.verdict or "nothing at all" in found.verdict) is clean


def test_gradient_sums_stay_within_a_client():
    found = _audit(parallel__client_devices=2, parallel__data_devices=2)
    assert found.clean and _across(found) == {PREDICTIONS, EMBEDDINGS}
    sums = [f for f in found.findings if f.axis == DATA]
    assert {f.collective.operation for f in sums} == {"all-reduce"}
    assert PARAMETERS in {f.carries for f in sums}
    assert UNKNOWN not in {f.carries for f in found.findings}


def test_what_is_mixed_into_a_neighbour_is_public():
    found = _audit(parallel__client_devices=2, parallel__data_devices=2, distill__mixup=0.25)
    passed = [f for f in found.findings if f.collective.operation == "collective-permute"]
    assert passed and {(f.axis, f.carries) for f in passed} == {(DATA, PUBLIC)}


def test_means_over_a_shared_batch_have_a_name_where_teachers_are_snapshots():
    found = _audit(
        clients__num=6, parallel__client_devices=2, parallel__data_devices=2,
        exchange__mode="stale", exchange__pool_size=1, exchange__refresh_steps=2,
    )  # fmt: skip
    assert found.clean and UNKNOWN not in {f.carries for f in found.findings}


def test_a_shared_device_proves_nothing():
    assert "nothing to show" in _audit(parallel__client_devices=1).verdict


@pytest.mark.parametrize(
    "leak",
    [
        lambda clients, batch: clients[0].params["model"]["head"]["kernel"],
        lambda clients, batch: batch.images[0],
        lambda clients, batch: batch.public[None, :, :3],  # nothing that has a name
    ],
    ids=["weights", "images", "something else"],
)
def test_a_planted_leak_is_found(monkeypatch, leak):
    update = program._update

    def leaking(parts, state, learners, grads, stats):
        everyone = parallel.gather_clients(leak(learners, batches[-1]))
        grads = jax.tree.map(lambda g: g + 1e-30 * everyone.sum(), grads)
        return update(parts, state, learners, grads, stats)

    batches = []
    losses = private._private_losses

    def note(models, params, learners, batch, *keys):
        batches.append(batch)
        return losses(models, params, learners, batch, *keys)

    monkeypatch.setattr(program, "_update", leaking)
    monkeypatch.setattr(private, "_private_losses", note)
    found = _audit()
    assert not found.clean
    assert "leave a client: 1 arrays" in found.verdict


def test_more_than_is_published_does_not_count_as_published():
    experiment = small.build(parallel__client_devices=4, **SHORT)
    twice = [audit.Collective("all-gather", Shape("f32", (4, 8, 2, 10)), ((0, 1, 2, 3),))] * 2
    carried = [finding.carries for finding in audit.explain(experiment, twice).findings]
    assert carried[0] == PREDICTIONS and carried[1] not in audit.PUBLISHED


HLO = """
  %a = f32[8,64]{1,0} all-gather(%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  %b = (f32[2]{0}, /*index=5*/u8[3,1]{1,0}) all-reduce(%x, %y), replica_groups=[2,2]<=[4]
  %c = f32[] collective-permute(%x), source_target_pairs={{0,2},{2,0}}
  %d = bf16[7]{0} reduce-scatter-start(%x), replica_groups={}
  %e = (f32[], token[]) custom-call(%x), custom_call_target="xla_ffi_python_cpu_callback"
  %f = f32[2]{0} get-tuple-element(%b), index=0, metadata={op_name="all-reduce"}
  %g = f32[9]{0} custom-call(%x), custom_call_target="__onednn$matmul"
"""


def test_every_notation_is_read():
    found = [(c.operation, str(c.shape), c.groups) for c in audit.parse(HLO)]
    assert found == [
        ("all-gather", "f32[8,64]", ((0, 2), (1, 3))),
        ("all-reduce", "f32[2]", ((0, 1), (2, 3))),
        ("all-reduce", "u8[3,1]", ((0, 1), (2, 3))),
        ("collective-permute", "f32[]", ((0, 2), (2, 0))),
        ("reduce-scatter", "bf16[7]", None),
        ("host callback", "f32[]", None),
        ("host callback", "token[]", None),
    ]
    layout = parallel.make_layout([2], client_devices=2, data_devices=2)
    axes = [c.axis(layout) for c in audit.parse(HLO)]
    assert axes == [CLIENTS, DATA, DATA, CLIENTS, CLIENTS, CLIENTS, CLIENTS]


@pytest.mark.parametrize(("clean", "strict", "status"), [(True, True, 0), (False, False, 0)])
def test_the_status_of_the_command(clean, strict, status, monkeypatch):
    """Where it is 1, the command itself runs below."""
    monkeypatch.setattr(audit, "audit", lambda experiment: SimpleNamespace(clean=clean))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # these devices are made already
    assert audit.main(small.config(), 4, strict) == status


@pytest.mark.parametrize(
    ("method", "status"), [pytest.param("mhd", 0, marks=pytest.mark.slow), ("fedavg", 1)]
)
def test_the_command(method, status):
    done = subprocess.run(
        [sys.executable, "-m", "mhd_jax.audit", "--config=configs/digits.py", "--devices=2",
         "--strict", f"--config.method={method}", "--config.train.steps_per_call=1",
         "--config.clients.num=2", "--config.isolated_baseline=False"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert "VERDICT" in done.stdout.splitlines()[-1]
    assert ("parameters" in done.stdout) is bool(status)
