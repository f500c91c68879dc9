"""Ranks for benchmarks: forked from one process that has imported torch, one gloo group, rounds interleaved inside it.

In: a function of (world, group) and its arguments. Out: what rank 0 returned. Cases are timed in turn, round by round, so that
what the machine does meanwhile falls on all of them alike; a time is that of the slowest rank.
"""

from __future__ import annotations

import gc
import os
import pickle
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._dynamo  # imported by checkpoint at its first call: here once, not once per rank
import torch.distributed as dist

from forgather_dsl.parallel.group import PipelineGroup, World, join, leave, pipeline_group
from forgather_dsl.parallel.launch import STORE

Seconds = dict[str, list[float]]
"""Of each case, per round."""


def on_ranks(
    ranks: int, work: Callable[..., Any], *arguments: Any, enter: Callable[[int], None] = lambda rank: None
) -> Any:
    """Run `work(world, group, *arguments)` on forked ranks with one thread each; what rank 0 returned.

    `enter(rank)` is called in each first, before anything is connected.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        children = [_fork(rank, ranks, folder, work, arguments, enter) for rank in range(ranks)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            raise RuntimeError(f"ranks ended with {codes}")
        with open(f"{folder}/result", "rb") as file:
            return pickle.load(file)


def _fork(
    rank: int,
    ranks: int,
    folder: str,
    work: Callable[..., Any],
    arguments: Sequence[Any],
    enter: Callable[[int], None],
) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    gc.freeze()  # what was imported: collecting between cases need not look at it
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), STORE: f"{folder}/store"}
        enter(rank)
        world = join("cpu", timeout_seconds=600)
        result = work(world, pipeline_group(world, ranks), *arguments)
        if rank == 0:
            with open(f"{folder}/result", "wb") as file:
                pickle.dump(result, file)
        dist.barrier()
        leave(world)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def interleaved(cases: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[Seconds, Seconds]:
    """Wall seconds of the slowest rank, and processor seconds of all ranks together; the order turns from round to round."""
    names, wall, cpu = list(cases), [], []
    for round_ in range(rounds):
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            gc.collect()
            dist.barrier()
            start, busy = time.perf_counter(), time.process_time()
            cases[name]()
            wall.append((name, time.perf_counter() - start))
            cpu.append((name, time.process_time() - busy))
    dist.barrier()
    return _over_ranks(wall, dist.ReduceOp.MAX), _over_ranks(cpu, dist.ReduceOp.SUM)


def _over_ranks(found: list[tuple[str, float]], how: Any) -> Seconds:
    numbers = torch.tensor([seconds for _, seconds in found], dtype=torch.float64)
    dist.all_reduce(numbers, how)
    out: Seconds = {}
    for (name, _), seconds in zip(found, numbers.tolist(), strict=True):
        out.setdefault(name, []).append(seconds)
    return out


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median [lower quartile - upper quartile]`."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return f"{middle:.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows))


__all__ = ["PipelineGroup", "Seconds", "World", "interleaved", "on_ranks", "spread", "table"]
