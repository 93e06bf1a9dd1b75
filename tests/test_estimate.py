# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Plans against what runs of the same config turn out to need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import pytest

from mhd_jax import estimate, models
from mhd_jax import experiment as experiment_lib
from mhd_jax.errors import ConfigError
from mhd_jax.models.shapes import embedding_width
from tests import small

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", params=[1, 2])
def planned(request):
    config = small.config(parallel__client_devices=request.param, isolated_baseline=True)
    return estimate.estimate(config, 2**30), experiment_lib.build(config)


def test_state_is_that_of_the_run(planned):
    found, experiment = planned
    state = experiment.init_state()
    device = jax.devices()[0]
    held = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
        if shard.device == device
    )
    assert abs(found.state - held) <= 4  # the step is on every device
    assert found.parameters == (8 * 8 * 16 + 16 + 2 * 16 + 16 * 8 + 8 + 2 * 8 + 3 * 90,) * 4


def test_operations_are_those_of_the_matrix_products(planned):
    found, experiment = planned
    weights, aux = 64 * 16 + 16 * 8 + 8 * 10, 2 * 8 * 10
    samples = 8
    # Forward and backward pass; the gradient by the input image is not needed.
    private = samples * (6 * weights - 2 * 64 * 16)
    public = private + samples * 6 * aux
    clients = 4 // experiment.layout.client_devices
    assert 1.0 < found.flops / (clients * (2 * private + public)) < 2.5


def test_activations_grow_with_the_batch():
    model = small.build().parts.models[0]
    small_batch, large_batch = (estimate.saved_bytes(model, (8, 8, 1), size) for size in (8, 16))
    assert large_batch == 2 * small_batch
    kept_at_least = 8 * 4 * (16 + embedding_width(model, (8, 8, 1)))
    assert small_batch > kept_at_least


def test_batch_normalisation_keeps_as_much_in_public_passes():
    """Whose gradients pass through it as well."""
    settings = {"name": "resnet8", "dtype": "bfloat16"}
    normed, plain = (models.build({**settings, "norm": norm}, 10, 2) for norm in ("batch", "none"))
    trained, read = (estimate.saved_bytes(normed, (8, 8, 3), 8, train) for train in (True, False))
    assert trained == read > 1.3 * estimate.saved_bytes(plain, (8, 8, 3), 8, train=False)


def test_the_private_pass_and_the_baseline_train_and_the_public_pass_does_not(monkeypatch):
    traced = []

    def saved(model, sample, batch_size, train=True):
        traced.append(train)
        return 0

    monkeypatch.setattr(estimate, "saved_bytes", saved)
    estimate._activations(small.build(isolated_baseline=True))
    assert traced == [True, False, True]


class Dropping(nn.Module):
    """An embedding network with dropout."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_dropout_keeps_what_it_lets_pass():
    model = models.build({"name": Dropping()}, 10, num_heads=2)
    trained, read = (estimate.saved_bytes(model, (4,), 8, train) for train in (True, False))
    assert trained > read


def test_every_seed_has_its_own_of_everything_but_shared_data():
    one, four = (estimate.estimate(small.config(num_seeds=seeds), 2**30) for seeds in (1, 4))
    for name in ("gradients", "activations", "published"):
        assert getattr(four, name) == 4 * getattr(one, name), name
    assert four.flops == pytest.approx(4 * one.flops, rel=1e-3)
    assert abs(four.state - 4 * one.state) <= 16  # the step is there once
    assert four.sent == one.sent  # of one seed, as in the summary


def test_what_is_sent_is_the_ledger(planned):
    found, experiment = planned
    assert found.sent == experiment.ledger.sent(1) == 4 * 8 * (2 * 10 + 8) * 4


def test_streamed_images_are_those_of_two_steps_on_their_way_and_the_next():
    config = small.config(data__feed="streaming")
    images = experiment_lib.build(config).feed.inputs(0, 1)
    assert estimate.estimate(config, 2**30).data == 3 * sum(
        x.nbytes for x in jax.tree.leaves(images)
    )


def test_streamed_images_are_those_of_every_step_of_a_call():
    one = small.config(data__feed="streaming", train__steps_per_call=1)
    three = small.config(data__feed="streaming", train__steps_per_call=3)
    single, several = estimate.estimate(one, 2**30), estimate.estimate(three, 2**30)
    assert several.data == 3 * single.data
    assert several.flops == single.flops  # a step and device, however many a call has


def test_fits_is_about_the_total():
    config = small.config(data__feed="resident")
    total = estimate.estimate(config, 2**30).total
    assert estimate.estimate(config, total).fits and not estimate.estimate(config, total - 1).fits


def test_a_plan_names_bad_settings_too():
    with pytest.raises(ConfigError, match="graph.name"):
        estimate.estimate(small.config(graph__name="cylce"), 2**30)


def test_imagenet_is_planned_without_its_data(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mhd_jax.main", "--config=configs/imagenet.py", "--estimate",
         "--estimate_devices=8", "--estimate_memory_gib=80", "--config.model.name=resnet8",
         "--config.data.image_size=32", "--config.model.stem=cifar"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "8 clients on 8 x 1" in done.stdout and "\nfits 80.0 GiB" in done.stdout
    assert "random_resized_crop runs on the host" in done.stdout
