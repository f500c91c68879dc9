"""How far every rank comes in a schedule by forwards alone: what can run while the last step's update is still being agreed on."""

from __future__ import annotations

from .actions import Schedule

__all__ = ["warm_up"]


def warm_up(schedule: Schedule) -> tuple[int, ...]:
    """Per rank, how many of its first actions are forwards that need nothing but other ranks' such forwards.

    So nobody waits for a rank that has stopped there, and all know which messages have been sent until then.
    """
    counts, done, moved = [0] * schedule.num_ranks, set[tuple[int, int]](), True
    while moved:
        moved = False
        for rank, row in enumerate(schedule.actions):
            for action in row[counts[rank] :]:
                ready = action.stage == 0 or (action.stage - 1, action.microbatch) in done
                if action.kind != "F" or not ready:
                    break
                done.add((action.stage, action.microbatch))
                counts[rank] += 1
                moved = True
    return tuple(counts)
