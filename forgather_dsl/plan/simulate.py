"""Runs a schedule on paper: who is busy when, what the bubble is, how many microbatches are alive, is it valid.

In: a `Schedule` and durations per stage (any unit). Out: `Simulation`, a text picture, or ValueError naming the action.
Ranks run their actions in order; an action starts when its rank is free and its input has arrived; sends are
asynchronous and take `communication`. Memory is counted in microbatches of a stage, from the start of F to the end of
B or W (what lies between I and W is counted in full: an upper bound, measured as about three quarters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from forgather_dsl.plan.actions import Action, Schedule

__all__ = ["Interval", "Simulation", "check", "draw", "simulate"]


class Interval(NamedTuple):
    """One action and when it ran."""

    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Simulation:
    """What `simulate` found; times in the unit of the durations given, one entry per rank."""

    makespan: float
    busy: tuple[float, ...]
    peak: tuple[int, ...]
    """Most (stage, microbatch) pairs whose activations a rank holds at once."""
    timeline: tuple[tuple[Interval, ...], ...]

    @property
    def bubble(self) -> tuple[float, ...]:
        """Idle share of the whole step, per rank."""
        return tuple(1 - busy / self.makespan if self.makespan else 0.0 for busy in self.busy)


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


def _inputs(action: Action, num_stages: int) -> Iterator[tuple[int, str]]:
    """(stage, "F" | "I" | "W") results of the same microbatch that `action` needs."""
    if action.kind == "F" and action.stage > 0:
        yield action.stage - 1, "F"
    if action.kind in "BI":
        yield action.stage, "F"
        if action.stage < num_stages - 1:
            yield action.stage + 1, "I"
    if action.kind == "W":
        yield action.stage, "I"


def _walk(schedule: Schedule, duration: Callable[[Action], float], communication: float) -> list[list[Interval]]:
    """When each action runs. Raises ValueError naming the action each rank is stuck at."""
    done: dict[tuple[int, str, int], float] = {}  # (stage, result, microbatch) -> when it is there, on its own rank
    lines: list[list[Interval]] = [[] for _ in schedule.actions]
    waiting = set(range(schedule.num_ranks))
    progress = True
    while progress:
        progress = False
        for rank in sorted(waiting):
            row, line = schedule.actions[rank], lines[rank]
            while len(line) < len(row):
                action = row[len(line)]
                start = line[-1].end if line else 0.0
                for stage, result in _inputs(action, schedule.num_stages):
                    arrival = done.get((stage, result, action.microbatch), float("inf"))
                    start = max(start, arrival + communication * (schedule.placement[stage] != rank))
                if start == float("inf"):
                    break
                line.append(Interval(action, start, start + duration(action)))
                done[action.stage, "I" if action.kind == "B" else action.kind, action.microbatch] = line[-1].end
                progress = True
            if len(line) == len(row):
                waiting.discard(rank)
    if waiting:
        stuck = ", ".join(f"rank {rank} at {schedule.actions[rank][len(lines[rank])]}" for rank in sorted(waiting))
        raise ValueError(f"schedule {schedule.name} deadlocks: {stuck} waits for a result that never comes")
    return lines


def _peak(line: Sequence[Interval]) -> int:
    alive = peak = 0
    for interval in line:
        alive += interval.action.kind == "F"
        peak = max(peak, alive)
        alive -= interval.action.kind in "BW"
    return peak


def simulate(
    schedule: Schedule,
    forward: float | Sequence[float] = 1.0,
    input_grad: float | Sequence[float] = 1.0,
    weight_grad: float | Sequence[float] = 1.0,
    communication: float = 0.0,
) -> Simulation:
    """Run the schedule on paper. Durations are one number for every stage, or one per stage.

    `communication` is the time a message takes between two ranks. Raises ValueError when the schedule deadlocks.
    """
    table = durations(schedule.num_stages, forward, input_grad, weight_grad)
    lines = _walk(schedule, lambda action: table[action.kind][action.stage], communication)
    return Simulation(
        makespan=max((line[-1].end for line in lines if line), default=0.0),
        busy=tuple(sum(interval.end - interval.start for interval in line) for line in lines),
        peak=tuple(_peak(line) for line in lines),
        timeline=tuple(tuple(line) for line in lines),
    )


def check(schedule: Schedule) -> None:
    """Raise ValueError, naming the action, unless the schedule is complete, ordered and free of deadlock.

    Complete: every stage runs F and either B or I and W once per microbatch, on its own rank. Ordered: the F, the I or
    B, and the W or B of a stage each come in microbatch order, since a sum of gradients has to be taken in one
    order whatever the schedule. Free of deadlock: with sends that never block, every action gets its turn.
    """
    counts: dict[Action, int] = {}
    newest: dict[tuple[int, str], int] = {}
    for rank, row in enumerate(schedule.actions):
        for action in row:
            if not (0 <= action.stage < schedule.num_stages and 0 <= action.microbatch < schedule.num_microbatches):
                raise ValueError(
                    f"{action} is outside {schedule.num_stages} stages x {schedule.num_microbatches} microbatches"
                )
            if schedule.placement[action.stage] != rank:
                raise ValueError(f"{action} is on rank {rank}, its stage on rank {schedule.placement[action.stage]}")
            counts[action] = counts.get(action, 0) + 1
            for sequence in {
                "F": ("forward",),
                "I": ("input gradient",),
                "W": ("weight gradient",),
                "B": ("input gradient", "weight gradient"),
            }[action.kind]:
                if newest.setdefault((action.stage, sequence), -1) > action.microbatch:
                    raise ValueError(
                        f"{action} comes after the {sequence} of microbatch "
                        f"{newest[action.stage, sequence]}: microbatches must stay in order"
                    )
                newest[action.stage, sequence] = action.microbatch
    _check_complete(schedule, counts)
    _walk(schedule, lambda _: 1.0, 0.0)


def _check_complete(schedule: Schedule, counts: dict[Action, int]) -> None:
    for stage in range(schedule.num_stages):
        for microbatch in range(schedule.num_microbatches):
            f, b, i, w = (counts.get(Action(stage, kind, microbatch), 0) for kind in ("F", "B", "I", "W"))
            if f != 1:
                raise ValueError(f"{Action(stage, 'F', microbatch)} occurs {f} times, not once")
            if (b, i, w) not in ((1, 0, 0), (0, 1, 1)):
                raise ValueError(
                    f"{Action(stage, 'B', microbatch)} occurs {b} times, its I {i} and its W {w} times: "
                    f"it takes one B, or one I and one W"
                )


def draw(
    schedule: Schedule,
    forward: float | Sequence[float] = 1.0,
    input_grad: float | Sequence[float] = 1.0,
    weight_grad: float | Sequence[float] = 1.0,
    communication: float = 0.0,
) -> str:
    """A picture: one line per rank, time to the right, `F3` where an action starts, `-` while it lasts, `.` idle.

    With several stages on a rank, a label says its stage too (`7F3`). Ends with the bubble and peak of each rank.
    """
    result = simulate(schedule, forward, input_grad, weight_grad, communication)
    one_each = schedule.num_stages == schedule.num_ranks
    labels = {a: str(a)[len(str(a.stage)) :] if one_each else str(a) for row in schedule.actions for a in row}
    shortest = min((i.end - i.start for line in result.timeline for i in line if i.end > i.start), default=1.0)
    scale = (max(map(len, labels.values())) + 1) / shortest  # columns per unit of time: every label fits its action
    lines = []
    for rank, line in enumerate(result.timeline):
        text = ["."] * round(result.makespan * scale)
        for action, start, end in line:
            first, width = round(start * scale), round(end * scale) - round(start * scale)
            text[first : first + width] = labels[action].ljust(width - 1, "-").ljust(width)[:width]
        lines.append(f"rank {rank} |{''.join(text)}| bubble {result.bubble[rank]:.1%}, peak {result.peak[rank]}")
    return "\n".join(lines)
