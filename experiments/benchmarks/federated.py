# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Federated averaging beside the client loops of fedjax and pfl-research.

    pip install fedjax pfl torch
    python -m experiments.benchmarks.federated --out=experiments/results/benchmarks

The same dense network, parameters, batches and optimiser (plain SGD): rounds of 20 local steps on
64 digits each, then the mean. fedjax runs `for_each_client` with its `jit` backend, pfl-research
its `FederatedAveraging` on `SimulatedBackend`; both take one client after another. Parameters are
compared after the first round.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import ours, timing
from experiments.benchmarks.timing import Benchmark, Case, Contender, Effort, Record
from experiments.harness.stepping import SteppedRun
from mhd_jax.data.augment import normalize

OURS = "ours"
LOCAL = 20  # steps between two averages
TOLERANCE = 1e-4  # between parameters after the first round
NAMES = {"fedjax": "fedjax", "pfl": "pfl-research"}
# What could not be run, said below the table; versions as in the records.
NOT_RUN = (
    "Not run: fedjax's `pmap` backend and its own `fed_avg` algorithm, which fail on current JAX."
)

PyTree = Any
Rounds = Callable[[int], PyTree]  # does so many rounds from the start or on; the server's state


def _settings(clients: int) -> dict[str, Any]:
    return {
        "method": "fedavg", "average.every": LOCAL, "clients.num": clients, "train.log_every": 100,
        "train.steps_per_call": LOCAL, "optimizer.schedule": "constant", "optimizer.momentum": 0.0,
        "optimizer.clip_norm": 0.0, "optimizer.warmup_steps": 0,
    }  # fmt: skip


def _batches(stepper: SteppedRun) -> list[tuple[np.ndarray, np.ndarray]]:
    """Normalised images [LOCAL, B, ...] and labels [LOCAL, B] of the first round, by client."""
    experiment = stepper.experiment
    fed = experiment.federations[0]
    positions = experiment.schedule.host_inputs(0, LOCAL).private[0][:, 0]
    found = []
    for client, owned in enumerate(fed.partition.indices):
        index = owned[positions[:, client]]
        stored = jnp.asarray(fed.source.train.images(index.ravel()))
        images = normalize(stored, fed.mean, fed.std)
        shape = (*index.shape, *images.shape[1:])
        found.append((np.asarray(images).reshape(shape), fed.source.train.labels[index]))
    return found


# --- The others -----------------------------------------------------------------------------------


def fedjax_rounds(stepper: SteppedRun) -> Rounds:
    """fedjax's client loop; returns the server's parameters in our form."""
    from fedjax.core import for_each_client

    config, model = stepper.experiment.config, stepper.experiment.parts.models[0]
    optimizer = optax.sgd(config.optimizer.learning_rate)

    def loss(params: PyTree, batch: Mapping[str, jax.Array]) -> jax.Array:
        logits, _ = model.apply({"params": params}, batch["x"], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, 0], batch["y"]).mean()

    def start(params: PyTree, given: Any) -> tuple[PyTree, PyTree]:
        del given
        return params, optimizer.init(params)

    def step(state: tuple[PyTree, PyTree], batch: Mapping[str, jax.Array]) -> Any:
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params, batch), opt_state)
        return optax.apply_updates(params, updates), opt_state

    with for_each_client.for_each_client_backend("jit"):
        run = for_each_client.for_each_client(start, step, lambda shared, state: state[0])
    clients = [
        (str(i), [{"x": jnp.asarray(x), "y": jnp.asarray(y)} for x, y in zip(*data, strict=True)])
        for i, data in enumerate(_batches(stepper))
    ]
    server = [jax.tree.map(jnp.asarray, ours.host_params(stepper.experiment)[0])]

    def rounds(count: int) -> PyTree:
        for _ in range(count):
            given = [(name, batches, None) for name, batches in clients]
            ends = [end for _, end in run(server[0], given)]
            server[0] = jax.tree.map(lambda *x: sum(x) / len(x), *ends)
        return jax.block_until_ready(server[0])

    return rounds


def pfl_rounds(stepper: SteppedRun) -> Rounds:
    """pfl-research's simulation in PyTorch; returns the server's `state_dict`."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    from experiments.benchmarks import networks

    logging.getLogger("pfl").setLevel(logging.ERROR)
    config, source = stepper.experiment.config, stepper.experiment.federations[0].source
    client: Any = networks.make(
        "mlp", source.image_shape, config.model.width, 1, source.num_classes
    )
    networks.load(client, ours.host_params(stepper.experiment)[0])
    client.loss = lambda x, y: torch.nn.functional.cross_entropy(client(x)[0][:, 0], y)
    client.metrics = lambda x, y, eval=False: {}
    users = {
        str(i): Dataset(
            raw_data=[
                torch.from_numpy(x.reshape(-1, *x.shape[2:]).copy()),
                torch.from_numpy(y.ravel().astype(np.int64)),
            ]
        )
        for i, (x, y) in enumerate(_batches(stepper))
    }
    data = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    model = PyTorchModel(client, torch.optim.SGD, torch.optim.SGD(client.parameters(), lr=1.0))
    how = NNTrainHyperParams(
        local_num_epochs=1,
        local_learning_rate=config.optimizer.learning_rate,
        local_batch_size=config.data.batch_size,
    )

    def rounds(count: int) -> PyTree:
        plan = NNAlgorithmParams(
            central_num_iterations=count, evaluation_frequency=10**9, val_cohort_size=None,
            train_cohort_size=len(users),
        )  # fmt: skip
        FederatedAveraging().run(
            plan, SimulatedBackend(data, data), model, how, None, [],
            send_metrics_to_platform=False,
        )  # fmt: skip
        return client.state_dict()

    return rounds


# --- The comparison -------------------------------------------------------------------------------


def measure(clients: int, effort: Effort) -> dict[str, Any]:
    """Parameters after a round compared, then all contenders in turn; the unit is a round."""
    import torch

    from experiments.benchmarks import networks

    stepper = ours.build(_settings(clients))
    others: dict[str, Rounds] = {
        "fedjax": fedjax_rounds(stepper), "pfl": pfl_rounds(stepper),
    }  # fmt: skip
    stepper.run(LOCAL)
    mine = jax.device_get(stepper.state.clients[0].params["model"])
    mine = jax.tree.map(lambda x: x[0, 0], mine)
    source = stepper.experiment.federations[0].source
    width = stepper.experiment.config.model.width
    twin = networks.make("mlp", source.image_shape, width, 1, source.num_classes)
    networks.load(twin, mine)
    torch.set_num_threads(1)  # faster than two for networks this small
    first = {name: rounds(1) for name, rounds in others.items()}
    apart = {
        "fedjax": _apart(jax.tree.leaves(first["fedjax"]), jax.tree.leaves(mine)),
        "pfl": _apart(first["pfl"].values(), twin.state_dict().values()),
    }
    if not max(apart.values()) < TOLERANCE:
        raise ValueError(f"parameters differ after the first round: {apart}")
    contenders = [
        Contender(OURS, lambda count: stepper.run(count * LOCAL), stepper.compile_seconds)
    ]
    contenders += [Contender(name, rounds) for name, rounds in others.items()]
    return {
        "clients": clients,
        "local_steps": LOCAL,
        "largest_difference": apart,
        "measured": timing.alternate(contenders, effort),
    }


def _apart(left: Any, right: Any) -> float:
    pairs = zip(left, right, strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def cases(quick: bool) -> list[Case]:
    needs = ("torch", "fedjax", "pfl")
    numbers = (2,) if quick else (8, 64)
    return [Case(f"mlp_{number}", functools.partial(measure, number), needs) for number in numbers]


def table(records: Sequence[Record]) -> str:
    """Client steps a second of all contenders."""
    head = ("clients", *(f"{n}, client steps/s" for n in ("ours", *NAMES.values())),
            *(f"over {name}" for name in NAMES.values()))  # fmt: skip
    lines = [_row(record["results"]) for record in records]
    apart = max(max(record["results"]["largest_difference"].values()) for record in records)
    said = (
        f"Medians over {timing.rounds(records)}, smallest and largest ratio in "
        f"brackets; rounds of {LOCAL} local steps on 64 digits, parameters agree to {apart:.0e} "
        f"after the first. {NOT_RUN}"
    )
    return timing.markdown(head, lines, said, records, list(NAMES))


def _row(results: Mapping[str, Any]) -> tuple[str, ...]:
    measured, steps = results["measured"], results["clients"] * results["local_steps"]
    return (
        str(results["clients"]),
        *(f"{1e3 * steps / timing.milliseconds(measured, n):,.0f}" for n in (OURS, *NAMES)),
        *(timing.factor(timing.speedup(measured, OURS, name)) for name in NAMES),
    )


BENCHMARK = Benchmark("federated", "Federated averaging elsewhere", cases, table)


if __name__ == "__main__":
    timing.main(BENCHMARK)
