# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Types of nested arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from flax.typing import VariableDict
from jax.sharding import PartitionSpec

Leaf: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct | PartitionSpec
"""An array, its shape, or how it lies on the mesh."""

Tree: TypeAlias = "Leaf | tuple[Tree, ...] | Mapping[str, Tree]"

PyTree: TypeAlias = Any
"""A tree of whatever form: parameters, gradients, an optimiser's state."""

Variables: TypeAlias = VariableDict
"""What a Flax module keeps: parameters, batch statistics, or both by collection."""

AnyTree = TypeVar("AnyTree")
"""A tree that comes back in the same form."""
