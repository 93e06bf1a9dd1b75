# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The one training step as a program over the mesh, for every method."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from mhd_jax.inputs import Batch, StepInputs
from mhd_jax.optimizer import at_step
from mhd_jax.parallel import CLIENTS, on_mesh
from mhd_jax.seating import seat, unseat
from mhd_jax.state import Learners, State, specs
from mhd_jax.step.averaging import average
from mhd_jax.step.lessons import distillation_gradients, trunk_metrics
from mhd_jax.step.parts import (
    Metrics,
    StepParts,
    distils,
    mean_over_data,
    network_keys,
    noise_keys,
    where_due,
)
from mhd_jax.step.private import private_gradients
from mhd_jax.step.publishing import Memory, write_pool
from mhd_jax.trees import PyTree

# XLA's library fusions on CPU without convolutions, which are among them by default: the library's
# are slower than XLA's own, by a tenth to a fifth of a whole step of small residual networks.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}

# XLA's options on GPU. A step is many short kernels, and launched one by one they wait longer than
# they run. So the loop over steps is one CUDA graph, convolutions included.
GPU_OPTIONS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION,"
    "CONDITIONAL,WHILE,DYNAMIC_SLICE_FUSION"
}
# Convolutions are one call of a library per client and do not fill a device, so they run side by
# side.
SIDE_BY_SIDE = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}


def make_step(parts: StepParts, input_specs: StepInputs, data_specs: PyTree) -> Any:
    """Compiles nothing yet; returns `call(state, data, inputs, seeds, count) -> (state, metrics)`.

    The call does `count` <= `parts.steps_per_call` steps. The state is donated. Metrics are per
    step, axes [steps_per_call, R, K, ...]; entries beyond `count` are 0.
    """
    spread = specs(with_publishers=parts.routes is not None)

    def call(state: State, data: PyTree, inputs: StepInputs, seeds: Array, count: Array) -> Any:
        return _run_steps(parts, state, data, inputs, seeds, count)

    sharded = on_mesh(
        call,
        parts.layout,
        in_specs=(spread, data_specs, input_specs, P(), P()),
        out_specs=(spread, P(None, None, CLIENTS)),
    )
    options = _compiler_options(jax.default_backend(), parts.convolutional)
    return jax.jit(sharded, donate_argnums=0, compiler_options=options)


def _compiler_options(platform: str, convolutional: bool) -> dict[str, str] | None:
    """XLA's options for the step; what `XLA_FLAGS` says of CUDA graphs goes first."""
    if platform == "cpu":
        return CPU_OPTIONS
    if platform != "gpu" or "command_buffer" in os.environ.get("XLA_FLAGS", ""):
        return None
    return GPU_OPTIONS | (SIDE_BY_SIDE if convolutional else {})


def warm_up(parts: StepParts, dtype: str) -> list[Array]:
    """On GPUs, runs a small convolution and its gradient before a first step that has any.

    cuDNN sets itself up when it first runs, and where that falls into the recording of a CUDA graph
    it ends in "unknown cudnn status: 5003". A step from the compilation cache is such a case, as
    none of its convolutions is timed in this process: seen on an H200 in resumed runs, while new
    ones are evaluated first.

    Returns:
      The gradient on every device of this process, [3, 3, 1, 1]; none where nothing was run.
    """
    if not parts.convolutional or jax.default_backend() != "gpu":
        return []

    def total(kernel: Array, image: Array) -> Array:
        axes = ("NHWC", "HWIO", "NHWC")
        found = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=axes)
        return jnp.sum(found.astype(jnp.float32))

    gradient = jax.jit(jax.grad(total))
    kernel, image = np.ones((3, 3, 1, 1), dtype), np.ones((1, 8, 8, 1), dtype)
    return [gradient(*jax.device_put((kernel, image), each)) for each in jax.local_devices()]


def _run_steps(
    parts: StepParts, state: State, data: PyTree, inputs: StepInputs, seeds: Array, count: Array
) -> tuple[State, Metrics]:
    """Steps 0..count - 1 of the inputs on one device's clients."""

    def one(state: State, index: Array | int) -> tuple[State, Metrics]:
        return _all_replicas(parts, state, data, _at(inputs, index), seeds)

    if parts.steps_per_call == 1:
        state, metrics = one(state, 0)
        return state, jax.tree.map(lambda x: x[None], metrics)

    # Traced once, for the shapes of its metrics and for the loop: it takes seconds.
    traced, out = jax.make_jaxpr(one, return_shape=True)(state, jnp.zeros_like(count))
    step = jax.extend.core.jaxpr_as_fun(traced)

    def body(index: Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        leaves = step(*jax.tree.leaves((carry[0], index)))
        state, metrics = jax.tree.unflatten(jax.tree.structure(out), leaves)
        return state, jax.tree.map(lambda all, now: all.at[index].set(now), carry[1], metrics)

    empty = jax.tree.map(lambda x: jnp.zeros((parts.steps_per_call, *x.shape), x.dtype), out[1])
    return jax.lax.fori_loop(0, count, body, (state, empty))


def _at(inputs: StepInputs, index: Array | int) -> StepInputs:
    """The inputs of one step, with the averaging matrix that it ends with."""
    now = jax.tree.map(lambda x: x[index], inputs._replace(mixing=()))
    return now._replace(mixing=inputs.mixing[jnp.maximum(now.average, 0)])


def _all_replicas(
    parts: StepParts, state: State, data: PyTree, inputs: StepInputs, seeds: Array
) -> tuple[State, Metrics]:
    """One step of every replica: `_one_system` vmapped, or called directly where R = 1.

    Data of which there is one copy, leaves [1, ...], are those of every replica.
    """
    per_replica = (state.clients, state.baseline, state.pool, state.marginals, state.cache)
    axes = StepInputs(
        private=0, public=0, reads=0, versions=0, write=None, weights=None, average=None, mixing=0,
        label_shares=0, seated=0,
    )  # fmt: skip
    data_axes = jax.tree.map(lambda x: None if len(x) == 1 else 0, data)
    data = jax.tree.map(lambda x: x[0] if len(x) == 1 else x, data)

    def one(trees: Any, data: PyTree, inputs: StepInputs, seed: Array) -> Any:
        return _one_system(parts, State(state.step, *trees), data, inputs, seed)

    if parts.replicas == 1:
        squeeze = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
        shared = StepInputs(
            *(x if axis is None else squeeze(x) for x, axis in zip(inputs, axes, strict=True))
        )
        out = one(squeeze(per_replica), data, shared, seeds[0])
        trees, metrics = jax.tree.map(lambda x: x[None], out)
    else:
        each = jax.vmap(one, in_axes=(0, data_axes, axes, 0))
        trees, metrics = each(per_replica, data, inputs, seeds)
    return State(state.step + 1, *trees), metrics


def _one_system(
    parts: StepParts, state: State, data: PyTree, inputs: StepInputs, seed: Array
) -> tuple[tuple[Any, Any, Any, Any, Any], Metrics]:
    """One step of one system: learn, average, snapshot; and the isolated baseline beside it.

    Where not everybody takes part, it is the step of those who do, whose rows are then put back.
    """
    everyone = state
    if not parts.brought:
        state = seat(parts.roster, state, inputs.seated)
    batch = parts.load(data, inputs, seed, state.step)
    keys = network_keys(parts, inputs, seed, state.step)
    noise = functools.partial(noise_keys, parts, inputs, seed, state.step)
    clients, memory, metrics = _learn(parts, state, batch, inputs, seed, keys, noise)
    pool = write_pool(state.pool, clients, inputs.write)
    if parts.method.averaging is not None:
        clients, unreadable = average(
            parts, parts.method.averaging, clients, inputs, seed, state.step
        )
        metrics["unreadable_parameters"] = unreadable
    baseline, baseline_loss = _train_baseline(parts, state, batch, keys, noise("privacy baseline"))
    if baseline:
        metrics["control_loss"] = baseline_loss
    changed = state.replace(
        clients=clients, baseline=baseline, pool=pool, marginals=memory.marginals,
        cache=memory.cache,
    )  # fmt: skip
    new = changed if parts.brought else unseat(parts.roster, everyone, changed, inputs.seated)
    trees = (new.clients, new.baseline, new.pool, new.marginals, new.cache)
    return trees, mean_over_data(parts, metrics)


def _learn(
    parts: StepParts,
    state: State,
    batch: Batch,
    inputs: StepInputs,
    seed: Array,
    keys: Sequence[Array],
    noise: Callable[[str], tuple[Array, ...]],
) -> tuple[tuple[Learners, ...], Memory, Metrics]:
    """The clients after their own images and, if due, lessons; what readers remember; metrics."""
    weight, memory = inputs.weights[0], Memory(state.marginals, state.cache)
    learn = functools.partial(
        private_gradients, parts, parts.models, state.clients, batch, weight, keys,
        noise("privacy"), parts.paces,
        # In steps without distillation, too, or running averages would mix two kinds of batches.
        public=batch.public if parts.method.distillation else None,
    )  # fmt: skip
    private = where_due(
        parts.rests, weight > 0, learn,
        stats=tuple(group.stats for group in state.clients),
    )  # fmt: skip
    grads, metrics = private.grads, {"private_loss": private.losses, "loss": private.losses}
    if parts.method.distillation is not None:
        lessons = where_due(
            parts.pauses,
            distils(inputs),
            lambda: distillation_gradients(parts, state, batch.public, inputs, seed),
            memory=memory,
        )
        memory = lessons.memory
        metrics |= trunk_metrics(grads, lessons.grads)
        grads = jax.tree.map(jnp.add, grads, lessons.grads)
        metrics |= {"embedding_loss": lessons.embedding, "head_losses": lessons.heads}
        metrics["unreadable"] = lessons.unreadable
        metrics["loss"] = jax.tree.map(jnp.add, private.losses, lessons.losses)
    return _update(parts, state, state.clients, grads, private.stats), memory, metrics


def _update(
    parts: StepParts,
    state: State,
    learners: tuple[Learners, ...],
    grads: tuple[PyTree, ...],
    stats: tuple[PyTree, ...],
) -> tuple[Learners, ...]:
    """One optimiser step of every client on its own gradient; none of the frozen ones."""
    updated = list(learners[: parts.frozen])
    learning = list(zip(learners, grads, stats, strict=True))[parts.frozen :]
    for group, gradient, new_stats in learning:
        opt_state = group.opt_state
        if parts.roster.attendances:
            opt_state = at_step(opt_state, state.step)
        step = jax.vmap(parts.optimizer.update)
        updates, opt_state = step(gradient, opt_state, group.params)
        params = optax.apply_updates(group.params, updates)
        updated.append(Learners(params, new_stats, opt_state))
    return tuple(updated)


def _train_baseline(
    parts: StepParts,
    state: State,
    batch: Batch,
    keys: Sequence[Array],
    noise_keys: tuple[Array, ...],
) -> tuple[tuple[Learners, ...], tuple[Array, ...]]:
    """The isolated baseline's step on the very same private batches."""
    baseline = state.baseline
    if not baseline:
        return (), ()
    models, weight = parts.baseline_models, jnp.float32(1)
    made = private_gradients(
        parts, models, baseline, batch, weight, keys, noise_keys, parts.baseline_paces
    )
    return _update(parts, state, baseline, made.grads, made.stats), made.losses
