# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""What published predictions tell about private labels: one leak that MHD has, measured.

    python -m experiments.checks.label_inference --out=experiments/results/digits/label_inference

Whoever reads a client's predictions on the public set can average them: the mean probability of
each class over public samples is a guess at the client's private label distribution. Told against
two guesses that need no predictions (uniform, and the label distribution of everybody together):
the total variation distance between guess and truth, 1/2 sum_c |guess(c) - truth(c)|, and how many
of the client's most frequent labels, as many as it has primary labels, are among the guess's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.stepping import Stepper
from mhd_jax.config import default_config, update
from mhd_jax.data import augment
from mhd_jax.experiment import Experiment
from mhd_jax.state import State


def measure(skew: float, steps: int, seeds: int, at: list[int]) -> dict[str, Any]:
    """Trains `seeds` systems of eight clients and guesses their label distributions.

    Args:
      skew: of the primary labels.
      steps: of the run.
      seeds: systems, trained together.
      at: steps after which to guess.

    Returns:
      "steps" and, per step, means over seeds and clients; by seed under "by_seed".
    """
    config = default_config()
    update(config, {"partition.skew": skew, "train.steps": steps, "num_seeds": seeds,
                    "isolated_baseline": False, "train.log_every": 50, "train.checkpoint_every": 50,
                    "train.eval_every": 50})  # fmt: skip
    stepper, guesses = Stepper(config), []
    for step in range(stepper.unit, steps + 1, stepper.unit):
        stepper.run(stepper.unit)
        if step in at:
            guesses.append(guess(stepper.experiment, stepper.state))
    return _compare(stepper.experiment, np.stack(guesses), at)


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


def _compare(experiment: Experiment, guesses: np.ndarray, at: list[int]) -> dict[str, Any]:
    """Guesses [T, R, K, C] against the truth."""
    classes = experiment.federations[0].source.num_classes
    counts = np.stack([fed.partition.histogram(fed.source.train.labels, classes)
                       for fed in experiment.federations])  # fmt: skip
    primary = np.stack([fed.partition.primary.sum(axis=1) for fed in experiment.federations])
    truth = counts / counts.sum(axis=-1, keepdims=True)
    together = counts.sum(axis=1, keepdims=True) / counts.sum(axis=(1, 2), keepdims=True)
    distance = lambda x: 0.5 * np.abs(x - truth).sum(axis=-1)  # noqa: E731
    found = distance(guesses)
    hits = top_hits(guesses, np.broadcast_to(truth, guesses.shape), primary)
    return {
        "steps": at,
        "distance": found.mean(axis=(1, 2)).tolist(),
        "distance_by_seed": found.mean(axis=2).T.tolist(),
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
    """Distance over steps for every skew, with the guesses that need no predictions."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for color, (name, found) in enumerate(results.items()):
        axes.plot(
            found["steps"], found["distance"], f"C{color}o-", label=f"s = {name}: predictions"
        )
        axes.axhline(found["distance_global_guess"], color=f"C{color}", linestyle="--",
                     label=f"s = {name}: global distribution")  # fmt: skip
    axes.set(xlabel="training step", ylabel="total variation distance", ylim=(0, None),
             title="Private label distributions guessed from predictions")  # fmt: skip
    axes.legend(fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Writes label_inference.json and label_inference.png and prints the last row of each skew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/label_inference"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--skews", type=float, nargs="+", default=[0.0, 100.0])
    options = parser.parse_args()
    at = sorted({50, 100, 200, options.steps // 2 // 50 * 50, options.steps})
    results = {}
    options.out.mkdir(parents=True, exist_ok=True)
    for skew in options.skews:
        found = results[f"{skew:g}"] = measure(skew, options.steps, options.seeds, at)
        print(f"s={skew:g}: distance {found['distance'][-1]:.3f}, uniform guess "
              f"{found['distance_uniform_guess']:.3f}, "
              f"global {found['distance_global_guess']:.3f}; top labels "
              f"{found['top_labels_found'][-1]:.2f}, by chance "
              f"{found['top_labels_by_chance']:.2f}", flush=True)  # fmt: skip
        record = {"seeds": options.seeds, "steps": options.steps, "skew": results}
        (options.out / "label_inference.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(results, options.out / "label_inference.png")


if __name__ == "__main__":
    main()
