# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own data
#
# Train on arrays in memory or on a folder of images, divided among clients as you choose.
#
# The notebook takes about a minute on two CPU cores.

# %%
# In Colab, set this to the address of the repository or of your fork, such as
# "git+https://github.com/OWNER/REPOSITORY". Anywhere else mhd-jax is installed already.
CHECKOUT = ""

import os
import subprocess
import sys

if "google.colab" in sys.modules:
    if not CHECKOUT:
        raise SystemExit("Set CHECKOUT, above, to the address to install mhd-jax from.")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", CHECKOUT], check=True)

# %%
import pathlib
import tempfile

import numpy as np
from PIL import Image

import mhd_jax

STEPS = int(os.environ.get("MHD_JAX_NOTEBOOK_STEPS", "600"))

# %% [markdown]
# ## Some images to play with
#
# Striped images in six orientations. The class is the angle; noise and phase are random.

# %%
ANGLES = 6


def stripes(count, seed):
    """Images uint8 [count, 16, 16] and labels [count]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(ANGLES, size=count)
    angle = (labels + 0.3 * rng.normal(size=count)) * np.pi / ANGLES
    y, x = np.mgrid[:16, :16] / 16
    wave = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    pixels = 128 + 80 * np.sin(4 * np.pi * wave + phase) + 40 * rng.normal(size=(count, 16, 16))
    return pixels.clip(0, 255).astype(np.uint8), labels


train, test = stripes(1800, seed=0), stripes(600, seed=1)

# %% [markdown]
# ## Arrays
#
# `from_arrays` turns them into a source, and `partition` says how to divide them. Here every client
# holds exactly two of the six classes.

# %%
source = mhd_jax.from_arrays("stripes", train, test)
settings = {
    "train.steps": STEPS,
    "train.eval_every": max(1, STEPS // 6),
    "clients.num": 6,
    "heads.aux": 2,
    "partition.classes_per_client": 2,
}
run = mhd_jax.fit(settings, source=source, partition="classes_per_client")

# %%
run.plot_labels()

# %%
run.plot_classes()

# %% [markdown]
# ## A folder of images
#
# The layout is `train/<class>/*.png` and `test/<class>/*.png`. JPEG works too, and so do images of
# different sizes if `data.image_size` gives the size to resize them to. This cell writes the same
# images to such a folder; with images of your own, skip it and set `data.dir` below.

# %%
root = pathlib.Path(tempfile.mkdtemp())
for part, (images, labels) in {"train": train, "test": test}.items():
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / part / f"{180 * label // ANGLES} degrees"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:04}.png")

# %% [markdown]
# This time a Dirichlet partition: the smaller `partition.alpha`, the fewer clients share a class.

# %%
in_folder = {
    **settings,
    "data.name": "folder",
    "data.dir": str(root),
    "partition.name": "dirichlet",
    "partition.alpha": 0.3,
}
run = mhd_jax.fit(in_folder)

# %%
run.plot_labels()

# %%
run.plot_accuracy()

# %% [markdown]
# ## Ask the clients about a new image

# %%
images, labels = stripes(200, seed=2)
probabilities = run.predict(images[..., None])  # [K, N, H, C]
names = sorted(folder.name for folder in (root / "train").iterdir())
order = [names.index(f"{180 * label // ANGLES} degrees") for label in labels]
right = probabilities.argmax(axis=-1) == np.array(order)[:, None]
for client in run.clients:
    main, last = right[client.index, :, 0].mean(), right[client.index, :, -1].mean()
    print(f"client {client.index}: main head {main:.2f}, last head {last:.2f} of new images right")
