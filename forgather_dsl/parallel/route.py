"""Which messages each rank sends and receives under a schedule, in order: read off the actions, so both ends number them alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from forgather_dsl.plan.schedules import Action, Schedule

__all__ = ["Message", "Route"]


class Message(NamedTuple):
    """An activation or gradient for `stage`; or a shard's part of the loss for the last stage, and its answer."""

    kind: Literal["activation", "gradient", "partial", "normaliser"]
    stage: int
    microbatch: int
    shard: int | None = None
    """The shard that sends a partial: the last stage has one from each."""

    def __str__(self) -> str:
        source = "" if self.shard is None else f" from shard {self.shard}"
        return f"{self.kind} of microbatch {self.microbatch} for stage {self.stage}{source}"


def _results(action: Action, schedule: Schedule) -> Iterator[Message]:
    """What an action sends on, in order."""
    for reader in schedule.outputs(action):
        if action.kind != "F":
            yield Message("normaliser" if reader in schedule.shards else "gradient", reader, action.microbatch)
        elif action.stage in schedule.shards:
            yield Message("partial", reader, action.microbatch, action.stage)
        else:
            yield Message("activation", reader, action.microbatch)


def _needs(action: Action, schedule: Schedule) -> Iterator[Message]:
    """What an action waits for."""
    for source, result in schedule.inputs(action):
        if source == action.stage:
            continue
        if result == "I":
            yield Message("normaliser" if action.kind == "W" else "gradient", action.stage, action.microbatch)
        elif source in schedule.shards:
            yield Message("partial", action.stage, action.microbatch, source)
        else:
            yield Message("activation", action.stage, action.microbatch)


class Route:
    """What one rank sends and receives during a run of `schedule`, in order; the same for every run of it."""

    def __init__(self, schedule: Schedule, rank: int) -> None:
        self.targets: dict[Message, tuple[int, int, int]] = {}
        """Of each message sent to another rank: that rank, the tag, and the position of the action there that needs it."""
        self.sources: dict[Message, tuple[int, int]] = {}
        """Of each message from another rank: that rank, and the position of the action there that sends it."""
        self.expected: dict[int, list[Message]] = {}
        """From each other rank, in the order it sends them: the position in the list is the tag."""
        needed = {
            message: at
            for row in schedule.actions
            for at, action in enumerate(row)
            for message in _needs(action, schedule)
        }
        sent = dict.fromkeys(range(schedule.num_ranks), 0)
        for source, row in enumerate(schedule.actions):
            made = ((at, message) for at, action in enumerate(row) for message in _results(action, schedule))
            for at, message in made:
                if (target := schedule.rank_of(message.stage)) == source:
                    continue
                if source == rank:
                    self.targets[message] = target, sent[target], needed.get(message, len(row))
                    sent[target] += 1
                elif target == rank:
                    self.sources[message] = source, at
                    self.expected.setdefault(source, []).append(message)
