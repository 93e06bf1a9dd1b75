# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The same training in PyTorch with all clients stacked: `torch.func.vmap` over their parameters.

Written as one would write it with care: one vmapped forward pass for all private batches and one
for the public batch, whose predictions serve as students and teachers; on the complete graph, the
only one it knows, the teacher of a sample is chosen once for all clients, and the mean embedding of
a client's peers is the sum of all less its own; one backward pass, one fused optimiser over the
stack, clipping by every client's own norm in one product per parameter.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from experiments.benchmarks.sequential import PLANNED, Sequential
from mhd_jax.experiment import Experiment


class Stacked(Sequential):
    """K clients of the run `experiment` in one stack, at its initial parameters."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        count = len(self.clients)
        if not np.array_equal(self._allowed, ~np.eye(count, dtype=bool)):
            raise ValueError("the stacked contender knows the complete graph alone")
        stacked, _ = torch.func.stack_module_state(self.clients)
        self._params = {name: value.detach().requires_grad_() for name, value in stacked.items()}
        self._client = copy.deepcopy(self.clients[0]).to("meta")
        chosen = self.config.optimizer
        self._optimizer = torch.optim.SGD(
            list(self._params.values()), chosen.learning_rate, momentum=chosen.momentum, fused=True
        )
        self._all_images = pad_sequence(self.images, batch_first=True)
        self._all_labels = pad_sequence(self.labels, batch_first=True)
        self._rows = torch.arange(count)[:, None]

    def learn(self, private_batches: Tensor, public_batch: Tensor) -> Tensor:
        """One step on the samples with these numbers, [K, B] and [B']."""
        chosen = self.config.distill
        losses = self._private_losses(private_batches)
        logits, embeddings = self._stacked(self.public[public_batch], shared=True)
        log_probs = functional.log_softmax(logits, dim=-1)
        losses = losses + chosen.nu_emb * _embedding_losses(
            functional.normalize(embeddings, dim=-1)
        )
        losses = losses + chosen.nu_aux * _head_losses(log_probs)
        self._optimizer.param_groups[0]["lr"] = float(self._rates[min(self._step, PLANNED - 1)])
        self._optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self._clip()
        self._optimizer.step()
        return losses.detach()

    def _stacked(self, images: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
        """Logits [K, B, H, C] and embeddings [K, B, D], of the same images or of each one's own."""

        def one(params: Any, images: Tensor) -> Any:
            return torch.func.functional_call(self._client, params, (images,))

        forward = torch.func.vmap(one, in_dims=(0, None if shared else 0))
        logits, embeddings = forward(self._params, images)
        return logits, embeddings

    def _private_losses(self, batches: Tensor) -> Tensor:
        """Cross-entropy of every client's main head, [K]."""
        logits, _ = self._stacked(self._all_images[self._rows, batches], shared=False)
        labels = self._all_labels[self._rows, batches]
        losses = functional.cross_entropy(
            logits[:, :, 0].flatten(0, 1), labels.flatten(), reduction="none"
        )
        return losses.view(labels.shape).mean(1)

    def _clip(self) -> None:
        norm = self.config.optimizer.clip_norm
        if not norm:
            return
        grads = [value.grad for value in self._params.values() if value.grad is not None]
        squares = torch.stack([grad.flatten(1).square().sum(1) for grad in grads])
        scale = (norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1)
        for grad in grads:
            grad.mul_(scale.view(-1, *[1] * (grad.ndim - 1)))


def _head_losses(log_probs: Tensor) -> Tensor:
    """Cross-entropy with the surest of all clients, oneself too, [K, B, H, C] to [K]."""
    published = log_probs.detach()
    best = published.amax(-1)[:, :, :-1].argmax(0)  # one teacher for all, [B, m]
    samples, ranks = best.shape
    teacher = published[best, torch.arange(samples)[:, None], torch.arange(ranks)].exp()
    return -(teacher * log_probs[:, :, 1:]).sum(-1).mean(1).sum(1)


def _embedding_losses(embeddings: Tensor) -> Tensor:
    """Mean squared distance to all others, squares expanded: unit vectors [K, B, D] to [K]."""
    theirs, peers = embeddings.detach(), len(embeddings) - 1
    mean = (theirs.sum(0) - theirs) / peers
    lengths = theirs.square().sum(-1)
    mean_length = (lengths.sum(0) - lengths) / peers
    own = embeddings.square().sum(-1)
    return (own + mean_length - 2 * (embeddings * mean).sum(-1)).mean(1)
