"""Models for the tests of `python -m codegen` and of `emit`."""

from __future__ import annotations

import torch
from torch import nn


class Tied(nn.Module):
    """Tokens to logits."""

    def __init__(self, vocab: int = 11, dim: int = 4, kind: str = "tanh") -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        if kind == "tanh":
            self.act = torch.tanh
        elif kind == "relu":
            self.act = torch.relu
        else:
            raise ValueError(f"no kind {kind!r}")
        self.head = nn.Linear(dim, vocab, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.embedding(tokens)))


class Masked(nn.Module):
    """Takes two arguments by name."""

    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, self.linear(x), x)


class Undecidable(nn.Module):
    """Cannot be written out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = eval("nn.Linear")(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def tied_relu() -> nn.Module:
    """A builder."""
    return Tied(kind="relu")


def initialise(model: nn.Module) -> None:
    """Another start."""
    for parameter in model.parameters():
        nn.init.ones_(parameter)


NOTHING = 3
