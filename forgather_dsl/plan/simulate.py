"""Runs a schedule on paper: who is busy when, what the bubble is, what each rank holds.

In: a `Schedule` and `Costs`, or plain durations (any unit). Out: `Simulation`, or ValueError naming the
action. Ranks run their actions in order; an action starts when its rank is free and its input has arrived; sends are
asynchronous, and messages between two ranks queue in each direction. Bytes: `Costs` says what is held from when to when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from forgather_dsl.plan.actions import Action, Schedule
from forgather_dsl.plan.costs import Costs
from forgather_dsl.plan.spread_times import Course, most_held
from forgather_dsl.plan.timing import Timing

__all__ = ["Interval", "Simulation", "durations", "simulate"]


class Interval(NamedTuple):
    """One action and when it ran."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """What `simulate` found; times in the unit of the durations given, one entry per rank."""

    makespan: float
    """The step under an optimizer that waits for all ranks."""
    busy: tuple[float, ...]
    span: tuple[float, ...]
    """End of the last action less the start of the first; the largest is the step when no rank waits for the others."""
    peak: tuple[int, ...]
    """Most (stage, microbatch) pairs that a rank holds at once, from the start of F to the end of B or W."""
    peak_bytes: tuple[float, ...]
    """Most that a rank holds at once of what `Costs` counts."""
    within: tuple[bool, ...]
    """Whether that is within the rank's capacity."""
    timeline: tuple[tuple[Interval, ...], ...]

    @property
    def bubble(self) -> tuple[float, ...]:
        """Idle share of the whole step, per rank."""
        return tuple(1 - busy / self.makespan if self.makespan else 0.0 for busy in self.busy)

    @property
    def fits(self) -> bool:
        """Whether every rank is within its capacity."""
        return all(self.within)


def durations(
    num_stages: int,
    forward: float | Sequence[float],
    input_grad: float | Sequence[float],
    weight_grad: float | Sequence[float],
) -> dict[str, list[float]]:
    """Duration of each kind of action per stage, from one number for all stages or one per stage."""

    def per_stage(value: float | Sequence[float], what: str) -> list[float]:
        values = [*value] if isinstance(value, Sequence) else [float(value)] * num_stages
        if len(values) != num_stages:
            raise ValueError(f"{what} has {len(values)} durations for {num_stages} stages")
        return values

    table = {
        "F": per_stage(forward, "forward"),
        "I": per_stage(input_grad, "input_grad"),
        "W": per_stage(weight_grad, "weight_grad"),
    }
    return table | {"B": [i + w for i, w in zip(table["I"], table["W"])]}


def _plain(schedule: Schedule, table: dict[str, list[float]], latency: float) -> Costs:
    """Costs of durations alone: a byte per (stage, microbatch), no matter how many."""
    one, none = (1.0,) * len(table["F"]), (0.0,) * len(table["F"])
    forward, input_grad, weight_grad = (tuple(table[kind]) for kind in "FIW")
    no_limit = (float("inf"),) * schedule.num_ranks
    return Costs(forward, input_grad, weight_grad, one, one, none, no_limit, latency)


def _peak(row: Sequence[Action]) -> int:
    alive = peak = 0
    for action in row:
        alive += action.kind == "F"
        peak = max(peak, alive)
        alive -= action.kind in "BW"
    return peak


def _in_order(row: Sequence[Action]) -> int:
    """How many actions come before the first whose own rank has not yet done what it needs: F before I or B, I before W."""
    done: set[Action] = set()
    for index, action in enumerate(row):
        if action.kind != "F" and action._replace(kind="I" if action.kind == "W" else "F") not in done:
            return index
        done.add(action)
    return len(row)


def _course(schedule: Schedule, costs: Costs) -> tuple[list[list[float]], tuple[float, ...]]:
    """When each action starts, up to where a rank waits for ever, and the most that each rank holds."""
    timing = Timing(costs, schedule.placement, schedule.num_microbatches)
    rows = [[timing.number(action) for action in row[: _in_order(row)]] for row in schedule.actions]
    starts: list[list[float]] = [[] for _ in rows]
    timing.run(rows, starts)
    return starts, tuple(map(timing.most_held, rows))


def _spread_course(schedule: Schedule, costs: Costs) -> tuple[list[list[float]], tuple[float, ...]]:
    course = Course(schedule, costs)
    return course.finish(schedule.actions), tuple(most_held(course, row) for row in schedule.actions)


def simulate(
    schedule: Schedule,
    costs: Costs | float | Sequence[float] = 1.0,
    input_grad: float | Sequence[float] = 1.0,
    weight_grad: float | Sequence[float] = 1.0,
    communication: float = 0.0,
) -> Simulation:
    """Run the schedule on paper, under `costs` of its stages and then of its shards, if any. Or under plain durations, one number for every stage or one per stage:
    then `costs` is that of F, and `communication` the time a message takes between two ranks.

    Raises ValueError when the schedule deadlocks, naming the action each rank is stuck at.
    """
    if not isinstance(costs, Costs):
        table = durations(schedule.num_stages + schedule.num_shards, costs, input_grad, weight_grad)
        costs = _plain(schedule, table, communication)
    starts, held = (_spread_course if schedule.num_shards else _course)(schedule, costs)
    stuck = [(rank, len(begun)) for rank, begun in enumerate(starts) if len(begun) < len(schedule.actions[rank])]
    if stuck:
        where = ", ".join(f"rank {rank} at {schedule.actions[rank][index]}" for rank, index in stuck)
        raise ValueError(f"schedule {schedule.name} deadlocks: {where} waits for a result that never comes")
    timeline = tuple(
        tuple(Interval(action, start, start + costs.seconds(action.kind, action.stage)) for action, start in zip(*line))
        for line in zip(schedule.actions, starts)
    )
    return Simulation(
        makespan=max((line[-1].end for line in timeline if line), default=0.0),
        busy=tuple(sum(interval.end - interval.start for interval in line) for line in timeline),
        span=tuple(line[-1].end - line[0].start if line else 0.0 for line in timeline),
        peak=tuple(map(_peak, schedule.actions)),
        peak_bytes=held,
        within=tuple(most <= can * (1 + 1e-9) for most, can in zip(held, costs.capacity)),
        timeline=timeline,
    )
