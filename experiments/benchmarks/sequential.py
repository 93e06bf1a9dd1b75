# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The same training in PyTorch, one client after another: what people use today.

Written as one would write it with care: a single forward pass on the public batch serves as
student and teacher, all heads are one matrix product, images are normalised beforehand and stay in
memory, no value leaves PyTorch during a step. A complete graph, the most confident teacher.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.benchmarks import networks, ours
from experiments.benchmarks.timing import Contender
from mhd_jax import optimizer
from mhd_jax.experiment import Experiment

PLANNED = 50  # steps whose batches are drawn beforehand and then used over and over


class Sequential:
    """K clients of the run `experiment` with their optimisers, at its initial parameters."""

    def __init__(self, experiment: Experiment) -> None:
        self.config, source = experiment.config, experiment.federations[0].source
        heads = experiment.parts.models[0].num_heads
        self.clients, self.optimizers = [], []
        for params in ours.host_params(experiment):
            client = networks.make(
                self.config.model.name, source.image_shape, self.config.model.width, heads,
                source.num_classes, self.config.model.depth,
            )  # fmt: skip
            networks.load(client, params)
            self.clients.append(client)
            self.optimizers.append(_optimizer(self.config, client))
        self._rate = optimizer.learning_rate(self.config)
        self._rates = np.asarray(self._rate(np.arange(PLANNED)))
        self._load(experiment)
        self._step = 0

    def _load(self, experiment: Experiment) -> None:
        fed, inputs = experiment.federations[0], experiment.schedule.host_inputs(0, PLANNED)
        mean, std = (np.asarray(x, np.float32) for x in (fed.mean, fed.std))

        def images(split: Any, index: np.ndarray) -> Tensor:
            stored = split.images(index)
            scale = 255 if stored.dtype == np.uint8 else 1
            normal = torch.from_numpy((stored.astype(np.float32) / scale - mean) / std)
            dense = self.config.model.name == "mlp"
            return normal if dense else normal.permute(0, 3, 1, 2).contiguous()

        self.images = [images(fed.source.train, index) for index in fed.partition.indices]
        self.labels = [
            torch.from_numpy(fed.source.train.labels[index].astype(np.int64))
            for index in fed.partition.indices
        ]
        self.public = images(fed.public, fed.public_indices)
        self.private_batches = torch.from_numpy(inputs.private[0][:, 0].astype(np.int64))
        self.public_batches = torch.from_numpy(inputs.public[:, 0].astype(np.int64))
        self._allowed = torch.from_numpy(inputs.reads[0].mask()[0, 0])
        # The client's own lower heads are candidates too.
        self._candidates = self._allowed | torch.eye(len(self._allowed), dtype=torch.bool)

    def step(self) -> Tensor:
        """One step of all clients; their losses [K]."""
        number = self._step % PLANNED
        losses = self.learn(self.private_batches[number], self.public_batches[number])
        self._step += 1
        return losses

    def learn(self, private_batches: Tensor, public_batch: Tensor) -> Tensor:
        """One step on the samples with these numbers, [K, B] and [B']."""
        public = self.public[public_batch]
        outputs = [self._forward(i, public) for i in range(len(self.clients))]
        log_probs = [functional.log_softmax(logits, dim=-1) for logits, _ in outputs]
        embeddings = [functional.normalize(embedding, dim=-1) for _, embedding in outputs]
        published = torch.stack([x.detach() for x in log_probs])
        theirs = torch.stack([x.detach() for x in embeddings])
        certainty, lengths = published.amax(-1).exp(), (theirs * theirs).sum(-1)
        losses = []
        for i in range(len(self.clients)):
            batch = private_batches[i]
            logits, _ = self._forward(i, self.images[i][batch])
            loss = functional.cross_entropy(logits[:, 0], self.labels[i][batch])
            share = self._allowed[i] / self._allowed[i].sum().clamp(min=1)
            loss = loss + self.config.distill.nu_emb * _embedding_loss(
                embeddings[i], theirs, lengths, share
            )
            loss = loss + self.config.distill.nu_aux * self._head_loss(
                i, log_probs[i], published, certainty
            )
            self._update(i, loss)
            losses.append(loss.detach())
        return torch.stack(losses)

    def _forward(self, i: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, H, C] and embeddings [B, D] of client i."""
        return self.clients[i](images)

    def _head_loss(self, i: int, student: Tensor, published: Tensor, certainty: Tensor) -> Tensor:
        allowed = self._candidates[i][:, None, None]
        masked = certainty[:, :, :-1].masked_fill(~allowed, -torch.inf)
        best = masked.argmax(0)
        samples, ranks = best.shape
        teacher = published[best, _range(samples, best)[:, None], _range(ranks, best)]
        return -(teacher.exp() * student[:, 1:]).sum(-1).mean(0).sum()

    def _update(self, i: int, loss: Tensor) -> None:
        optimizer = self.optimizers[i]
        optimizer.param_groups[0]["lr"] = float(self._rates[min(self._step, PLANNED - 1)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = self.config.optimizer.clip_norm
        if norm:
            torch.nn.utils.clip_grad_norm_(self.clients[i].parameters(), norm)
        optimizer.step()

    def contender(self, name: str, threads: int) -> Contender:
        """For `timing.alternate`, with so many threads inside an operation."""

        def run(steps: int) -> None:
            torch.set_num_threads(threads)
            for _ in range(steps):
                self.step()

        return Contender(name, run)


def _range(count: int, beside: Tensor) -> Tensor:
    """0, 1, ... on the device of another tensor."""
    return torch.arange(count, device=beside.device)


def _optimizer(config: Any, client: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, as one fused kernel."""
    if config.optimizer.name != "sgd":
        raise ValueError(f"no PyTorch counterpart of optimizer {config.optimizer.name!r}")
    rate, momentum = config.optimizer.learning_rate, config.optimizer.momentum
    return torch.optim.SGD(client.parameters(), rate, momentum=momentum, fused=True)


def _embedding_loss(student: Tensor, theirs: Tensor, lengths: Tensor, share: Tensor) -> Tensor:
    """Mean squared distance of the student [B, D] to its peers' [K, B, D], squares expanded."""
    mean = torch.einsum("k,kbd->bd", share, theirs)
    own = (student * student).sum(-1) * share.sum()
    return (own + share @ lengths - 2 * (student * mean).sum(-1)).mean()
