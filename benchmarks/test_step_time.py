"""Step time of a real model on two ranks: our engine beside torch.distributed.pipelining as it comes.

`python benchmarks/test_step_time.py [--recompute full] ...` prints the table. torch runs its own schedule classes over plain
nn.Linear and splits backwards itself. One thread per rank; every round times all cases in turn, and a ratio pairs two
times of one round. `one process` is half of what a rank takes for the whole step alone, while the other does the same.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from forked import PipelineGroup, Seconds, World, interleaved, on_ranks, spread, table
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import get_schedule_class

from forgather_dsl import Experiment, Llama, patch
from forgather_dsl.dsl import build
from forgather_dsl.models.init import initialise
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.parallel.torch_engine import undefer
from forgather_dsl.plan import schedules
from forgather_dsl.plan.actions import Schedule
from forgather_dsl.plan.costs import uniform

RANKS, LAYERS, DIM, SEQ, VOCAB = 2, 8, 256, 256, 512
BASELINE = "torch 1F1B"
TORCH = {  # our name: torch's class, stages per rank, whether they lie in a V
    "torch GPipe": ("GPipe", 1, False),
    "torch 1F1B": ("1F1B", 1, False),
    "torch Interleaved": ("Interleaved1F1B", 2, False),
    "torch ZBV": ("ZBVZeroBubble", 2, True),
    "torch DualPipeV": ("DualPipeV", 2, True),
}
OURS: dict[str, Callable[[int, int], Schedule]] = {
    "1F1B": schedules.one_f_one_b,
    "Interleaved": partial(schedules.interleaved, chunks=2),
    "ZeroBubbleH1": schedules.zero_bubble_h1,
    "ZeroBubbleV": schedules.zero_bubble_v,
}
SEARCHED = {"ZeroBubble": 1, "ZeroBubble in a V": 2}  # stages per rank
ONE = "one process / 2"


class Shape(Experiment):
    """The model of the benchmark."""

    steps = 1
    model = patch(Llama, dim=DIM, num_layers=LAYERS, num_heads=4, ffn_dim=640, vocab_size=VOCAB)


def _stage(index: int, num_stages: int, recompute: Any) -> Stage:
    with torch.device("meta"):
        model: Any = build(Shape().model)
    each = LAYERS // num_stages
    layers = range(index * each, (index + 1) * each)
    stage = Stage(model, index, num_stages, layers, torch.device("cpu"), recompute=recompute)
    initialise(model, 0)
    return stage


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def _pipeline(schedule: Schedule, group: PipelineGroup | None, recompute: Any) -> Pipeline:
    indices = schedule.stages_of(group.rank if group else 0)
    return Pipeline([_stage(i, schedule.num_stages, recompute) for i in indices], schedule, 0, group)


def _step(pipeline: Pipeline, batch: Any) -> Callable[[], float | None]:
    return partial(pipeline.step, *batch, None, _loss, 0, batch[1].numel())


class _Module(nn.Module):
    """A stage as torch wants it: one tensor in, one out."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.model, self.stage = stage.model, stage
        undefer(stage.model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stage.forward(x, None, (0, 0, 0))


def _torchs(name: str, group: PipelineGroup, recompute: Any, batch: Any) -> Callable[[], float | None]:
    kind, chunks, vee = TORCH[name]
    num_stages, microbatches = chunks * RANKS, len(batch[0])
    indices = [group.rank + RANKS * chunk for chunk in range(chunks)]
    if vee:
        indices = [group.rank, num_stages - 1 - group.rank]

    def like(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, device="meta", requires_grad=True)

    def stage(index: int) -> PipelineStage:
        x = torch.empty(1, SEQ, dtype=torch.int64, device="meta") if index == 0 else like(SEQ, DIM)
        y = like(SEQ, VOCAB if index == num_stages - 1 else DIM)
        module = _Module(_stage(index, num_stages, recompute))
        return PipelineStage(module, index, num_stages, torch.device("cpu"), (x,), (y,), group=group.everyone)

    stages = [stage(index) for index in indices]
    count = batch[1].numel()
    make: Any = get_schedule_class(kind)
    schedule = make(
        stages[0] if chunks == 1 else stages, microbatches, loss_fn=lambda y, t: _loss(y, t) / count, scale_grads=False
    )

    def step() -> float | None:
        losses: list[torch.Tensor] = []
        inputs = [batch[0]] if 0 in indices else []
        target = batch[1] if num_stages - 1 in indices else None
        schedule.step(*inputs, target=target, losses=losses, return_outputs=False)
        return sum(loss.item() for loss in losses) * count if losses else None

    return step


def _searched(chunks: int, group: PipelineGroup, recompute: Any, batch: Any) -> Schedule:
    """The order found for the times that the same stages take under the drawn schedule of the same placement."""
    microbatches = len(batch[0])
    known = (schedules.zero_bubble_h1 if chunks == 1 else schedules.zero_bubble_v)(RANKS, microbatches)
    pipeline = _pipeline(known, group, recompute)
    taken: dict[tuple[int, str], list[float]] = {}
    for number in range(4):
        _step(pipeline, batch)()
        for action, seconds in pipeline.timing.actions.items() if number else ():
            taken.setdefault((action.stage, action.kind), []).append(seconds)
    everyone: list[Any] = [None] * RANKS
    dist.all_gather_object(everyone, {key: statistics.median(values) for key, values in taken.items()})
    median = {key: seconds for part in everyone for key, seconds in part.items()}
    costs = uniform(chunks * RANKS, RANKS)
    for kind, field in zip("FIW", ("forward", "input_grad", "weight_grad")):
        costs = replace(costs, **{field: tuple(median[stage, kind] for stage in range(chunks * RANKS))})
    found = [schedules.zero_bubble(RANKS, microbatches, costs, chunks, 2 * RANKS, None)] if group.rank == 0 else [None]
    dist.broadcast_object_list(found)
    return cast(Schedule, found[0])


def _measure(
    _: World, group: PipelineGroup, names: list[str], recompute: str, microbatches: int, rounds: int
) -> Seconds:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (microbatches, SEQ + 1), generator=generator)
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    cases: dict[str, Callable[[], float | None]] = {
        ONE: _step(_pipeline(schedules.accumulate(microbatches), None, recompute), batch)
    }
    for name in names:
        if name in TORCH:
            cases[name] = _torchs(name, group, recompute, batch)
        else:
            if name in SEARCHED:
                schedule = _searched(SEARCHED[name], group, recompute, batch)
            else:
                schedule = OURS[name](RANKS, microbatches)
            cases[name] = _step(_pipeline(schedule, group, recompute), batch)
    expected = cases[ONE]()
    for name, step in cases.items():  # the first step, which allocates, is not timed
        loss = step()
        if loss is not None and expected is not None and abs(loss / expected - 1) > 1e-5:
            raise ValueError(f"{name} has the loss {loss}, one process {expected}")
    return interleaved(cases, rounds)[0]


def step_times(names: list[str], recompute: str, microbatches: int, rounds: int) -> str:
    """The table, in markdown."""
    seconds = on_ranks(RANKS, _measure, names, recompute, microbatches, rounds)
    seconds[ONE] = [s / 2 for s in seconds[ONE]]
    rows = []
    for name, times in seconds.items():
        row = [name if name in TORCH or name == ONE else f"ours {name}", spread([1e3 * s for s in times])]
        for other in (BASELINE, ONE):
            ratios = [a / b for a, b in zip(times, seconds.get(other, []), strict=False)]
            row.append(spread(ratios, 2) if ratios else "")
        faster = sum(a < b for a, b in zip(times, seconds.get(BASELINE, []), strict=False))
        rows.append([*row, f"{faster}/{rounds}"])
    rows.sort(key=lambda row: float(row[1].split()[0]))
    return table(["schedule", "ms", f"/ {BASELINE}", f"/ {ONE}", "faster"], rows)


@pytest.mark.benchmark(group="a step of a real model on two ranks")
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_step_time(benchmark: Any, recompute: str) -> None:
    arguments = ([BASELINE, "1F1B", "ZeroBubbleV"], recompute, 8, 3)
    benchmark.extra_info["table"] = benchmark.pedantic(step_times, args=arguments, rounds=1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recompute", choices=["none", "full"], default="none")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    known = [*TORCH, *OURS, *SEARCHED]
    parser.add_argument("--schedules", nargs="+", choices=known, default=known)
    a = parser.parse_args()
    print(
        f"{RANKS} ranks, 1 thread each, dim {DIM}, {LAYERS} layers, seq {SEQ}, vocabulary {VOCAB}, fp32, "
        f"{a.microbatches} microbatches of 1, recompute {a.recompute}, {a.rounds} rounds; median [quartiles]\n"
    )
    print(step_times(a.schedules, a.recompute, a.microbatches, a.rounds))


if __name__ == "__main__":
    main()
