# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Plans against what runs of the same config turn out to need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mhd_jax import estimate
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
