# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The test set is counted once, whatever the chunks and devices."""

from __future__ import annotations

from unittest import mock

import jax
import numpy as np
import pytest

from mhd_jax import evaluate, evaluator
from tests import reference, small


@pytest.mark.parametrize("chunk", [500, 64, 7])
@pytest.mark.parametrize("devices", [(1, 1), (2, 2)])
def test_each_test_sample_counts_once(chunk, devices, monkeypatch):
    monkeypatch.setattr(evaluator, "TEST_CHUNK", chunk)
    experiment = small.build(
        parallel__client_devices=devices[0], parallel__data_devices=devices[1],
        isolated_baseline=True,
    )  # fmt: skip
    state = experiment.init_state()
    dispatched = mock.Mock(wraps=evaluate.InFlight())
    monkeypatch.setattr(evaluate, "InFlight", lambda: dispatched)
    found = experiment.evaluator.evaluate(state)
    assert dispatched.add.call_count == 2 * -(-500 // (chunk + chunk % devices[1]))
    source = experiment.federations[0].source
    images = (source.test.images(np.arange(len(source.test))) - np.float32(source.mean)) / (
        np.float32(source.std)
    )
    logits = [
        experiment.parts.models[0].apply(
            {"params": jax.tree.map(lambda x, c=client: x[0, c], state.clients[0].params["model"])},
            images,
            train=False,
        )[0]
        for client in range(4)
    ]
    expected, count = reference.count_correct(np.stack(logits), source.test.labels)
    np.testing.assert_array_equal(found.correct[0], expected)
    assert found.baseline is not None
    np.testing.assert_array_equal(found.baseline[0], found.shared[..., :1])
    np.testing.assert_array_equal(experiment.evaluator.count, count)
