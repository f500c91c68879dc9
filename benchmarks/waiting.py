"""Emulated GPUs: layers and stages that wait where they would compute, with real tensors for everything that is sent.

An idle processor stands for a busy card, so more cards than cores can be emulated, and little disturbs them. Each waits in F,
in the backward to its input and in the backward to its weight, each a node of autograd of its own: torch's split runs a node
that did both twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
from torch.autograd.function import Function

from forgather_dsl.parallel.stage import Stage
from forgather_dsl.parallel.weight_gradients import WeightGradients

__all__ = ["WIDTH", "Waiter", "WaitingLayer", "WaitingStage"]

WIDTH = 1024  # floats of a token: 4 KiB


class Waiter:
    """Waits `seconds[kind]`, and counts how long that took in all."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds, self.waited = seconds, 0.0

    def wait(self, kind: str) -> None:
        """Pretend to work."""
        if seconds := self.seconds[kind]:
            start = time.perf_counter()
            time.sleep(seconds)
            self.waited += time.perf_counter() - start

    def weight_gradient(self, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        """Pretend to add `gradient` to the weight's."""
        self.wait("W")


class _Waits(Function):
    """On the way from input to output."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, waiter: Waiter) -> torch.Tensor:
        ctx.waiter = waiter
        waiter.wait("F")
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        ctx.waiter.wait("I")
        return gradients[0], None


class _WaitsForWeight(Function):
    """On the branch of the weight alone. With `gradients` its wait is queued there and the weight gets no gradient."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, waiter: Waiter, gradients: WeightGradients | None) -> torch.Tensor:
        ctx.waiter, ctx.gradients, ctx.weight = waiter, gradients, weight
        return weight[:WIDTH].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        if ctx.gradients is not None:
            ctx.gradients.add(ctx.waiter.weight_gradient, ctx.weight, gradients[0])
            return None, None, None
        ctx.waiter.weight_gradient(ctx.weight, gradients[0])
        return gradients[0].new_ones(ctx.weight.shape), None, None


class WaitingLayer(nn.Module):
    """Of a model that is not cut into stages: `numel` real parameters, which are gathered, reduced and kept like any."""

    def __init__(self, numel: int, waiter: Waiter) -> None:
        super().__init__()
        self.weight, self.waiter = nn.Parameter(torch.ones(numel)), waiter

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., WIDTH]` to the same."""
        return _Waits.apply(x, self.waiter) * _WaitsForWeight.apply(self.weight, self.waiter, None)  # type: ignore[operator]


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.weight = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.ones(WIDTH))


class WaitingStage(Stage):
    """What `Pipeline` needs of a stage. `deferred`: W is queued, as our engine's layers do."""

    def __init__(self, index: int, num_stages: int, waiter: Waiter, deferred: bool) -> None:
        # nothing of a model: no call of Stage's own
        self.index, self.num_stages, self.layers = index, num_stages, range(index, index + 1)
        self.first, self.last, self.tied = index == 0, index == num_stages - 1, False
        self.dropout = 0.0
        self.dim, self.dtype, self.device = WIDTH, torch.float32, torch.device("cpu")
        self.model, self.gradients = _Model(), WeightGradients()
        self.waiter, self.deferred = waiter, deferred

    def forward(self, x: torch.Tensor, documents: Any, key: Any, headless: bool = False) -> torch.Tensor:
        """Ids `[batch, seq]` (first stage) or `[batch, seq, WIDTH]` to `[batch, seq, WIDTH]`."""
        if self.first:
            x = self.model.embedding.expand(*x.shape, WIDTH)  # what makes an I of stage 0 do something
        gradients = self.gradients if self.deferred else None
        return _Waits.apply(x, self.waiter) * _WaitsForWeight.apply(self.model.weight, self.waiter, gradients)  # type: ignore[operator]
