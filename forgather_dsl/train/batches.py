"""Tokens as batches: the loader of an experiment, and the border between its numpy arrays and torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.chat_tokens import ChatFile
from ..data.loader import Batch, Loader
from ..data.order import Sequences
from ..data.packing import PackedLoader
from ..data.tokens import TokenFile
from ..specs import Experiment


def tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """tokens and targets int64 [batch, seq], documents int32 [batch, seq] or None; memory is shared."""
    documents = torch.from_numpy(batch.documents) if batch.documents is not None else None
    return torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets), documents


def make_loader(
    experiment: Experiment,
    tokens: TokenFile | ChatFile,
    eos_id: int,
    replica: int = 0,
    replicas: int = 1,
    *,
    shuffle: bool = False,
) -> Sequences:
    """Sequences of the experiment's shape: windows of a text, or packed conversations."""
    kind: Any = PackedLoader if isinstance(tokens, ChatFile) else Loader
    return kind(
        tokens=tokens,
        seq_len=experiment.seq_len,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        shuffle=shuffle,
        eos_id=eos_id,
        documents=experiment.isolate_documents,
        rank=replica,
        replicas=replicas,
    )
