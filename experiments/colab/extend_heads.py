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
# # Heads of your own
#
# A head is a small Linen module that turns embeddings `[B, D]` into the logits of all heads,
# `[B, H, C]`: the main head and the auxiliary heads. This notebook writes two of them and compares
# each with the default over three seeds, which train side by side in one program (`num_seeds`).
#
# The notebook takes less than two minutes on two CPU cores.

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
import flax.linen as nn
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import mhd_jax
from mhd_jax.models.heads import per_head

STEPS = int(os.environ.get("MHD_JAX_NOTEBOOK_STEPS", "600"))
CONFIG = {"train.steps": STEPS, "num_seeds": 3, "heads.aux": 2}

# %% [markdown]
# ## A head that only looks at the angle
#
# The logit of a class is the cosine of the angle between the embedding and the class's weights,
# times a learned scale, so no class can win by having larger weights. With `per_head` the initial
# values of a head do not depend on the number of heads: the isolated baseline, which has only a
# main head, starts from the same one.


# %%
class CosineHead(nn.Module):
    """Logits are scaled cosines."""

    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding, train):
        shape = (embedding.shape[-1], self.num_heads, self.num_classes)
        kernel = self.param("kernel", per_head(nn.initializers.lecun_normal()), shape)
        scale = self.param("scale", nn.initializers.constant(8.0), ())
        kernel = kernel / jnp.linalg.norm(kernel, axis=0)
        embedding = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
        return scale * jnp.einsum("bd,dhc->bhc", embedding, kernel)


# %% [markdown]
# ## A head that may abstain
#
# This head has one more class, "I do not know", for which there are no labels. Its probability is
# spread evenly over the real classes. A head that abstains is not confident, so nobody learns from
# it.


# %%
class AbstainingHead(nn.Module):
    """Has one more class inside, whose probability is spread evenly over the others."""

    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding, train):
        shape = (embedding.shape[-1], self.num_heads, self.num_classes + 1)
        kernel = self.param("kernel", per_head(nn.initializers.lecun_normal()), shape)
        probs = nn.softmax(jnp.einsum("bd,dhc->bhc", embedding, kernel))
        known, unknown = probs[..., :-1], probs[..., -1:]
        return jnp.log(known + unknown / self.num_classes)


# %% [markdown]
# ## Compare
#
# Everything else stays the same: data, clients, seeds.

# %%
runs = {
    "linear (default)": mhd_jax.fit(CONFIG),
    "cosine": mhd_jax.fit(CONFIG, head=CosineHead),
    "abstaining": mhd_jax.fit(CONFIG, head=AbstainingHead),
}


# %%
def over_seeds(run, kind, head):
    """Mean over clients, one number per seed."""
    return np.array([np.mean(one[kind], axis=0)[head] for one in run.summary["replicas"]])


print(f"{'head':18}{'shared, last head':>22}{'private, main head':>22}")
for name, run in runs.items():
    cells = [over_seeds(run, "shared_accuracy", -1), over_seeds(run, "private_accuracy", 0)]
    print(f"{name:18}" + "".join(f"{v.mean():15.3f} ± {v.std(ddof=1):.3f}" for v in cells))

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.6), sharey=True, layout="constrained")
shown = {"shared accuracy, last head": ("shared_accuracy", -1),
         "private accuracy, main head": ("private_accuracy", 0)}  # fmt: skip
for axis, (title, (kind, head)) in zip(axes, shown.items(), strict=True):
    for place, run in enumerate(runs.values()):
        values = over_seeds(run, kind, head)
        axis.plot(values, np.full(len(values), place), "o", color="#0072b2", alpha=0.6)
        axis.plot(values.mean(), place, "|", color="#24292f", markersize=18, mew=2)
    axis.set(title=title, yticks=range(len(runs)), yticklabels=list(runs), ylim=(2.5, -0.5))
    axis.locator_params(axis="x", nbins=4)
    axis.grid(axis="x", color="#e6e8eb")
plt.show()

# %% [markdown]
# Each dot is a seed, each bar their mean. A difference smaller than the spread means little;
# increase `num_seeds` to be surer.
#
# ## A head that breaks the contract
#
# Shapes are checked before anything is compiled, and the error names the expected one.


# %%
class ForgotTheHeads(nn.Module):
    """Returns [B, C] instead of [B, H, C]."""

    num_classes: int
    num_heads: int

    @nn.compact
    def __call__(self, embedding, train):
        return nn.Dense(self.num_classes)(embedding)


try:
    mhd_jax.fit(CONFIG, head=ForgotTheHeads)
except ValueError as error:
    print(error)
