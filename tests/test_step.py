# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The one step: the equations it applies, what crosses devices, and what it costs."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mhd_jax import audit, federation, parallel, train
from mhd_jax.step import program
from tests import reference, small


def _elements(shapes: str) -> int:
    return sum(
        math.prod(int(n) for n in dims.split(",") if n)
        for dims in re.findall(r"\[([\d,]*)\]", shapes)
    )


def _forward(experiment, state, images, train):
    """Every client's heads and embedding, one after another, as the model itself gives them."""
    model, cohort = experiment.parts.models[0], state.clients[0]
    out = []
    for client in range(experiment.layout.num_clients):
        params = jax.tree.map(lambda x, c=client: x[0, c], cohort.params["model"])
        x = images[client] if train else images
        out.append(model.apply({"params": params}, x, train=False))
    return [np.asarray(x, np.float64) for x in map(jnp.stack, zip(*out, strict=True))]


def test_options_for_a_gpu_are_ones_that_this_version_of_xla_knows():
    jax.jit(lambda x: x, compiler_options=program.GPU_OPTIONS | program.SIDE_BY_SIDE)(0.0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="not a valid enum value"):
        wrong = {name: "UNHEARD_OF" for name in program.SIDE_BY_SIDE}
        jax.jit(lambda x: x, compiler_options=wrong)(0.0)


def test_what_the_user_says_of_cuda_graphs_goes_first(monkeypatch):
    options = functools.partial(program._compiler_options, "gpu")
    assert options(False) == program.GPU_OPTIONS
    assert options(True) == program.GPU_OPTIONS | program.SIDE_BY_SIDE
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=")
    assert options(True) is None


def test_a_gpu_has_run_a_convolution_before_the_first_step(monkeypatch):
    experiment = small.build()
    convolutional = dataclasses.replace(experiment.parts, convolutional=True)
    assert program.warm_up(convolutional, "bfloat16") == []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert program.warm_up(experiment.parts, "bfloat16") == []
    found = program.warm_up(convolutional, "bfloat16")
    assert [one.device for one in found] == jax.local_devices()
    assert all(one[1, 1, 0, 0] == 64 for one in found)  # the middle has seen all 8 x 8 pixels

    def called(parts, dtype):
        assert (parts, dtype) == (experiment.parts, "float32")
        raise InterruptedError

    monkeypatch.setattr(train, "warm_up", called)
    with pytest.raises(InterruptedError):
        train.Stepper(experiment, experiment.init_state(), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"graph__name": "chain", "distill__include_self": False},
        {"graph__name": "cycle", "distill__same_rank": True, "distill__confidence": "margin"},
        {"graph__name": "none"},
        {"heads__aux": 0},
        {"distill__alignment": 0.0, "distill__fade_in": 0.0, "distill__split_nu_aux": False},
        {"distill__alignment": 0.5, "distill__alignment_momentum": 0.0},
        {"data__public_batch_size": 32, "distill__same_rank": True},
        {"distill__mixup": 0.25},
    ],
    ids=["complete", "chain", "same rank", "no peers", "no aux heads", "the paper", "batch mean",
         "screened", "mixup"],
)  # fmt: skip
def test_losses_of_a_step_equal_the_reference(changes):
    experiment = small.build(train__steps=1, **changes)
    state, fed = experiment.init_state(), experiment.federations[0]
    (private,), _ = experiment.feed.inputs(0, 1)
    images = [fed.source.train.images(own[at]) for own, at in
              zip(fed.partition.indices, private[0, 0], strict=True)]  # fmt: skip
    labels = [fed.source.train.labels[own[at]] for own, at in
              zip(fed.partition.indices, private[0, 0], strict=True)]  # fmt: skip
    prepare = lambda x: (x - np.float32(fed.mean)) / np.float32(fed.std)  # noqa: E731
    private_logits, _ = _forward(experiment, state, [prepare(x) for x in images], train=True)
    logits, embeddings = _forward(experiment, state, small.public_batch(experiment), train=False)

    settings, heads = experiment.config.distill, experiment.config.heads.aux
    chosen = experiment.parts.method.distillation
    adjacency = experiment.topologies[0].at(0)
    expected = reference.local_objective(
        reference.log_softmax(private_logits), np.stack(labels), reference.log_softmax(logits),
        embeddings, adjacency, nu_emb=settings.nu_emb,
        nu_aux=settings.nu_aux / max(heads, 1) if settings.split_nu_aux else settings.nu_aux,
        include_self=settings.include_self, same_rank=settings.same_rank,
        measure=settings.confidence, weight=experiment.parts.method.when(np.arange(1))[0, 1],
        alignment=chosen.alignment, momentum=settings.alignment_momentum,
        screening=chosen.screening,
    )  # fmt: skip
    _, metrics = small.run(experiment)
    np.testing.assert_allclose(metrics["loss"][0, 0], expected, rtol=1e-5)


def test_control_group_is_the_isolated_method():
    together = small.build(isolated_baseline=True)
    alone = small.build(method="isolated")
    state, _ = small.run(together)
    isolated, _ = small.run(alone)
    for ours, theirs in zip(
        jax.tree.leaves(state.baseline), jax.tree.leaves(isolated.clients), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)  # two programs round differently


FIFTY = {"train__steps": 50, "train__log_every": 50, "train__eval_every": 50,
         "train__checkpoint_every": 50}  # fmt: skip


@functools.cache
def _on_one_device(*changes):
    experiment = small.build(**FIFTY, **dict(changes))
    return small.clients(experiment, small.run(experiment)[0])


@pytest.mark.parametrize(
    ("devices", "changes"),
    [pytest.param((2, 1), {}, marks=pytest.mark.slow),  # between 3, with inert rows, and 4
     ((4, 1), {}), ((3, 1), {}),
     pytest.param((2, 2), {}, marks=pytest.mark.slow),  # the same with a cache, or more images
     ((2, 2), {"exchange__cache": 4}), ((2, 2), {"data__public_batch_size": 32})],
    ids=["2", "4", "3 with inert rows", "2 x 2", "2 x 2, readers with a cache",
         "2 x 2, enough images to tell who looks at them"],
)  # fmt: skip
def test_any_number_of_devices_gives_the_same_parameters(devices, changes):
    many = small.build(
        parallel__client_devices=devices[0], parallel__data_devices=devices[1],
        **FIFTY, **changes,
    )  # fmt: skip
    found, _ = small.run(many)
    alone = _on_one_device(*changes.items())
    for ours, theirs in zip(small.clients(many, found), alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


# --- What makes a step fit and fast on accelerators -----------------------------------------------


def test_bfloat16_computes_nearly_the_same_and_keeps_parameters_in_float32():
    (_, exact), (state, half) = (
        small.run(small.build(model__dtype=dtype)) for dtype in ("float32", "bfloat16")
    )
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.clients[0].params))
    difference = np.abs(half["loss"] / exact["loss"] - 1)
    assert 0 < difference.max() < 0.02


def test_all_steps_of_a_call_are_traced_once(monkeypatch):
    traced = mock.Mock(wraps=program._all_replicas)
    monkeypatch.setattr(program, "_all_replicas", traced)
    experiment = small.build()
    assert experiment.parts.steps_per_call == 3
    experiment.step.lower(*audit.abstract_arguments(experiment))
    assert traced.call_count == 1


def test_a_donated_state_is_used_up_and_changes_no_bit():
    experiment = small.build()
    arguments = small.arguments(experiment)
    kept = jax.jit(experiment.step.__wrapped__, compiler_options=program.CPU_OPTIONS)(*arguments)
    donated = experiment.step(*arguments)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[0].clients))
    for ours, theirs in zip(jax.tree.leaves(donated), jax.tree.leaves(kept), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- What crosses devices -------------------------------------------------------------------------


def _allowed(experiment) -> set[int]:
    """Sizes of what may be gathered: predictions [K, B', m, C] and embeddings [K, B', D]."""
    data, heads = experiment.config.data, experiment.config.heads.aux
    clients = sum(experiment.layout.rows)
    return {
        clients * data.public_batch_size * heads * experiment.parts.num_classes,
        clients * data.public_batch_size * small.WIDTH,
    }


def test_only_predictions_and_embeddings_cross_devices():
    experiment = small.build(parallel__client_devices=4)
    found = small.collectives(small.compiled_text(experiment))
    assert {operation for operation, _ in found} == {"all-gather"}
    assert {_elements(shapes) for _, shapes in found} <= _allowed(experiment)


def test_a_planted_gather_of_parameters_is_noticed(monkeypatch):
    one_system = program._one_system

    def leaking(system, state, data, inputs, seed):
        (clients, *rest), metrics = one_system(system, state, data, inputs, seed)
        everyone = parallel.gather_clients(clients[0].params["model"]["head"]["kernel"])
        metrics["loss"] = (metrics["loss"][0] + 1e-30 * everyone.sum(),)
        return (clients, *rest), metrics

    monkeypatch.setattr(program, "_one_system", leaking)
    experiment = small.build(parallel__client_devices=4, data__public_batch_size=13)
    sizes = {_elements(s) for _, s in small.collectives(small.compiled_text(experiment))}
    assert not sizes <= _allowed(experiment)


def test_memory_of_the_step_grows_linearly_with_the_clients():
    """Nothing of the size [K, K, ...] is alive: selection alone has a test of its own."""
    changes = {
        "data__public_batch_size": 64, "data__batch_size": 1, "partition__name": "iid",
        "heads__aux": 4, "isolated_baseline": False, "train__steps": 1,
    }  # fmt: skip

    def temporary(clients: int) -> int:
        experiment = small.build(clients__num=clients, **changes)
        lowered = experiment.step.lower(*small.arguments(experiment))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # A number per student, candidate and sample more would already be too much.
    assert temporary(128) <= 1.05 * 2 * temporary(64)


def test_shuffled_public_labels_change_nothing(monkeypatch):
    before, _ = small.run(small.build())

    federate = federation.federate

    def shuffled(config, seed, source, other):
        fed = federate(config, seed, source, other)
        order = np.random.default_rng(1).permutation(fed.public_indices)
        source.train.labels[fed.public_indices] = source.train.labels[order]
        return fed

    monkeypatch.setattr(federation, "federate", shuffled)
    after, _ = small.run(small.build())
    for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(ours, theirs)
