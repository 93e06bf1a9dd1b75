# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Clients that learn from each other
#
# Eight clients hold different digits. None of them shows its images, its labels or its weights to
# anybody. What they do show is what they *predict* on a few unlabelled public images, and each
# learns from the most confident of the others. That is multi-headed distillation
# (Zhmoginov et al., CVPR 2023, [arXiv 2211.15774](https://arxiv.org/abs/2211.15774)).
#
# Runs in a minute and a half on two CPU cores.

# %%
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # a local checkout is installed already
    source = os.environ.get("MHD_JAX_SOURCE", "mhd-jax")  # or the address of a repository
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import numpy as np

import mhd_jax

STEPS = int(os.environ.get("MHD_JAX_NOTEBOOK_STEPS", "1500"))

# %% [markdown]
# ## Train
#
# Everything not said here has its default (`mhd_jax.config.default_config`): scikit-learn's digits,
# 8 clients, a complete graph, 4 auxiliary heads.

# %%
run = mhd_jax.fit({"train.steps": STEPS})

# %% [markdown]
# *Shared* accuracy is measured on all digits alike, *private* accuracy on the digits that a client
# holds. The isolated baseline is the same clients and data without peers.
#
# ## Who holds what
#
# A client has mostly images of its primary labels (orange).

# %%
run.plot_labels()

# %% [markdown]
# ## What they learn
#
# The main head keeps the client's private task. The auxiliary heads learn what the others know.

# %%
run.plot_accuracy()

# %%
run.plot_classes()

# %% [markdown]
# ## One image, one client
#
# An image of a digit that client 0 does not hold: its main head has to guess, its last head has
# heard from those who know.

# %%
from sklearn.datasets import load_digits

client = run.clients[0]
digits = load_digits()
unknown = next(i for i, label in enumerate(digits.target) if label not in client.labels)
image = (digits.images[unknown] / 16).astype(np.float32)[None, ..., None]
probabilities = client.predict(image)[0]  # [H, C]

print(f"client 0 holds {client.labels}; the image is a {digits.target[unknown]}")
for name, row in zip(run.head_names, probabilities, strict=True):
    print(f"{name:6} says {row.argmax()} with probability {row.max():.2f}")

# %% [markdown]
# ## Knowledge travels as many hops as a head's rank
#
# On a directed cycle client i learns from client i - 1 only. The first auxiliary head knows what
# is one hop away, the second what is two hops away, and so on.

# %%
cycle = mhd_jax.fit({"train.steps": STEPS, "graph.name": "cycle", "isolated_baseline": False})

# %%
cycle.plot_graph()

# %%
cycle.plot_hops()

# %% [markdown]
# ## The numbers behind the pictures
#
# `run.summary` is the whole record, `run.history` a table over steps, `run.clients[i].params` the
# parameters. With a directory, `mhd_jax.fit(config, "runs/mine")`, everything stays on disk and
# `mhd_jax.Run.load("runs/mine")` brings it back.

# %%
run.history[["step", "shared_accuracy/head_0", "shared_accuracy/head_4"]].dropna()
