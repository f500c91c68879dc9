"""What a loss is to a stage: a function of logits, or of hidden states and the head, which then makes the logits itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn as nn

from forgather_dsl.models.parts import part_of

__all__ = ["HeadLoss", "LossFn", "loss_at", "takes_head"]


class HeadLoss(Protocol):
    """A loss that takes the head itself; told by its `takes_head`."""

    takes_head: bool

    def from_hidden(self, hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
        """Normed hidden states `[batch, seq, dim]`, targets `[batch, seq]`; the result need be right only after its backward."""
        ...


LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | HeadLoss
"""(logits `[batch, seq, vocab]`, targets `[batch, seq]`) to the sum of the loss over valid targets, a scalar; or `HeadLoss`."""


def takes_head(loss_fn: LossFn) -> bool:
    """Whether the last stage is to end before the head (`Stage.forward(headless=True)`)."""
    return bool(getattr(loss_fn, "takes_head", False))


def loss_at(loss_fn: Any, model: nn.Module, y: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of the last stage's output: of logits, or of hidden states with the model's head."""
    if takes_head(loss_fn):
        return loss_fn.from_hidden(y, part_of(model, "head"), targets)
    return loss_fn(y, targets)
