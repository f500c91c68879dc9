"""From values to pixels, linear or logarithmic, and where an axis has its ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Scale", "fitted", "told"]

MOST_TICKS = 7
DECADE_TICKS = (1, 2, 5)
NARROW = 4.0  # a logarithmic axis over less than this ratio has the ticks of a linear one


class Scale(NamedTuple):
    """An axis: values `low` to `high` on pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values on the axis."""
        if self.log and self.high / self.low >= NARROW:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = max(1, math.ceil((last - first) / MOST_TICKS))
            parts = DECADE_TICKS if last - first < 4 else (1,)
            found = [part * 10.0**power for power in range(first, last + 1, every) for part in parts]
        else:
            each = _round_up((self.high - self.low) / MOST_TICKS)
            found = [
                i * each for i in range(math.ceil(self.low / each - 1e-9), math.floor(self.high / each + 1e-9) + 1)
            ]
        return [value for value in found if self.low * (1 - 1e-12) <= value <= self.high * (1 + 1e-12)]


def fitted(values: Iterable[float], start: float, end: float, *, log: bool, margin: float = 0.04) -> Scale | None:
    """An axis on which all values lie; None where there are none, or a logarithm has nothing to show."""
    there = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not there:
        return None
    low, high = min(there), max(there)
    if log:
        room = (high / low) ** margin if high > low else 2.0
        return Scale(low / room, high * room, start, end, True)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return Scale(low - room, high + room, start, end)


def _round_up(rough: float) -> float:
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(n * unit for n in (1, 2, 2.5, 5, 10) if n * unit >= rough * (1 - 1e-9))


def told(value: float) -> str:
    """A tick's label: 1,500 is `1.5k`."""
    size = abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"
