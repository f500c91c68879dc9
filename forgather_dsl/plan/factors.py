"""What products with float8 factors need beside their operands in bfloat16 (parallel/float8.py), in bytes.

In: a part of a layer, tokens, an action. Out: bytes at the most, of its largest product.
"""

from __future__ import annotations

from .sizes import PartSize

__all__ = ["float8_factors"]


def float8_factors(part: PartSize, tokens: int, dim: int, kind: str) -> int:
    """F: the input, and the weight, scaled in bfloat16 first. I: the weight. W: both factors of its gradient, and that."""
    wide = tokens * (part.largest // dim)
    scaled, gradient = 3 * part.largest, 2 * part.largest + wide + tokens * dim
    return {"F": scaled + wide, "I": scaled, "W": gradient, "B": max(scaled, gradient)}[kind]
