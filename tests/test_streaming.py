# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Streamed samples are the resident ones; what the host draws depends on nothing but its keys."""

from __future__ import annotations

import multiprocessing

import jax
import numpy as np
import pytest
from absl import logging

import mhd_jax
from mhd_jax import api
from mhd_jax.data import feed as feeds
from mhd_jax.data import streaming
from mhd_jax.data.streaming import Streaming, random_resized_crop
from mhd_jax.errors import ConfigError
from tests import small


@pytest.fixture(scope="module")
def pair():
    """The same small experiment with both feeds, and three clients of different size."""
    return [
        small.build(data__feed=name, clients__num=3, train__steps_per_call=3)
        for name in ("resident", "streaming")
    ]


def _resident_batches(experiment, start, stop):
    """What the resident feed would gather, on the host."""
    (index,), public = experiment.feed.inputs(start, stop)
    (images, labels), everyone = experiment.feed.data["private"][0], experiment.feed.data["public"]
    images, labels, everyone = (np.asarray(x) for x in (images, labels, everyone))
    rows = np.arange(index.shape[2])[:, None]
    return images[0][rows, index[:, 0]], labels[0][rows, index[:, 0]], everyone[0][public[:, 0]]


@pytest.mark.parametrize("ranges", [[(0, 3), (3, 6)], [(7, 9), (8, 10)], [(40, 41)]])
def test_both_feeds_have_the_same_batches_at_any_step(pair, ranges):
    resident, streaming = pair
    for start, stop in ranges:
        ((images, labels),), public = streaming.feed.inputs(start, stop)
        wanted = _resident_batches(resident, start, stop)
        for ours, theirs in zip((images[:, 0], labels[:, 0], public[:, 0]), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_worker_processes_read_the_same_batches(pair):
    here = pair[1].feed
    there = small.build(data__feed="streaming", clients__num=3, train__steps_per_call=3,
                        data__workers=1).feed  # fmt: skip
    ours, theirs = here.inputs(2, 4), there.inputs(2, 4)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_shapes_are_known_without_reading(pair):
    for experiment in pair:
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), experiment.feed.input_shapes(2))
        inputs = jax.tree.map(lambda x: (x.shape, x.dtype), experiment.feed.inputs(0, 2))
        assert shapes == inputs
        data = jax.tree.map(lambda x: (x.shape, x.dtype), experiment.feed.data)
        assert data == jax.tree.map(lambda x: (x.shape, x.dtype), experiment.feed.data_shapes())


@pytest.mark.parametrize("augment", [pytest.param("none", marks=pytest.mark.slow), "crop_flip"])
def test_both_feeds_end_with_the_same_parameters(augment):
    changes = {"data__augment": augment, "train__steps": 30, "train__steps_per_call": 10,
               "train__log_every": 10, "train__eval_every": 30,
               "train__checkpoint_every": 30}  # fmt: skip
    ends = []
    for name in ("resident", "streaming"):
        experiment = small.build(data__feed=name, **changes)
        state, metrics = small.run(experiment, calls=3)
        ends.append((small.clients(experiment, state), metrics["loss"]))
    for ours, theirs in zip(*[end[0] for end in ends], strict=True):  # two programs' roundings
        np.testing.assert_allclose(ours, theirs, atol=1e-7)
    assert np.isfinite(ends[0][1]).all()


def test_auto_decides_by_memory_and_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "info", lambda text, *values: said.append(text % values))
    for needed, augment, streamed in ((10, "", False), (600, "", True), (1, "crop", True)):
        assert feeds.streams("auto", needed * 2**20, 2**30, augment) == (streamed, said[-1])
    assert [line.split(", as ") for line in said] == [
        ["data.feed = auto: resident", "10 MiB of samples a device fit into half of 1,024 MiB"],
        ["data.feed = auto: streaming", "600 MiB of samples a device exceed half of 1,024 MiB"],
        ["data.feed = auto: streaming", "data.augment = crop runs on the host"],
    ]
    assert not feeds.streams("resident", 2**40, 1, "")[0]
    assert feeds.streams("streaming", 0, 1, "")[0]
    with pytest.raises(ConfigError, match=r"data.feed = 'resident': expected streaming"):
        feeds.streams("resident", 1, 2**30, "random_resized_crop")


def test_auto_streams_what_does_not_fit(monkeypatch):
    monkeypatch.setattr("mhd_jax.experiment.assemble.device_memory", lambda: 1000)
    experiment = small.build()
    assert isinstance(experiment.feed, Streaming) and experiment.parts.steps_per_call == 1


def test_a_crop_of_the_host_needs_bytes():
    with pytest.raises(ConfigError, match="data.augment = 'random_resized_crop'.*8 bits"):
        small.build(data__augment="random_resized_crop")


def test_random_resized_crop_draws_from_its_generator_only():
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    crops = [random_resized_crop(np.random.default_rng(k), image, (16, 16, 3)) for k in (1, 1, 2)]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert (crops[0] != crops[2]).any() and crops[0].dtype == np.uint8
    narrow = np.zeros((2, 400, 1), np.uint8)  # no draw fits: the centre
    assert random_resized_crop(np.random.default_rng(0), narrow, (4, 4, 3)).shape == (4, 4, 3)


def test_streamed_crops_are_the_same_at_any_start(tmp_path):
    build = lambda: small.build(  # noqa: E731
        data__image_size=12, data__augment="random_resized_crop", data__feed="auto"
    )
    one, other = build(), build()
    assert isinstance(one.feed, Streaming)
    (whole, _), (late, _) = one.feed.inputs(0, 4)[0][0], other.feed.inputs(2, 4)[0][0]
    np.testing.assert_array_equal(whole[2:], late)
    assert (whole[0] != whole[1]).any()


def test_scripts_that_workers_cannot_import_are_refused(pair, monkeypatch):
    """In the worker, which imports the script again, and where the script was started."""
    said = r'data.workers = 1: expected a script .* `if __name__ == "__main__":`'
    with monkeypatch.context() as patched:
        patched.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
        with pytest.raises(ConfigError, match=said):
            streaming._check_workers_start(1)
    ends = multiprocessing.get_context("spawn").Process
    monkeypatch.setattr(ends, "start", lambda self: None)
    monkeypatch.setattr(ends, "join", lambda self: None)
    monkeypatch.setattr(ends, "exitcode", 1)
    with pytest.raises(ConfigError, match=said):
        streaming._check_workers_start(1)


def test_crops_need_grey_or_colours(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 4), np.uint8)
    images = pixels, np.arange(60) % 3
    api.pieces.use(small.config(), {"source": mhd_jax.from_arrays("rgba", images, images)})
    said = "data.augment = 'random_resized_crop': expected none for images of 4 channels"
    with pytest.raises(ConfigError, match=said):
        small.build(data__name="rgba", data__augment="random_resized_crop")
