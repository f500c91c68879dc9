"""One order for every rank, made by list scheduling: time goes on, and a rank that is free takes what its policy likes best.

In: the tables of a pipeline (`Timing`), with bytes per rank, and a `Policy`. Out: a row of actions per rank, within the
bytes, or None where this policy leads to a dead end. Placements are free. Pending weight gradients count as memory; where
it is short, a rank runs W first, or the full backward B, which leaves none. After Qi et al., arXiv 2401.10241, section 3.1.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import NamedTuple

from forgather_dsl.plan.timing import Timing

__all__ = ["Policy", "list_schedule"]

NEVER = float("inf")


class Policy(NamedTuple):
    """How a rank decides. What is ready comes first, backward before forward, W last."""

    ahead: tuple[int, ...]
    """Microbatches that may be between F and I on the first stage of each rank."""
    eager: float = 0.0
    """Forward first, while fewer than this times (ranks - rank) microbatches are between F and I on its stage."""
    patience: tuple[float, ...] = ()
    """Per rank: do not start a W when something arrives within this share of its duration."""
    deepest: tuple[bool, bool] = (True, True)
    """Of several stages with work, take the last rather than the first: for F, for I."""
    owing: float = NEVER
    """From this many pending W on, one goes before a forward."""


class _Rank:
    """Where one rank is."""

    __slots__ = (
        "ahead",
        "backward",
        "due",
        "forward",
        "held",
        "left",
        "now",
        "owing",
        "patience",
        "pending",
        "reserve",
        "room",
        "row",
    )

    def __init__(self, timing: Timing, policy: Policy, rank: int) -> None:
        own = [stage for stage in range(timing.stages) if timing.placement[stage] == rank]
        kept, working = timing.costs.kept, timing.costs.working
        later = {stage: sum(kept[s] for s in own if s > stage) for stage in own}
        self.now = self.due = self.held = 0.0
        self.row: list[int] = []
        self.left = timing.microbatches * len(own) * 2  # F and W; a B counts as its W
        self.reserve = max((working[s] for s in own), default=0.0)  # for the action that runs
        self.room = timing.costs.capacity[rank] * (1 + 1e-9) - self.reserve
        self.ahead, self.patience, self.owing = policy.ahead[rank], policy.patience[rank], policy.owing
        most = policy.eager * (timing.ranks - rank)
        stages = [
            (stage, kept[stage] + later[stage], self.ahead if stage == own[0] else timing.microbatches, most)
            for stage in own
        ]
        self.forward = stages[::-1] if policy.deepest[0] else stages
        self.backward = own[::-1] if policy.deepest[1] else own
        self.pending = own[::-1]


class _Run:
    """All ranks, and the messages under way."""

    def __init__(self, timing: Timing, policy: Policy) -> None:
        self.timing, self.count = timing, timing.microbatches
        self.ranks = [_Rank(timing, policy, rank) for rank in range(timing.ranks)]
        self.forwards, self.inputs, self.weights = ([0] * timing.stages for _ in range(3))
        self.there = [NEVER] * (2 * timing.stages * self.count)
        self.there[: self.count] = [0.0] * self.count  # the inputs of the first stage
        self.free = [0.0] * (timing.ranks * timing.ranks)
        self.events = [(0.0, rank) for rank in range(timing.ranks)]
        heapify(self.events)

    def rows(self) -> list[list[int]] | None:
        """Run to the end."""
        events, ranks = self.events, self.ranks
        while events:
            now, index = heappop(events)
            rank = ranks[index]
            if rank.due != now or not rank.left:
                continue  # something came earlier than it had expected
            rank.now = now
            number, wake = self._choose(rank)
            if number >= 0:
                self._do(rank, number)
                wake = rank.now
            rank.due = wake
            if wake < NEVER:
                heappush(events, (wake, index))
        return None if any(rank.left for rank in ranks) else [rank.row for rank in ranks]

    def _choose(self, rank: _Rank) -> tuple[int, float]:
        """The action to start now; or -1, and when to look again."""
        now, count, stages, there = rank.now, self.count, self.timing.stages, self.there
        forwards, inputs = self.forwards, self.inputs
        wake, full, back, front, eager = NEVER, False, -1, -1, False
        for stage in rank.backward:
            k = inputs[stage]
            if k < forwards[stage]:
                arrival = there[(stages + stage) * count + k] if stage < stages - 1 else now
                if arrival <= now:
                    back = stage
                    break
                wake = min(wake, arrival)
        for stage, bytes_needed, most, few in rank.forward:
            k = forwards[stage]
            if k < count and k - inputs[stage] < most and (arrival := there[stage * count + k]) < NEVER:
                if rank.held + bytes_needed > rank.room:
                    full = full or arrival <= now
                elif arrival <= now:
                    front, eager = stage, k - inputs[stage] < few
                    break
                else:
                    wake = min(wake, arrival)
        pending = next((stage for stage in rank.pending if self.weights[stage] < inputs[stage]), -1)
        owing = pending >= 0 and sum(inputs[stage] - self.weights[stage] for stage in rank.pending) >= rank.owing
        if front >= 0 and (eager if back >= 0 else not owing):
            return front * count + forwards[front], now
        if back >= 0:
            return self._backward(rank, back, pending), now
        if pending >= 0:
            weight = (2 * stages + pending) * count + self.weights[pending]
            if full or owing or wake - now >= rank.patience * self.timing.seconds[weight]:
                return weight, now
        return -1, wake

    def _backward(self, rank: _Rank, stage: int, pending: int) -> int:
        """I when what it leaves finds room; else a W that makes some; else B, which leaves nothing."""
        count, stages, k = self.count, self.timing.stages, self.inputs[stage]
        number = (stages + stage) * count + k
        needed = max(self.timing.leaves[number], self.timing.works[number] - rank.reserve)
        if rank.held + needed <= rank.room:
            return number
        if pending >= 0:
            return (2 * stages + pending) * count + self.weights[pending]
        return (3 * stages + stage) * count + k

    def _do(self, rank: _Rank, number: int) -> None:
        timing, count = self.timing, self.count
        kind, stage = divmod(number // count, timing.stages)
        rank.row.append(number)
        rank.now += timing.seconds[number]
        rank.held += timing.enters[number] + timing.leaves[number]
        self.forwards[stage] += kind == 0
        self.inputs[stage] += kind in (1, 3)
        self.weights[stage] += kind >= 2
        rank.left -= kind != 1
        message = timing.gives[number]
        if message < 0:
            return
        link, reader = timing.link[number], self.ranks[timing.reader[number]]
        arrival = rank.now
        if link >= 0:
            self.free[link] = max(self.free[link], arrival) + timing.costs.transfer
            arrival = self.free[link] + timing.costs.latency
        self.there[message] = arrival
        if reader is not rank and arrival < reader.due and reader.due > reader.now:
            reader.due = arrival  # it waits, for something later
            heappush(self.events, (arrival, timing.reader[number]))


def list_schedule(timing: Timing, policy: Policy) -> list[list[int]] | None:
    """Rows of actions, as `Timing` numbers them. Deterministic."""
    return _Run(timing, policy).rows()
