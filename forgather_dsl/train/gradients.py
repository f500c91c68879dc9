"""Global gradient norm and clipping: each parameter once, in fp32, summed in the order of names, the same for every layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 1024


def sum_of_squares(gradient: Tensor) -> Tensor:
    """Scalar float64. The order of additions depends on the shape alone, not on the number of threads."""
    rows = gradient.detach().flatten(1) if gradient.ndim > 1 else gradient.detach()[None]
    partial = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32).double().square()
    while partial.numel() > _BLOCK:
        partial = F.pad(partial, (0, -partial.numel() % _BLOCK)).view(-1, _BLOCK).sum(dim=1)
    return partial.sum()


def squares(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`sum_of_squares` of every gradient that there is, by name."""
    return {name: sum_of_squares(p.grad) for name, p in parameters.items() if p.grad is not None}


def clip(parameters: Iterable[Tensor], norm: float, limit: float | None) -> None:
    """Scale all gradients by limit / norm when the global norm exceeds the limit (https://arxiv.org/abs/1211.5063)."""
    if limit is None or norm <= limit:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(limit / norm)
