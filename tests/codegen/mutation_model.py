"""A model in which every kind of decision of the tracer matters to the numbers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

ACTS = {"gelu": functional.gelu, "relu": functional.relu}


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """One function."""
    return x * factor


def shifted(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Another with the same parameters."""
    return x + factor


class Norm(nn.Module):
    """Root mean square, in float32."""

    def __init__(self, dim: int, eps: float = 1e-5, centred: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.centred = centred

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.double()
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Block(nn.Module):
    """Norm, two layers, dropout."""

    def __init__(self, dim: int, act: str, index: int, bias: bool, double: bool, dropout: float) -> None:
        super().__init__()
        self.norm = Norm(dim, centred=double)
        self.up = nn.Linear(dim, 2 * dim if double else dim, bias=bias)
        self.down = nn.Linear(2 * dim if double else dim, dim, bias=bias)
        self.act = ACTS[act]
        self.index = index
        self.post = "scale" if double else "shift"
        self.dropout = dropout

    def _mixed(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y if self.index % 2 == 0 else x - y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(self.act(self.up(self.norm(x))))
        if self.training:
            y = functional.dropout(y, self.dropout)
        x = self._mixed(x, y)
        if self.post == "scale":
            x = scaled(x, 0.5)
        else:
            x = shifted(x, 0.5)
        return shifted(x, 0.25)


class Mutated(nn.Module):
    """Tokens to logits."""

    def __init__(self, dim: int = 8, tied: bool = True, act: str = "gelu", cap: float | None = 3.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, dim)
        if cap is None:
            self.cap = None
        else:
            self.cap = cap * 2
        self.blocks = nn.ModuleList(
            Block(dim, act, index, bias=not tied, double=True, dropout=0.2) for index in range(2)
        )
        self.head = nn.Linear(dim, 17, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits
