"""Muon for the matrices of layers, AdamW for everything else: momentum made orthogonal (https://kellerjordan.github.io/posts/muon/).

The momentum is read and written some rows at a time; the orthogonal matrix needs a whole one, in fp32 on a processor and in
bfloat16 on a GPU, as torch.optim.Muon has it (processors without bfloat16 units would emulate them).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .elementwise import AdamWRule
from .engine import Engine, Rule, Target
from .states import Moment, format_of

__all__ = ["MuonAdamW", "MuonRule", "orthogonal"]

COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic that is steepest at zero; as torch.optim.Muon has them
LEAST_NORM = 1e-7


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The nearest semi-orthogonal matrix [rows, columns], roughly: singular values come out within 0.5 to 1.5.

    A quintic Newton-Schulz iteration in the matrix's own format. Uses up `matrix`.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x.div_(x.norm().clamp(min=eps))
    del matrix
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonRule:
    """The arithmetic of torch.optim.Muon."""

    moments = (Moment("momentum_buffer"),)
    bf16: bool | None = None
    """Whether the iteration runs in bfloat16; None: on a GPU."""

    def __init__(self, states: str, momentum: float, nesterov: bool, ns_steps: int) -> None:
        self.states, self.momentum, self.nesterov, self.ns_steps = states, momentum, nesterov, ns_steps

    def update(self, target: Target) -> None:
        """One update of a matrix."""
        update = orthogonal(self._direction(target), COEFFICIENTS, self.ns_steps, LEAST_NORM)
        rows, columns = target.shape
        for chunk in target.chunks():
            weights = target.read(chunk)
            weights.mul_(1 - target.lr * target.decay)
            weights.add_(update[chunk], alpha=-target.lr * max(1.0, rows / columns) ** 0.5)
            target.write(chunk, weights)
            del weights  # before the next rows are read

    def _direction(self, target: Target) -> Tensor:
        """The momentum after this gradient, a new tensor in the iteration's format."""
        (moment,), state, parameter = self.moments, target.state, target.parameter
        form = format_of(self.states, parameter)
        if moment.key not in state:
            form.make(state, moment, parameter)
        bf16 = parameter.is_cuda if self.bf16 is None else self.bf16
        direction = torch.empty(target.shape, dtype=torch.bfloat16 if bf16 else torch.float32, device=parameter.device)
        for rows in target.chunks():
            gradient, buffer = target.gradient(rows), form.read(state, moment, rows)
            buffer.lerp_(gradient, 1 - self.momentum)
            direction[rows] = gradient.lerp(buffer, self.momentum) if self.nesterov else buffer
            del gradient
            form.write(state, moment, rows, buffer, target.noise, target.numbered(rows))
            del buffer
        return direction


class MuonAdamW(Engine):
    """Muon for groups of the role `matrix`, AdamW for the others.

    Args:
        params: groups as `parameter_groups` makes them.
        lr, momentum, nesterov, ns_steps, weight_decay: Muon's; weight_decay and states are AdamW's too.
        adamw_lr, betas, eps: AdamW's.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        adamw_lr: float,
        betas: tuple[float, float],
        eps: float,
        states: str,
    ) -> None:
        self._muon = MuonRule(states, momentum, nesterov, ns_steps)
        self._adamw = AdamWRule(states, betas, eps)
        self._adamw_lr = adamw_lr
        super().__init__(params, lr, weight_decay)

    def rule(self, group: dict[str, Any]) -> Rule:
        """By role; AdamW has a learning rate of its own."""
        if group["role"] == "matrix":
            return self._muon
        group["lr"] = self._adamw_lr
        return self._adamw
