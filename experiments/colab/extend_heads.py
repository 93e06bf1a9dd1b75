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
# # Heads of your own
#
# A head is a small Linen module that turns embeddings `[B, D]` into the logits of all heads,
# `[B, H, C]`: the main head and the auxiliary ones. Here are two, each compared with the default
# over three seeds that train side by side as one program (`replicas`).
#
# Runs in less than two minutes on two CPU cores.

# %%
import os
import subprocess
import sys

if "google.colab" in sys.modules:  # a local checkout is installed already
    source = os.environ.get("MHD_JAX_SOURCE", "mhd-jax")  # or the address of a repository
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

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
# The logit of a class is the cosine between the embedding and the direction of that class, times
# a learned scale, so that no class can win by having longer weights. `per_head` gives each head
# initial values that do not depend on how many heads there are: the isolated baseline, which has a
# main head only, then starts from the same one.


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
# One class more, which nobody labels: "I do not know". Its probability is spread evenly over the
# real classes. A head that abstains is not confident, so nobody takes it as a teacher.


# %%
class AbstainingHead(nn.Module):
    """One more class inside, whose probability goes to all classes alike."""

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
# Nothing else changes: same data, same clients, same seeds.

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
# A dot is a seed, the bar their mean. Whether a difference is one depends on the spread: change
# `replicas` for more seeds.
#
# ## What happens to a head that breaks the contract
#
# Shapes are checked before anything is compiled.


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
