"""torch.distributed.pipelining's own schedules, made with stand-ins for stages: they only look at their places."""

from __future__ import annotations

import pytest


class Standin:
    """What a schedule of torch asks of a stage."""

    submod, group_rank = None, 0

    def __init__(self, index, ranks, num_stages):
        self.stage_index, self.group_size, self.num_stages = index, ranks, num_stages
        self.is_last = index == num_stages - 1


def torch_schedule(name, ranks, microbatches, chunks=1):
    """An instance of torch's class of that name."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    cls = schedules.get_schedule_class(name)
    stages = [Standin(index, ranks, ranks * chunks) for index in range(chunks)]
    single = issubclass(cls, schedules.PipelineScheduleSingle)
    return cls(stages[0] if single else stages, microbatches, loss_fn=lambda output, target: output)


def torch_rows(name, ranks, microbatches, chunks=1):
    """Its compute actions of each rank as texts, overlapped ones one after the other."""
    made = torch_schedule(name, ranks, microbatches, chunks)
    order = made._get_pipeline_order() if hasattr(made, "_stage") else made.pipeline_order
    actions = [[one for a in order[rank] if a for one in (a.sub_actions or (a,))] for rank in range(ranks)]
    cells = [[(a.stage_index, a.computation_type.value, a.microbatch_index) for a in row] for row in actions]
    return [["{}{}{}".format(*cell) for cell in row if cell[1] in "FBIW"] for row in cells]
