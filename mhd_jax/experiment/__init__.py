# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""From a config to everything a run needs: data, clients, step, schedule, evaluation.

`assemble` builds and checks the parts in order: `checks` looks at settings before anything is made,
`clients` says which networks there are and where, `messages` who sends what to whom. The result is
an `Experiment`, in `experiment`.
"""

from mhd_jax.experiment.assemble import build
from mhd_jax.experiment.experiment import Experiment

__all__ = ["Experiment", "build"]
