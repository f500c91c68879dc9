"""Prints every schedule for the given sizes: `python -m forgather_dsl.plan.schedules [RANKS MICROBATCHES]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from forgather_dsl.plan.costs import uniform
from forgather_dsl.plan.schedules import (
    accumulate,
    draw,
    dualpipe_v,
    gpipe,
    interleaved,
    looped_bfs,
    one_f_one_b,
    v_half,
    v_min,
    zero_bubble,
    zero_bubble_h1,
    zero_bubble_h2,
    zero_bubble_v,
)


def main(arguments: Sequence[str]) -> None:
    """Print them (default 4 ranks, 8 microbatches), those that place several stages on a rank with 2."""
    ranks, microbatches = map(int, arguments) if arguments else (4, 8)
    one_stage = (gpipe, one_f_one_b, zero_bubble_h1, zero_bubble_h2)
    loops, vees = (looped_bfs, interleaved), (v_min, v_half, dualpipe_v, zero_bubble_v)
    for schedule in (
        accumulate(microbatches),
        *(generator(ranks, microbatches) for generator in one_stage),
        zero_bubble(ranks, microbatches, uniform(ranks, ranks), chunks=1, memory_cap=ranks, profile=None),
        *(generator(ranks, microbatches, chunks=2) for generator in loops),
        *(generator(ranks, microbatches) for generator in vees),
    ):
        print(f"{schedule.name}\n{draw(schedule)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
