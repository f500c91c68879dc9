"""Finds the order of a split-backward pipeline: list scheduling under a memory cap, over a grid of policies.

In: stages, microbatches, durations, a cap on live microbatches per rank. Out: the `Schedule` with the least makespan,
then the least memory. A policy says how many forwards a rank may run ahead, whether a ready forward goes before a ready
backward, and how long a rank waits for a message before it fills the gap with a weight gradient.
After Qi et al., Zero Bubble Pipeline Parallelism (arXiv 2401.10241), section 3.1; deterministic.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

from forgather_dsl.plan.actions import Action, Schedule, from_rows

__all__ = ["Policy", "best", "list_schedule"]

NEVER = float("inf")


class Policy(NamedTuple):
    """How one candidate decides; see the module's docstring."""

    ahead: tuple[int, ...]
    """Microbatches a rank may hold between F and I, per rank."""
    forward_first: bool
    patience: float
    """Wait for a message that comes within this share of a weight gradient's duration rather than start one."""


@dataclass
class _Rank:
    """Where one rank is: counts of what it has done, its clock, and when its next inputs arrive."""

    now: float = 0.0
    forwards: int = 0
    inputs: int = 0
    weights: int = 0
    activations: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    row: list[Action] = field(default_factory=list)


def list_schedule(
    num_microbatches: int, table: dict[str, list[float]], communication: float, memory_cap: int, policy: Policy
) -> tuple[float, list[list[Action]]]:
    """One greedy run. `table` holds durations per kind and stage. Returns the makespan and the actions per rank."""
    last = len(policy.ahead) - 1
    ranks = [_Rank() for _ in policy.ahead]
    ranks[0].activations = [0.0] * num_microbatches
    awake = set(range(last + 1))
    while awake:
        stage = min(awake, key=lambda index: (ranks[index].now, index))
        rank = ranks[stage]
        forward, gradient = _arrivals(rank, num_microbatches, memory_cap, policy.ahead[stage])
        kind = _choose(rank, forward, gradient, policy, table["W"][stage])
        if kind is None:
            if min(forward, gradient) == NEVER:
                awake.discard(stage)  # until a message is on its way
            else:
                rank.now = min(forward, gradient)
            continue
        microbatch = {"F": rank.forwards, "I": rank.inputs, "W": rank.weights}[kind]
        rank.row.append(Action(stage, kind, microbatch))
        rank.now += table[kind][stage]
        rank.forwards += kind == "F"
        rank.inputs += kind == "I"
        rank.weights += kind == "W"
        if kind == "F" and stage == last:
            rank.gradients.append(rank.now)
        elif kind == "F":
            ranks[stage + 1].activations.append(rank.now + communication)
            awake.add(stage + 1)
        elif kind == "I" and stage > 0:
            ranks[stage - 1].gradients.append(rank.now + communication)
            awake.add(stage - 1)
    return max(rank.now for rank in ranks), [rank.row for rank in ranks]


def _arrivals(rank: _Rank, num_microbatches: int, memory_cap: int, ahead: int) -> tuple[float, float]:
    """When the next F and the next I of the rank could start, NEVER while unknown or not allowed."""
    held = rank.forwards - rank.weights
    allowed = rank.forwards < num_microbatches and held < memory_cap and rank.forwards - rank.inputs < ahead
    forward = rank.activations[rank.forwards] if allowed and rank.forwards < len(rank.activations) else NEVER
    gradient = rank.gradients[rank.inputs] if rank.inputs < min(len(rank.gradients), rank.forwards) else NEVER
    return forward, gradient


def _choose(rank: _Rank, forward: float, gradient: float, policy: Policy, weight_seconds: float):
    forward_ready, gradient_ready = forward <= rank.now, gradient <= rank.now
    if forward_ready and (policy.forward_first or not gradient_ready):
        return "F"
    if gradient_ready:
        return "I"
    wait = min(forward, gradient) - rank.now
    if rank.weights < rank.inputs and (wait >= policy.patience * weight_seconds or wait == NEVER):
        return "W"
    return None


def best(num_microbatches: int, table: dict[str, list[float]], communication: float, memory_cap: int) -> Schedule:
    """The best candidate over the grid of policies, first by makespan, then by total peak memory."""
    stages = len(table["F"])
    depths = {
        tuple(min(memory_cap, max(1, depth * (stages - rank) - trim)) for rank in range(stages))
        for depth, trim in ((1, 0), (2, 1), (3, 2))
    }
    candidates = {}
    for ahead, forward_first, patience in itertools.product(sorted(depths), (False, True), (0.0, 0.5, 1.0)):
        makespan, rows = list_schedule(
            num_microbatches, table, communication, memory_cap, Policy(ahead, forward_first, patience)
        )
        held = sum(map(_most_held, rows))
        candidates.setdefault((round(makespan, 9), held), rows)
    return from_rows("ZeroBubble", candidates[min(candidates)])


def _most_held(row: list[Action]) -> int:
    steps = itertools.accumulate((action.kind == "F") - (action.kind == "W") for action in row)
    return max(steps)
