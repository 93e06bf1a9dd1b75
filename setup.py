# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Package metadata; the configuration of the build and of all tools is in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """The version in ``mhd_jax/__init__.py``, read without importing the package (or JAX)."""
    source = (ROOT / "mhd_jax" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise RuntimeError('mhd_jax/__init__.py has no line `__version__ = "..."`')
    return match.group(1)


setup(
    name="mhd-jax",
    version=read_version(),
    description="Decentralized learning with multi-headed distillation, in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The mhd-jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    # The files of configs/ are found by their names, from a checkout and from a wheel alike.
    packages=[*find_packages(include=["mhd_jax", "mhd_jax.*"]), "mhd_jax.configs"],
    package_dir={"mhd_jax.configs": "configs"},
    package_data={"mhd_jax": ["py.typed", "reporting/templates/*.j2"]},
    python_requires=">=3.11",
    # Floors only: requirements.txt holds the exact versions that are tested together.
    install_requires=[
        "absl-py>=2.1",
        "clu>=0.0.12",
        "etils[epath]>=1.12",
        "flatbuffers>=25",  # jax.export writes functions with it
        "flax>=0.12.8",
        "grain>=0.2.12",
        "jax>=0.10",
        "jaxtyping>=0.3",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml-collections>=1.1",
        "networkx>=3.4",
        "numpy>=2.1",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow>=11",  # tensorflow_datasets decodes images with it where TensorFlow is absent
        "scikit-learn>=1.6",
        "scipy>=1.14",
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10"],
        "cuda12": ["jax[cuda12]>=0.10"],  # for drivers older than 580
        "tpu": ["jax[tpu]>=0.10"],
        # clu.metric_writers imports both.
        "tensorboard": ["tensorboard>=2.20", "tensorflow-cpu>=2.20"],
        "privacy": ["dp-accounting>=0.6"],
        "test": [
            "build>=1.2",
            "dp-accounting>=0.6",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "ipywidgets>=8.1",  # the progress bar of a notebook
            "jupytext>=1.16",
            "mypy>=1.18",
            "nbclient>=0.10",
            "pandas>=2.2",
            "pytest>=8.4",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
        ],
        "docs": ["furo>=2025.9", "myst-parser>=5", "sphinx>=8.2"],
        "notebook": ["ipywidgets>=8.1", "jupyterlab>=4", "pandas>=2.2"],
        "bench": ["torch>=2.6"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
