"""Model FLOPs utilisation: the arithmetic a step needs over what the device could do in its time (PaLM, arXiv 2204.02311, appendix B)."""

from __future__ import annotations

from typing import Any

# Dense bfloat16 products with 32-bit accumulation, FLOP/s, from the vendor's data sheets. The first name that is part of
# the device's name counts.
PEAKS = (
    ("RTX 5090", 209.5e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71.0e12),
    ("RTX A6000", 154.8e12),
    ("H200", 989.4e12),
    ("H100", 989.4e12),
    ("A100", 312.0e12),
    ("L40S", 362.0e12),
)


def peak(device_name: str) -> float | None:
    """FLOP/s of one device, or None when it is not in the table."""
    return next((flops for name, flops in PEAKS if name in device_name), None)


def per_token(num_parameters: int, model: Any, seq_len: int) -> float:
    """FLOPs of forward and backward for one token: 6 per parameter that multiplies, and attention over half the sequence.

    Without what a gather does not multiply (the embedding, unless it is tied and so also the head).
    """
    tied = getattr(model, "tie_embeddings", False)
    multiplying = num_parameters - (0 if tied else model.vocab_size * model.dim)
    width = getattr(model, "num_heads", 1) * getattr(model, "head_dim", model.dim)
    return 6.0 * multiplying + 6.0 * model.num_layers * width * seq_len
