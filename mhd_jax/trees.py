# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Types of nested arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
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


def unfit_type(new: PyTree, old: PyTree) -> str:
    """The first type of numbers that cannot stand for those in the same place; "" if all can.

    Numbers of floating point can, however precise, and numbers of the type that they stand for.

    >>> one = jnp.ones(2)
    >>> unfit_type((one, 1j * one), (one, one)), unfit_type(one.astype(jnp.bfloat16), one)
    ('complex64', '')
    """
    for value, place in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        dtype = jnp.result_type(value)
        if not jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.result_type(place):
            return str(dtype)
    return ""
