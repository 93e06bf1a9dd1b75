# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Accuracies follow their definitions."""

from __future__ import annotations

import numpy as np

from mhd_jax import evaluate
from tests import reference


def test_shared_and_private_accuracy_follow_their_definitions():
    rng = np.random.default_rng(0)
    count = rng.integers(1, 20, 7)
    correct = rng.integers(0, count + 1, (5, 3, 7))
    histogram = rng.integers(0, 30, (5, 7)) + np.eye(5, 7, dtype=int)
    found = evaluate.shared_and_private(correct, count, histogram)
    expected = reference.shared_and_private(correct, count, histogram)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_classes_without_test_samples_are_left_out():
    shared, private = evaluate.shared_and_private(
        np.array([[[3, 0]]]), np.array([4, 0]), np.array([[1, 1]])
    )
    assert shared[0, 0] == private[0, 0] == 0.75


def test_a_distribution_of_labels_weighs_like_the_counts_that_it_is_of():
    """Of classes with test samples, too, whose shares alone add up to less than 1."""
    correct, count = np.array([[[3, 2, 0]]]), np.array([4, 4, 0])
    counted = evaluate.shared_and_private(correct, count, np.array([[1, 3, 4]]))[1]
    shares = evaluate.shared_and_private(correct, count, np.array([[0.125, 0.375, 0.5]]))[1]
    assert counted[0, 0] == shares[0, 0] == 0.75 / 4 + 0.5 * 3 / 4
    nothing = evaluate.shared_and_private(correct, count, np.array([[0, 0, 8]]))[1]
    assert nothing[0, 0] == 0
