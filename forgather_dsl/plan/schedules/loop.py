"""Schedules with several stages on each rank, placed in a loop: stage s on rank s % ranks.

In: ranks, microbatches, chunks (stages per rank). Out: a `Schedule`. More chunks divide the bubble, and multiply the
messages. Interleaved 1F1B: Narayanan et al., arXiv 2104.04473. Looped breadth-first: Lamy-Poirier, arXiv 2211.05953.
"""

from __future__ import annotations

from collections.abc import Iterator

from forgather_dsl.plan.actions import Action, Schedule, from_rows
from forgather_dsl.plan.schedules.row import positive

__all__ = ["interleaved", "looped_bfs"]


def interleaved(ranks: int, microbatches: int, chunks: int) -> Schedule:
    """1F1B over rounds of about `ranks` microbatches, each round chunk by chunk. One chunk is 1F1B.

    Microbatches go in microbatches // ranks rounds, the larger ones first: a round shorter than `ranks` would wait for
    itself, and one longer than the first would start its backward before its warm-up.
    """
    positive(ranks, microbatches, chunks)
    count = max(1, microbatches // ranks)
    sizes = [microbatches // count + (index < microbatches % count) for index in range(count)]
    rows = []
    for rank in range(ranks):
        forward = list(_rounds(sizes, range(rank, ranks * chunks, ranks)))
        backward = list(_rounds(sizes, range(rank, ranks * chunks, ranks)[::-1]))
        warm_up = (ranks - 1 - rank) * (1 if chunks == 1 else 2) + (chunks - 1) * sizes[0]
        row = [Action(stage, "F", k) for stage, k in forward[:warm_up]]
        for index, (stage, k) in enumerate(backward):
            row += [Action(s, "F", j) for s, j in forward[warm_up + index : warm_up + index + 1]]
            row.append(Action(stage, "B", k))
        rows.append(row)
    return from_rows("Interleaved", rows)


def _rounds(sizes: list[int], stages: range) -> Iterator[tuple[int, int]]:
    """(stage, microbatch): round by round, in each stage by stage."""
    first = 0
    for size in sizes:
        yield from ((stage, first + k) for stage in stages for k in range(size))
        first += size


def looped_bfs(ranks: int, microbatches: int, chunks: int) -> Schedule:
    """All forwards, chunk by chunk, then all backwards: GPipe with its bubble divided by the chunks."""
    positive(ranks, microbatches, chunks)
    rows = []
    for rank in range(ranks):
        stages = range(rank, ranks * chunks, ranks)
        row = [Action(stage, "F", k) for stage in stages for k in range(microbatches)]
        rows.append(row + [Action(stage, "B", k) for stage in reversed(stages) for k in range(microbatches)])
    return from_rows("LoopedBFS", rows)
