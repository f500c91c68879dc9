"""A head whose weight is the embedding's, wherever the cut puts the two.

The head always has a Parameter of its own, a mirror: on the embedding's rank it shares its memory, elsewhere it is a copy
that is refreshed before every run. Its gradient is summed apart and added to the embedding's once, after the last
backward of the step, on every layout: so the sum has one order and its bits do not depend on the number of stages.
"""

from __future__ import annotations

import torch
import torch.nn as nn

from forgather_dsl.models.parts import part_of
from forgather_dsl.parallel.messages import Transfer, Wire
from forgather_dsl.parallel.stage import EMBED, Stage

__all__ = ["TiedHead"]

TAG = 1 << 20  # above the tags of a schedule's messages


class TiedHead:
    """The tie between the first stage's embedding and the last stage's head; each rank has the ends it holds."""

    def __init__(self, stages: dict[int, Stage], placement: tuple[int, ...], wire: Wire) -> None:
        self.wire = wire
        self.first, self.last = stages.get(0), stages.get(len(placement) - 1)
        self.first_rank, self.last_rank = placement[0], placement[-1]
        self._sending: list[Transfer] = []

    def refresh(self) -> None:
        """Bring the embedding's weight to the head; waits only where the head is."""
        if self.first and self.first.needed is not None:
            self.first.needed(EMBED)
        if self.first and self.last:
            embedding, head = part_of(self.first.model, "embed"), part_of(self.last.model, "head")
            if head.weight is embedding.weight or _place(head.weight) != _place(embedding.weight):
                head.weight = nn.Parameter(embedding.weight.detach(), embedding.weight.requires_grad)
                head.weight.grad_dtype = embedding.weight.grad_dtype
        elif self.first:
            self._sending.append(self.wire.send(part_of(self.first.model, "embed").weight, self.last_rank, TAG))
        elif self.last:
            self.wire.receive(part_of(self.last.model, "head").weight.detach(), self.first_rank, TAG).wait()

    @torch.no_grad()
    def collect(self) -> None:
        """Add the head's gradient, complete for this step, to the embedding's."""
        gradient = None
        if self.last:
            mirror = part_of(self.last.model, "head").weight
            gradient, mirror.grad = mirror.grad, None
            if not self.first:  # always one message, so that both ends agree; zeros when the head is frozen
                gradient = torch.zeros_like(mirror, dtype=mirror.grad_dtype) if gradient is None else gradient
                self._sending.append(self.wire.send(gradient, self.first_rank, TAG))
        if self.first:
            weight = part_of(self.first.model, "embed").weight
            if not self.last:
                gradient = self.wire.receive(
                    torch.empty_like(weight, dtype=weight.grad_dtype), self.last_rank, TAG
                ).wait()
            if gradient is not None and weight.requires_grad:
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)

    def finish(self) -> None:
        """Wait until what was sent has arrived: from here on the weights may change."""
        for transfer in self._sending:
            transfer.wait()
        self._sending = []


def _place(tensor: torch.Tensor) -> int:
    """Where its values are, also if it is fake and has none."""
    return tensor.untyped_storage()._cdata
