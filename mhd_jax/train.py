# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The loop: build, restore, step, log, evaluate, save, report."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import jax
import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from mhd_jax import config as config_lib
from mhd_jax import experiment as experiment_lib
from mhd_jax import record
from mhd_jax import state as state_lib
from mhd_jax.errors import ConfigError, DivergedError, Interrupted, WorkdirError
from mhd_jax.evaluator import Evaluation
from mhd_jax.experiment import Experiment
from mhd_jax.inputs import StepInputs
from mhd_jax.methods import Method
from mhd_jax.monitor import Monitor
from mhd_jax.parallel import InFlight
from mhd_jax.reporting import terminal
from mhd_jax.results import Line, Summary, condensed, of_counted
from mhd_jax.runtime import processes
from mhd_jax.runtime.checkpoints import Checkpoints
from mhd_jax.runtime.tensorboard import TensorBoard
from mhd_jax.runtime.workdir import Workdir, to_json
from mhd_jax.state import State
from mhd_jax.step import Metrics, warm_up

LESSONS = ("embedding_loss", "head_losses", "distillation_gradient", "unreadable")
"""Metrics that steps without distillation do not have."""
PRIVATE = ("private_loss", "private_gradient")
"""Metrics that steps without private training do not have."""
UNREADABLE = ("unreadable", "unreadable_parameters")
LAST_HEAD = "last_head_accuracy"


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike, *, with_report: bool = True
) -> Summary:
    """Runs the experiment `config` in `workdir`, or resumes it.

    Args:
      config: see `mhd_jax.config.default_config`.
      workdir: where the run's files go; a local path or any URL that etils.epath can write.
      with_report: also draw the figures and write `report.html`.

    Returns:
      The contents of `summary.json`.

    Raises:
      ConfigError: a setting that cannot work, before any compilation.
      WorkdirError: a workdir that cannot be used, or that belongs to another run.
      DivergedError: a loss is no longer finite, or parameters at the end are not; the last good
        checkpoint is kept.
      Interrupted: SIGTERM or SIGINT came; the state has been saved.
    """
    config_lib.validate(config)
    processes.join(config.parallel.distributed)
    _check_alike(config)
    directory = Workdir(workdir)
    try:
        with processes.losing_one(directory.newest_step), _lock(directory):
            directory.check_shared()
            summary, reported = _summary(config, directory)
    except ConfigError:
        directory.leave()
        raise
    if with_report and not reported and jax.process_index() == 0:
        _report(directory, summary)
    return summary


def _check_alike(config: ml_collections.ConfigDict) -> None:
    """Raises `ConfigError` on all processes where they were started with unlike settings."""
    settings = config_lib.flatten(config)
    for name in ("data.dir", "data.public_dir", "data.workers"):  # of the host
        del settings[name]
    if not processes.alike(to_json(settings)):
        raise ConfigError(
            "parallel.distributed", config.parallel.distributed,
            "processes with the same settings; some were started with others than this one",
        )  # fmt: skip


def _report(directory: Workdir, summary: Summary) -> None:
    """Draws the figures and writes the report; the run is complete without them."""
    from mhd_jax.reporting import report

    try:
        report.write_report(directory.path, summary, directory.read_metrics())
    except OSError as error:
        raise WorkdirError(
            f"{directory.path}: could not write the report: {error.strerror or error}. The run is "
            "complete; the same command makes up for it"
        ) from error


def _summary(config: ml_collections.ConfigDict, directory: Workdir) -> tuple[Summary, bool]:
    """Starts, resumes or only reads the run; returns its summary and whether its report exists."""
    if processes.anywhere(directory.finished()):
        directory.claim(config)
        if jax.process_index() == 0:
            print(f"{directory.path}: this run is finished; nothing to do")
        summary = directory.read_summary()
        if left_out := sorted({*config.metrics} - {*summary.metrics}):
            logging.warning("metrics: %s not measured, as the run is finished", ", ".join(left_out))
        return summary, directory.report.exists()
    experiment = experiment_lib.build(config)  # before the claim: what cannot work claims nothing
    if not directory.begun():
        _ = experiment.weights  # read and checked now, if there are any
    directory.claim(config, experiment.federations[0].fingerprint)
    strip = functools.partial(state_lib.strip, layout=experiment.home)
    with (
        Checkpoints(
            directory.checkpoints, keep=config.train.keep_checkpoints, strip=strip
        ) as checkpoints,
        processes.losing_one(checkpoints.latest_step),
    ):
        return Passage(experiment, directory, checkpoints).finish(), False


@contextlib.contextmanager
def _lock(directory: Workdir) -> Iterator[None]:
    """Process 0 locks the workdir for all; where it cannot, none goes on.

    Raises:
      WorkdirError: another run is at work there.
    """
    refused: WorkdirError | None = None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(directory.lock())
            except WorkdirError as error:
                refused = error
        if processes.anywhere(refused is not None):
            raise refused or WorkdirError(f"{directory.path}: process 0 could not lock it")
        yield


class Stepper:
    """The compiled step; the inputs of the next call are made while the devices work on the last.

    Args:
      experiment: the run.
      state: where it stands; donated to the first call.
      step: steps done so far.

    Attributes:
      state: after all calls so far.
      compiled: the step.
      compile_seconds: the step is compiled ahead of time, once for the whole run.
    """

    def __init__(self, experiment: Experiment, state: State, step: int) -> None:
        begin = time.monotonic()
        self.experiment, self.state = experiment, state
        # Where no step is left, the program is compiled all the same, for inputs of the last one.
        self._next_step = min(step, experiment.config.train.steps - 1)
        self._next = self._inputs(self._next_step)
        self._in_flight = InFlight()
        warm_up(experiment.parts, experiment.config.model.dtype)
        count = experiment.layout.put(np.int32(0))
        shapes = experiment.seated_shapes() if experiment.memory else state
        arguments = (shapes, experiment.feed.data, self._next, experiment.seed_array, count)
        self.compiled = experiment.step.lower(*arguments).compile()
        self.compile_seconds = time.monotonic() - begin

    def advance(self, start: int, stop: int) -> Metrics:
        """Dispatches steps start..stop - 1, at most `steps_per_call`; their metrics, on devices.

        Waits until no more than two calls, this one counted, are not done; see `parallel.InFlight`.
        """
        experiment = self.experiment
        with jax.transfer_guard("disallow"):  # nothing but the inputs moves between log points
            inputs = self._next if self._next_step == start else self._inputs(start)
            count = experiment.layout.put(np.int32(stop - start))
            changed, metrics = self.compiled(
                experiment.seat(self.state, start),
                experiment.feed.data,
                inputs,
                experiment.seed_array,
                count,
            )
            self.state = experiment.unseat(self.state, changed, start)
            self._in_flight.add(metrics)
            if stop < experiment.config.train.steps:
                self._next_step, self._next = stop, self._inputs(stop)
        return metrics

    def _inputs(self, step: int) -> StepInputs:
        """The inputs of a call from a step on; pieces are asked for steps of the run alone."""
        with jax.transfer_guard("allow"):  # a graph of one's own may be made with jax.numpy
            rows, steps = self.experiment.parts.steps_per_call, self.experiment.config.train.steps
            stop = step + rows
            if step < steps:  # benchmarks go on behind the last one
                stop = min(stop, steps)
            return self.experiment.schedule.inputs(step, stop, rows)


class Passage:
    """One process's passage through a run, from the restored step to the last."""

    def __init__(
        self, experiment: Experiment, directory: Workdir, checkpoints: Checkpoints
    ) -> None:
        self.experiment = experiment
        self.directory = directory
        self.checkpoints = checkpoints
        self.config = experiment.config
        self.leader = jax.process_index() == 0
        self.state, self.first_step = self._start()
        self.seconds_training = 0.0
        self._pending: list[tuple[int, int, Metrics]] = []  # still on the devices
        self._collected: list[dict[str, np.ndarray]] = []  # since the last log, on the host
        self._evaluation: Evaluation | None = None
        self._evaluated = -1  # the step of the last evaluation
        self._accuracies = self._seen_before()
        self._started = time.monotonic()
        self._tensorboard = TensorBoard(directory.path, enabled=self.leader)
        self.monitor = Monitor(experiment)

    def finish(self) -> Summary:
        """Runs all steps that are left and returns the summary, written."""
        train = self.config.train
        if self.leader:
            record.warn(self.experiment)
            print(terminal.fitted(record.describe(self.experiment)), flush=True)
        stepper = Stepper(self.experiment, self.state, self.first_step)
        step = self.first_step
        with (
            terminal.Progress(train.steps, step, self.leader) as self.progress,
            processes.stop_signals() as told_to_stop,
        ):
            if step == 0:
                self._evaluate(0)
            while step < train.steps:
                step = self._advance(stepper, step)
                stop = told_to_stop()
                due = {
                    name: step % train[f"{name}_every"] == 0 or step == train.steps
                    for name in ("log", "eval", "checkpoint")
                }
                if any(due.values()) or stop:
                    self._collect()
                if step == train.steps:  # no loss will tell what the last update led to
                    _check_parameters(self.experiment, self.state, self.checkpoints)
                if due["log"]:
                    self._log(step)
                if due["eval"]:
                    self._evaluate(step)
                if due["checkpoint"] or stop:
                    self._save(step)
                if stop and step < train.steps:
                    self.checkpoints.wait()
                    said = f"{signal.Signals(stop).name}: saved step {step}"
                    raise Interrupted(f"{said}; the same command goes on", 128 + stop)
            if self._evaluation is None or self._evaluated != step:  # nothing was left to do
                self._evaluation = self.experiment.evaluator.evaluate(self.state)
            summary = record.summarize(
                self.experiment, self._evaluation, self._speed(stepper), self._accuracies
            )
        self.checkpoints.wait()  # a run with a summary is finished: its last state must be there
        if self.leader:
            self.directory.write_summary(summary)
            print(terminal.final_table(summary), flush=True)
        return summary

    def _start(self) -> tuple[State, int]:
        """The newest checkpoint, or the initial state."""
        experiment = self.experiment
        restored = self.checkpoints.restore_latest(experiment.init_state(abstract=True))
        if self.leader:
            self.directory.truncate_metrics(-1 if restored is None else restored[0])
        if restored is None:
            return experiment.init_state(), 0
        step, state = restored
        if self.leader:
            print(f"going on from step {step:,}", flush=True)
        if experiment.home.rows != experiment.home.groups:  # a checkpoint need not have these rows
            state = state_lib.refill(state, experiment.random_state(), experiment.home)
        return state, step

    def _seen_before(self) -> list[tuple[int, list[float]]]:
        """(step, accuracy of the last head of every seed) of evaluations before this start."""
        lines = self.directory.read_metrics() if self.first_step else []
        return [
            (line["step"], line[LAST_HEAD])
            for line in lines
            if LAST_HEAD in line and line["step"] <= self.first_step
        ]

    def _advance(self, stepper: Stepper, step: int) -> int:
        """Dispatches steps up to the next event; returns the step reached."""
        train, begin = self.config.train, time.monotonic()
        events = (train.log_every, train.eval_every, train.checkpoint_every)
        most = self.experiment.parts.steps_per_call
        stop = min(step + most, train.steps, *((step // e + 1) * e for e in events))
        metrics = stepper.advance(step, stop)
        self.state = stepper.state
        self._pending.append((step, stop - step, metrics))
        self.seconds_training += time.monotonic() - begin
        return stop

    def _collect(self) -> None:
        """Fetches the metrics of the steps since the last time; stops a diverging run.

        Raises:
          DivergedError: naming the first client and step with a loss that is not finite.
        """
        begin = time.monotonic()
        pending, self._pending = self._pending, []
        parts = self.experiment.parts
        roster, places = parts.roster, parts.places
        for start, count, metrics in pending:
            host = places.fetch(metrics)
            seated = roster.seated(start, start + count, parts.replicas)
            joined = {name: places.join(value, axis=2)[:count] for name, value in host.items()}
            values = {name: roster.spread(x, seated, missing=0) for name, x in joined.items()}
            here = roster.spread(np.ones_like(joined["loss"], bool), seated, missing=False)
            values["here"] = here
            steps = np.arange(start, start + count)
            values["distils"] = parts.method.distils(steps)
            _check_finite(values, start, self.checkpoints, self.experiment.client_names)
            self._collected.append(values)
        self.seconds_training += time.monotonic() - begin  # waited for the device

    def _log(self, step: int) -> None:
        """Writes the means since the last log of the first replica, per client."""
        collected, self._collected = self._collected, []
        means = _means(collected, self.experiment.parts.method, step)
        speed = (step - self.first_step) / max(self.seconds_training, 1e-9)
        sent = self.experiment.ledger.sent(step)
        vitals, lines = self.monitor.look(self.state, step)
        for name in UNREADABLE:
            shares = np.nan_to_num(means.get(name, np.zeros(0)))  # of the absent: nothing
            lines += self.monitor.watch.unreadable(step, shares)
            if not shares.any():
                means.pop(name, None)
        self._write(step, {"steps_per_second": speed, **means, **vitals, "bytes_sent": sent})
        self.progress.update(step)
        self._say(lines)

    def _evaluate(self, step: int) -> None:
        """Writes the accuracies of the first replica and shows the means of all."""
        found = self.experiment.evaluator.evaluate(self.state)
        self._evaluation, self._evaluated = found, step
        values = {"shared_accuracy": found.shared[0], "private_accuracy": found.private[0]}
        counted = self.experiment.counted
        shared = found.shared[:, counted]
        values[LAST_HEAD] = shared[..., -1].mean(axis=1)
        self._accuracies.append((step, values[LAST_HEAD].tolist()))
        if found.baseline is not None:
            values["control_shared_accuracy"] = found.baseline[0][0]
            values["control_private_accuracy"] = found.baseline[1][0]
        if found.own is not None:
            values["own_test_accuracy"] = found.own[0]
        if found.own_baseline is not None:
            values["control_own_test_accuracy"] = found.own_baseline[0]
        for name, value in found.metrics.items():
            values[f"metrics/{name}"] = value[0]
        self._write(step, values)
        heads = shared.mean(axis=(0, 1))
        shown = {"β_sh main": heads[0]}
        if len(heads) > 1:
            shown[f"β_sh aux {len(heads) - 1}"] = heads[-1]
        shown["β_priv main"] = found.private[:, counted, 0].mean()
        self.progress.update(step, {name: float(value) for name, value in shown.items()})
        self._say(self.monitor.compare(step, found))

    def _say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.progress.message(f"warning: {line}")

    def _save(self, step: int) -> None:
        self.checkpoints.save(step, self.state)

    def _write(self, step: int, values: Line) -> None:
        if self.leader:
            seconds = round(time.monotonic() - self._started, 3)
            line = condensed(values)
            self.directory.append_metrics({"step": step, "seconds": seconds, **line})
            (told,) = of_counted([values], self.experiment.counted)
            self._tensorboard.write(step, told)

    def _speed(self, stepper: Stepper) -> dict[str, float]:
        done = self.config.train.steps - self.first_step
        rate = done / self.seconds_training if done and self.seconds_training else 0.0
        return {"steps_per_second": rate, "compile_seconds": stepper.compile_seconds}


def _means(
    collected: Sequence[Mapping[str, np.ndarray]], method: Method, step: int
) -> dict[str, np.ndarray]:
    """Means of the first seed's metrics of the steps before `step`, each over those it exists in.

    Steps without distillation have no metrics of it, nor those without private training or without
    an average of these. A client counts in the steps in which it takes part; NaN if there are none.
    """
    steps = {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
    distils = steps.pop("distils")
    at = np.arange(step - len(distils), step)
    trains = method.weights(at)[:, 0] > 0
    counted = dict.fromkeys(LESSONS, distils) | dict.fromkeys(PRIVATE, trains)
    counted["gradient_cosine"] = distils & trains
    if method.averaging is not None:
        counted["unreadable_parameters"] = method.averaging.due(at)
    here = steps.pop("here")[:, 0]
    means = {}
    for name, x in steps.items():
        some = counted.get(name, np.ones(len(x), bool))
        if some.any():
            means[name] = _mean_where(x[some, 0], here[some])
    return means


def _mean_where(
    values: Float[np.ndarray, "n K ..."], here: Bool[np.ndarray, "n K"]
) -> Float[np.ndarray, "K ..."]:
    """Means over the first axis, over those entries that are here alone."""
    if here.all():
        return values.mean(axis=0)
    weight = here.reshape(*here.shape, *[1] * (values.ndim - 2))
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = (values * weight).sum(axis=0) / weight.sum(axis=0)
    return mean


def _check_finite(
    values: Mapping[str, np.ndarray],
    start: int,
    checkpoints: Checkpoints,
    names: Sequence[str] = (),
) -> None:
    """Raises `DivergedError` for the first loss [n, R, K], the baseline's too, not finite."""
    for name, group in (("loss", "client"), ("control_loss", "the isolated baseline's client")):
        if name in values and not np.isfinite(values[name]).all():
            _stop_diverged(values[name], group, start, checkpoints, names)


def _stop_diverged(
    loss: np.ndarray, group: str, start: int, checkpoints: Checkpoints, names: Sequence[str]
) -> NoReturn:
    index, replica, client = np.argwhere(~np.isfinite(loss))[0].tolist()
    checkpoints.discard_from(start + index)  # it holds the parameters that gave this loss
    who = names[client] if names else client
    value = loss[index, replica, client]
    what = f"the loss of {group} {who} is {value} at step {start + index}"
    if start + index == 0:
        raise DivergedError(
            f"{what}, before any update; look at the samples (ids beyond those that the network "
            "knows, for instance), at the network and at the weights that it starts from"
        )
    raise _diverged(what, checkpoints)


def _check_parameters(experiment: Experiment, state: State, checkpoints: Checkpoints) -> None:
    """Raises `DivergedError` for the first client, the baseline's too, that is not finite."""
    home, steps = experiment.home, experiment.config.train.steps
    for group, learners in (
        ("client", state.clients), ("the isolated baseline's client", state.baseline),
    ):  # fmt: skip
        if not learners:
            continue
        finite = home.join(home.fetch([state_lib.finite(one.params) for one in learners]), axis=1)
        if not finite.all():
            _, client = np.argwhere(~finite)[0].tolist()
            names = experiment.client_names
            who = names[client] if names else client
            raise _diverged(
                f"parameters of {group} {who} are NaN or infinite after {steps} steps", checkpoints
            )


def _diverged(what: str, checkpoints: Checkpoints) -> DivergedError:
    """The error, with what is left and what may help."""
    kept = checkpoints.latest_step()
    return DivergedError(
        f"{what}; "
        + (f"the checkpoint of step {kept} is kept. " if kept else "there is no checkpoint yet. ")
        + "Try a smaller optimizer.learning_rate or distill.nu_aux, or optimizer.clip_norm"
    )
