"""Model FLOPs utilisation: the arithmetic a step needs over what the device could do in its time (PaLM, arXiv 2204.02311, appendix B)."""

from __future__ import annotations

from typing import Any

from ..plan import cards


def peak(device_name: str) -> float | None:
    """FLOP/s of one device in bfloat16, or None when the card is not in the table."""
    card = cards.by_name(device_name)
    return None if card is None else card.bf16_tflops * 1e12


def per_token(num_parameters: int, model: Any, seq_len: int) -> float:
    """FLOPs of forward and backward for one token: 6 per parameter that multiplies, and attention over half the sequence.

    Without what a gather does not multiply (the embedding, unless it is tied and so also the head).
    """
    tied = getattr(model, "tie_embeddings", False)
    multiplying = num_parameters - (0 if tied else model.vocab_size * model.dim)
    width = getattr(model, "num_heads", 1) * getattr(model, "head_dim", model.dim)
    return 6.0 * multiplying + 6.0 * model.num_layers * width * seq_len
