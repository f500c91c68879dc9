"""Normalisation layers over the last dimension: a size and an epsilon in, a module `[..., dim] -> [..., dim]` out.

Constructors raise `ValueError` unless both are positive.

Both call torch's fused functions, which compute in fp32 inside whatever the dtype of the input. So autocast is off around
them: on CUDA it would hand them an fp32 copy to keep, and every linear layer behind an fp32 result to cast and keep.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        _check(dim, eps)
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., dim]` to `[..., dim]`."""
        with _autocast_off(x):
            return F.rms_norm(x, (self.dim,), self.weight.to(x.dtype), self.eps)  # the fused kernels want one dtype

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{self.dim}, eps={self.eps}"


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension (Ba et al., arXiv:1607.06450)."""

    def __init__(self, dim: int, eps: float, bias: bool) -> None:
        super().__init__()
        _check(dim, eps)
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 1, shift 0."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., dim]` to `[..., dim]`."""
        # Scale and shift stand apart: the fused backward sums their gradients per thread, so its bits would depend on how
        # many threads a rank has.
        with _autocast_off(x):
            y = F.layer_norm(x, (self.dim,), None, None, self.eps) * self.weight.to(x.dtype)
            return y if self.bias is None else y + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{self.dim}, eps={self.eps}, bias={self.bias is not None}"


def _autocast_off(x: torch.Tensor) -> AbstractContextManager[object]:
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # "meta" has no autocast


def _check(dim: int, eps: float) -> None:
    if dim < 1:
        raise ValueError(f"a norm over dim={dim} features is empty: write dim >= 1")
    if eps <= 0:
        raise ValueError(f"eps={eps} would divide a zero row by zero: write a small positive number, such as eps=1e-5")
