# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Brings a data set into the form in which runs read it: array_record files of TFDS' layout."""
