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
# # Clients that learn from each other
#
# Eight clients hold different digits. None of them shares its images, labels or weights. They only
# share what they *predict* on a few unlabelled public images, and each learns from the most
# confident of the others. This is multi-headed distillation
# (Zhmoginov et al., CVPR 2023, [arXiv 2211.15774](https://arxiv.org/abs/2211.15774)).
#
# The notebook takes a minute and a half on two CPU cores.

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
import numpy as np

import mhd_jax

STEPS = int(os.environ.get("MHD_JAX_NOTEBOOK_STEPS", "1500"))

# %% [markdown]
# ## Train
#
# Every setting that is not given has its default (`mhd_jax.config.default_config`): scikit-learn's
# digits, 8 clients, a complete graph.

# %%
run = mhd_jax.fit({"train.steps": STEPS})

# %% [markdown]
# In *shared* accuracy all digits count equally; in *private* accuracy they are weighted by how
# often the client holds them. The isolated baseline is the same clients with the same data,
# without peers.
#
# ## Who holds what
#
# Most images of a client are of its primary labels (orange).

# %%
run.plot_labels()

# %% [markdown]
# ## What they learn
#
# Main heads keep the client's private task. Auxiliary heads learn what other clients know.

# %%
run.plot_accuracy()

# %%
run.plot_classes()

# %% [markdown]
# ## One image, one client
#
# Here is a digit that client 0 hardly holds. Its main head has to guess; its last head has learned
# from clients that know it.

# %%
from sklearn.datasets import load_digits

client = run.clients[0]
digits = load_digits()
unknown = next(i for i, label in enumerate(digits.target) if label not in client.labels)
image = (digits.images[unknown] / 16).astype(np.float32)[None, ..., None]
probabilities = client.predict(image)[0]  # [H, C]

print(f"client 0 mostly holds {client.labels}; the image is a {digits.target[unknown]}")
for name, row in zip(run.head_names, probabilities, strict=True):
    print(f"{name:6} says {row.argmax()} with probability {row.max():.2f}")

# %% [markdown]
# ## Knowledge travels as many hops as a head's rank
#
# On a directed cycle, client i learns from client i - 1 only. The first auxiliary head knows what
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
# `run.summary` is the whole record, `run.history` a table over steps, and `run.clients[i].params`
# holds a client's parameters. Give `fit` a directory, `mhd_jax.fit(config, "runs/mine")`, to keep
# everything on disk; `mhd_jax.Run.load("runs/mine")` loads it again.

# %%
run.history[["step", "shared_accuracy/head_0", "shared_accuracy/head_4"]].dropna()
