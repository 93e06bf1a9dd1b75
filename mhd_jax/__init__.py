# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Decentralized learning with multi-headed distillation, on JAX.

From a notebook, or a script:

    import mhd_jax
    run = mhd_jax.fit({"graph.name": "cycle"})
    run.plot_accuracy()

See `mhd_jax.api` for everything of this kind. JAX itself is imported when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mhd_jax.api import (
        Run,
        fit,
        from_arrays,
        from_clients,
        join,
        load_client,
        register,
    )

__version__ = "0.4.0"

__all__ = ["Run", "fit", "from_arrays", "from_clients", "join", "load_client", "register"]


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, so that ``import mhd_jax`` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mhd_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
