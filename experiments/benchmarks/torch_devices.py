# Copyright 2026 The mhd-jax authors. SPDX-License-Identifier: Apache-2.0
"""The training of `sequential` on any device, in the ways in which PyTorch can be made fast.

- `eager`: client after client, as it is;
- `compiled`: a client's network through `torch.compile`, compiled once for all clients;
- `vmap`: all clients at once, stacked parameters under `torch.func.vmap`;
- `eager_graph`, `compiled_graph`, `vmap_graph`: the whole step of all clients, in one of these
  ways, as one CUDA graph.

Needs PyTorch (`pip install -e ".[bench]"`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from experiments.benchmarks.sequential import Sequential, _embedding_loss, _optimizer
from experiments.benchmarks.timing import Contender
from mhd_jax.experiment import Experiment


class OnDevice(Sequential):
    """One client after another on a device, in float32 or under autocast to bfloat16.

    Args:
      experiment: see `Sequential`.
      device: of PyTorch, "cuda" or "cpu".
    """

    def __init__(self, experiment: Experiment, device: str) -> None:
        super().__init__(experiment)
        self.device = torch.device(device)
        self.half = self.config.model.dtype == "bfloat16"
        for client in self.clients:
            client.to(self.device)
        self.optimizers = [_optimizer(self.config, client) for client in self.clients]
        self.images = [images.to(self.device) for images in self.images]
        self.labels = [labels.to(self.device) for labels in self.labels]
        self.public = self.public.to(self.device)
        self.private_batches = self.private_batches.to(self.device)
        self.public_batches = self.public_batches.to(self.device)
        self._allowed = self._allowed.to(self.device)
        self._candidates = self._candidates.to(self.device)

    def _forward(self, i: int, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits, embedding = self._network(i, images)
        return logits.float(), embedding.float()

    def _network(self, i: int, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.clients[i](images)

    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [value for client in self.clients for value in client.parameters()]

    def momenta(self) -> list[Tensor]:
        """What the optimisers keep; zero before the first step."""
        kept = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        return [state["momentum_buffer"] for state in kept]

    def on_device(self, name: str) -> Contender:
        """For `timing.alternate`; waits for the device."""
        return _contender(name, self)


class Compiled(OnDevice):
    """As `OnDevice`, through `torch.compile`; parameters are arguments, so K clients share it."""

    def __init__(self, experiment: Experiment, device: str) -> None:
        super().__init__(experiment, device)
        first = self.clients[0]
        self._parameters = [dict(client.named_parameters()) for client in self.clients]
        self._buffers = dict(first.named_buffers())

        def call(parameters: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.functional_call(first, (parameters, self._buffers), (images,))

        self._compiled: Callable[..., Any] = torch.compile(call)

    def _network(self, i: int, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._compiled(self._parameters[i], images)


class Graphed:
    """The whole step of all clients, in any of the ways, as one CUDA graph.

    The learning rate is that of its capture.
    """

    WARM_UP = 3

    def __init__(self, way: OnDevice) -> None:
        self._way, self._number = way, 0
        before = [value.detach().clone() for value in way.parameters()]
        self._now = (way.private_batches[0].clone(), way.public_batches[0].clone())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.WARM_UP):
                way.learn(*self._now)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._losses = way.learn(*self._now)
        with torch.no_grad():  # as if it had never been warmed up
            torch._foreach_copy_([value.detach() for value in way.parameters()], before)
            torch._foreach_zero_(way.momenta())

    def step(self) -> Tensor:
        """See `Sequential.step`."""
        number = self._number % len(self._way.public_batches)
        self._now[0].copy_(self._way.private_batches[number])
        self._now[1].copy_(self._way.public_batches[number])
        self._graph.replay()
        self._number += 1
        return self._losses

    def on_device(self, name: str) -> Contender:
        """See `OnDevice.on_device`."""
        return _contender(name, self)


class Stacked(OnDevice):
    """All clients at once; one forward pass on the public batch is student and teacher."""

    def __init__(self, experiment: Experiment, device: str) -> None:
        super().__init__(experiment, device)
        first = self.clients[0]
        stacked, self._buffers = torch.func.stack_module_state(self.clients)
        self._stacked = {name: p.detach().requires_grad_() for name, p in stacked.items()}
        self._momentum: dict[str, Tensor] = {}
        size = min(len(images) for images in self.images)
        self._images = torch.stack([images[:size] for images in self.images])
        self._labels = torch.stack([labels[:size] for labels in self.labels])
        self.private_batches = self.private_batches % size

        def call(parameters: Any, buffers: Any, images: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.functional_call(first, (parameters, buffers), (images,))

        self._together = torch.func.vmap(call, in_dims=(0, 0, 0))
        self._on_public = torch.func.vmap(call, in_dims=(0, 0, None))

    def learn(self, private_batches: Tensor, public_batch: Tensor) -> Tensor:
        """See `Sequential.learn`."""
        rows = torch.arange(len(private_batches), device=self.device)[:, None]
        images, labels = self._images[rows, private_batches], self._labels[rows, private_batches]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            private, _ = self._together(self._stacked, self._buffers, images)
            public = self._on_public(self._stacked, self._buffers, self.public[public_batch])
        logits, embedding = (x.float() for x in public)
        log_probs, embedding = (
            functional.log_softmax(logits, -1),
            functional.normalize(embedding, dim=-1),
        )
        main = private[:, :, 0].float().transpose(1, 2)
        losses = functional.cross_entropy(main, labels, reduction="none").mean(1)
        losses = losses + self.config.distill.nu_emb * self._embedding_losses(embedding)
        losses = losses + self.config.distill.nu_aux * self._head_losses(log_probs)
        names = list(self._stacked)
        gradients = torch.autograd.grad(losses.sum(), [self._stacked[name] for name in names])
        self._move(dict(zip(names, gradients, strict=True)))
        return losses.detach()

    def parameters(self) -> list[Tensor]:
        """See `OnDevice.parameters`."""
        return list(self._stacked.values())

    def momenta(self) -> list[Tensor]:
        """See `OnDevice.momenta`."""
        return list(self._momentum.values())

    def _embedding_losses(self, embedding: Tensor) -> Tensor:
        theirs = embedding.detach()
        lengths = (theirs * theirs).sum(-1)
        share = self._allowed / self._allowed.sum(1, keepdim=True).clamp(min=1)
        return torch.func.vmap(_embedding_loss, in_dims=(0, None, None, 0))(
            embedding, theirs, lengths, share
        )

    def _head_losses(self, log_probs: Tensor) -> Tensor:
        published = log_probs.detach()
        certainty = published.amax(-1).exp()[:, :, :-1]  # [K, B, H - 1]
        allowed = self._candidates[:, :, None, None]
        best = certainty[None].masked_fill(~allowed, -torch.inf).argmax(1)  # [K, B, H - 1]
        samples = torch.arange(best.shape[1], device=self.device)[:, None]
        ranks = torch.arange(best.shape[2], device=self.device)
        teacher = published[best, samples, ranks]
        return -(teacher.exp() * log_probs[:, :, 1:]).sum(-1).mean(1).sum(-1)

    @torch.no_grad()
    def _move(self, gradients: dict[str, Tensor]) -> None:
        """SGD with momentum, gradients clipped by the norm of each client's."""
        optimizer, number = self.config.optimizer, min(self._step, len(self._rates) - 1)
        if optimizer.clip_norm:
            squares = sum(g.flatten(1).square().sum(1) for g in gradients.values())
            factor = (optimizer.clip_norm / (torch.as_tensor(squares).sqrt() + 1e-6)).clamp(max=1)
            gradients = {
                name: g * factor.view(-1, *(1,) * (g.ndim - 1)) for name, g in gradients.items()
            }
        for name, gradient in gradients.items():
            if name not in self._momentum:
                self._momentum[name] = torch.zeros_like(gradient)
            momentum = self._momentum[name]
            momentum.mul_(optimizer.momentum).add_(gradient)  # in place, as a graph needs it
            self._stacked[name].sub_(float(self._rates[number]) * momentum)


def _graphed(make: Callable[[], Any]) -> Graphed:
    return Graphed(make())


def _contender(name: str, way: OnDevice | Graphed) -> Contender:
    def run(steps: int) -> None:
        for _ in range(steps):
            way.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return Contender(name, run)


def contenders(
    experiment: Experiment, device: str, quick: bool
) -> tuple[dict[str, OnDevice | Graphed], list[str]]:
    """The ways that work on a device, and in words those that do not.

    Args:
      experiment: the run; all start at its initial parameters.
      device: of PyTorch.
      quick: leave out what takes a compiler.
    """
    ways: dict[str, Callable[[], OnDevice | Graphed]] = {
        "eager": lambda: OnDevice(experiment, device),
        "vmap": lambda: Stacked(experiment, device),
    }
    left_out = []
    if quick:
        left_out.append("torch.compile: left out by --quick, as it takes a C++ compiler a minute")
    else:
        ways["compiled"] = lambda: Compiled(experiment, device)
    if device == "cuda":
        plain = dict(ways)
        ways |= {f"{name}_graph": functools.partial(_graphed, make) for name, make in plain.items()}
    else:
        left_out.append("CUDA graphs: there is no CUDA device")
    found = {}
    for name, make in ways.items():
        try:
            found[name] = make()
        except (RuntimeError, NotImplementedError) as error:
            left_out.append(f"{name}: {str(error).splitlines()[0]}")
    return found, left_out
