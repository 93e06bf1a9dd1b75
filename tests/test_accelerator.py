# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Slices of work for an accelerator: what is done is skipped, what fails is said; no JAX runs.

That every piece runs, in tiny sizes, is a step of `.ci/run`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.accelerator import __main__ as accelerator
from experiments.accelerator import correctness, lowerings, memory, pieces, speed, trace, training
from experiments.accelerator.pieces import Case, Context, Piece
from experiments.benchmarks import timing

NUMBERS = {"results": {"n": 1}}


@pytest.fixture(autouse=True)
def no_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "provenance", lambda: {"device": "1 x test (cpu)"})


def piece(calls: list[str], **runs: Any) -> Piece:
    """A piece whose cases do what they are given, or write down their name."""

    def note(name: str) -> Any:
        return lambda context: calls.append(name) or {"n": 1}

    names = {"one": note("one"), "two": note("two"), **runs}
    made = [Case(name, run) for name, run in names.items()]
    return Piece("fake", "Nothing", lambda context: made, lambda records: [("n", "1")])


def test_what_has_a_record_is_skipped(tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(2):
        pieces.run_cases(piece(calls), Context(tmp_path, True, 60.0), skip=[])
    assert calls == ["one", "two"]
    record = json.loads((tmp_path / "fake" / "one.json").read_text())
    assert record["results"] == {"n": 1} and record["device"] == "1 x test (cpu)"
    assert not pieces.marker(tmp_path, "fake").exists()
    pieces.run_cases(piece(calls), Context(tmp_path, False, 60.0), skip=[])
    assert calls == ["one", "two"] * 2  # tiny sizes do not stand for others


def test_a_case_that_raises_is_recorded_the_next_is_done_and_it_is_tried_again(
    tmp_path: Path,
) -> None:
    calls: list[str] = []

    def bad(context: Context) -> Mapping[str, Any]:
        calls.append("bad")
        raise ValueError("losses differ")

    for _ in range(2):
        pieces.run_cases(piece(calls, one=bad), Context(tmp_path, True, 60.0), skip=[])
    assert calls == ["bad", "two", "bad"]
    assert pieces.read(tmp_path, "fake")["one"]["failed"] == "ValueError: losses differ"


def test_no_case_is_begun_when_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    calls: list[str] = []
    slow = piece(calls, one=lambda context: time.sleep(0.05) or {})
    pieces.run_cases(slow, Context(tmp_path, True, 0.04), skip=[])
    assert calls == [] and "fake/two: no time left" in capsys.readouterr().out
    pieces.run_cases(slow, Context(tmp_path, True, 60.0), skip=[])
    assert calls == ["two"]


def test_a_package_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    needing = Piece("fake", "", lambda context: [Case("x", dict, ("no-such",))], lambda records: [])  # type: ignore[arg-type, return-value]
    pieces.run_cases(needing, Context(tmp_path, True, 60.0), skip=[])
    assert "fake/x: left out, needs no-such" in capsys.readouterr().out


def options(out: Path, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"out": out, "quick": True, **changes})


def test_a_case_that_takes_its_process_along_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a device runs out of memory in a way that cannot be caught."""
    started: list[list[str]] = []

    def run(words: list[str], **rest: Any) -> Any:
        started.append(words)
        if "--skip=" in words:  # the first process dies in the middle of a case
            under_way = pieces.marker(tmp_path, "memory")
            under_way.parent.mkdir(parents=True)
            under_way.write_text("batch")
            return subprocess.CompletedProcess(words, -9)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(accelerator, "environment", lambda name, options: {})
    accelerator.run_piece("memory", options(tmp_path), 60.0)
    assert len(started) == 2 and "--skip=batch" in started[1]
    assert "status -9" in pieces.read(tmp_path, "memory")["batch"]["failed"]


def test_a_piece_is_ended_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(words: list[str], timeout: float, **rest: Any) -> Any:
        assert timeout < accelerator.PIECE_SECONDS
        (tmp_path / "speed").mkdir()
        pieces.marker(tmp_path, "speed").write_text("peaks")
        time.sleep(0.2)
        raise subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(accelerator, "environment", lambda name, options: {})
    accelerator.run_piece("speed", options(tmp_path), 0.1)
    assert pieces.read(tmp_path, "speed")["peaks"]["failed"] == "its time was over"


def test_all_pieces_fit_their_slices() -> None:
    assert accelerator.PIECE_SECONDS < 9 * 60
    assert training.SECONDS < accelerator.PIECE_SECONDS - accelerator.GRACE_SECONDS
    loaded = [accelerator.load(name) for name in accelerator.NAMES]
    assert tuple(one.name for one in loaded) == accelerator.NAMES
    for one in loaded:
        assert one.rows({}) == []


def test_the_flags_a_piece_needs_are_added_to_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    made = accelerator.environment("correctness", options(tmp_path, quick=False))
    assert made["XLA_FLAGS"] == "--mine --xla_gpu_deterministic_ops=true"
    assert made["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "compiled")


def test_the_summary_says_what_failed_and_that_quick_figures_mean_nothing(tmp_path: Path) -> None:
    pieces.write(tmp_path, "training", "mhd", {"failed": "DivergedError: loss", "quick": True})
    text = accelerator.summary(tmp_path, accelerator.NAMES)
    assert "| mhd | failed: DivergedError: loss |" in text and "no figure is" in text
    assert text.count("nothing yet") == len(accelerator.NAMES) - 1


def test_a_piece_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit):
        accelerator.main(["--pieces=sped", "--quick"])
    with pytest.raises(SystemExit):
        accelerator.main([])  # without --out nothing could go on


# --- What the pieces make of numbers -------------------------------------------------------------


def test_a_difference_to_the_cpu_above_the_tolerance_is_an_error() -> None:
    cpu = {"mhd/loss": np.array([2.0, 1.0])}
    close = {"mhd/loss": np.array([2.0005, 1.0])}
    assert correctness.compare(close, cpu) == pytest.approx(2.5e-4)
    correctness.check({"mhd": 2.5e-4, "bfloat16": 0.05})
    with pytest.raises(ValueError, match="'mhd': '0.05'"):
        correctness.check({"mhd": 0.05, "bfloat16": 0.05, "cnn": 1e-5})
    with pytest.raises(ValueError, match="mhd/loss: a value that is not finite"):
        correctness.compare({"mhd/loss": np.array([np.nan, 1.0])}, cpu)


STEP = {
    "network": "resnet18", "clients": 8, "dtype": "bfloat16", "operations": 1e12,
    "measured": {"ours": {"seconds": [0.1, 0.1]},
                 "eager": {"seconds": [0.5, 0.5], "ours": [0.1, 0.1]},
                 "graphs": {"seconds": [0.3, 0.2], "ours": [0.1, 0.1]}},
}  # fmt: skip


def test_the_speed_beside_each_of_pytorchs_ways_and_the_peak() -> None:
    peaks = {"operations": {"bfloat16": 2e13, "float32": 1e13}, "bytes": 1e12}
    rows = speed.rows({"peaks": {"results": peaks}, "resnet18_8_bfloat16": {"results": STEP}})
    assert rows[0] == ("peaks measured", "20 TFLOP/s bfloat16, 10 TFLOP/s float32, 1 TB/s")
    assert rows[1] == (
        "resnet18, K = 8, bfloat16",
        "100 ms a step, 50% of the product's peak; over PyTorch: graphs 2.5×, eager 5.0×",
    )


def test_the_slowest_case_is_the_one_whose_steps_take_longest(tmp_path: Path) -> None:
    assert speed.slowest(Context(tmp_path, False, 1.0)) is None
    quick = {**STEP, "measured": {"ours": {"seconds": [1e-4]}}}
    pieces.write(tmp_path, "speed", "resnet18_8_bfloat16", {"results": STEP})
    pieces.write(tmp_path, "speed", "mlp_8_float32", {"results": quick})
    chosen = speed.settings("resnet18", 8, "bfloat16")
    assert speed.slowest(Context(tmp_path, False, 1.0)) == chosen


def test_a_better_lowering_is_named_with_the_line_to_change() -> None:
    measured = {"unrolled": {"seconds": [0.2]}, "grouped": {"seconds": [0.1]}}
    results = {"network": "resnet8", "dtype": "float32", "platform": "gpu", "measured": measured,
               "best": "grouped", "auto": "unrolled"}  # fmt: skip
    ((_, text),) = lowerings.rows({"resnet8_float32": {"results": results}})
    assert "set AUTO['gpu'] = 'grouped' in mhd_jax/models/conv.py" in text


def test_growth_stops_at_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    def one(changes: Mapping[str, Any], quick: bool) -> dict[str, Any]:
        if changes["clients.num"] > 32:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        size = changes["clients.num"] * 2**30
        return {"fits": True, "predicted": size, "compiled": size, "peak": size,
                "milliseconds": 5.0}  # fmt: skip

    monkeypatch.setattr(memory, "_one", one)
    monkeypatch.setattr(memory, "_predicted", lambda changes: 2**36)
    results = memory.grow("clients", Context(tmp_path, False, 60.0))
    assert [size["value"] for size in results["sizes"]] == [8, 16, 32, 64]
    ((_, text),) = memory.rows({"clients": {"results": results}})
    assert text.startswith("up to 32 (64 does not fit), 5 ms a step, 32 GiB; estimated 32 GiB")


def test_collapsed_clients_are_said() -> None:
    results = {
        "shared_accuracy": [0.1], "private_accuracy": [0.2], "least_and_most": [0.1, 0.1],
        "steps": 100, "steps_per_second": 9.0, "at_chance": 8, "clients": 8,
    }  # fmt: skip
    ((_, text),) = training.rows({"mhd-all": {"results": results}})
    assert text.endswith("COLLAPSED: 8 of 8 clients at chance")


def test_steps_are_measured_once_and_then_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fast:
        unit = 50

        def __init__(self, config: Any) -> None: ...

        def run(self, steps: int) -> None:
            time.sleep(0.001)

    monkeypatch.setattr(training, "SteppedRun", Fast)
    monkeypatch.setattr(training, "CALIBRATION", 0.05)
    config = training.settings("mhd-all", quick=False)
    steps = training._steps(config, tmp_path / "mhd", 100.0, quick=False)
    assert steps == config.train.steps == 20_000  # no more than the config has
    monkeypatch.setattr(training, "SteppedRun", None)  # calling it would fail
    assert training._steps(config, tmp_path / "mhd", 100.0, quick=False) == steps


def test_costs_are_in_words() -> None:
    source = "jit(call)/transpose(jvp(network))/block/conv1/conv_general_dilated"
    assert trace.words("fusion.1", source) == "convolution, backward, in network"
    program = (
        f'  ROOT %x.2 = f32[2]{{0}} add(%a, %b), metadata={{op_name="{source}" stack_frame_id=3}}\n'
    )
    assert trace.traced_from(program) == {"x.2": source}
    assert trace.words("cudnn-conv.3", "") == "convolution"


def test_a_devices_own_timeline_counts_where_there_is_one(tmp_path, monkeypatch):
    class Line:
        def __init__(self, name, *events):
            self.name, self.events = name, events

    class Event:
        duration_ns, stats = 2e9, (("hlo_op", "dot.1"), ("hlo_module", "jit_call"))
        name = "kernel"

    class Plane:
        def __init__(self, name, *lines):
            self.name, self.lines = name, lines

    host, device = (
        Plane("/host:CPU", Line("threads", Event())),
        Plane("/device:GPU:0", Line("s", Event())),
    )
    for planes, seconds in (([host], 2.0), ([host, device], 2.0), ([device, device], 4.0)):
        file = type("File", (), {"planes": planes})
        monkeypatch.setattr(jax.profiler.ProfileData, "from_file", lambda path, file=file: file)
        assert trace.durations(tmp_path) == {"dot.1": seconds}
