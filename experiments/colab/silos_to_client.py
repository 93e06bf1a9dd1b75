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
# # From four silos to a deployed client
#
# One CSV file, one column that names the silo, a categorical column and missing values. Four
# clients learn from each other, a fifth joins later, and one goes home as a folder of its own.
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
import pandas as pd
from sklearn import datasets, model_selection
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

import mhd_jax

STEPS = int(os.environ.get("MHD_JAX_NOTEBOOK_STEPS", "600"))
FOLDER = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## The CSV
#
# This cell writes one, from a table that comes with scikit-learn: 569 tumours, benign or malignant.
# Each hospital sees tumours of one size, the scanner is a category, and one value in fifty is
# missing. With a file of your own, skip it.

# %%
data = datasets.load_breast_cancer(as_frame=True)
table = data.data.copy()
draw = np.random.default_rng(0)
radius = table["mean radius"]
table["hospital"] = pd.qcut(radius, 4, labels=["north", "east", "south", "west"]).astype(str)
table["scanner"] = draw.choice(["A", "B", "C"], size=len(table))
measured = list(data.data.columns)
table[measured] = table[measured].mask(draw.random(table[measured].shape) < 0.02)
table["diagnosis"] = data.target_names[data.target]
table.to_csv(FOLDER / "tumours.csv", index=False)

# %% [markdown]
# ## Public, private, test
#
# Test rows are for everybody, with every class. Public rows have no labels. The rest is private;
# twenty benign ones are kept for a hospital that comes later.

# %%
table = pd.read_csv(FOLDER / "tumours.csv")
CLASSES = sorted(table["diagnosis"].unique())
table["label"] = table["diagnosis"].map(CLASSES.index)
private, test = model_selection.train_test_split(
    table, test_size=150, random_state=0, stratify=table["label"]
)
private, public = model_selection.train_test_split(private, test_size=0.2, random_state=0)
late = private[private["diagnosis"] == "benign"].sample(20, random_state=0)
private = private.drop(late.index)
pd.crosstab(private["hospital"], private["diagnosis"])

# %% [markdown]
# Categories and missing values are prepared with the public rows: what is learned from private ones
# would leave a hospital before training.

# %%
prepare = make_column_transformer(
    (SimpleImputer(strategy="median"), measured),
    (OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["scanner"]),
).fit(public)


def samples(rows):
    """Features and labels."""
    return prepare.transform(rows), rows["label"].to_numpy()


source = mhd_jax.from_clients(
    {name: samples(rows) for name, rows in private.groupby("hospital")},
    public=prepare.transform(public),
    test=samples(test),
    class_names=CLASSES,
    name="tumours",
)

# %% [markdown]
# ## Training
#
# The network could be any of Flax. This one is written in `flax.nnx`: `fit` gives it its `rngs`.

# %%
from flax import nnx

FEATURES = source.image_shape[0]


class Tumours(nnx.Module):
    """Two dense layers with dropout."""

    def __init__(self, *, rngs):
        self.first = nnx.Linear(FEATURES, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.second = nnx.Linear(64, 32, rngs=rngs)
        self.norm = nnx.LayerNorm(32, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.second(self.dropout(nnx.relu(self.first(x)))))


settings = {
    "data.batch_size": 32,
    "data.public_batch_size": 32,
    "heads.aux": 2,
    "train.steps": STEPS,
    "train.eval_every": max(1, STEPS // 6),
}
run = mhd_jax.fit(settings, FOLDER / "run", source=source, model=Tumours)

# %%
run.plot_accuracy()

# %% [markdown]
# ## A fifth hospital, later
#
# It has twenty tumours, all benign. It learns from what the other four publish; they stay what they
# are. Alone, it knows one class.

# %%
later = mhd_jax.join(run, samples(late), FOLDER / "later", name="new")
alone = later.summary.isolated_baseline.shared_accuracy[-1, 0]
print(f"alone {alone:.2f}, having joined {later.clients[-1].shared_accuracy[-1]:.2f}")

# %% [markdown]
# ## Take a client home
#
# The folder is all that it needs, neither the run nor the data. `load_client` works anywhere.

# %%
folder = later.export("new", FOLDER / "new")
client = mhd_jax.load_client(folder)
features, labels = samples(test)
probabilities = client.predict(features)  # [N, H, C]
right = probabilities[:, -1].argmax(axis=-1) == labels
print(f"{client}: {right.mean():.3f} of {len(right)} test rows right")
