"""Finds the order of a pipeline with split backward for any placement: list scheduling over a grid of policies, then climbing.

In: `Costs`, the rank of each stage, microbatches, schedules to start from. Out: the `Schedule` with the least makespan found,
never worse than any of those to start from that stay within the bytes of every rank. A policy may also be followed for
other costs than the true ones (messages that take no time, stages half as uneven): under tight memory that gives calmer
patterns. No clock and no chance in it: the same inputs give the same order. After Qi et al., arXiv 2401.10241, section 3.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from forgather_dsl.plan import cached
from forgather_dsl.plan.actions import Action, Schedule, from_rows
from forgather_dsl.plan.climb import climb, merge
from forgather_dsl.plan.costs import Costs
from forgather_dsl.plan.greedy import NEVER, Policy, list_schedule
from forgather_dsl.plan.timing import Timing

__all__ = ["least_room", "lower_bound", "search"]

VERSION = 1  # of what `search` finds: kept results of another one are not used
CLIMBS = 3  # of the best orders found, that many are bettered
MOST_STEPS = 2000  # of each climb
SLACK = 1 + 1e-9  # sums of the same numbers in another order

Rows = list[list[int]]


def lower_bound(costs: Costs, placement: Sequence[int], microbatches: int) -> float:
    """Seconds that no order of a step can be under when the optimizer waits for all ranks.

    A rank cannot start before the first microbatch has come through all earlier stages, and then has all its work to do. With
    equal stages, v on each of p ranks, that leaves (p - 1) * (forward of a rank / v + message) of bubble.
    """
    arrives, first, work = 0.0, dict[int, float](), dict[int, float]()
    hop = costs.latency + costs.transfer
    for stage, rank in enumerate(placement):
        arrives += hop * (stage > 0 and placement[stage - 1] != rank)
        first.setdefault(rank, arrives)
        work[rank] = work.get(rank, 0.0) + microbatches * sum(costs.seconds(kind, stage) for kind in "FIW")
        arrives += costs.forward[stage]
    through = arrives + sum(costs.input_grad) + hop * sum(a != b for a, b in itertools.pairwise(placement))
    return max(through, *(first[rank] + work[rank] for rank in work))


def least_room(costs: Costs, placement: Sequence[int]) -> tuple[float, ...]:
    """Bytes that every order takes on each rank: one microbatch on all its stages, and what the dearest works with."""
    least = []
    for rank in range(max(placement) + 1):
        own = [stage for stage, owner in enumerate(placement) if owner == rank]
        least.append(sum(costs.kept[s] for s in own) + max(costs.working[s] for s in own))
    return tuple(least)


def search(
    costs: Costs,
    placement: Sequence[int],
    microbatches: int,
    seeds: Iterable[Schedule] = (),
    effort: int = 800_000,
) -> Schedule:
    """The best order found. `effort`: actions simulated while climbing. Results are kept on disk.

    Where a rank cannot hold even one microbatch, its capacity counts as what that takes (`simulate` tells that it does not fit).
    """
    least = least_room(costs, placement)
    costs = replace(costs, capacity=tuple(max(c, need) for c, need in zip(costs.capacity, least)))
    seeds = [seed for seed in seeds if seed.placement == tuple(placement) and seed.num_microbatches == microbatches]
    inputs = {
        "version": VERSION,
        "costs": costs.__dict__,
        "placement": list(placement),
        "microbatches": microbatches,
        "effort": effort,
        "seeds": [[list(map(str, row)) for row in seed.actions] for seed in seeds],
    }

    def find() -> Rows:
        return _find(Timing(costs, placement, microbatches), seeds, effort)

    def read(found: object) -> Schedule:
        timing = Timing(costs, placement, microbatches)
        rows = [[timing.action(number) for number in row] for row in found]  # type: ignore[attr-defined]  # checked by whoever reads it
        return from_rows("ZeroBubble", rows)

    return read(cached.remembered("orders", inputs, find))


def _find(timing: Timing, seeds: Sequence[Schedule], effort: int) -> Rows:
    target = lower_bound(timing.costs, timing.placement, timing.microbatches) * SLACK
    found: dict[tuple[float, float, float], Rows] = {}
    for rows in itertools.chain(_seeds(timing, seeds), _listed(timing)):
        ends = timing.run(rows)
        if ends is not None:
            held = sum(map(timing.most_held, rows))
            found.setdefault((float(f"{max(ends):.9g}"), held, sum(ends)), rows)
            if max(ends) <= target:
                break
    best = found[min(found)]
    if max(timing.run(best) or [NEVER]) > target:
        steps = min(MOST_STEPS, effort // CLIMBS // (3 * timing.stages * timing.microbatches))
        climbed = [climb(timing, found[key], steps, target) for key in sorted(found)[:CLIMBS]]
        best = min(climbed, key=lambda rows: max(timing.run(rows) or [NEVER]))
    return merge(timing, best)


def _seeds(timing: Timing, seeds: Sequence[Schedule]) -> Iterator[Rows]:
    """As they are, and with every B split; those within the bytes."""
    for seed in seeds:
        for actions in (seed.actions, [list(_split(row)) for row in seed.actions]):
            rows = [[timing.number(action) for action in row] for row in actions]
            if all(timing.most_held(row) <= can * SLACK for row, can in zip(rows, timing.costs.capacity)):
                yield rows


def _split(row: Iterable[Action]) -> Iterator[Action]:
    for action in row:
        if action.kind == "B":
            yield from (action._replace(kind="I"), action._replace(kind="W"))
        else:
            yield action


def _listed(timing: Timing) -> Iterator[Rows]:
    """Orders of all policies, for the true costs first."""
    costs = timing.costs
    silent = replace(costs, latency=0.0, transfer=0.0)
    views = [timing, Timing(silent, timing.placement, timing.microbatches)]
    views.append(Timing(_evened(silent), timing.placement, timing.microbatches))
    for view in views if costs.latency + costs.transfer else (views[0], views[2]):
        for policy in _policies(timing):
            rows = list_schedule(view, policy)
            if rows is not None:
                yield rows


def _evened(costs: Costs) -> Costs:
    """Half way from each duration to their mean."""
    times = (costs.forward, costs.input_grad, costs.weight_grad)
    mean = sum(map(sum, times)) / (3 * costs.num_stages)
    forward, input_grad, weight_grad = (tuple((x + mean) / 2 for x in row) for row in times)
    return replace(costs, forward=forward, input_grad=input_grad, weight_grad=weight_grad)


def _policies(timing: Timing) -> Iterator[Policy]:
    """The grid; policies with less memory first."""
    ranks, most = timing.ranks, timing.microbatches
    several = timing.stages > ranks
    depths = {
        tuple(max(1, min(most, depth(ranks - rank))) for rank in range(ranks))
        for depth in (lambda n: n, lambda n: 2 * n - 1, lambda n: ranks + n, lambda n: 2 * n, lambda n: most)
    }
    for ahead, deepest, owing, eager, patience in itertools.product(
        sorted(depths, key=sum),
        ((True, True), (True, False)) if several else ((True, True),),
        (NEVER, 3, 2) if several else (NEVER,),
        (0.0, 1.0, 2.0),
        (0.0, 0.5, 1.0),
    ):
        yield Policy(ahead, eager, (patience,) * ranks, deepest, owing)
