"""Schedules made of one building block: when one microbatch passes each rank, repeated at a fixed interval, then squeezed.

In: ranks and microbatches. Out: a `Schedule`. A block says how long after its neighbour each rank starts the same pass;
the time from F to I that this implies, over the interval, is the memory. Squeezing runs the forwards in the order of the
repeated block as early as they can, backwards before their turn rather than wait, and a W where nothing else can run.
Qi et al., Pipeline Parallelism with Controllable Memory, arXiv 2405.15362; ZB-H2: arXiv 2401.10241.
"""

from __future__ import annotations

from collections.abc import Sequence

from forgather_dsl.plan.actions import Action, Kind, Schedule, from_rows, inputs
from forgather_dsl.plan.schedules.row import positive, vee

__all__ = ["v_half", "v_min", "zero_bubble_h2"]

Block = list[list[tuple[int, int, Kind]]]
"""Per rank: (time, stage, F or I) of microbatch 0, in units of an action."""


def zero_bubble_h2(ranks: int, microbatches: int) -> Schedule:
    """Twice the memory of 1F1B, and only the (ranks - 1) forwards of a synchronous optimizer as its bubble."""
    positive(ranks, microbatches)
    turn = 2 * (ranks - 1) + 1
    block: Block = [[(2 * r, r, "F"), (turn + 4 * (ranks - 1 - r), r, "I")] for r in range(ranks)]
    return _squeezed("ZeroBubbleH2", block, microbatches, interval=3, memory_cap=2 * ranks - 1)


def v_half(ranks: int, microbatches: int) -> Schedule:
    """Half the memory of 1F1B, about half of its bubble: passes take turns to move 1 and 2 actions per rank."""
    positive(ranks, microbatches)
    block = _vee_block(ranks, paces=(1, 2, 1, 2), turns=(3, 3, 1))
    return _squeezed("VHalf", block, microbatches, interval=6, memory_cap=ranks + 2)


def v_min(ranks: int, microbatches: int) -> Schedule:
    """A third of the memory of 1F1B, the least there is in a V, and about two thirds of its bubble: each pass moves 1
    action per rank."""
    positive(ranks, microbatches)
    # F0 and I1 both go down: a rank meets them 2 * ranks - 2 + both turns apart, which must not be a whole interval
    block = _vee_block(ranks, paces=(1, 1, 1, 1), turns=(1, 2 if ranks % 3 == 0 else 1, 1))
    return _squeezed("VMin", block, microbatches, interval=6, memory_cap=2 * -(-(ranks + 2) // 3))


def _vee_block(ranks: int, paces: tuple[int, int, int, int], turns: tuple[int, int, int]) -> Block:
    """F down and up, I down and up a V, at a pace (actions per rank) each, with pauses at the turns."""
    block: Block = [[] for _ in range(ranks)]
    time = 0
    for leg, (pace, kind) in enumerate(zip(paces, ("F", "F", "I", "I"))):
        order = range(ranks) if leg % 2 == 0 else reversed(range(ranks))
        for place, rank in enumerate(order):
            stage = vee(ranks, rank)[leg in (1, 2)]
            block[rank].append((time + pace * place, stage, kind))
        time += pace * (ranks - 1) + (turns[leg] if leg < 3 else 0)
    return block


def _squeezed(name: str, block: Block, microbatches: int, interval: int, memory_cap: int) -> Schedule:
    """The repeated block, squeezed as if F, I and W took one unit each.

    No rank holds more than `memory_cap` (stage, microbatch) pairs from F to W: a forward waits for a W instead.
    """
    waiting = [_repeated(passes, microbatches, interval) for passes in block]
    num_stages = 1 + max(stage for passes in block for _, stage, _ in passes)
    rows: list[list[Action]] = [[] for _ in block]
    owed: list[list[Action]] = [[] for _ in block]
    held = [0] * len(block)
    done: set[tuple[int, str, int]] = set()
    while any(waiting) or any(owed):
        now = []
        for rank, row in enumerate(rows):
            action = _first_ready(waiting[rank], done, num_stages, held[rank] < memory_cap)
            if action is not None:
                waiting[rank].remove(action)
                now.append((action.stage, action.kind, action.microbatch))
            elif owed[rank]:
                action = owed[rank].pop(0)
            else:
                continue
            row.append(action)
            held[rank] += (action.kind == "F") - (action.kind == "W")
            owed[rank] += [action._replace(kind="W")] * (action.kind == "I")
        done.update(now)
    return from_rows(name, rows)


def _repeated(passes: list[tuple[int, int, Kind]], microbatches: int, interval: int) -> list[Action]:
    timed = [(time + interval * k, Action(stage, kind, k)) for time, stage, kind in passes for k in range(microbatches)]
    return [action for _, action in sorted(timed)]


def _first_ready(
    waiting: Sequence[Action], done: set[tuple[int, str, int]], num_stages: int, may_forward: bool
) -> Action | None:
    """The next action if its inputs are there, else the next I whose inputs are."""
    for index, action in enumerate(waiting):
        if action.kind == "F" and (index > 0 or not may_forward):
            continue
        if all((stage, result, action.microbatch) in done for stage, result in inputs(action, num_stages)):
            return action
    return None
