"""Pictures of schedules for docs/explanation/schedules.md, drawn as `plan --svg` draws, of one model on four cards.

Out: docs/pictures/*.svg as {file: text}.
"""

from __future__ import annotations

from forgather_dsl import (
    Bytes,
    DualPipeV,
    Experiment,
    GPipe,
    Interleaved,
    Llama,
    OneFOneB,
    Pipeline,
    Schedule,
    VMin,
    ZeroBubble,
    ZeroBubbleH1,
    ZeroBubbleV,
)
from forgather_dsl.plan import picture
from forgather_dsl.plan.hardware import parse
from forgather_dsl.plan.planner import predict

DRAWN: dict[str, Schedule] = {
    "gpipe": GPipe(),
    "one_f_one_b": OneFOneB(),
    "interleaved": Interleaved(),
    "zero_bubble_h1": ZeroBubbleH1(),
    "zero_bubble_v": ZeroBubbleV(),
    "v_min": VMin(),
    "dualpipe_v": DualPipeV(),
    "zero_bubble": ZeroBubble(),
}


class Drawn(Experiment):
    """A Llama of 0.8 B parameters on four cards of 24 GB, eight microbatches, nothing recomputed; a vocabulary so small that stages
    are even.
    """

    hardware = "4x24GB,link=24GB/s"
    seq_len = 2048
    batch_size = 8
    microbatch_size = 1
    steps = 1
    tokenizer = Bytes()
    model = Llama(vocab_size=512, dim=2048, num_layers=16, num_heads=16)


def pages() -> dict[str, str]:
    """SVG texts by their path below docs/."""
    return {f"pictures/{name}.svg": _drawn(name, schedule) for name, schedule in DRAWN.items()}


def _drawn(name: str, schedule: Schedule) -> str:
    experiment = Drawn(parallel=Pipeline(stages=4, schedule=schedule))
    run = predict(experiment, parse(experiment.hardware))
    return picture.svg(
        run.layout.schedule, run.simulation, run.costs, f"{type(schedule).__name__}: 4 ranks, 8 microbatches"
    )
