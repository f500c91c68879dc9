"""What a pipeline does, as values: actions per rank, in the order each rank runs them.

In: letters, stages and microbatches. Out: `Schedule`, which the planner costs, `draw` draws and the interpreter runs.
The letters are torch.distributed.pipelining's own (`2F0` is the forward of microbatch 0 on stage 2), so schedules
can be exchanged with it as CSV, one row per rank, with or without torch's cells for messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["Action", "Kind", "Schedule", "from_csv", "from_rows", "inputs", "to_csv"]

Kind = Literal["F", "B", "I", "W"]


class Action(NamedTuple):
    """One piece of work: `F` forward, `B` full backward, `I` backward for inputs, `W` backward for weights (B = I + W)."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


@dataclass(frozen=True)
class Schedule:
    """The actions of every rank, in order. `placement[stage]` is the rank that holds the stage.

    With a spread head `num_shards` is the number of ranks, and stage `num_stages + r` is the shard of the output head
    on rank r, with actions F and W: see `spread`.
    """

    name: str
    num_stages: int
    """Stages that hold layers."""
    num_microbatches: int
    placement: tuple[int, ...]
    actions: tuple[tuple[Action, ...], ...]
    num_shards: int = 0

    @property
    def num_ranks(self) -> int:
        """Ranks of the pipeline, one row of actions each."""
        return len(self.actions)

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages that `rank` holds, in order."""
        return tuple(stage for stage, owner in enumerate(self.placement) if owner == rank)

    @property
    def shards(self) -> range:
        """The numbers of the stages that are shards of the head."""
        return range(self.num_stages, self.num_stages + self.num_shards)

    def parts_of(self, rank: int) -> tuple[int, ...]:
        """The stages that `rank` holds, and then its shard of the head, if there is one."""
        return (*self.stages_of(rank), *self.shards[rank : rank + 1])

    def rank_of(self, stage: int) -> int:
        """The rank that holds a stage or a shard of the head."""
        return stage - self.num_stages if stage in self.shards else self.placement[stage]

    def inputs(self, action: Action) -> Iterator[tuple[int, str]]:
        """What `action` needs: see the function of this name."""
        return inputs(action, self.num_stages, self.num_shards)

    def outputs(self, action: Action) -> Iterator[int]:
        """The stages that get a message from `action`, in the order of sending."""
        stage, last = action.stage, self.num_stages - 1
        if action.kind == "F":
            yield from [stage + 1] if stage < last else self.shards if stage == last else [last]
        elif action.kind in "BI":
            yield from self.shards if stage == last else ()
            yield from [stage - 1] if stage > 0 else ()


def inputs(action: Action, num_stages: int, num_shards: int = 0) -> Iterator[tuple[int, str]]:
    """(stage, "F" | "I" | "W") results of the same microbatch that `action` needs; a B gives what I and W give."""
    stage, last = action.stage, num_stages - 1
    if action.kind == "F" and stage > 0:
        yield min(stage - 1, last), "F"
    if action.kind in "BI":
        yield stage, "F"
        if stage < last:
            yield stage + 1, "I"
        yield from ((num_stages + shard, "F") for shard in range(num_shards) if stage == last)
    if action.kind == "W":
        yield min(stage, last), "I"  # a shard's comes after the last stage has put the loss together


def from_rows(name: str, rows: Sequence[Sequence[Action]], num_shards: int = 0) -> Schedule:
    """A schedule from the actions of each rank; sizes and placement are read off them. The last `num_shards` stages
    are shards of the head, one for each rank.

    Raises ValueError when a stage appears on two ranks or on none, or a shard on another rank than its own.
    """
    placement: dict[int, int] = {}
    for rank, row in enumerate(rows):
        for action in row:
            if placement.setdefault(action.stage, rank) != rank:
                raise ValueError(
                    f"{action} is on rank {rank}, but stage {action.stage} lives on rank {placement[action.stage]}"
                )
    if not placement:
        raise ValueError(f"the schedule {name} has no actions")
    num_stages = max(placement) + 1
    missing = sorted(set(range(num_stages)) - set(placement))
    if missing:
        raise ValueError(f"no rank runs stage {', '.join(map(str, missing))} of {num_stages}")
    num_stages -= num_shards
    if num_shards and [placement.get(num_stages + rank) for rank in range(len(rows))] != list(range(num_shards)):
        raise ValueError(f"{num_shards} shards of the head on {len(rows)} ranks: there has to be one on each, in order")
    return Schedule(
        name=name,
        num_stages=num_stages,
        num_microbatches=1 + max(action.microbatch for row in rows for action in row),
        placement=tuple(placement[stage] for stage in range(num_stages)),
        actions=tuple(tuple(row) for row in rows),
        num_shards=num_shards,
    )


def to_csv(schedule: Schedule) -> str:
    """One row per rank, `0F0,0F1,0B0,...`: what torch's `_load_csv(..., format="compute_only")` reads."""
    return "".join(",".join(map(str, row)) + "\n" for row in schedule.actions)


def from_csv(text: str, name: str = "csv", num_shards: int = 0) -> Schedule:
    """The schedule written as CSV, one row per rank, by `to_csv`, by hand or by torch in either of its forms.

    Empty cells (idle) and what is ours to add (torch's messages, gathering and reducing) are skipped. An overlapped pair
    `(0F3;7B1)OVERLAP_F_B` becomes its two actions. Raises ValueError naming the rows and cells that are none of these.
    """
    rows: list[list[Action]] = []
    wrong: list[str] = []
    for number, line in enumerate(text.strip().splitlines(), start=1):
        row: list[Action] = []
        for cell in filter(None, (cell.strip() for cell in line.split(","))):
            found = _cell(cell)
            if found is None:
                wrong.append(f"row {number}: {cell!r}")
            row += found or ()
        rows.append(row)
    if wrong:
        more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        raise ValueError(
            f"{', '.join(wrong[:_SHOWN])}{more}: write one row for each rank, of cells of a stage, one of F B I W, and a "
            f"microbatch, such as 2F0"
        )
    return from_rows(name, rows, num_shards)


_SHOWN = 3  # wrong cells of a file that are told
_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")
_PAIR = re.compile(r"\((.*)\)OVERLAP_F_B")
_ADDED = re.compile(r"\d+((SEND|RECV)_[FB]\d+|UNSHARD|RESHARD|REDUCE_GRAD)")


def _cell(cell: str) -> list[Action] | None:
    """The actions of a cell; None when it is no cell of a schedule."""
    if pair := _PAIR.fullmatch(cell):
        cells = [_cell(part.strip()) for part in pair[1].split(";")]
        return None if None in cells else [action for found in cells for action in found or ()]
    if match := _ACTION.fullmatch(cell):
        return [Action(int(match[1]), match[2], int(match[3]))]  # type: ignore[arg-type]  # one of the four letters
    return [] if _ADDED.fullmatch(cell) else None
