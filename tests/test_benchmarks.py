# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The machinery of the benchmarks, and every benchmark in tiny sizes; no time is checked."""

from __future__ import annotations

import functools
import importlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.benchmarks import (
    clients,
    clock,
    convolutions,
    exchange_cost,
    federated,
    feeding,
    growth,
    limits,
    message_sizes,
    ours,
    step,
    timing,
)
from experiments.benchmarks.timing import QUICK, Benchmark, Case, Contender, Effort
from mhd_jax import models


def test_contenders_alternate_in_rotating_order() -> None:
    calls: list[str] = []
    contenders = [Contender(name, lambda _, name=name: calls.append(name)) for name in "abc"]
    measured = timing.alternate(contenders, Effort(rounds=3, seconds=0.0))
    assert "".join(calls[-9:]) == "abcbcacab"
    assert all(len(measured[name]["seconds"]) == 3 for name in "abc")


def test_work_is_handed_out_in_whole_units_and_counted() -> None:
    done: list[int] = []

    def work(count: int) -> None:
        time.sleep(1e-5 * count)
        done.append(count)

    measured = timing.alternate([Contender("a", work, 1.5, unit=5)], Effort(2, 0.01))
    assert all(count % 5 == 0 for count in done)
    assert measured["a"]["count"] == done[-1] == done[-2]
    assert measured["a"]["compile_seconds"] == 1.5


def test_a_speedup_is_taken_within_rounds() -> None:
    measured = {"a": {"seconds": [1.0, 2.0, 1.0]}, "b": {"seconds": [4.0, 4.0, 3.0]}}
    assert timing.speedup(measured, "a", "b") == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_a_record_says_where_it_comes_from(tmp_path: Path) -> None:
    cases = [Case("one", lambda effort: {"rounds": effort.rounds}), Case("two", str, ("no-such",))]  # type: ignore[arg-type, return-value]
    made = Benchmark("fake", "Nothing", lambda quick: cases, lambda records: str(len(records)))
    timing.main(made, ["--rounds=2", f"--out={tmp_path}"])
    assert [file.name for file in (tmp_path / "fake").iterdir()] == ["one.json"]
    record = json.loads((tmp_path / "fake" / "one.json").read_text())
    assert record["results"] == {"rounds": 2}
    assert {"revision", "versions", "device", "hardware", "command"} <= record.keys()
    assert timing.records(made, tmp_path) == [record]


def test_a_step_by_edges_stands_beside_the_same_step_by_pairs() -> None:
    case = clients.BENCHMARK.cases(True)[0]
    record = timing.run_case(clients.BENCHMARK, case, QUICK)
    assert record["results"]["form"] == "lists"
    assert record["results"]["measured"].keys() == {clients.EDGES, clients.PAIRS, clients.ARGMAX}
    (row,) = clients.BENCHMARK.table([record]).splitlines()[2:3]
    assert row.startswith("| 16 | 16 | 4 | lists |")


def test_what_snapshots_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept snapshots are memory, N_P models a client; those read are messages."""
    monkeypatch.setattr(exchange_cost, "POOLS", {"four": (4, 2)})
    record = timing.run_case(exchange_cost.BENCHMARK, *exchange_cost.BENCHMARK.cases(True), QUICK)
    memory, sent = record["results"]["memory"], record["results"]["published"]
    model = memory["fresh"]["state"] / 3  # parameters and two averages of their gradients
    assert memory["fresh"]["pool"] == 0
    assert memory["four"]["pool"] == pytest.approx(4 * model, rel=7e-3)  # less a few step counts
    assert sent["four"] == 2 * sent["fresh"]
    shown = exchange_cost.BENCHMARK.table([record]).splitlines()
    assert [line.split(" | ")[0] for line in shown[2:4]] == ["| fresh", "| four"]


def test_sizes_of_messages_come_from_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-18 with 1,000 classes: 4 bytes of each parameter in 200 steps, of all in 4 heads."""
    forms = {name: message_sizes.FORMS[name] for name in ("MHD, int8", "FedAvg every 200 steps")}
    monkeypatch.setattr(message_sizes, "FORMS", forms)
    record = timing.run_case(message_sizes.BENCHMARK, *message_sizes.BENCHMARK.cases(True), QUICK)
    results, (mhd, fedavg) = record["results"], forms
    sent, steps = results["bytes"]["resnet18"], results["steps"]
    assert steps == 1_281_167 * 9 // 10 // 8 // 32
    assert sent[mhd] == steps * 32 * (4 * (1000 + 2) + 2 * 512)
    assert sent[fedavg] == steps // 200 * 4 * results["parameters"]["resnet18"]
    assert 11.6e6 < results["parameters"]["resnet18"] < 11.8e6
    assert mhd in message_sizes.BENCHMARK.table([record])


QUICKLY = {"growth/public_batch": growth, "limits/mlp_2": limits, "feeding/mlp_2": feeding}


@pytest.mark.parametrize("name", QUICKLY)
def test_runs_in_tiny_sizes_and_fills_its_table(name: str) -> None:
    benchmark, case = QUICKLY[name].BENCHMARK, name.split("/")[1]
    (chosen,) = [one for one in benchmark.cases(True) if one.name == case]
    record = timing.rounded(timing.run_case(benchmark, chosen, QUICK))
    table = benchmark.table([record])
    assert benchmark.command in table and "nan" not in table


def test_devices_wait_for_a_slow_host(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"clients.num": 2, "model.width": 8, "heads.aux": 1, "train.steps_per_call": 2}
    stepper = ours.build(tiny)
    schedule = type(stepper.experiment.schedule)
    made = schedule.inputs

    def slow(*arguments: Any) -> Any:
        time.sleep(0.2)
        return made(*arguments)

    monkeypatch.setattr(schedule, "inputs", slow)
    assert stepper.waiting(8) > 0.5


@pytest.mark.parametrize("number", [0, 1])
def test_contenders_of_the_step_train_the_same(number: int) -> None:
    pytest.importorskip("torch")
    record = timing.run_case(step.BENCHMARK, step.BENCHMARK.cases(True)[number], QUICK)
    for found in record["results"]["largest_difference"].values():
        assert len(found) == step.COMPARED and max(found) < step.TOLERANCE
    assert step.BENCHMARK.table([record]).startswith("| clients | network |")


def test_lowerings_train_the_same() -> None:
    pytest.importorskip("torch")
    record = timing.run_case(convolutions.BENCHMARK, *convolutions.BENCHMARK.cases(True), QUICK)
    assert max(record["results"]["differences"].values()) < convolutions.TOLERANCE
    assert convolutions.BENCHMARK.table([record]).startswith("| clients | unrolled | looped |")


def test_a_part_does_not_count_what_a_part_inside_it_takes() -> None:
    parts = clock.Clock()
    inner = parts.wrap("inner", lambda: time.sleep(0.05))
    outer = parts.wrap("outer", lambda: (time.sleep(0.01), inner(), inner()))
    outer()
    assert parts.seconds["inner"] >= 0.1 and parts.seconds["outer"] >= 0.01
    assert parts.seconds["outer"] < parts.seconds["inner"]


def test_the_parts_of_the_quickstart_exist() -> None:
    for _, module, path in clock.PARTS:
        owner = importlib.import_module(f"mhd_jax.{module}")
        assert callable(functools.reduce(getattr, path.split("."), owner))


def test_federated_averaging_elsewhere_gives_the_same_parameters() -> None:
    for package in ("torch", "fedjax", "pfl"):
        pytest.importorskip(package)
    record = timing.run_case(federated.BENCHMARK, *federated.BENCHMARK.cases(True), QUICK)
    assert max(record["results"]["largest_difference"].values()) < federated.TOLERANCE
    assert federated.BENCHMARK.table([record]).startswith("| clients | ours")


def test_other_losses_are_noticed() -> None:
    step.compare({"ours": [[1.0, 2.0]], "plain": [[1.0, 2.0]]})
    with pytest.raises(ValueError, match="plain trains something else"):
        step.compare({"ours": [[1.0, 2.0]], "plain": [[1.0, 2.1]]})


NETWORKS = [("mlp", (8, 8, 1)), ("resnet8", (8, 8, 3)), ("resnet18", (8, 8, 3)), ("vit", (8, 8, 3))]


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_networks_in_pytorch_compute_the_same(name: str, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import networks

    ours = models.build({"name": name, "width": 16}, num_classes=3, num_heads=2)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(5, *shape)).astype(np.float32)
    shapes = jax.eval_shape(lambda: ours.init(jax.random.key(0), images, train=False))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes["params"])
    client = networks.make(name, shape, 16, heads=2, classes=3)
    networks.load(client, params)
    given = torch.from_numpy(images if name == "mlp" else images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        found = client(given)
    expected = ours.apply({"params": params}, images, train=False)
    for theirs, mine in zip(found, expected, strict=True):
        np.testing.assert_allclose(theirs.numpy(), mine, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_ways_of_pytorch_train_the_same(dtype: str) -> None:
    pytest.importorskip("torch")
    from experiments.benchmarks import torch_devices

    settings = {"clients.num": 3, "model.width": 8, "heads.aux": 2, "model.dtype": dtype,
                "data.batch_size": 8, "data.public_batch_size": 8}  # fmt: skip
    stepper = ours.build(settings)
    ways, left_out = torch_devices.contenders(stepper.experiment, "cpu", quick=True)
    assert set(ways) == {"eager", "vmap"} and len(left_out) == 2
    losses = {step.OURS: step._first_losses(stepper)}
    losses |= {name: [way.step().tolist() for _ in range(3)] for name, way in ways.items()}
    for name in ways:
        assert max(step.difference(losses, name)) < {"float32": 1e-3, "bfloat16": 5e-2}[dtype]
