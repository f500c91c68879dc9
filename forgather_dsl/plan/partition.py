"""Which layers go to which stage: contiguous ranges whose dearest stage (`split`) or rank (`divide`) is as cheap as possible.

In: the cost of each layer, of the embedding (first stage) and of the head (last stage); for `divide` in seconds and bytes,
with the bytes that each rank has. Out: one range of layers per stage. Exact, by dynamic programming, twice: for the least
cost of the dearest, then, under that limit, for the most even split (least sum of squares). With several stages on a rank
by steps from there, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Live", "Parts", "divide", "split"]


def split(costs: Sequence[float], stages: int, embedding: float = 0.0, head: float = 0.0) -> tuple[range, ...]:
    """Ranges of layers, in order, at least one layer each, with the least possible cost of the dearest stage.

    `embedding` is added to the first stage and `head` to the last. Between equally even splits, earlier stages get
    fewer layers, since they hold more microbatches. Raises ValueError when there are more stages than layers.
    """
    layers = len(costs)
    if not 1 <= stages <= layers:
        raise ValueError(f"{layers} layers cannot be split into {stages} stages: each stage takes at least one layer")
    before = [0.0, *accumulate(costs)]

    def cost(stage: int, start: int, stop: int) -> float:
        return before[stop] - before[start] + embedding * (stage == 0) + head * (stage == stages - 1)

    dearest, _ = _best(layers, stages, cost, max)
    limit = dearest * (1 + 1e-12)  # the same sums, taken in another order
    _, stops = _best(
        layers, stages, lambda *where: c**2 if (c := cost(*where)) <= limit else float("inf"), float.__add__
    )
    return tuple(range(start, stop) for start, stop in zip((0, *stops), stops))


def _best(
    layers: int, stages: int, price: Callable[[int, int, int], float], combine: Callable[[float, float], float]
) -> tuple[float, tuple[int, ...]]:
    """The least total over all ways to place the stops, and those stops. `price(stage, start, stop)`."""

    @cache
    def rest(stage: int, start: int) -> tuple[float, tuple[int, ...]]:
        if stage == stages - 1:
            return price(stage, start, layers), (layers,)
        options = []
        for stop in range(start + 1, layers - (stages - stage) + 2):
            total, stops = rest(stage + 1, stop)
            options.append((combine(price(stage, start, stop), total), (stop, *stops)))
        return min(options)

    return rest(0, 0)


class Parts(NamedTuple):
    """What each part of a model adds to the rank that holds it. Parts: the embedding, each layer, the head."""

    seconds: tuple[tuple[float, ...], ...]
    """[rank][part]: of F, I and W of one microbatch; cards may differ."""
    stored: tuple[float, ...]
    """Bytes of weights, gradients and optimizer state."""
    kept: tuple[float, ...]
    """Bytes of each microbatch between F and I or B."""
    owed: tuple[float, ...]
    """Bytes of each microbatch between I and W."""
    room: tuple[float, ...]
    """Bytes of each rank."""


Live = Sequence[tuple[float, float]]  # per stage: microbatches between F and I, and between I and W, at the rank's peak


def divide(parts: Parts, placement: Sequence[int], live: Live, time_share: float = 1.0) -> tuple[range, ...]:
    """Ranges of layers for stages placed so, within the bytes of each rank, with the least cost of the dearest rank, then the
    most even. Where no split fits, one that comes nearest. A rank's cost is its seconds, as a share of their mean; with a
    `time_share` below 1 the rest of it is the share of its bytes that is taken.

    Exact with one stage on each rank; with several, no layer moved from one stage to another makes it better.
    Raises ValueError when there are more stages than layers.
    """
    weigher = _Weigher(parts, placement, live, time_share)
    layers, stages = len(parts.stored) - 2, len(placement)
    if not 1 <= stages <= layers:
        raise ValueError(f"{layers} layers cannot be split into {stages} stages: each stage takes at least one layer")
    if stages == len(set(placement)):
        return _ranges(weigher.exact())
    even = split(weigher.plain, stages, weigher.ends[0], weigher.ends[1])
    stops = tuple(layer.stop for layer in even)
    score = weigher.score(stops)
    while True:
        found = min(((weigher.score(other), other) for other in _neighbours(stops)), default=(score, stops))
        if found[0] >= score:
            return _ranges(stops)
        score, stops = found


def _ranges(stops: Sequence[int]) -> tuple[range, ...]:
    return tuple(range(start, stop) for start, stop in zip((0, *stops), stops))


def _neighbours(stops: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """One stage gives a layer to another; those between hand one on."""
    for first in range(len(stops) - 1):
        for last in range(first, len(stops) - 1):
            for step in (-1, 1):
                moved = tuple(stop + step * (first <= i <= last) for i, stop in enumerate(stops))
                if all(a < b for a, b in zip((0, *moved), moved)):
                    yield moved


class _Weigher:
    """Costs and bytes of stages and ranks, by sums of everything before a layer."""

    def __init__(self, parts: Parts, placement: Sequence[int], live: Live, time_share: float) -> None:
        self.placement, self.room, self.share = placement, parts.room, time_share
        self.stages, self.layers = len(placement), len(parts.stored) - 2
        self.plain = [sum(column) / len(parts.seconds) for column in zip(*parts.seconds)][1:-1]
        self.ends = tuple(sum(row[part] for row in parts.seconds) / len(parts.seconds) for part in (0, -1))
        self.mean = (sum(self.plain) + sum(self.ends)) / len(parts.room) or 1.0
        self.seconds = [[0.0, *accumulate(row)] for row in parts.seconds]
        rows = [
            [stored + a * kept + b * owed for stored, kept, owed in zip(parts.stored, parts.kept, parts.owed)]
            for a, b in live
        ]
        self.bytes = [[0.0, *accumulate(row)] for row in rows]

    def of(self, stage: int, start: int, stop: int) -> tuple[float, float]:
        """Seconds and bytes of a stage with layers `start` to `stop`; part 0 is the embedding."""
        first = 0 if stage == 0 else start + 1
        last = self.layers + 2 if stage == self.stages - 1 else stop + 1
        times, held = self.seconds[self.placement[stage]], self.bytes[stage]
        return times[last] - times[first], held[last] - held[first]

    def cost(self, rank: int, seconds: float, held: float) -> float:
        """Of a rank."""
        return self.share * seconds / self.mean + (1 - self.share) * held / max(self.room[rank], 1.0)

    def over(self, rank: int, held: float) -> float:
        """The share of a rank's bytes that it is over them."""
        return max(0.0, held - self.room[rank]) / max(abs(self.room[rank]), 1.0)

    def score(self, stops: Sequence[int]) -> tuple[float, float, float]:
        """What to make small: how far it is from fitting, the dearest rank, unevenness of ranks and then of stages."""
        seconds, held = ([0.0] * len(self.room) for _ in range(2))
        uneven = 0.0
        for stage, (start, stop) in enumerate(zip((0, *stops), stops)):
            time, size = self.of(stage, start, stop)
            seconds[self.placement[stage]] += time
            held[self.placement[stage]] += size
            uneven += 1e-3 * (time / self.mean) ** 2
        costs = [self.cost(rank, *of) for rank, of in enumerate(zip(seconds, held))]
        over = max(self.over(rank, size) for rank, size in enumerate(held))
        return round(over, 9), round(max(costs), 9), round(uneven + sum(cost**2 for cost in costs), 9)

    def exact(self) -> tuple[int, ...]:
        """The stops of the best split with one stage on each rank."""
        never = float("inf")

        def over(stage: int, start: int, stop: int) -> float:
            return self.over(self.placement[stage], self.of(stage, start, stop)[1])

        def cost(stage: int, start: int, stop: int) -> float:
            allowed = over(stage, start, stop) <= least + 1e-12
            return self.cost(self.placement[stage], *self.of(stage, start, stop)) if allowed else never

        def square(stage: int, start: int, stop: int) -> float:
            found = cost(stage, start, stop)
            return found**2 if found <= dearest * (1 + 1e-12) else never

        least, _ = _best(self.layers, self.stages, over, max)
        dearest, _ = _best(self.layers, self.stages, cost, max)
        return _best(self.layers, self.stages, square, float.__add__)[1]
