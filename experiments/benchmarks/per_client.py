# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The same training as a plain JAX loop: jitted functions of one client, called K times a step.

Two calls per client: its predictions on the public batch, and, once everybody's are there, its
own step. The equations are this package's.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.timing import Contender
from mhd_jax import distill
from mhd_jax.data.augment import normalize
from mhd_jax.experiment import Experiment

PLANNED = 50  # steps whose batches are drawn beforehand and then used over and over


class PerClient:
    """K clients of the run `experiment`, each with arrays of its own, at its initial state."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        (cohort,) = experiment.init_state().clients
        size = experiment.layout.num_clients
        self.learners = [
            jax.tree.map(lambda x, i=i: x[0, i], (cohort.params, cohort.opt_state))
            for i in range(size)
        ]
        ((images, labels),) = experiment.feed.data["private"]
        self._data = [(images[0, i], labels[0, i]) for i in range(size)]
        self._public = experiment.feed.data["public"][0]
        inputs = jax.device_get(experiment.schedule.host_inputs(0, PLANNED))
        self._private_batches = [
            [jnp.asarray(row) for row in step[0]] for step in np.asarray(inputs.private[0])
        ]
        self._public_batches = [jnp.asarray(step[0]) for step in inputs.public]
        self._reads = [jnp.asarray(row) for row in inputs.reads[0].mask()[0, 0]]
        self._step = 0
        self.compile_seconds = self._compile()

    def _compile(self) -> float:
        begin = time.monotonic()
        params, opt_state = self.learners[0]
        batch, at = self._private_batches[0][0], self._public_batches[0]
        self._predict = jax.jit(self._predict_one).lower(params, self._public, at).compile()
        said = self._predict(params, self._public, at)
        everybody = jax.tree.map(lambda x: jnp.stack([x] * len(self.learners)), said)
        step = jax.jit(self._step_one, donate_argnums=(0, 1))
        self._train = step.lower(
            params, opt_state, self._data[0], batch, self._public, at, everybody, self._reads[0],
            jnp.asarray(0),
        ).compile()  # fmt: skip
        self._ids = [jnp.asarray(i) for i in range(len(self.learners))]
        return time.monotonic() - begin

    def _forward(self, params: Any, stored: jax.Array, at: jax.Array) -> tuple[Any, Any]:
        federation = self._experiment.federations[0]
        images = normalize(stored[at], federation.mean, federation.std)
        return self._experiment.parts.models[0].apply(
            {"params": params["model"]}, images, train=True
        )

    def _predict_one(self, params: Any, public: jax.Array, at: jax.Array) -> tuple[Any, Any]:
        logits, embedding = self._forward(params, public, at)
        return jax.nn.log_softmax(logits), embedding

    def _step_one(
        self, params: Any, opt_state: Any, data: Any, batch: Any, public: Any, at: Any,
        everybody: Any, reads: Any, client: Any,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        chosen, (images, labels) = self._experiment.config.distill, data
        published, embeddings = everybody

        def objective(params: Any) -> Any:
            logits, _ = self._forward(params, images, batch)
            log_probs, embedding = self._predict_one(params, public, at)
            below = (reads | (jnp.arange(len(reads)) == client))[None]
            teachers = distill.select_teachers(published, below)
            heads = distill.prediction_loss(log_probs[None], published, teachers)
            likeness = distill.embedding_loss(embedding[None], embeddings, reads[None])
            private = optax.losses.softmax_cross_entropy_with_integer_labels(
                logits[:, 0], labels[batch]
            )
            return private.mean() + chosen.nu_emb * likeness.sum() + chosen.nu_aux * heads.sum()

        loss, gradient = jax.value_and_grad(objective)(params)
        updates, opt_state = self._experiment.parts.optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def step(self) -> list[jax.Array]:
        """One step of all clients; their losses."""
        number, losses = self._step % PLANNED, []
        at = self._public_batches[number]
        said = [self._predict(params, self._public, at) for params, _ in self.learners]
        everybody = jax.tree.map(lambda *rows: jnp.stack(rows), *said)
        for i, (params, opt_state) in enumerate(self.learners):
            batch = self._private_batches[number][i]
            params, opt_state, loss = self._train(
                params, opt_state, self._data[i], batch, self._public, at, everybody,
                self._reads[i], self._ids[i],
            )  # fmt: skip
            self.learners[i] = (params, opt_state)
            losses.append(loss)
        self._step += 1
        return losses

    def contender(self, name: str) -> Contender:
        """For `timing.alternate`."""

        def run(steps: int) -> None:
            for _ in range(steps):
                self.step()
            jax.block_until_ready(self.learners)

        return Contender(name, run, self.compile_seconds)
