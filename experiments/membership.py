# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""Was this sample a client's own? Membership told from what is published, with and without noise.

    python -m experiments.membership --out=runs/membership

Likelihood ratios in the manner of LiRA (N. Carlini et al., 2022, https://arxiv.org/abs/2112.03570).
Every seed divides the same CIFAR-10 images among four clients anew, so that each client of each
seed is a target and all clients of the other seeds are its shadows: all of them are rows of one
compiled step. Two clients share the images of every label evenly, and members of one are compared
with those that went to the other: nothing can be told from the label.

What the reader sees is what the method sends: of `mhd`, `codistillation` and `fedmd` the main
head's predictions on the public set, so that candidates are images of it, and, for any other image,
a surrogate distilled from these predictions; of `fedavg` the parameters before they are averaged.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from sklearn import metrics as sk_metrics

from experiments.checks import label_inference
from experiments.harness import records
from experiments.harness.candidates import ALL_PEERS
from experiments.harness.presets import ROOT
from experiments.harness.stepping import SteppedRun
from mhd_jax import command, rng
from mhd_jax.config import default_config, update
from mhd_jax.data import sources
from mhd_jax.data.sources.interface import SubSplit
from mhd_jax.experiment import Experiment
from mhd_jax.state import State

RESULTS = ROOT / "experiments" / "results" / "cifar10_cpu" / "membership"
CANDIDATES = 2000  # public images, and as many that are not public, all of them some client's own
READ_AT = (90, 290, 490)  # steps; parameters are averaged at 100, 200, ...
SURROGATE = {"steps": 300, "batch": 64, "learning_rate": 3e-3}
FALSE_POSITIVES = (0.01, 0.001)

SETTINGS: Mapping[str, Any] = {
    "data.name": "cifar10", "data.image_size": 16, "data.split": "train[:22400]",
    "data.batch_size": 128, "data.public_batch_size": 32, "clients.num": 4,
    "partition.name": "classes_per_client", "partition.classes_per_client": 5,
    "model.width": 64, "heads.aux": 1, "isolated_baseline": False,
    "average.every": 100, "train.steps": 500, "train.steps_per_call": 10, "train.log_every": 10,
    "train.eval_every": 10, "train.checkpoint_every": 10, "num_seeds": 8, "data.augment": "none",
}  # fmt: skip
"""Four clients with 5,600 samples of five labels each, about 11 passages through them."""


def _noise(multiplier: float) -> dict[str, Any]:
    return {
        "privacy.noise_multiplier": multiplier, "privacy.clip_norm": 1.0, "privacy.delta": 1e-5,
        "optimizer.clip_norm": 0.0, **ALL_PEERS,
    }  # fmt: skip


CASES: Mapping[str, Mapping[str, Any]] = {
    "mhd": ALL_PEERS,
    "mhd_noise_1": _noise(1.0),
    "fedavg": {"method": "fedavg"},
    "fedmd": {"method": "fedmd"},
    "codistillation": {"method": "codistillation"},
    "mhd_noise_0.5": _noise(0.5),
    "mhd_noise_2": _noise(2.0),
}
"""In the order of their importance."""

QUICK: Mapping[str, Any] = {
    "train.steps": 20, "num_seeds": 3, "data.split": "train[:800]", "model.width": 8,
    "data.batch_size": 16, "data.public_batch_size": 8,
}  # fmt: skip


# --- The attack -----------------------------------------------------------------------------------


class Candidates(NamedTuple):
    """Samples of which membership is asked, for R seeds and K clients.

    Attributes:
      images: as stored, [N, ...].
      labels: [N].
      member: whether a sample is the client's own, [R, K, N].
      compared: whether its label is one of the client's primary labels, [R, K, N].
    """

    images: np.ndarray
    labels: Int[np.ndarray, " N"]
    member: Bool[np.ndarray, "R K N"]
    compared: Bool[np.ndarray, "R K N"]


def candidates(experiment: Experiment, chosen: Int[np.ndarray, " N"]) -> Candidates:
    """The samples `chosen` of the training set, and whose they are."""
    train = experiment.federations[0].source.train
    partitions = [fed.partition for fed in experiment.federations]
    member = [[np.isin(chosen, owned) for owned in p.indices] for p in partitions]
    primary = np.stack([p.primary for p in partitions])
    labels = train.labels[chosen]
    return Candidates(train.images(chosen), labels, np.array(member), primary[:, :, labels])


def scaled_confidence(
    logits: Float[np.ndarray, "*shape C"], labels: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "*shape"]:
    """log p_y / (1 - p_y), which is near to normal over models, from logits [..., N, C].

    >>> scaled_confidence(np.log([[0.75, 0.05, 0.2]]), np.array([0])).round(4)
    array([1.0986])
    """
    at = np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1))
    own = np.take_along_axis(logits, at, axis=-1)[..., 0]
    rest = np.array(logits, float)
    np.put_along_axis(rest, at, -np.inf, axis=-1)
    return own - np.logaddexp.reduce(rest, axis=-1)


def likelihood_ratios(
    scores: Float[np.ndarray, "R K N"], member: np.ndarray, compared: np.ndarray
) -> Float[np.ndarray, "R K N"]:
    """log N(score; members) - log N(score; others), from the clients of all other seeds.

    A sample has a mean of its own among clients that had it and among those that did not, both
    with its label; the variance is that of all samples together, as the few shadows of one sample
    do not tell it. NaN where no two clients of either kind are there.
    """
    out = np.full(scores.shape, np.nan)
    for seed in range(len(scores)):
        others = np.arange(len(scores)) != seed
        densities = []
        enough = compared[seed]
        for shadows in (member & compared, ~member & compared):
            kept = shadows[others].reshape(-1, scores.shape[-1])
            values = scores[others].reshape(kept.shape)
            count = kept.sum(axis=0)
            mean = np.where(kept, values, 0).sum(axis=0) / np.maximum(count, 1)
            squares = np.where(kept, (values - mean) ** 2, 0).sum()
            variance = squares / np.maximum(count - 1, 0).sum()
            # of a new score around a mean of `count` others
            spread = variance * (1 + 1 / np.maximum(count, 1))
            densities.append(-((scores[seed] - mean) ** 2) / spread / 2 - np.log(spread) / 2)
            enough = enough & (count >= 2)
        out[seed] = np.where(enough, densities[0] - densities[1], np.nan)
    return out


def success(ratios: Float[np.ndarray, "R K N"], member: np.ndarray) -> dict[str, Any]:
    """Area under the ROC curve, by seed too, and true positives at few false ones."""
    told = np.isfinite(ratios)
    found, truth = ratios[told], member[told]
    false, true, _ = sk_metrics.roc_curve(truth, found)
    by_seed = [
        float(sk_metrics.roc_auc_score(m[t], r[t]))
        for r, m, t in zip(ratios, member, told, strict=True)
    ]
    return {
        "auc": float(sk_metrics.auc(false, true)),
        "auc_by_seed": by_seed,
        **{f"tpr_at_{level:g}": float(true[false <= level].max()) for level in FALSE_POSITIVES},
        "members": int(truth.sum()),
        "others": int((~truth).sum()),
    }


def attack(logits: Float[np.ndarray, "R K N C"], asked: Candidates) -> dict[str, Any]:
    """Success of the likelihood ratio, and of the confidence itself, which needs no shadows."""
    scores = scaled_confidence(logits, asked.labels)
    ratios = likelihood_ratios(scores, asked.member, asked.compared)
    plain = np.where(np.isfinite(ratios), scores, np.nan)
    return {
        **success(ratios, asked.member),
        "auc_without_shadows": success(plain, asked.member)["auc"],
    }


# --- What is read ---------------------------------------------------------------------------------


def main_logits(experiment: Experiment, state: State, images: np.ndarray) -> np.ndarray:
    """The main head's logits of every client on images as stored, [R, K, N, C]."""
    model, fed = experiment.parts.models[0], experiment.federations[0]
    return _rows(model, state.clients[0].snapshot, _normalized(fed, images))


def _normalized(fed: Any, images: np.ndarray) -> np.ndarray:
    return (images / np.float32(255) - np.float32(fed.mean)) / np.float32(fed.std)


def _rows(model: Any, variables: Any, images: np.ndarray) -> np.ndarray:
    """Logits of the main head, for leaves [R, K, ...]."""

    def one(variables: Any) -> Array:
        return model.apply(variables, images, train=False)[0][:, 0]

    return np.asarray(jax.jit(jax.vmap(jax.vmap(one)))(variables))


def surrogates(experiment: Experiment, images: np.ndarray, targets: np.ndarray) -> Any:
    """Networks like the clients', fitted to their predictions [R, K, N, C] on public images."""
    model = experiment.parts.models[0]
    model = model.clone(num_heads=1, head=model.head.clone(num_heads=1))
    fed, optimizer = experiment.federations[0], optax.adam(SURROGATE["learning_rate"])
    x = jnp.asarray(_normalized(fed, images))

    def loss(params: Any, x: Array, target: Array) -> Array:
        logits = model.apply({"params": params}, x, train=True)[0][:, 0]
        return optax.losses.softmax_cross_entropy(logits, target).mean()

    def fit(key: Array, target: Array) -> Any:
        params = model.init(key, x[:1], train=False)["params"]

        def step(index: Array, carry: Any) -> Any:
            params, state = carry
            draw = rng.fold(key, "batch", index)
            at = jax.random.randint(draw, (int(SURROGATE["batch"]),), 0, len(x))
            grads = jax.grad(loss)(params, x[at], target[at])
            updates, state = optimizer.update(grads, state)
            return optax.apply_updates(params, updates), state

        start = (params, optimizer.init(params))
        return jax.lax.fori_loop(0, int(SURROGATE["steps"]), step, start)[0]

    seeds, clients = targets.shape[:2]
    keys = rng.each(rng.stream(0, "surrogates"), jnp.arange(seeds * clients))
    fitted = jax.jit(jax.vmap(fit))(keys, targets.reshape(-1, *targets.shape[2:]))
    shaped = jax.tree.map(lambda leaf: leaf.reshape(seeds, clients, *leaf.shape[1:]), fitted)
    return model, {"params": shaped}


# --- The study ------------------------------------------------------------------------------------


def made_config(case: str, quick: bool = False) -> Any:
    """The settings of a case."""
    config = default_config()
    update(config, {**SETTINGS, **CASES[case], **(QUICK if quick else {})})
    return config


def run(case: str, quick: bool = False) -> dict[str, Any]:
    """Trains all rows of a case and attacks them; what its record holds."""
    began, config = time.time(), made_config(case, quick)
    source = sources.source(config.data)
    order = rng.generator(0, "candidates").permutation(len(source.train))
    count = min(CANDIDATES, len(order) // 2)
    public, others = np.sort(order[:count]), np.sort(order[count : 2 * count])
    stepper = SteppedRun(config, (source, SubSplit(source.train, public)))
    experiment = stepper.experiment
    asked = candidates(experiment, public)
    parameters = experiment.parts.method.averaging is not None
    reading, read, done = {}, [], 0
    for step in (10, 20) if quick else READ_AT:
        stepper.run(step - done)
        done = step
        logits = main_logits(experiment, stepper.state, asked.images)
        read.append({"step": step, **attack(logits, asked), "labels": _labels(experiment, logits)})
    reading["parameters" if parameters else "predictions"] = read
    if not parameters:
        fit, hidden = jax.nn.softmax(logits), candidates(experiment, others)
        model, variables = surrogates(experiment, asked.images, np.asarray(fit))
        images = _normalized(experiment.federations[0], hidden.images)
        found = attack(_rows(model, variables, images), hidden)
        reading["surrogate"] = [{"step": done, **found}]
    stepper.run(config.train.steps - done)
    accuracy = experiment.evaluator.evaluate(stepper.state)
    return {
        "case": case, "settings": {**SETTINGS, **CASES[case]}, "reading": reading,
        "shared_accuracy": accuracy.shared.mean(axis=1).tolist(),
        "private_accuracy": accuracy.private.mean(axis=1).tolist(),
        "epsilon": _epsilon(experiment), "compile_seconds": round(stepper.compile_seconds, 1),
        "wall_seconds": round(time.time() - began), "hardware": records.hardware(),
        "revision": records.revision(), "command": "python -m experiments.membership",
    }  # fmt: skip


def _labels(experiment: Experiment, logits: np.ndarray) -> dict[str, float]:
    """How near the mean prediction comes to the client's label distribution."""
    guess = np.asarray(jax.nn.softmax(logits)).mean(axis=2)[None]
    found = label_inference.compare(experiment, guess, [0])
    return {name: found[name][0] for name in ("distance", "divergence", "top_labels_found")}


def _epsilon(experiment: Experiment) -> list[float] | None:
    """Smallest and largest epsilon of all clients and seeds."""
    if experiment.epsilons[0] is None:
        return None
    every = np.concatenate([e for e in experiment.epsilons if e is not None])
    return [round(float(every.min()), 3), round(float(every.max()), 3)]


def cost(quick: bool = False) -> dict[str, Any]:
    """Processor seconds of a step with all seeds as rows and with one, measured in turn."""
    made: dict[int, dict[str, Any]] = {}
    steppers, count = {}, 10 if quick else 20
    for seeds in (1, int(SETTINGS["num_seeds"])):
        config = made_config("mhd", quick)
        config.num_seeds = seeds
        source = sources.source(config.data)
        public = SubSplit(source.train, np.arange(min(CANDIDATES, len(source.train) // 2)))
        begin = time.process_time()
        steppers[seeds] = SteppedRun(config, (source, public))
        made[seeds] = {"compile": time.process_time() - begin, "step": []}
        steppers[seeds].run(10)
    for _ in range(1 if quick else 5):
        for seeds, stepper in steppers.items():
            begin = time.process_time()
            stepper.run(count)
            made[seeds]["step"].append((time.process_time() - begin) / count)
    return {
        "case": "cost", "hardware": records.hardware(), "revision": records.revision(),
        "processor_seconds": {str(seeds): values for seeds, values in made.items()},
    }  # fmt: skip


# --- Tables ---------------------------------------------------------------------------------------


def read_all(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The committed records by case."""
    files = {case: folder / f"{case}.json" for case in (*CASES, "cost")}
    return {case: json.loads(f.read_text()) for case, f in files.items() if f.exists()}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Attack success of every case, by what is read and when."""
    lines = [
        "| method | reads | step | AUC | without shadows | found at 1 % false | at 0.1 % false "
        "| labels: distance | labels: KL | most frequent labels found |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, record in found.items():
        for what, read in record.get("reading", {}).items():
            lines += [f"| {_name(case)} | {what} | {_read(one)} |" for one in read]
    return "\n".join(lines)


def _name(case: str) -> str:
    method, _, noise = case.partition("_noise_")
    return f"`{method}`, noise {noise}" if noise else f"`{method}`"


def _read(one: Mapping[str, Any]) -> str:
    labels = one.get("labels")
    told = [f"{value:.3f}" for value in labels.values()] if labels else ["–"] * 3
    spread = np.std(one["auc_by_seed"], ddof=1)
    caught = [f"{100 * one[f'tpr_at_{level:g}']:.2f} %" for level in FALSE_POSITIVES]
    auc = [f"{one['auc']:.3f} ± {spread:.3f}", f"{one['auc_without_shadows']:.3f}"]
    return " | ".join([str(one["step"] or "end"), *auc, *caught, *told])


def trade(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy against epsilon against attack success at the end."""
    lines = [
        "| method | ε at δ = 1e-5 | shared accuracy, main | shared accuracy, last head "
        "| private accuracy, main | AUC | found at 1 % false |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case, record in sorted(found.items(), key=_by_noise):
        if "reading" not in record:
            continue
        shared, private = (np.array(record[f"{k}_accuracy"]) for k in ("shared", "private"))
        epsilon = record["epsilon"]
        one = next(iter(record["reading"].values()))[-1]
        between = "none" if epsilon is None else " to ".join(
            dict.fromkeys(f"{value:.2f}" for value in epsilon)
        )  # fmt: skip
        columns = (shared[:, 0], shared[:, -1], private[:, 0])
        accuracies = [f"{x.mean():.3f} ± {x.std(ddof=1):.3f}" for x in columns]
        caught = f"{100 * one['tpr_at_0.01']:.2f} %"
        cells = [_name(case), between, *accuracies, f"{one['auc']:.3f}", caught]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_noise(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
    """Cases without noise first, then by falling epsilon."""
    epsilon = item[1].get("epsilon")
    return (False, 0.0) if epsilon is None else (True, -epsilon[1])


def cost_line(record: Mapping[str, Any]) -> str:
    """Shadows as rows beside separate runs, in words."""
    seconds = record["processor_seconds"]
    one, many = (seconds[name] for name in sorted(seconds, key=int))
    seeds = max(map(int, seconds))
    steps = int(SETTINGS["train.steps"])
    rows = np.median(many["step"]) * steps + many["compile"]
    apart = seeds * (np.median(one["step"]) * steps + one["compile"])
    ratio = seeds * np.median(one["step"]) / np.median(many["step"])
    return (
        f"{seeds} seeds of 4 clients as rows of one program: {rows:,.0f} s of processor time on a "
        f"CPU, {many['compile']:.0f} s of it compiling; as {seeds} separate runs {apart:,.0f} s, "
        f"{one['compile']:.0f} s of compiling in each. Without compiling, separate runs take "
        f"{ratio:.2f} times as long as rows."
    )


def block(folder: Path = RESULTS) -> str:
    """What stands in a page."""
    found = read_all(folder)
    if not found:
        return "Not run yet.\n"
    said = [trade(found), table(found)]
    if "cost" in found:
        said.append(cost_line(found["cost"]))
    said.append("`python -m experiments.membership`, 8 seeds; ± is the deviation between seeds.")
    if missing := [_name(case) for case in CASES if case not in found]:
        said.append(f"Not run yet: {'; '.join(missing)}.")
    return "\n\n".join(said) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing, a file for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/membership"))
    known = [*CASES, "cost"]
    parser.add_argument("--cases", nargs="+", default=known, choices=known, metavar="CASE",
                        help=f"of {', '.join(known)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes; figures mean nothing")
    options = parser.parse_args(argv)
    stopped = "stopped; the cases that are finished stay, and the same command goes on"
    with command.told_in_one_line(stopped):
        _run_missing(options.cases, options.out, options.quick)
    print(block(options.out))


def _run_missing(cases: Sequence[str], folder: Path, quick: bool) -> None:
    """Writes a file for each case that has none."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        file = folder / f"{case}.json"
        if not file.exists():
            made = cost(quick) if case == "cost" else run(case, quick)
            records.write(file, json.dumps(made, indent=1) + "\n")
            print(f"{case}: {file}", flush=True)


if __name__ == "__main__":
    main()
