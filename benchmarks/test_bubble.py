"""The bubble of the real engine: ranks whose stages wait instead of compute, beside theory and beside torch's engine.

`python benchmarks/test_bubble.py [--ranks 4] [--wait 100] ...` prints the table; messages are of 4 KiB. With waits of nothing
the same steps show what an engine costs per action.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from forked import PipelineGroup, World, interleaved, on_ranks, spread, table
from waiting import Waiter, WaitingStage

from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.torch_engine import TorchPipeline
from forgather_dsl.plan import schedules
from forgather_dsl.plan.actions import Schedule
from forgather_dsl.plan.costs import uniform
from forgather_dsl.plan.simulate import simulate


def _searched(ranks: int, microbatches: int, chunks: int) -> Schedule:
    """An order for these waits, within twice the memory of 1F1B."""
    return schedules.zero_bubble(ranks, microbatches, uniform(chunks * ranks, ranks), chunks, 2 * ranks, None)


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "GPipe": schedules.gpipe,
    "1F1B": schedules.one_f_one_b,
    "LoopedBFS": partial(schedules.looped_bfs, chunks=2),
    "Interleaved": partial(schedules.interleaved, chunks=2),
    "ZeroBubbleH1": schedules.zero_bubble_h1,
    "ZeroBubbleH2": schedules.zero_bubble_h2,
    "ZeroBubbleV": schedules.zero_bubble_v,
    "VHalf": schedules.v_half,
    "VMin": schedules.v_min,
    "DualPipeV": schedules.dualpipe_v,
    "ZeroBubble": partial(_searched, chunks=1),
    "ZeroBubble in a V": partial(_searched, chunks=2),
}
ENGINES = ("own", "torch", "torch+deferred")  # torch+deferred: torch's runtime with our deferred weight gradients


def _step(schedule: Schedule, engine: str, group: PipelineGroup, waits: dict[str, float]) -> Callable[[], Any]:
    """A training step; `waits` are seconds per rank and microbatch, which its stages share, and may change later."""
    per_rank = schedule.num_stages // schedule.num_ranks

    class Shared(dict[str, float]):
        def __missing__(self, kind: str) -> float:
            return waits[kind] / per_rank

    indices = schedule.stages_of(group.rank)
    stages: Any = [WaitingStage(i, schedule.num_stages, Waiter(Shared()), engine != "torch") for i in indices]
    if engine == "own":
        pipeline = Pipeline(stages, schedule, 0, group)
    else:
        pipeline = TorchPipeline(stages, schedule, 0, group, split="torch" if engine == "torch" else "deferred")
    ids = torch.zeros(schedule.num_microbatches, 1, dtype=torch.long)
    return partial(pipeline.step, ids, ids, None, lambda y, _: y.sum(), 0, 1)


def _measure(
    world: World, group: PipelineGroup, made: dict[str, Schedule], engines: tuple[str, ...], wait: float, rounds: int
) -> tuple[Any, Any, Any]:
    """Seconds per step with waits; wall and processor seconds with waits of nothing."""
    waits = dict.fromkeys("FIW", 0.0)
    cases = {
        f"{name}/{engine}": _step(schedule, engine, group, waits)
        for name, schedule in made.items()
        for engine in engines
    }
    interleaved(cases, 2)  # torch makes its buffers in the first step
    idle_wall, idle_cpu = interleaved(cases, max(5, 2 * rounds))
    waits.update(dict.fromkeys("FIW", wait))
    return (interleaved(cases, rounds)[0] if wait else {}), idle_wall, idle_cpu


def bubbles(ranks: int, microbatches: int, wait: float, rounds: int, names: list[str], engines: tuple[str, ...]) -> str:
    """The table, in markdown; `wait` in seconds."""
    made = {name: SCHEDULES[name](ranks, microbatches) for name in names}
    seconds, idle_wall, idle_cpu = on_ranks(ranks, _measure, made, engines, wait, rounds)
    ideal, rows = 3 * wait * microbatches, []
    for name, schedule in made.items():
        per_rank = schedule.num_stages / ranks
        theory = 1 - 3 * microbatches / (simulate(schedule).makespan / per_rank)
        actions = sum(map(len, schedule.actions)) / ranks
        row = [name, f"{100 * theory:.1f}"]
        if wait:
            row += [spread([100 * (1 - ideal / s) for s in seconds[f"{name}/{engine}"]], 1) for engine in engines]
        for found, per in ((idle_wall, actions), (idle_cpu, actions * ranks)):
            row += [f"{1e6 * statistics.median(found[f'{name}/{engine}']) / per:.0f}" for engine in engines]
        rows.append(row)
    heads = ["schedule", "theory"] + [f"bubble %, {engine}" for engine in engines] * (wait > 0)
    heads += [f"{what} us/action, {engine}" for what in ("wall", "CPU") for engine in engines]
    return table(heads, rows)


@pytest.mark.benchmark(group="a pipeline whose stages wait")
@pytest.mark.parametrize("ranks", [4, 8])
def test_bubble(benchmark: Any, ranks: int) -> None:
    arguments = (ranks, 2 * ranks, 0.02, 1, ["1F1B", "ZeroBubbleV"], ("own", "torch"))
    benchmark.extra_info["table"] = benchmark.pedantic(bubbles, args=arguments, rounds=1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--microbatches", type=int, help="default: twice the ranks")
    parser.add_argument(
        "--wait", type=float, default=100, help="milliseconds of F, of I and of W per rank; 0: overhead"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    a = parser.parse_args()
    microbatches = a.microbatches or 2 * a.ranks
    print(f"{a.ranks} ranks, {microbatches} microbatches, F = I = W = {a.wait:g} ms per rank, {a.rounds} rounds")
    print("median [quartiles]; us per compute action with waits of nothing, CPU is the mean of the ranks\n")
    print(bubbles(a.ranks, microbatches, a.wait / 1e3, a.rounds, a.schedules, tuple(a.engines)))


if __name__ == "__main__":
    main()
