"""One rank's part of the emulation: every way to train in turn, round by round, at each link rate; seconds, waits and bytes.

Pipelines run on our interpreter. In a round each mode makes one step; the first rounds, without a limit, are not counted.
A step's time is the slowest rank's. Bytes are those that each rank's interface sent during the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from forked import PipelineGroup, World
from slow_link.network import HEADERS, Network, counted
from slow_link.opponents import ddp, fsdp
from slow_link.page import OURS
from slow_link.theory import Ring, Setting
from waiting import WIDTH, Waiter, WaitingStage

from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.route import Route
from forgather_dsl.plan import schedules
from forgather_dsl.plan.actions import Schedule
from forgather_dsl.plan.costs import uniform

__all__ = ["MODES", "measure", "searched"]

WARM_UP = 2  # rounds: DDP makes its buckets anew after the first, FSDP learns its order
LATENCY = 3e-4  # seconds of a message between these processes, for the search

TORCHS = ("FSDP2 tuned", "FSDP2 tuned, weights kept", "FSDP2 as shipped", "DDP")
MODES = (*TORCHS, *OURS)


def searched(setting: Setting, rate: float | None) -> Schedule:
    """Ours: `ZeroBubble(chunks=2)`, the order searched for these costs and this link, at the memory of 1F1B."""
    transfer = 8 * _message_bytes(setting) / rate if rate else 0.0
    each = setting.share * setting.layers / (2 * setting.ranks)
    costs = uniform(2 * setting.ranks, setting.ranks, each, each, each, latency=LATENCY, transfer=transfer)
    return schedules.zero_bubble(setting.ranks, setting.microbatches, costs, 2, setting.ranks, None)


def _schedule(mode: str, setting: Setting, rate: float | None) -> Schedule:
    made: dict[str, Callable[[], Schedule]] = {
        "1F1B": partial(schedules.one_f_one_b, setting.ranks, setting.microbatches),
        "Interleaved": partial(schedules.interleaved, setting.ranks, setting.microbatches, chunks=2),
        "ZeroBubbleV": partial(schedules.zero_bubble_v, setting.ranks, setting.microbatches),
        "ZeroBubble": partial(searched, setting, rate),
    }
    return made[mode]()


def _message_bytes(setting: Setting) -> int:
    return setting.tokens * WIDTH * 4


class Case:
    """A way to train: a step, the time it waits in place of computing, and the bytes each rank should send."""

    def __init__(self, mode: str, setting: Setting, rate: float | None, group: PipelineGroup) -> None:
        ring, torchs = Ring.of(setting), _torchs(mode, setting)
        if torchs is not None:
            (self.step, self.waiter), self.expected = torchs[0](), [torchs[1](ring)] * setting.ranks
            return
        schedule = _schedule(mode, setting, rate)
        self.step, self.waiter = _pipeline(schedule, setting, group)
        sent = [len(Route(schedule, rank).targets) for rank in range(setting.ranks)]
        self.expected = [float(count * _message_bytes(setting)) for count in sent]


def _torchs(mode: str, setting: Setting) -> tuple[Callable[[], Any], Callable[[Ring], float]] | None:
    found: dict[str, tuple[Callable[[], Any], Callable[[Ring], float]]] = {
        "FSDP2 tuned": (partial(fsdp, setting, tuned=True), lambda ring: ring.fsdp),
        "FSDP2 tuned, weights kept": (partial(fsdp, setting, True, True), lambda ring: ring.fsdp_keeping),
        "FSDP2 as shipped": (partial(fsdp, setting, tuned=False), lambda ring: ring.fsdp_shipped),
        "DDP": (partial(ddp, setting), lambda ring: ring.ddp),
    }
    return found.get(mode)


def _pipeline(schedule: Schedule, setting: Setting, group: PipelineGroup) -> tuple[Callable[[], Any], Waiter]:
    each = setting.layers / schedule.num_stages * setting.share
    waiter = Waiter(dict.fromkeys("FIW", each))
    stages: Any = [WaitingStage(i, schedule.num_stages, waiter, True) for i in schedule.stages_of(group.rank)]
    pipeline = Pipeline(stages, schedule, 0, group)
    ids = torch.zeros(setting.microbatches, setting.tokens, dtype=torch.long)
    return partial(pipeline.step, ids, ids, None, lambda y, _: y.sum(), 0, 1), waiter


def measure(
    world: World,
    group: PipelineGroup,
    network: Network,
    setting: Setting,
    rhos: list[float],
    modes: list[str],
    rounds: int,
) -> list[dict[str, Any]]:
    """A row for each rho and mode: `seconds` and `computing` per round, `sent` and `payload` and `expected` bytes per rank."""
    torchs = {mode: Case(mode, setting, None, group) for mode in modes if _torchs(mode, setting)}
    rows: list[dict[str, Any]] = []
    for rho in rhos:
        rate = setting.rate(rho)
        ours = {mode: Case(mode, setting, rate, group) for mode in modes if mode not in torchs}
        cases = {mode: torchs.get(mode) or ours[mode] for mode in modes}
        for _ in range(0 if rows else WARM_UP):
            for case in cases.values():
                case.step()
        dist.barrier()
        if world.rank == 0:
            network.shape(rate)
        dist.barrier()
        found = [{"rho": rho, "rate": rate, "mode": mode, "expected": cases[mode].expected} for mode in modes]
        taken: dict[str, list[tuple[float, float, int, int]]] = {mode: [] for mode in modes}
        for round_ in range(rounds):
            for mode in modes[round_ % len(modes) :] + modes[: round_ % len(modes)]:
                taken[mode].append(_once(cases[mode]))
        rows += [row | _over_ranks(taken[str(row["mode"])]) for row in found]
        dist.barrier()
        if world.rank == 0:
            network.shape(None)
            print(f"rho {rho:g}: done", flush=True)
        dist.barrier()
    return rows


def _once(case: Case) -> tuple[float, float, int, int]:
    """Seconds, seconds of computing, bytes sent, of these payload, of one step on this rank."""
    dist.barrier()
    before, waited, start = counted(), case.waiter.waited, time.perf_counter()
    case.step()
    seconds = time.perf_counter() - start
    dist.barrier()  # behind the last message on every link, so by now they are counted
    sent = counted().since(before)
    return seconds, case.waiter.waited - waited, sent.sent, sent.payload


def _over_ranks(found: list[tuple[float, float, int, int]]) -> dict[str, Any]:
    mine = torch.tensor(found, dtype=torch.float64)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    whole = torch.stack(every)  # [rank, round, 4]
    middle = whole.median(1).values
    return {
        "seconds": whole[:, :, 0].max(0).values.tolist(),
        "computing": whole[:, :, 1].max(0).values.tolist(),
        "sent": middle[:, 2].tolist(),
        "payload": middle[:, 3].tolist(),
        "headers": HEADERS,
    }
