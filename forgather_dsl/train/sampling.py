"""Choosing the next token: temperature and top-k over one position's logits, from a generator of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def picker(temperature: float, top_k: int | None, seed: int) -> Callable[[Tensor], int]:
    """A function from logits [vocab] to a token id. Temperature 0 takes the likeliest."""
    generator = torch.Generator().manual_seed(seed)

    def pick(logits: Tensor) -> int:
        logits = logits.detach().float().cpu()
        if temperature == 0:
            return int(logits.argmax())
        if top_k is not None and top_k < logits.numel():
            smallest = torch.topk(logits, top_k).values[-1]
            logits = logits.masked_fill(logits < smallest, -torch.inf)
        return int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator))

    return pick
