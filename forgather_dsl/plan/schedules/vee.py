"""Schedules in a V: each rank holds one stage on the way down and one on the way up, so first and last stage meet.

In: ranks and microbatches. Out: a `Schedule`. A rank's stage on the way down is its chunk 0, the other its chunk 1.
Both plan as many microbatches as fill the pipeline, and drop those that there are not.
ZB-V: Qi et al., arXiv 2401.10241, section 6. DualPipe: DeepSeek-AI, arXiv 2412.19437; its half: Sea AI Lab, "Cut-in-half".
"""

from __future__ import annotations

from forgather_dsl.plan.actions import Schedule
from forgather_dsl.plan.schedules.row import Row, only, positive, vee

__all__ = ["dualpipe_v", "zero_bubble_v"]


def zero_bubble_v(ranks: int, microbatches: int) -> Schedule:
    """Half the bubble of 1F1B's forwards, all of its memory on every rank; none at all when F = I = W and ranks need not
    start together."""
    positive(ranks, microbatches)
    planned = max(2 * ranks - 1, microbatches)
    rows = []
    for rank in range(ranks):
        below = ranks - 1 - rank
        row = Row(vee(ranks, rank))
        row.add(2 * below + 1, "F0")
        row.add(rank, "F1 F0")
        row.add(below + 1, "F1 I1 W1")
        row.add(planned - 2 * ranks + 1 + rank, "F0 I0 W0 F1 I1 W1")
        row.add(below, "I0 W0 F1 I1 W1")
        row.add(rank, "I0 I1")
        row.add(below + 1, "I0 W0")
        row.add(rank, "W1")
        row.add(rank, "W0")
        rows.append(row)
    return only("ZeroBubbleV", rows, microbatches)


def dualpipe_v(ranks: int, microbatches: int) -> Schedule:
    """DualPipe cut in half: one microbatch goes down while another comes up. A forward and the backward it would overlap
    with run one after the other. Backwards are whole but for the first and the last, which fill the bubble."""
    positive(ranks, microbatches)
    planned = max(2 * ranks, microbatches)
    rows = []
    for rank in range(ranks):
        below = ranks - 1 - rank
        row = Row(vee(ranks, rank))
        row.add(2 * below, "F0")
        row.add(rank + 1, "F0 F1")
        row.add(below, "I1 W1 F1")
        row.add(planned - 2 * ranks + rank + 1, "F0 B1 F1 B0")
        row.add(below, "B1 F1 B0")
        turns = ["B1", "B0"] * (rank + 1)  # the second half splits, so that the ranks above need not wait
        turns[rank + 1 :] = [turn.replace("B", "I") for turn in turns[rank + 1 :]]
        row.add(1, " ".join(turns))
        row.add(below, "W I0")
        row.settle()
        rows.append(row)
    return only("DualPipeV", rows, microbatches)
