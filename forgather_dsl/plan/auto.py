"""`Auto`: where stages are, which layers they have and the order of every rank, together, the fastest within the memory.

In: the cost of parts, a function from placement and layers to `Costs`, ranks, microbatches. Out: `Choice`. Tried: one stage
on each rank, two in a loop, two in a V; splits even in time, in bytes and in between, then single layers moved; every drawn
schedule; searched orders. At steps within half a percent the simplest wins, then the one with less memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .actions import Action, Schedule
from .costs import Costs
from .partition import Live, Parts, divide
from .schedules import drawn, to_and_fro
from .search import least_room, lower_bound, search
from .timing import Timing

__all__ = ["Choice", "at_peak", "choose"]

EVEN = 0.005  # steps that differ by less count as equal
SHARES = (1.0, 0.75, 0.5, 0.0)  # of a split's evenness that is time; the rest bytes
QUICK = 60_000  # effort of a first search
FIRST, LAYER_MOVES = 4, 24  # splits that are searched; moves of single layers tried on the best
SIMPLEST = ("1F1B", "Interleaved")

Layers = tuple[range, ...]
CostOf = Callable[[tuple[int, ...], Layers], Costs]


class Choice(NamedTuple):
    """What was chosen, and why in one sentence."""

    schedule: Schedule
    layers: Layers
    reason: str


class _Tried(NamedTuple):
    """A schedule on a split: by how much the fullest rank is over its bytes (a share), and seconds of a step."""

    over: float
    seconds: float
    schedule: Schedule
    layers: Layers
    bytes: float

    @classmethod
    def of(cls, schedule: Schedule, layers: Layers, costs: Costs) -> _Tried:
        timing = Timing(costs, schedule.placement, schedule.num_microbatches)
        rows = [[timing.number(action) for action in row] for row in schedule.actions]
        ends = timing.run(rows)
        assert ends is not None, schedule.name  # drawn and found ones do not deadlock
        held = [timing.most_held(row) for row in rows]
        over = max((most - can) / max(abs(can), 1e-9) for most, can in zip(held, costs.capacity))
        return cls(over if over > 1e-9 else 0.0, max(ends), schedule, layers, max(held))

    @property
    def searched(self) -> bool:
        """Whether a search made it."""
        return self.schedule.name == "ZeroBubble"

    @property
    def rank(self) -> tuple[int, float]:
        """What to prefer at equal steps: simple ones, then less memory."""
        name = self.schedule.name
        return SIMPLEST.index(name) if name in SIMPLEST else len(SIMPLEST) + self.searched, self.bytes


def _merit(tried: _Tried) -> tuple[float, float]:
    """What fits is better, then what is shorter."""
    return tried.over, tried.seconds


def at_peak(schedule: Schedule) -> Live:
    """Per stage: microbatches between F and I, and between I and W, when its rank holds most of them."""
    live: list[tuple[float, float]] = [(0.0, 0.0)] * schedule.num_stages
    for rank, row in enumerate(schedule.actions):
        now = {stage: [0, 0] for stage in schedule.stages_of(rank)}
        most, best = -1, now
        for action in row:
            _count(now[action.stage], action)
            total = sum(map(sum, now.values()))
            if total > most:
                most, best = total, {stage: list(pair) for stage, pair in now.items()}
        for stage, pair in best.items():
            live[stage] = (pair[0], pair[1])
    return live


def _count(pair: list[int], action: Action) -> None:
    pair[0] += {"F": 1, "I": -1, "B": -1}.get(action.kind, 0)
    pair[1] += {"I": 1, "W": -1}.get(action.kind, 0)


def choose(cost_of: CostOf, parts: Parts, ranks: int, microbatches: int, cuts: Layers | None = None) -> Choice:
    """The fastest of all that fits; when nothing does, what comes nearest. `cuts`: the user's own layers of each stage.

    Never slower than the best drawn schedule that fits, by more than the half percent that a simpler one may cost.
    """
    tried, splits = [], []
    for placement in _placements(ranks, len(parts.stored) - 2, cuts):
        named = list(drawn(placement, microbatches))
        for layers in _splits(parts, placement, named) if cuts is None else [cuts]:
            costs = cost_of(placement, layers)
            tried += [_Tried.of(schedule, layers, costs) for schedule in named]
            splits.append((lower_bound(costs, placement, microbatches), placement, layers))
    best_drawn = min(tried, key=_merit)
    splits.sort(key=lambda split: split[0])
    hopeless = all(_hopeless(cost_of(placement, layers), placement) for _, placement, layers in splits)
    for bound, placement, layers in splits[: 1 if hopeless else FIRST]:
        if best_drawn.over or bound < best_drawn.seconds * (1 - EVEN):
            tried.append(_searched(cost_of, placement, layers, microbatches, QUICK))
    best = min(tried, key=_merit)
    if best.searched:
        if cuts is None:
            best = _with_layers_moved(cost_of, best)
        again = _searched(cost_of, best.schedule.placement, best.layers, microbatches, None, best.schedule)
        best = min(best, again, key=_merit)
        tried += [best]
    equal = [one for one in tried if one.over <= best.over and one.seconds <= best.seconds * (1 + EVEN)]
    chosen = min(equal, key=lambda one: (one.rank, one.seconds))
    bound = lower_bound(cost_of(chosen.schedule.placement, chosen.layers), chosen.schedule.placement, microbatches)
    return Choice(chosen.schedule, chosen.layers, _reason(chosen, best, best_drawn, bound))


def _hopeless(costs: Costs, placement: tuple[int, ...]) -> bool:
    """Whether some rank cannot hold even one microbatch."""
    return any(need > can for need, can in zip(least_room(costs, placement), costs.capacity))


def _placements(ranks: int, layers: int, cuts: Layers | None) -> Iterator[tuple[int, ...]]:
    line = tuple(range(ranks))
    for placement in dict.fromkeys((line, line * 2, to_and_fro(ranks, 2))):
        if len(placement) == (len(cuts) if cuts is not None else len(placement)) <= layers:
            yield placement


def _splits(parts: Parts, placement: tuple[int, ...], named: Sequence[Schedule]) -> list[Layers]:
    """Even in time, in bytes, and in between, with a microbatch alive on each rank; and what each drawn schedule would get."""
    one = [(1.0, 0.0)] * len(placement)
    found = [divide(parts, placement, one, share) for share in SHARES]
    return list(dict.fromkeys([*found, *(divide(parts, placement, at_peak(schedule)) for schedule in named)]))


def _searched(
    cost_of: CostOf,
    placement: tuple[int, ...],
    layers: Layers,
    microbatches: int,
    effort: int | None,
    *more: Schedule,
) -> _Tried:
    costs = cost_of(placement, layers)
    seeds = [*drawn(placement, microbatches), *more]
    order = search(costs, placement, microbatches, seeds, **({} if effort is None else {"effort": effort}))
    return _Tried.of(order, layers, costs)


def _with_layers_moved(cost_of: CostOf, best: _Tried) -> _Tried:
    """The same order on other layers, as long as one layer given to a neighbour makes the step shorter."""
    tries, improved = 0, True
    while improved and tries < LAYER_MOVES:
        improved = False
        for boundary in range(len(best.layers) - 1):
            for step in (-1, 1):
                tries += 1
                stops = [layers.stop + step * (i == boundary) for i, layers in enumerate(best.layers)]
                moved = tuple(range(start, stop) for start, stop in zip((0, *stops), stops))
                if all(moved):
                    found = _Tried.of(best.schedule, moved, cost_of(best.schedule.placement, moved))
                    if _merit(found) < _merit(best):
                        best, improved = found, True
    return best


def _reason(chosen: _Tried, best: _Tried, best_drawn: _Tried, bound: float) -> str:
    """One sentence."""
    name = _name(chosen)
    if chosen.over:
        return f"{name} comes nearest to fitting: its fullest rank is {chosen.over:.0%} over what it has"
    above = chosen.seconds / bound - 1
    floor = (
        f"no order of this split could be more than {above:.1%} faster" if above > 5e-5 else "no order could be faster"
    )
    if chosen.searched:
        if best_drawn.over:
            return f"{name}: no schedule drawn by hand fits; {floor}"
        gain = 1 - chosen.seconds / best_drawn.seconds
        return f"{name}: its step is {gain:.1%} shorter than with {_name(best_drawn)}, the best drawn by hand; {floor}"
    if chosen is best_drawn and not best.searched:
        return f"{name}: the fastest of all; {floor}"
    loss = chosen.seconds / best.seconds - 1
    why = "simpler" if chosen.rank[0] < best.rank[0] else "with less memory"
    return f"{name}: within {max(loss, 0):.1%} of the fastest found, {_name(best)}, and {why}; {floor}"


def _name(tried: _Tried) -> str:
    schedule = tried.schedule
    where = {1: ""}.get(schedule.num_stages // schedule.num_ranks)
    if where is None:
        where = " in a V" if schedule.placement == to_and_fro(schedule.num_ranks, 2) else " in a loop"
    return f"{'a searched order' if tried.searched else schedule.name}{where}"
