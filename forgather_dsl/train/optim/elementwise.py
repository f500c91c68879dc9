"""Rules that treat every number by itself: AdamW, Lion, SGD with momentum. Rows, shards and stages give the same bits.

The arithmetic of AdamW and SGD is torch.optim's for one tensor (`foreach=False`), operation by operation; on a GPU AdamW is
torch's fused kernel, which makes no temporary tensor at all. Lion is after arXiv 2302.06675.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .engine import Engine, Rule, Target
from .states import Format, Moment, format_of

__all__ = ["SGD", "AdamW", "AdamWRule", "Lion"]


class Elementwise:
    """Reads rows of weights, gradient and moments, has `apply` change them, and writes them back."""

    moments: tuple[Moment, ...] = ()

    def __init__(self, states: str) -> None:
        self.states = states

    def update(self, target: Target) -> None:
        """One update, a chunk at a time."""
        form, state = format_of(self.states, target.parameter), target.state
        for moment in self.moments:
            if moment.key not in state:
                form.make(state, moment, target.parameter)
        for rows in target.chunks():
            self._chunk(target, form, rows)

    def _chunk(self, target: Target, form: Format, rows: slice) -> None:
        weights, gradient = target.read(rows), target.gradient(rows)
        held = [form.read(target.state, moment, rows) for moment in self.moments]
        self.apply(target, weights, gradient, *held)
        del gradient
        for moment in self.moments:
            form.write(target.state, moment, rows, held.pop(0), target.noise, target.numbered(rows))
        target.write(rows, weights)

    def apply(self, target: Target, weights: Tensor, gradient: Tensor, *held: Tensor) -> None:
        """Change `weights` and what is `held`, all fp32 of one shape; leave `gradient`."""
        raise NotImplementedError


class AdamWRule(Elementwise):
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)."""

    moments = (Moment("exp_avg"), Moment("exp_avg_sq", signed=False))
    fused: bool | None = None
    """Whether torch's fused kernel does it; None: on a GPU."""

    def __init__(self, states: str, betas: tuple[float, float], eps: float) -> None:
        super().__init__(states)
        self.betas, self.eps = betas, eps

    def apply(self, target: Target, weights: Tensor, gradient: Tensor, *held: Tensor) -> None:
        """Of fp32 rows, in place."""
        if weights.is_cuda if self.fused is None else self.fused:
            return self._fused(target, weights, gradient, *held)
        (average, square), (beta1, beta2) = held, self.betas
        if target.decay:
            weights.mul_(1 - target.lr * target.decay)
        average.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction1, correction2 = 1 - beta1**target.step, 1 - beta2**target.step
        denominator = square.sqrt().div_(correction2**0.5).add_(self.eps)
        weights.addcdiv_(average, denominator, value=-(target.lr / correction1))

    def _fused(self, target: Target, weights: Tensor, gradient: Tensor, average: Tensor, square: Tensor) -> None:
        step = torch.full((), float(target.step), device=weights.device)
        torch.ops.aten._fused_adamw_(
            [weights], [gradient], [average], [square], [], [step],
            lr=target.lr, beta1=self.betas[0], beta2=self.betas[1], weight_decay=target.decay, eps=self.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip


class LionRule(Elementwise):
    """The sign of an average (https://arxiv.org/abs/2302.06675), with decoupled weight decay."""

    moments = (Moment("exp_avg"),)

    def __init__(self, states: str, betas: tuple[float, float]) -> None:
        super().__init__(states)
        self.betas = betas

    def apply(self, target: Target, weights: Tensor, gradient: Tensor, *held: Tensor) -> None:
        """Of fp32 rows, in place."""
        (average,), (beta1, beta2) = held, self.betas
        weights.mul_(1 - target.lr * target.decay)
        weights.add_(average.lerp(gradient, 1 - beta1).sign_(), alpha=-target.lr)
        average.lerp_(gradient, 1 - beta2)


class SGDRule(Elementwise):
    """Gradient descent, the decay added to the gradient, with momentum if any."""

    def __init__(self, states: str, momentum: float, nesterov: bool) -> None:
        super().__init__(states)
        self.momentum, self.nesterov = momentum, nesterov
        self.moments = (Moment("momentum_buffer"),) if momentum else ()

    def apply(self, target: Target, weights: Tensor, gradient: Tensor, *held: Tensor) -> None:
        """Of fp32 rows, in place."""
        if target.decay:
            gradient = gradient.add(weights, alpha=target.decay)
        for buffer in held:
            if target.step == 1:
                buffer.copy_(gradient)
            else:
                buffer.mul_(self.momentum).add_(gradient)
            gradient = gradient.add(buffer, alpha=self.momentum) if self.nesterov else buffer
        weights.add_(gradient, alpha=-target.lr)


class AdamW(Engine):
    """AdamW over groups as `parameter_groups` makes them."""

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        states: str,
    ) -> None:
        self._rule = AdamWRule(states, betas, eps)
        super().__init__(params, lr, weight_decay)

    def rule(self, group: dict[str, Any]) -> Rule:
        """One for all."""
        return self._rule


class Lion(Engine):
    """Lion over groups as `parameter_groups` makes them."""

    def __init__(
        self, params: list[dict[str, Any]], lr: float, weight_decay: float, betas: tuple[float, float], states: str
    ) -> None:
        self._rule = LionRule(states, betas)
        super().__init__(params, lr, weight_decay)

    def rule(self, group: dict[str, Any]) -> Rule:
        """One for all."""
        return self._rule


class SGD(Engine):
    """SGD over groups as `parameter_groups` makes them."""

    def __init__(
        self, params: list[dict[str, Any]], lr: float, weight_decay: float, momentum: float, nesterov: bool, states: str
    ) -> None:
        self._rule = SGDRule(states, momentum, nesterov)
        super().__init__(params, lr, weight_decay)

    def rule(self, group: dict[str, Any]) -> Rule:
        """One for all."""
        return self._rule
