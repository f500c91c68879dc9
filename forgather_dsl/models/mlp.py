"""Feed-forward layers: `[batch, seq, dim] -> [batch, seq, dim]` through `ffn_dim` hidden features.

Constructors raise `ValueError` unless `ffn_dim` is positive.
Parameters carry the names of transformers (`gate_proj`, `up_proj`, `down_proj`), so weights move without renaming.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, the MLP of Llama (Shazeer, arXiv:2002.05202)."""

    def __init__(self, dim: int, ffn_dim: int, bias: bool) -> None:
        super().__init__()
        _check(ffn_dim)
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=bias)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=bias)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, seq, dim]` to `[batch, seq, dim]`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GELUMLP(nn.Module):
    """`down(gelu(up(x)))` with the exact GELU (Hendrycks and Gimpel, arXiv:1606.08415), not its tanh approximation."""

    def __init__(self, dim: int, ffn_dim: int, bias: bool) -> None:
        super().__init__()
        _check(ffn_dim)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=bias)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, seq, dim]` to `[batch, seq, dim]`."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class ReLUSquaredMLP(nn.Module):
    """`down(relu(up(x))**2)`, found by search in Primer (So et al., arXiv:2109.08668)."""

    def __init__(self, dim: int, ffn_dim: int, bias: bool) -> None:
        super().__init__()
        _check(ffn_dim)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=bias)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, seq, dim]` to `[batch, seq, dim]`."""
        hidden = F.relu(self.up_proj(x))
        return self.down_proj(hidden * hidden)  # under autocast, square() would be in fp32


def _check(ffn_dim: int) -> None:
    if ffn_dim < 1:
        raise ValueError(f"an MLP with ffn_dim={ffn_dim} hidden features is empty: write ffn_dim >= 1")
