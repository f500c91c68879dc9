"""Spreads the output head over the ranks of a schedule: a pass that puts the actions of the shards into its rows.

In: any valid schedule, and `Costs` of its stages (the last without the head) followed by one shard per rank. Out: the same
order of F, I and B, with shard S + r on rank r: its F when the last stage's hidden state is there, its W, as those of
the layers, where the rank would wait. The parts of all shards have to be back before the last stage's backward, so
backwards may move behind a few more forwards. Rows grow in simulated time, so they cannot deadlock; the best of a small
grid of policies is taken. After Yeung et al., arXiv 2411.05288, who insert by hand what is greedy here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from .actions import Action, Schedule
from .costs import Costs
from .spread_times import NEVER, Course, most_held

__all__ = ["spread_head"]


class _Policy(NamedTuple):
    delay: int  # forwards of a rank that every backward moves behind
    shard_first: bool  # a shard's F goes before a ready forward of the layers
    patience: float  # rather than start a W, wait for what comes within this share of it


@lru_cache(maxsize=64)  # a plan lays the same experiment out again and again
def spread_head(schedule: Schedule, costs: Costs, others: tuple[Schedule, ...] = ()) -> Schedule:
    """`schedule` with its head spread over all ranks: the shortest step found that is within every rank's capacity, or
    the one that exceeds it least; of steps within a thousandth of one another, the one that holds least. `others` with the
    same placement are tried too, as a good order without shards need not be one with them.

    Raises ValueError when `costs` are not of its stages and one shard per rank.
    """
    ranks, stages = schedule.num_ranks, schedule.num_stages
    if schedule.num_shards or costs.num_stages != stages + ranks:
        raise ValueError(
            f"schedule {schedule.name} has {stages} stages, {schedule.num_shards} shards and {ranks} ranks; spreading "
            f"its head takes costs of {stages + ranks} stages, not {costs.num_stages}"
        )
    bare = replace(schedule, num_shards=ranks, actions=((),) * ranks)
    policies = [
        _Policy(delay, shard_first, patience)
        for delay in range(2 * stages // ranks + 2)
        for shard_first in (True, False)
        for patience in (0.0, 0.5, 1.0)
    ]
    tried = (_inserted(base, bare, costs, policy) for base in (schedule, *others) for policy in policies)
    return min(filter(None, tried), key=lambda found: _score(found, bare, costs))


def _score(found: Schedule, bare: Schedule, costs: Costs) -> tuple[float, float, float]:
    """By how much it exceeds the memory, its step in thousandths of the work, what it holds."""
    course = Course(bare, costs)
    held = [most_held(course, row) for row in found.actions]
    over = max(most / can if can > 0 else NEVER for most, can in zip(held, costs.capacity))
    course.finish(found.actions)
    work = sum(costs.seconds(action.kind, action.stage) for row in found.actions for action in row) / len(held)
    return max(0.0, over - 1), round(max(course.now) / (work or 1.0), 3), max(held)


def _delayed(row: Sequence[Action], delay: int) -> tuple[list[Action], dict[int, list[Action]]]:
    """F, I and B of a rank, every backward behind `delay` more forwards; and the W of each stage, in order. A stage that
    has any W has all its B split: a W that comes later would else come after the B of a later microbatch.
    """
    split = {action.stage for action in row if action.kind == "W"}
    forwards = [action for action in row if action.kind == "F"]
    order: list[Action] = []
    weights: dict[int, list[Action]] = {}
    done = seen = 0
    for action in row:
        if action.kind == "F":
            seen += 1
            continue
        if action.kind == "W" or (action.kind == "B" and action.stage in split):
            weights.setdefault(action.stage, []).append(action._replace(kind="W"))
        if action.kind != "W":
            order += forwards[done : seen + delay]
            done = max(done, min(seen + delay, len(forwards)))
            order.append(action._replace(kind="I") if action.stage in split else action)
    return order + forwards[done:], weights


class _Rank:
    """What a rank has still to do; lists are popped from their end."""

    def __init__(self, row: Sequence[Action], delay: int, shard: int, microbatches: int) -> None:
        order, weights = _delayed(row, delay)
        self.order = order[::-1]
        self.shard_forwards = [Action(shard, "F", k) for k in reversed(range(microbatches))]
        shard_weights = [Action(shard, "W", k) for k in reversed(range(microbatches))]
        self.weights = [shard_weights, *(actions[::-1] for actions in weights.values())]
        self.row: list[Action] = []
        self.held = 0.0


def _inserted(schedule: Schedule, bare: Schedule, costs: Costs, policy: _Policy) -> Schedule | None:
    """One greedy run; None when the delay makes a circle of waiting."""
    course = Course(bare, costs)
    ranks = [
        _Rank(row, policy.delay, shard, schedule.num_microbatches) for row, shard in zip(schedule.actions, bare.shards)
    ]
    choices: dict[int, tuple[float, list[Action]]] = {}
    changed: Iterable[int] = range(len(ranks))
    while True:
        choices.update((i, _choose(course, ranks[i], costs.capacity[i], policy)) for i in changed)
        start, index = min((choices[i][0], i) for i in range(len(ranks)))
        if start == NEVER:
            break
        rank, queue = ranks[index], choices[index][1]
        action = queue.pop()
        course.run(action, start)
        rank.row.append(action)
        enters, _, leaves = course.bytes_change(action)
        rank.held += enters + leaves
        changed = {index, *map(bare.rank_of, bare.outputs(action))}  # the others can start what they could before
    if any(rank.order or rank.shard_forwards or any(rank.weights) for rank in ranks):
        return None
    return replace(bare, actions=tuple(tuple(rank.row) for rank in ranks))


def _choose(course: Course, rank: _Rank, capacity: float, policy: _Policy) -> tuple[float, list[Action]]:
    """When the rank starts something next, and the queue whose turn it is."""

    def begin(queue: list[Action]) -> float:
        return course.start(queue[-1]) if queue else NEVER

    order, shard = begin(rank.order), begin(rank.shard_forwards)
    shard_wins = shard < order or (
        shard == order and shard < NEVER and (policy.shard_first or rank.order[-1].kind != "F")
    )
    start, queue = (shard, rank.shard_forwards) if shard_wins else (order, rank.order)
    weights = [(begin(w), w) for w in rank.weights if w]
    if not weights:
        return start, queue
    first = min(time for time, _ in weights)
    if start < NEVER and queue[-1].kind == "F" and rank.held + sum(course.bytes_change(queue[-1])[:2]) > capacity:
        return min(((time, w) for time, w in weights), key=lambda pair: pair[0]) if first < NEVER else (start, queue)
    gap = start - first
    ready = [(course.costs.seconds("W", w[-1].stage), time, w) for time, w in weights if time <= first]
    fitting = [option for option in ready if option[0] * policy.patience <= gap]
    if first >= start or not fitting:
        return start, queue
    _, time, chosen = max(fitting, key=lambda option: (min(option[0], gap), option[0] <= gap))
    return time, chosen
