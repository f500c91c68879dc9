"""Schedules with one stage on each rank, and forwards alone under any placement.

In: ranks and microbatches. Out: a `Schedule`. GPipe: Huang et al., arXiv 1811.06965. 1F1B: Narayanan et al.,
arXiv 2006.09503. Zero bubble: Qi et al., arXiv 2401.10241.
"""

from __future__ import annotations

from collections.abc import Sequence

from forgather_dsl.plan.actions import Action, Schedule, from_rows
from forgather_dsl.plan.schedules.row import positive

__all__ = ["accumulate", "forwards", "gpipe", "one_f_one_b", "zero_bubble_h1"]


def accumulate(microbatches: int) -> Schedule:
    """One stage, gradient accumulation: `F0 B0 F1 B1 ...`, the memory of one microbatch."""
    positive(1, microbatches)
    return from_rows("Accumulate", [[Action(0, kind, k) for k in range(microbatches) for kind in ("F", "B")]])


def gpipe(ranks: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards; every microbatch alive at the turn."""
    positive(ranks, microbatches)
    return from_rows(
        "GPipe",
        [[Action(stage, kind, k) for kind in ("F", "B") for k in range(microbatches)] for stage in range(ranks)],
    )


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """Warm up, then one forward and one backward in turn: at most `ranks` microbatches alive."""
    positive(ranks, microbatches)
    rows = []
    for stage in range(ranks):
        warm_up = min(ranks - 1 - stage, microbatches)
        row = [Action(stage, "F", k) for k in range(warm_up)]
        for k in range(microbatches):
            if k + warm_up < microbatches:
                row.append(Action(stage, "F", k + warm_up))
            row.append(Action(stage, "B", k))
        rows.append(row)
    return from_rows("1F1B", rows)


def zero_bubble_h1(ranks: int, microbatches: int) -> Schedule:
    """1F1B with the backward split: I keeps 1F1B's place, and W of rank r lags r microbatches behind to fill what would
    be bubble. Same memory as 1F1B, a third of its bubble when F = I = W."""
    positive(ranks, microbatches)
    rows = []
    for stage in range(ranks):
        warm_up, lag = min(ranks - 1 - stage, microbatches), min(stage, microbatches)
        row = [Action(stage, "F", k) for k in range(warm_up)]
        for k in range(microbatches):
            if k + warm_up < microbatches:
                row.append(Action(stage, "F", k + warm_up))
            row.append(Action(stage, "I", k))
            if k >= lag:
                row.append(Action(stage, "W", k - lag))
        row += [Action(stage, "W", k) for k in range(microbatches - lag, microbatches)]
        rows.append(row)
    return from_rows("ZeroBubbleH1", rows)


def forwards(placement: Sequence[int], microbatches: int, num_shards: int = 0) -> Schedule:
    """Forwards alone, for evaluation and generation under any placement of stages (not for `check`).

    Ordered as a wave: stage + microbatch is the time it would run in lockstep, so no order of waiting can be a circle.
    The shards of a spread head all come after the last stage.
    """
    stages = len(placement)
    places = (*placement, *range(num_shards))
    rows: list[list[Action]] = [[] for _ in range(max(places) + 1)]
    wave = sorted((min(s, stages) + k, -s, k) for s in range(len(places)) for k in range(microbatches))
    for _, negative_stage, k in wave:
        rows[places[-negative_stage]].append(Action(-negative_stage, "F", k))
    return from_rows("Forwards", rows, num_shards)
