# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What published predictions tell about private labels: one leak that MHD has, measured.

    python -m experiments.checks.label_inference --out=experiments/results/digits/label_inference

Whoever reads a client's predictions on the public set can average them: the mean probability of
each class over public samples is a guess at the client's private label distribution. A reader who
has listened from the start averages all guesses so far. Told against two guesses that need no
predictions (uniform, and the label distribution of everybody together): the total variation
distance between guess and truth, 1/2 sum_c |guess(c) - truth(c)|, the divergence
KL(truth || guess), and how many of the client's most frequent labels, as many as it has primary
labels, are among the guess's.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from experiments.harness import plots, records
from experiments.harness.stepping import SteppedRun
from mhd_jax.config import default_config, update
from mhd_jax.data import augment
from mhd_jax.experiment import Experiment
from mhd_jax.state import State


def measure(skew: float, steps: int, seeds: int) -> dict[str, Any]:
    """Trains `seeds` systems of eight clients and guesses their label distributions.

    Args:
      skew: of the primary labels.
      steps: of the run.
      seeds: systems, trained together.

    Returns:
      "steps", every fiftieth, and, per step, means over seeds and clients of each measure; under
      "over_time" the same for the mean of all guesses so far.
    """
    config = default_config()
    update(config, {"partition.skew": skew, "train.steps": steps, "num_seeds": seeds,
                    "isolated_baseline": False, "train.log_every": 50, "train.checkpoint_every": 50,
                    "train.eval_every": 50})  # fmt: skip
    stepper, guesses = SteppedRun(config), []
    for _step in range(stepper.unit, steps + 1, stepper.unit):
        stepper.run(stepper.unit)
        guesses.append(guess(stepper.experiment, stepper.state))
    at = list(range(stepper.unit, steps + 1, stepper.unit))
    every = np.stack(guesses)
    so_far = np.cumsum(every, axis=0) / np.arange(1, len(every) + 1).reshape(-1, 1, 1, 1)
    listened = compare(stepper.experiment, so_far, at)
    over_time = {name: listened[name] for name in ("distance", "divergence", "top_labels_found")}
    return {**compare(stepper.experiment, every, at), "over_time": over_time}


def guess(experiment: Experiment, state: State) -> np.ndarray:
    """Mean probabilities of the published main head on the public set, [R, K, C]."""
    fed, model = experiment.federations[0], experiment.parts.models[0]
    images = augment.normalize(experiment.feed.data["public"], fed.mean, fed.std)

    def of_client(snapshot: Any, images: jax.Array) -> jax.Array:
        logits, _ = model.apply(snapshot, images, train=False)
        return jax.nn.softmax(logits[:, 0]).mean(axis=0)

    of_system = jax.vmap(of_client, in_axes=(0, None))
    found = jax.jit(jax.vmap(of_system))(state.clients[0].snapshot, jnp.asarray(images))
    return np.asarray(found)[:, : experiment.layout.num_clients]


def compare(experiment: Experiment, guesses: np.ndarray, at: list[int]) -> dict[str, Any]:
    """Guesses [T, R, K, C] against the truth."""
    classes = experiment.federations[0].source.num_classes
    counts = np.stack([fed.histogram for fed in experiment.federations])
    primary = np.stack([fed.partition.primary.sum(axis=1) for fed in experiment.federations])
    truth = counts / counts.sum(axis=-1, keepdims=True)
    together = counts.sum(axis=1, keepdims=True) / counts.sum(axis=(1, 2), keepdims=True)
    distance = lambda x: 0.5 * np.abs(x - truth).sum(axis=-1)  # noqa: E731
    divergence = lambda x: special.rel_entr(truth, x).sum(axis=-1)  # noqa: E731
    found = distance(guesses)
    hits = top_hits(guesses, np.broadcast_to(truth, guesses.shape), primary)
    return {
        "steps": at,
        "distance": found.mean(axis=(1, 2)).tolist(),
        "distance_by_seed": found.mean(axis=2).T.tolist(),
        "divergence": divergence(guesses).mean(axis=(1, 2)).tolist(),
        "divergence_uniform_guess": float(divergence(np.full(classes, 1 / classes)).mean()),
        "divergence_global_guess": float(divergence(together).mean()),
        "distance_uniform_guess": float(distance(np.full(classes, 1 / classes)).mean()),
        "distance_global_guess": float(distance(together).mean()),
        "top_labels_found": hits.mean(axis=(1, 2)).tolist(),
        "top_labels_by_chance": float((primary / classes).mean()),
    }


def top_hits(guesses: np.ndarray, truth: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Share of the `wanted` [R, K] most frequent labels among as many of the guess, [T, R, K].

    >>> top_hits(np.array([[[[0.5, 0.3, 0.2]]]]), np.array([[[[0.6, 0.1, 0.3]]]]), np.array([[2]]))
    array([[[0.5]]])
    """
    place = lambda x: np.argsort(np.argsort(-x, axis=-1), axis=-1)  # noqa: E731
    size = wanted[None, ..., None]
    both = (place(guesses) < size) & (place(truth) < size)
    return both.sum(axis=-1) / wanted[None]


def draw(results: dict[str, Any], path: Path) -> None:
    """Both measures over steps for every skew, with the guess that needs no predictions."""
    figure, axes = plots.panels(2, 2.9)
    names = {"distance": "total variation distance", "divergence": "KL(truth || guess), nats"}
    for axis, (measured, title) in zip(axes, names.items(), strict=True):
        for colour, (name, found) in zip(plots.COLOURS, results.items(), strict=False):
            line = functools.partial(axis.plot, found["steps"], color=colour)
            line(found[measured], marker="o", markersize=3, label=f"s = {name}: now")
            line(found["over_time"][measured], linestyle=":", label=f"s = {name}: mean so far")
            axis.axhline(found[f"{measured}_global_guess"], color=colour, linestyle="--",
                         label=f"s = {name}: everybody's labels")  # fmt: skip
        axis.set_title(title, loc="left", fontsize=8)
        axis.set_xlabel("training step")
        axis.set_ylim(0, None)
    plots.legend(figure, axes[0])
    plots.save(figure, path)


def main() -> None:
    """Writes label_inference.json and label_inference.png and prints the last row of each skew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/label_inference"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--skews", type=float, nargs="+", default=[0.0, 100.0])
    options = parser.parse_args()
    results = {}
    for skew in options.skews:
        found = results[f"{skew:g}"] = measure(skew, options.steps, options.seeds)
        print(f"s={skew:g}: distance {found['distance'][-1]:.3f}, uniform guess "
              f"{found['distance_uniform_guess']:.3f}, "
              f"global {found['distance_global_guess']:.3f}; top labels "
              f"{found['top_labels_found'][-1]:.2f}, by chance "
              f"{found['top_labels_by_chance']:.2f}", flush=True)  # fmt: skip
        record = {**records.provenance(), "seeds": options.seeds, "steps": options.steps,
                  "skew": results}  # fmt: skip
        records.write(options.out / "label_inference.json", records.to_compact_json(record))
    draw(results, options.out / "label_inference.png")


if __name__ == "__main__":
    main()
