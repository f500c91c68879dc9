"""Components as users write them, for the tests of what is emitted."""

from __future__ import annotations

import torch
import torch.nn as nn

from forgather_dsl import Experiment, Llama, call, patch
from forgather_dsl.specs.model import Norm


class Scaled(nn.Module):
    """A norm by the largest value."""

    def __init__(self, dim: int, eps: float, power: int) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.power = power

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.abs().amax(-1, keepdim=True)
        if self.power == 2:
            size = size.square()  # larger
        return x / (size + self.eps) * self.weight


class Largest(Norm["Scaled"]):
    """A component of the file's own."""

    power: int = 1


class Small(Experiment, abstract=True):
    steps = 1
    model = patch(Llama, dim=24, num_layers=2, num_heads=2, ffn_dim=32)


class OwnNorm(Small):
    model = patch(Llama, norm=Largest(power=2))


class Called(Small):
    model = patch(Llama, norm=call("torch.nn:LayerNorm", normalized_shape=(24,), eps=1e-4))


class Evaluates(nn.Module):
    """Refused: nobody can tell what it needs."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return eval("x * self.weight")


class Evaluated(Norm["Evaluates"]):
    """Builds what cannot be written."""


class Refused(Small):
    model = patch(Llama, norm=Evaluated())
