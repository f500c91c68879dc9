"""Writes the actions of one rank the way papers draw them: phases, each a few letters, repeated.

In: the stages of a rank, then phases such as `row.add(3, "F0 I1 W1")`: three times the next forward of the rank's chunk 0
and the next I and W of its chunk 1. Out: a list of actions. Microbatches count up by themselves, per chunk and kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forgather_dsl.plan.actions import Action, Kind, Schedule, from_rows

__all__ = ["Row", "only", "positive", "vee"]


class Row:
    """The actions of the rank that holds `stages`, its chunks 0, 1, ..."""

    def __init__(self, stages: Sequence[int]) -> None:
        self.stages = stages
        self.actions: list[Action] = []
        self._done: dict[tuple[int, str], int] = {}  # (stage, "F" | "I" | "W") -> microbatches; a B is an I and a W
        self._owed: list[Action] = []  # W of every I, oldest first

    def add(self, times: int, phase: str) -> None:
        """Append `phase`, `times` times. A W without a chunk is the oldest one owed, or nothing if none is."""
        for _ in range(times):
            for letters in phase.split():
                if letters == "W":
                    self._settle(self._owed[:1])
                elif letters[0] == "W":
                    stage = self.stages[int(letters[1:])]
                    self._settle([action for action in self._owed if action.stage == stage][:1])
                else:
                    self._next(self.stages[int(letters[1:])], letters[0])  # type: ignore[arg-type]

    def settle(self) -> None:
        """Append every W that is still owed."""
        self._settle(list(self._owed))

    def _next(self, stage: int, kind: Kind) -> None:
        counted = "F" if kind == "F" else "I"
        microbatch = self._done.get((stage, counted), 0)
        self._done[stage, counted] = microbatch + 1
        self.actions.append(Action(stage, kind, microbatch))
        if kind == "I":
            self._owed.append(Action(stage, "W", microbatch))

    def _settle(self, owed: Iterable[Action]) -> None:
        for action in owed:
            self._owed.remove(action)
            self.actions.append(action)


def vee(ranks: int, rank: int) -> tuple[int, int]:
    """The two stages of a rank in a V: one on the way down, one on the way up, first and last stage on rank 0."""
    return rank, 2 * ranks - 1 - rank


def only(name: str, rows: Iterable[Row], microbatches: int) -> Schedule:
    """The schedule of the first `microbatches` of those that `rows` plan; dropping the last ones leaves none waiting."""
    return from_rows(name, [[action for action in row.actions if action.microbatch < microbatches] for row in rows])


def positive(ranks: int, microbatches: int, chunks: int = 1) -> None:
    """Raise ValueError unless there is something to schedule."""
    if ranks < 1 or microbatches < 1 or chunks < 1:
        stages = f", {chunks} stages on each" if chunks != 1 else ""
        raise ValueError(f"a schedule takes at least 1 rank and 1 microbatch, not {ranks} and {microbatches}{stages}")
