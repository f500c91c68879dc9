"""Two models on the same text, token by token: how much they differ, how sure that is, and where they differ most.

In: `Pieces` of each document. Out: `Comparison`, plain numbers and excerpts. The interval is that of a ratio of sums over
documents, or over blocks of text where documents are few (linearised; Cochran, Sampling Techniques, 1977, section 6.4).
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from .student import LEVEL, t_quantile
from .token_bits import Pieces

__all__ = ["Comparison", "Place", "Word", "compare_pieces"]

FEW_DOCUMENTS = 20  # with fewer, blocks of text are the units
BLOCKS = 50
CONTEXT = 48  # characters each side of a place


class Place(NamedTuple):
    """One piece of text in its context, and what either model pays for it."""

    before: str
    text: str
    after: str
    bits: tuple[float, float]
    document: int

    @property
    def difference(self) -> float:
        """Bits, second less first."""
        return self.bits[1] - self.bits[0]


class Word(NamedTuple):
    """A piece of text wherever it occurs."""

    text: str
    times: int
    difference: float  # bits in all, second less first


class Comparison(NamedTuple):
    """Bits per byte of both models and of the difference, second less first; `half` is half the width of its interval."""

    bits_per_byte: tuple[float, float]
    difference: float
    half: float | None  # None where there is too little text for an interval
    units: str  # what the interval was taken over
    level: float
    documents: int
    num_bytes: int
    pieces: int
    better: tuple[float, float]  # shares of pieces on which the first, the second pays less
    places: tuple[list[Place], list[Place]]  # where the first, where the second is better, most first
    words: tuple[list[Word], list[Word]]  # likewise, summed over all of the text

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        found = self._asdict()
        sides = ("first_better", "second_better")
        found["places"] = {side: [p._asdict() for p in places] for side, places in zip(sides, self.places)}
        found["words"] = {side: [w._asdict() for w in words] for side, words in zip(sides, self.words)}
        interval = None if self.half is None else [self.difference - self.half, self.difference + self.half]
        return {**found, "interval": interval}


def compare_pieces(documents: Iterable[Pieces], top: int) -> Comparison:
    """Everything in one pass; keeps `top` places and words of each side."""
    units: list[tuple[np.ndarray, np.ndarray]] = []  # per document: differences and bytes of its pieces
    sums, nbytes, pieces, better = np.zeros(2), 0, 0, np.zeros(2)
    heaps: tuple[list[Any], list[Any]] = ([], [])
    words: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for number, document in enumerate(documents):
        difference = document.difference
        sums += [bits.sum() for bits in document.bits]
        nbytes, pieces = nbytes + document.num_bytes, pieces + len(difference)
        better += [(difference > 0).sum(), (difference < 0).sum()]
        units.append((difference, _bytes_of(document)))
        for side, sign in enumerate((1, -1)):
            _keep(heaps[side], document, number, sign * difference, top)
        for index, value in enumerate(difference):
            word = words[document.piece(index)]
            word[0] += 1
            word[1] += value
    half, what = _interval(units)
    ranked = sorted(words.items(), key=lambda item: -item[1][1])
    told = [Word(text, int(count), float(total)) for text, (count, total) in ranked]
    return Comparison(
        bits_per_byte=(float(sums[0]) / nbytes, float(sums[1]) / nbytes),
        difference=float(sums[1] - sums[0]) / nbytes,
        half=half,
        units=what,
        level=LEVEL,
        documents=len(units),
        num_bytes=nbytes,
        pieces=pieces,
        better=(float(better[0]) / pieces, float(better[1]) / pieces),
        places=(_places(heaps[0]), _places(heaps[1])),
        words=([w for w in told[:top] if w.difference > 0], [w for w in told[: -top - 1 : -1] if w.difference < 0]),
    )


def _bytes_of(document: Pieces) -> np.ndarray:
    """Of each piece; the end has none."""
    sizes = [len(document.piece(index).encode()) for index in range(len(document.cuts))]
    return np.array(sizes, np.int64)


def _keep(heap: list[Any], document: Pieces, number: int, gains: np.ndarray, top: int) -> None:
    for index in np.argsort(-gains, kind="stable")[:top]:
        gain = float(gains[index])
        if gain <= 0 or (len(heap) == top and gain <= heap[0][0]):
            break
        entry = (gain, -number, -int(index), _place(document, number, int(index)))
        heapq.heapreplace(heap, entry) if len(heap) == top else heapq.heappush(heap, entry)


def _place(document: Pieces, number: int, index: int) -> Place:
    start = int(document.cuts[index])
    text = document.piece(index)
    stop = start + len(text)
    bits = float(document.bits[0][index]), float(document.bits[1][index])
    return Place(
        document.text[max(0, start - CONTEXT) : start], text, document.text[stop : stop + CONTEXT], bits, number
    )


def _places(heap: list[Any]) -> list[Place]:
    return [entry[3] for entry in sorted(heap, reverse=True)]


def _interval(units: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float | None, str]:
    """Half its width in bits per byte, and over what it was taken."""
    if len(units) >= FEW_DOCUMENTS:
        pairs = np.array([(difference.sum(), size.sum()) for difference, size in units])
        return _half_of_ratio(pairs), f"{len(units)} documents"
    difference, size = (np.concatenate(parts) for parts in zip(*units))
    block = np.minimum(np.cumsum(size) * BLOCKS // max(1, int(size.sum())), BLOCKS - 1)
    pairs = np.stack([np.bincount(block, weights=difference), np.bincount(block, weights=size)], axis=1)
    pairs = pairs[pairs[:, 1] > 0]
    return _half_of_ratio(pairs), f"{len(pairs)} blocks of text, for documents are few"


def _half_of_ratio(pairs: np.ndarray) -> float | None:
    """For sum(d) / sum(b) over units: the residuals d - ratio * b are what varies."""
    count = len(pairs)
    if count < 2:
        return None
    d, b = pairs[:, 0], pairs[:, 1]
    residual = d - d.sum() / b.sum() * b
    error = math.sqrt(count / (count - 1) * float((residual**2).sum())) / float(b.sum())
    return t_quantile(LEVEL, count - 1) * error
