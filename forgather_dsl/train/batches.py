"""The border between the loader's numpy arrays and torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.loader import Batch


def tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """tokens and targets int64 [batch, seq], documents int32 [batch, seq] or None; memory is shared."""
    documents = torch.from_numpy(batch.documents) if batch.documents is not None else None
    return torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets), documents
