"""Betters an order step by step: one action of the critical path is moved, and the move stays unless it costs time.

In: rows of actions as `Timing` numbers them, a number of steps. Out: rows that take no longer, within the same bytes.
The critical path falls into blocks of actions on one rank without a gap between them; only what takes an action out of a
block, past its end or ahead of its start, can shorten it (Nowicki & Smutnicki's neighbourhood for job shops). Steps are
drawn from a generator with a fixed seed, so that the same inputs give the same order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from forgather_dsl.plan.timing import Timing

__all__ = ["climb", "merge"]

Rows = list[list[int]]
PATIENCE = 400  # steps
REACH = 6  # places that an action is moved past the end of its block


class _Position:
    """An order, how long it takes, and the blocks of its critical path: (rank, first, last) of a row."""

    def __init__(self, timing: Timing, rows: Rows) -> None:
        self.rows, self.starts = rows, [[] for _ in rows]
        ends = timing.run(rows, self.starts)
        self.done = ends is not None
        self.makespan = max(ends) if ends is not None else float("inf")
        self.total = sum(ends) if ends is not None else float("inf")

    def blocks(self, timing: Timing) -> list[tuple[int, int, int]]:
        """From the end of the step back to its start."""
        place = {number: (rank, i) for rank, row in enumerate(self.rows) for i, number in enumerate(row)}
        senders = {timing.gives[number]: number for number in place if timing.gives[number] >= 0}
        ends = [start[-1] + timing.seconds[row[-1]] if row else 0.0 for start, row in zip(self.starts, self.rows)]
        rank = max(range(len(ends)), key=ends.__getitem__)
        last, found = len(self.rows[rank]) - 1, []
        while True:
            first, row, start = last, self.rows[rank], self.starts[rank]
            while first > 0 and start[first - 1] + timing.seconds[row[first - 1]] >= start[first]:
                first -= 1
            found.append((rank, first, last))
            sender = senders.get(timing.needs[row[first]])
            if sender is None:
                return found
            rank, last = place[sender]


def climb(timing: Timing, rows: Rows, steps: int, target: float = 0.0) -> Rows:
    """Rows that take no longer than the given ones. Stops at a makespan of `target`, or when `PATIENCE` steps gained nothing."""
    draw = random.Random(0)
    now = best = _Position(timing, rows)
    blocks, gained = now.blocks(timing), 0
    for step in range(steps):
        if best.makespan <= target * (1 + 1e-9) or step - gained > PATIENCE:
            break
        rank, first, last = blocks[draw.randrange(len(blocks))]
        row = _moved(timing, now.rows[rank], first, last, draw)
        if row is None or timing.most_held(row) > timing.costs.capacity[rank] * (1 + 1e-9):
            continue
        found = _Position(timing, [row if other == rank else old for other, old in enumerate(now.rows)])
        if found.makespan > now.makespan * (1 + 1e-12):
            continue
        now, blocks = found, found.blocks(timing)
        if (now.makespan, now.total) < (best.makespan, best.total):
            best, gained = now, step
    return best.rows


def _moved(timing: Timing, row: Sequence[int], first: int, last: int, draw: random.Random) -> list[int] | None:
    """The row with one action of a block moved out of it; None where that cannot be.

    Microbatches of a stage come in order, so kinds and stages say it all: a W may go past another, and takes its number.
    """
    at = draw.randint(first, last)
    if draw.random() < 0.5:
        to = min(len(row) - 1, last + draw.randrange(REACH))
    else:
        to = max(0, first - draw.randrange(REACH))
    moved = [*row[:at], *row[at + 1 :]]
    moved.insert(to, row[at])
    return None if to == at else _numbered(timing, moved)


def _numbered(timing: Timing, row: Sequence[int]) -> list[int] | None:
    """The same kinds and stages, microbatches in order; None when an I or B has no F before it, or a W no I."""
    count, stages = timing.microbatches, timing.stages
    forwards, inputs, weights = ([0] * stages for _ in range(3))
    numbered = []
    for number in row:
        kind_and_stage = number // count
        kind, stage = divmod(kind_and_stage, stages)
        if kind == 0:
            k = forwards[stage]
            forwards[stage] += 1
        elif kind == 2:
            k = weights[stage]
            if k >= inputs[stage]:
                return None
            weights[stage] += 1
        else:
            k = inputs[stage]
            if k >= forwards[stage] or (kind == 3 and weights[stage] != k):  # B is the next I and the next W
                return None
            inputs[stage] += 1
            weights[stage] += kind == 3
        numbered.append(kind_and_stage * count + k)
    return numbered


def merge(timing: Timing, rows: Rows) -> Rows:
    """With B in place of an I that its W follows at once, wherever that costs neither time nor memory."""
    limit = _Position(timing, rows).makespan * (1 + 1e-12)
    for rank in range(len(rows)):
        index = 0
        while index < len(rows[rank]) - 1:
            row = rows[rank]
            number = row[index]
            kind_and_stage, k = divmod(number, timing.microbatches)
            kind, stage = divmod(kind_and_stage, timing.stages)
            both = (3 * timing.stages + stage) * timing.microbatches + k
            if kind == 1 and row[index + 1] == number + timing.stages * timing.microbatches:
                shorter = [*row[:index], both, *row[index + 2 :]]
                candidate = [shorter if other == rank else old for other, old in enumerate(rows)]
                held = timing.most_held(shorter) <= timing.costs.capacity[rank] * (1 + 1e-9)
                if held and _Position(timing, candidate).makespan <= limit:
                    rows = candidate
            index += 1
    return rows
