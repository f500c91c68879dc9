"""Pipeline schedules: one function each, from ranks and microbatches to the actions of every rank.

In: `ranks`, `microbatches`, and what else a schedule leaves open. Out: a `Schedule`: `check`, `simulate` and `draw` work on
it, the interpreter in parallel/ runs it. Stages are placed on a line (one per rank), in a loop (stage s on rank s % ranks)
or in a V (down the ranks and up again). `zero_bubble` searches its order; the others are drawn from their papers.
`python -m forgather_dsl.plan.schedules [RANKS MICROBATCHES]` prints them all.
"""

from __future__ import annotations

from forgather_dsl.plan.actions import Action, Schedule, from_csv, from_rows, to_csv
from forgather_dsl.plan.drawing import draw
from forgather_dsl.plan.schedules.blocks import v_half, v_min, zero_bubble_h2
from forgather_dsl.plan.schedules.file import from_file
from forgather_dsl.plan.schedules.line import accumulate, forwards, gpipe, one_f_one_b, zero_bubble_h1
from forgather_dsl.plan.schedules.loop import interleaved, looped_bfs
from forgather_dsl.plan.schedules.searched import drawn, to_and_fro, zero_bubble
from forgather_dsl.plan.schedules.vee import dualpipe_v, zero_bubble_v
from forgather_dsl.plan.simulate import Interval, Simulation, durations, simulate
from forgather_dsl.plan.validity import check

__all__ = [
    "Action",
    "Interval",
    "Schedule",
    "Simulation",
    "accumulate",
    "check",
    "draw",
    "drawn",
    "dualpipe_v",
    "durations",
    "forwards",
    "from_csv",
    "from_file",
    "from_rows",
    "gpipe",
    "interleaved",
    "looped_bfs",
    "one_f_one_b",
    "simulate",
    "to_and_fro",
    "to_csv",
    "v_half",
    "v_min",
    "zero_bubble",
    "zero_bubble_h1",
    "zero_bubble_h2",
    "zero_bubble_v",
]
