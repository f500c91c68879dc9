"""What cards can do, from their vendors' data sheets: the one table for predictions and for model FLOPs utilisation.

In: a device's name or its memory. Out: `Card`. FLOP/s are of dense products: bfloat16 or float8 factors summed in fp32, and fp32
without TensorFloat-32, which torch does not use unless it is told to.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import NamedTuple

__all__ = ["CARDS", "Card", "by_memory", "by_name"]


class Card(NamedTuple):
    """One kind of card; TFLOP/s, GB/s (powers of ten) and GiB."""

    name: str
    memory_gib: float
    bf16_tflops: float
    fp32_tflops: float
    bandwidth_gbs: float
    fp8_tflops: float | None = None  # None: no products of float8 factors


CARDS = (
    Card("RTX 5090", 32, 209.5, 104.8, 1792, 419.0),
    Card("RTX 5080", 16, 112.6, 56.3, 960, 225.1),
    Card("RTX 5070 Ti", 16, 87.9, 43.9, 896, 175.8),
    Card("RTX 4090", 24, 165.2, 82.6, 1008, 330.3),
    Card("RTX 4080", 16, 97.5, 48.7, 717, 194.9),
    Card("RTX 4070 Ti", 12, 80.2, 40.1, 504, 160.4),
    Card("RTX 3090 Ti", 24, 80.0, 40.0, 1008),
    Card("RTX 3090", 24, 71.0, 35.6, 936),
    Card("RTX 3080", 10, 59.5, 29.8, 760),
    Card("RTX 3060", 12, 25.5, 12.7, 360),
    Card("RTX A6000", 48, 154.8, 38.7, 768),
    Card("RTX 6000 Ada", 48, 364.2, 91.1, 960, 728.5),
    Card("A100 40GB", 40, 312.0, 19.5, 1555),
    Card("A100", 80, 312.0, 19.5, 2039),
    Card("A10G", 24, 70.0, 35.0, 600),
    Card("A10", 24, 125.0, 31.2, 600),
    Card("L40S", 48, 362.0, 91.6, 864, 733.0),
    Card("L4", 24, 121.0, 30.3, 300, 242.0),
    Card("H100 PCIe", 80, 756.0, 51.0, 2000, 1513.0),
    Card("H100", 80, 989.4, 67.0, 3350, 1978.9),
    Card("H200", 141, 989.4, 67.0, 4800, 1978.9),
)
TYPICAL = {10: "RTX 3080", 12: "RTX 3060", 16: "RTX 4080", 24: "RTX 4090", 32: "RTX 5090", 40: "A100 40GB"}
TYPICAL |= {48: "RTX A6000", 80: "A100", 141: "H200"}  # which card is meant when only its memory is said


@lru_cache(maxsize=64)  # a plan asks for every rank of every candidate
def by_name(text: str) -> Card | None:
    """The card whose name is part of `text`, as drivers ("NVIDIA GeForce RTX 4090") and people ("rtx4090", "4090") write it.

    None for a card that is not known, and for laptop editions, which are slower than their names.
    """
    if "laptop" in text.lower():
        return None
    words = _plain(text)
    fitting = [card for card in CARDS if re.search(rf"(?<![A-Z0-9]){re.escape(_plain(card.name))}(?![0-9])", words)]
    fitting += [card for card in CARDS if _plain(card.name) == f"RTX{words}"]
    return max(fitting, key=lambda card: len(card.name), default=None)


def by_memory(gib: float) -> Card:
    """The card that is most likely meant by its memory alone: the nearest in size of one of each size."""
    nearest = min(TYPICAL, key=lambda size: abs(math.log(size / max(gib, 1e-9))))
    return next(card for card in CARDS if card.name == TYPICAL[nearest])


def _plain(text: str) -> str:
    """Upper case; spaces and dashes only between two words of letters, so that `RTX 4090`, `RTX-4090`, `RTX4090` are one."""
    text = re.sub(r"[\s_-]+", " ", text.upper().strip())
    return re.sub(r"(?<=[A-Z]) (?=\d)|(?<=\d) (?=[A-Z])", "", text)
