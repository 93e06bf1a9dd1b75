# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Every config file: all variants lower for accelerators, and the smallest one trains."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from mhd_jax import audit, estimate
from mhd_jax import experiment as experiment_lib
from mhd_jax.config import update, validate, variant
from mhd_jax.data import sources
from mhd_jax.data.streaming import Streaming
from mhd_jax.errors import ConfigError
from tests import small

FILES = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.py"))
SMALL_IMAGES = ("cifar10", "cifar100", "tiny_imagenet")  # with variants from one base
CLASSES = {"cifar10": 10, "cifar100": 100, "tiny_imagenet32": 200, "imagenet2012": 1000}


def _module(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VARIANTS = [(file, name) for file in FILES for name in _module(file).VARIANTS]


def _repeats(file, name, devices=4):
    """Whether another case has the same network but for its size, type, classes or devices."""
    return (
        name == "tpu" and file != FILES[0]
        or name in ("cpu", "smoke") and file.stem in SMALL_IMAGES[1:]
        or name == "" and "tpu" in _module(file).VARIANTS
        or devices == 1
    )  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch):
    """Random images in place of a prepared dataset, 4 of each class, of differing sizes."""

    class Photos(sources.ArraySplit):
        def read(self, indices):
            return (np.pad(self._images[i], ((0, int(i) % 5), (3, 0), (0, 0))) for i in indices)

    def load(name, directory, split, shape):
        draw, size = np.random.default_rng(0), 4 * CLASSES[name]
        images = draw.integers(0, 256, (size, *shape[:2], 3), np.uint8)
        train = Photos(images, np.arange(size) % CLASSES[name])
        test = sources.ArraySplit(images[:40], np.arange(40) % CLASSES[name])
        classes = tuple(map(str, range(CLASSES[name])))
        return sources.Source(name, classes, train, test, (0.5,) * 3, (0.25,) * 3)

    monkeypatch.setattr(sources, "tensorflow_dataset", load)


@pytest.mark.parametrize(
    ("file", "devices"),
    [
        pytest.param(file, devices, marks=[pytest.mark.slow] * _repeats(file, "smoke", devices))
        for file, devices in [(FILES[0], 1), *((file, 4) for file in FILES)]
    ],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_config_trains(file, devices, stand_in):
    config = _module(file).get_config("smoke")
    update(config, {"clients.num": 4, "parallel.client_devices": devices})
    config.isolated_baseline = file.stem == "digits"  # it is the same network once more
    experiment = experiment_lib.build(config)
    before = small.clients(experiment, experiment.init_state())
    state, metrics = small.run(experiment, calls=2)
    assert np.isfinite(metrics["loss"]).all()
    changed = [
        (ours != theirs).any()
        for ours, theirs in zip(small.clients(experiment, state), before, strict=True)
    ]
    assert np.mean(changed) > 0.9
    assert isinstance(experiment.feed, Streaming) == (file.stem == "imagenet")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        pytest.param(file, name, marks=[pytest.mark.slow] * _repeats(file, name))
        for file, name in VARIANTS
        if name != "smoke"  # those are trained above
    ],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_variant_lowers_for_tpu_and_cuda(file, name):
    """On a machine that has neither, from shapes alone: no data set is read."""
    config = _module(file).get_config(name)
    update(config, {"parallel.conv_lowering": "grouped"})  # "auto" looks at this machine
    config.isolated_baseline = file.stem == "digits"  # it is the same network once more
    experiment = experiment_lib.build(config, estimate.data_sets(config), memory=2**34)
    if config.partition.name == "primary_labels":
        primary = experiment.federations[0].partition.primary
        assert primary.shape == (8, experiment.parts.num_classes)
        assert abs(primary.sum(axis=0).mean() - 2) <= 0.5  # two primary clients per label
    assert name not in ("tpu",) or config.model.dtype == "bfloat16"
    _lower(experiment)


@pytest.mark.parametrize("conv", ["unrolled", "looped"])
def test_every_form_of_the_convolution_lowers_for_tpu_and_cuda(conv):
    """In a loop over steps, as accelerators run it."""
    config = _module(FILES[0].with_name("cifar10.py")).get_config("smoke")
    update(config, {"parallel.conv_lowering": conv, "train.steps_per_call": 2})
    config.isolated_baseline = False
    experiment = experiment_lib.build(config, estimate.data_sets(config))
    assert experiment.parts.steps_per_call == 2
    _lower(experiment)


def _lower(experiment):
    """Lowers the step on four devices for both kinds of accelerator."""
    arguments = audit.abstract_arguments(experiment)
    exported = jax.export.export(experiment.step, platforms=("tpu", "cuda"))(*arguments)
    assert set(exported.platforms) == {"tpu", "cuda"}
    assert exported.nr_devices == experiment.layout.mesh.size == 4
    assert "all_gather" in exported.mlir_module()


@pytest.mark.parametrize(
    ("file", "name"), VARIANTS, ids=lambda value: getattr(value, "stem", value)
)
def test_every_variant_is_a_legal_setting(file, name):
    """Those too that train and lower in slow tests alone."""
    validate(_module(file).get_config(name))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_unknown_variant_is_refused_with_a_suggestion(file):
    with pytest.raises(ConfigError, match=rf"{file.name} = 'smok': .*did you mean 'smoke'"):
        _module(file).get_config("smok")


def test_settings_of_all_variants_come_first():
    variants = {"": {"heads.aux": 1, "train.steps": 7}, "short": {"train.steps": 3}}
    assert variant("", variants, "x.py").train.steps == 7
    short = variant("short", variants, "x.py")
    assert (short.heads.aux, short.train.steps) == (1, 3)
    with pytest.raises(ConfigError, match="heads.axu"):
        variant("", {"": {"heads.axu": 1}}, "x.py")


def test_imagenet_is_what_its_docstring_says():
    config = _module(FILES[0].with_name("imagenet.py")).get_config()
    assert (config.clients.num, config.partition.primary_labels) == (8, 0)  # 1000 * 2 / 8 = 250
    assert (config.model.name, config.data.image_size) == ("resnet34", 224)
    assert config.data.public_fraction == 0.1
