"""Zero bubble by search: split backward, the order made for the costs of one experiment.

In: ranks, microbatches, `Costs`. Out: a `Schedule`, never worse than the drawn ones of the same placement that stay within
the memory. Placement: one stage on each rank, or several that run to and fro (two make a V).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from forgather_dsl.plan.actions import Schedule
from forgather_dsl.plan.costs import Costs
from forgather_dsl.plan.schedules.blocks import v_half, v_min, zero_bubble_h2
from forgather_dsl.plan.schedules.line import gpipe, one_f_one_b, zero_bubble_h1
from forgather_dsl.plan.schedules.loop import interleaved, looped_bfs
from forgather_dsl.plan.schedules.row import positive
from forgather_dsl.plan.schedules.vee import dualpipe_v, zero_bubble_v
from forgather_dsl.plan.search import search

__all__ = ["drawn", "to_and_fro", "zero_bubble"]

_PLAIN: tuple[Callable[[int, int], Schedule], ...] = (
    one_f_one_b, gpipe, zero_bubble_h1, zero_bubble_h2, zero_bubble_v, dualpipe_v, v_half, v_min,
)  # fmt: skip


def to_and_fro(ranks: int, chunks: int) -> tuple[int, ...]:
    """The rank of each stage: down the ranks, up again, and so on, `chunks` times."""
    down = tuple(range(ranks))
    return tuple(rank for chunk in range(chunks) for rank in (down[::-1] if chunk % 2 else down))


def drawn(placement: Sequence[int], microbatches: int) -> Iterator[Schedule]:
    """The schedules of the papers that place their stages so, simplest first."""
    ranks = max(placement) + 1
    chunks = len(placement) // ranks
    if tuple(placement) == tuple(range(ranks)) * chunks and chunks > 1:
        yield from (interleaved(ranks, microbatches, chunks), looped_bfs(ranks, microbatches, chunks))
    for generator in _PLAIN:
        schedule = generator(ranks, microbatches)
        if schedule.placement == tuple(placement):
            yield schedule


def zero_bubble(
    ranks: int, microbatches: int, costs: Costs, chunks: int, memory_cap: int | None, profile: str | None
) -> Schedule:
    """The best order found for these costs, with `chunks` stages on each rank.

    `memory_cap`: live microbatches per rank, between F and W, on all its stages; None: what the capacity in `costs` holds.
    `profile` names what the costs were read from, and is not read here.
    """
    positive(ranks, microbatches, chunks)
    placement = to_and_fro(ranks, chunks)
    if memory_cap is not None:
        if memory_cap < 1:
            raise ValueError(f"memory_cap is {memory_cap}: a rank has to hold at least 1 microbatch")
        each, none = (1 / chunks,) * len(placement), (0.0,) * len(placement)
        costs = replace(costs, kept=each, owed=each, working=none, capacity=(float(memory_cap),) * ranks)
    return search(costs, placement, microbatches, drawn(placement, microbatches))
