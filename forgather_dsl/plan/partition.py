"""Which layers go to which stage: contiguous ranges whose dearest stage is as cheap as possible.

In: the cost of each layer (seconds, bytes, any unit), of the embedding (first stage) and of the head (last stage).
Out: one range of layers per stage. Exact, by dynamic programming, twice: for the least cost of the dearest stage, then,
under that limit, for the most even split (least sum of squares).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

__all__ = ["split"]


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
