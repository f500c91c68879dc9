"""Times and bytes of schedules with a spread head, whose actions may wait for several messages: slower than `timing`, and general.

In: `Costs` of the stages and then of the shards, placement. Out: `Course`, which takes actions one after the other and says
when each can start and what its rank holds. As in `timing`, sends do not block, and messages between two ranks queue.
A shard's message to the last stage carries a gradient and the rows of its
targets, 1 + 1 / shards of an activation; what it gets back, a number per token, takes no time on the link.
"""

from __future__ import annotations

from collections.abc import Iterable

from .actions import Action, Schedule
from .costs import Costs

__all__ = ["Course", "most_held"]

NEVER = float("inf")


class Course:
    """A run on paper under way; `schedule` gives stages, shards and placement, its actions are not looked at."""

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        self.schedule, self.costs = schedule, costs
        self.now = [0.0] * schedule.num_ranks
        self.ready: dict[tuple[int, str, int, int], float] = {}  # stage, result, microbatch, reader: when it is there
        self._free: dict[tuple[int, int], float] = {}  # of links

    def start(self, action: Action) -> float:
        """When `action` could start as the next one of its rank; NEVER while something it needs is not under way."""
        stage, _, k = action
        time = self.now[self.schedule.rank_of(stage)]
        for source, result in self.schedule.inputs(action):
            time = max(time, self.ready.get((source, result, k, stage), NEVER))
        return time

    def run(self, action: Action, start: float) -> None:
        """Run `action` and send what it makes."""
        stage, kind, k = action
        schedule, costs, here = self.schedule, self.costs, self.schedule.rank_of(action.stage)
        end = self.now[here] = start + costs.seconds(kind, stage)
        result = "I" if kind == "B" else kind
        self.ready[stage, result, k, stage] = end
        for reader in schedule.outputs(action):
            there = schedule.rank_of(reader)
            arrival = end
            if there != here:
                sent = max(end, self._free.get((here, there), 0.0)) + costs.transfer * self._share(action, reader)
                self._free[here, there] = sent
                arrival = sent + costs.latency
            self.ready[stage, result, k, reader] = arrival

    def _share(self, action: Action, reader: int) -> float:
        """Size of a message, in activations."""
        if action.stage in self.schedule.shards:
            return 1 + 1 / self.schedule.num_shards
        return 0.0 if action.kind != "F" and reader in self.schedule.shards else 1.0

    def bytes_change(self, action: Action) -> tuple[float, float, float]:
        """Bytes that an action's rank holds more from its start on, while it runs, and from its end on."""
        stage, kind, costs = action.stage, action.kind, self.costs
        kept, owed = costs.kept[stage], costs.owed[stage]
        end = {"F": 0.0, "I": owed - kept, "W": -owed, "B": -kept}[kind]
        return kept if kind == "F" else 0.0, costs.during(kind, stage), end

    def finish(self, rows: Iterable[Iterable[Action]]) -> list[list[float]]:
        """Run all `rows`; when each action starts, up to where a rank waits for ever."""
        starts: list[list[float]] = [[] for _ in self.now]
        rest = [list(reversed(list(row))) for row in rows]
        progress = True
        while progress:
            progress = False
            for row, line in zip(rest, starts):
                while row and (start := self.start(row[-1])) < NEVER:
                    self.run(row.pop(), start)
                    line.append(start)
                    progress = True
        return starts


def most_held(course: Course, row: Iterable[Action]) -> float:
    """Bytes at the moment when a rank that runs `row` holds the most."""
    held = most = 0.0
    for action in row:
        enters, works, leaves = course.bytes_change(action)
        held += enters
        most = max(most, held + works)
        held += leaves
    return most
