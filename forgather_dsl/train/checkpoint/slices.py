"""Tensors that are spread over ranks: where a stored part belongs, whether parts make up what is wanted, putting it together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ...errors import UserError


class Slice(NamedTuple):
    """A box of a tensor that is spread over ranks. Tensors without dimensions are never sliced."""

    shape: tuple[int, ...]  # of the whole tensor
    offset: tuple[int, ...]
    size: tuple[int, ...]

    def overlap(self, other: Slice) -> int:
        """How many numbers both hold."""
        starts, stops = intersection(self, other)
        return math.prod(max(0, stop - start) for start, stop in zip(starts, stops))


def whole(shape: Sequence[int]) -> Slice:
    """All of a tensor."""
    return Slice(tuple(shape), (0,) * len(shape), tuple(shape))


def intersection(one: Slice, other: Slice) -> tuple[list[int], list[int]]:
    """Where the part that both hold begins and ends, in each dimension; it is empty where an end is not after its begin."""
    starts = [max(a, b) for a, b in zip(one.offset, other.offset)]
    stops = [min(a + n, b + m) for a, n, b, m in zip(one.offset, one.size, other.offset, other.size)]
    return starts, stops


def disagreement(key: str, parts: Sequence[Slice], wanted: Slice | None) -> str | None:
    """Why stored `parts` do not make up the `wanted` slice of `key` (None: all of it), or None."""
    shapes = {part.shape for part in parts}
    needed = wanted or whole(parts[0].shape)
    other = next((shape for shape in shapes if shape != needed.shape), None)
    if other is not None:
        return f"{key}: a tensor of shape {other} is stored where {needed.shape} is needed"
    for part in parts:
        if any(o < 0 or o + n > end for o, n, end in zip(part.offset, part.size, part.shape)):
            return f"{key}: a part at {part.offset} of size {part.size} is outside of {part.shape}"
    if not needed.shape:
        return None  # every rank of a spread tensor has its own copy of a number
    if any(a.overlap(b) for i, a in enumerate(parts) for b in parts[:i]):
        return f"{key} is stored twice"
    return None


class Assembly:
    """A tensor, or the slice of one that is wanted, put together from stored parts."""

    def __init__(self, wanted: Slice) -> None:
        self.wanted, self.missing = wanted, math.prod(wanted.size)
        self.tensor: Any = None

    def add(self, part: Any, stored: Slice) -> bool:
        """Take what the stored part has of it; whether that was all. `part` reads from the file what is indexed."""
        if stored.shape != self.wanted.shape:
            raise UserError(
                f"a tensor of shape {stored.shape} is stored where {self.wanted.shape} is needed", exit_code=4
            )
        starts, stops = intersection(stored, self.wanted)
        if any(stop <= start for start, stop in zip(starts, stops)):
            if 0 in self.wanted.size and self.tensor is None:  # a rank that has no row of it
                self.tensor = part[tuple(slice(0, size) for size in self.wanted.size)]
            return not self.missing
        found = part[tuple(slice(i - o, j - o) for i, j, o in zip(starts, stops, stored.offset))]
        self.missing -= found.numel()
        if self.tensor is None and not self.missing:
            self.tensor = found
        else:
            if self.tensor is None:
                self.tensor = found.new_empty(self.wanted.size)
            self.tensor[tuple(slice(i - o, j - o) for i, j, o in zip(starts, stops, self.wanted.offset))] = found
        return not self.missing
