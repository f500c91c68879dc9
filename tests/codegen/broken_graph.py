"""A model whose graph torch.compile has to break."""

from __future__ import annotations

import torch
import torch.nn as nn


class Broken(nn.Module):
    """One linear layer, with a question in its middle that a graph cannot answer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., dim]` to `[..., dim]`."""
        y = self.linear(x)
        if y.sum().item() > 1e9:
            y = y.relu()
        return self.linear(y)
