"""A first estimate of memory, from the specs alone: which rank holds what, and whether it fits, before anything is allocated.

In: an experiment. Out: bytes per rank by kind at the rank's peak (`estimate`), compared with what there is (`Site`).
Formulas: `sizes` per part, `memory` and `resident` per rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..specs import Experiment, Pipeline
from ..specs.experiment import num_replicas
from . import hardware
from .actions import Schedule
from .each_stage import each_stage
from .hardware import Device
from .layout import Layout, lay_out
from .memory import Held, State
from .occupancy import Occupancy, peak_of
from .resident import message_bytes, overhead, resident
from .shard_cost import shard_cost
from .stage_cost import StageCost

__all__ = ["Estimate", "RankMemory", "Site", "estimate", "most_ranks_per_gpu"]

UNKNOWN = 1 << 60  # bytes: of a host that only its cards are known of; what it needs is told, and not refused
KINDS = ("weights", "gradients", "optimizer", "activations", "buffers", "loss", "overhead")


@dataclass(frozen=True)
class RankMemory:
    """What one rank holds at its peak, in bytes."""

    rank: int
    stages: tuple[tuple[int, range], ...]  # stage and its layers
    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    loss: int
    overhead: int
    host: int = 0  # in the memory of the host, beside what is on the card

    @property
    def total(self) -> int:
        """Everything on the card."""
        return sum(self.kinds().values())

    def kinds(self) -> dict[str, int]:
        """Bytes by kind, in the order of printing."""
        return {name: getattr(self, name) for name in KINDS}


@dataclass(frozen=True)
class Estimate:
    """Memory per rank, the number of parameters, and what could not be counted."""

    parameters: int
    ranks: tuple[RankMemory, ...]
    left_out: tuple[str, ...]


def estimate(experiment: Experiment, *, on_gpu: bool, layout: Layout | None = None) -> Estimate:
    """Memory per rank, those of every replica. `layout` replaces `lay_out(experiment)`.

    On a CPU mixed precision is fp32, and a rank costs a process of Python instead of a CUDA context.
    """
    state = State(experiment, on_gpu)
    size = state.size_of(experiment)
    layout = lay_out(experiment) if layout is None else layout
    schedule, ranges, policies = layout.schedule, layout.layers, layout.policies(experiment)
    stages = each_stage(experiment, size, ranges, state, policies)
    if schedule.num_shards:
        stages += [shard_cost(experiment, size, schedule.num_shards, state)] * schedule.num_shards
    message = message_bytes(experiment, size, state)
    tied = state.tied_gradient_bytes * size.embedding.matrices if size.tied else 0
    ranks = []
    for rank in range(schedule.num_ranks):
        own = schedule.stages_of(rank)
        held = resident(experiment, size, ranges, own, state)
        costs = tuple((stage, stages[stage]) for stage in (*own, *schedule.shards[rank : rank + 1]))
        step = peak_of(schedule, rank, costs, message, tied)
        update = Held(gradients=held.gradients)  # in the optimizer's turn activations and copies of weights are gone
        if held.gradients + held.update > step.total:
            step, held = update, held._replace(optimizer=held.optimizer + held.update)
        kinds = (held.weights + step.weights, step.gradients, held.optimizer, step.activations, step.buffers, step.loss)
        where = tuple((stage, ranges[stage]) for stage in own)
        host = held.host + _kept_on_host(schedule, rank, stages)
        ranks.append(RankMemory(rank, where, *kinds, overhead(sum(kinds), on_gpu), host))
    copies = range(num_replicas(experiment))
    everyone = tuple(replace(one, rank=copy * len(ranks) + one.rank) for copy in copies for one in ranks)
    return Estimate(size.parameters, everyone, (*size.left_out, *state.left_out))


def _kept_on_host(schedule: Schedule, rank: int, stages: Sequence[StageCost]) -> int:
    """The most bytes of activations that wait on the host at a time."""
    if not any(sum(cost.host) for cost in stages):
        return 0
    nothing = StageCost(*[Held()] * len(StageCost._fields))
    return Occupancy(schedule, rank, [nothing._replace(kept=cost.host) for cost in stages]).peak.total


@dataclass(frozen=True)
class Site:
    """Where ranks are to run: on cards, in turn, at most `ranks_per_gpu` on each; or all on a host without cards."""

    cards: tuple[Device, ...]
    host_memory_bytes: int
    ranks_here: range | None = None  # of a run that is spread over machines; None: all
    ranks_per_gpu: int = 1

    @classmethod
    def of(cls, found: hardware.Hardware, experiment: Experiment) -> Site:
        """All ranks on these cards."""
        host = found.host_memory_bytes if found.host_known else UNKNOWN
        return cls(found.devices, host, ranks_per_gpu=most_ranks_per_gpu(experiment))

    @property
    def on_gpu(self) -> bool:
        """Whether there are cards."""
        return bool(self.cards)

    def here(self, found: Estimate) -> Sequence[RankMemory]:
        """The ranks of an estimate that run on this site."""
        return found.ranks if self.ranks_here is None else [found.ranks[rank] for rank in self.ranks_here]

    def need(self, found: Estimate) -> int:
        """Bytes of the fullest rank on cards, of all ranks together on a host."""
        totals = [memory.total for memory in self.here(found)]
        return max(totals) if self.on_gpu else sum(totals) + self.need_of_host(found)

    def need_of_host(self, found: Estimate) -> int:
        """Bytes that the ranks here keep in the host's memory beside their cards, all together."""
        return sum(memory.host for memory in self.here(found))

    def pressure(self, found: Estimate) -> float:
        """What is needed over what there is, of the tightest card or the host; more than 1 does not fit."""
        if not self.on_gpu:
            return self.need(found) / self.host_memory_bytes
        return max(self.need_of_host(found) / self.host_memory_bytes, self.pressure_of_cards(found))

    def pressure_of_cards(self, found: Estimate) -> float:
        """The same of the tightest card alone."""
        return max(sum(memory.total for memory in ranks) / card.memory_bytes for ranks, card in self.shares(found))

    def shares(self, found: Estimate) -> list[tuple[Sequence[RankMemory], Device]]:
        """The ranks of each card that has some: they go round, as `parallel.group.join` places them."""
        ranks, count = self.here(found), len(self.cards)
        return [(ranks[index::count], card) for index, card in enumerate(self.cards[: len(ranks)])]

    def enough_cards(self, found: Estimate) -> bool:
        """Whether no card would have to take more ranks than it may; always on a host."""
        return not self.on_gpu or len(self.here(found)) <= len(self.cards) * self.ranks_per_gpu

    def tightest(self, found: Estimate) -> int:
        """The rank that is nearest to the end of its card, or furthest beyond it."""
        return max(zip(self.here(found), self.cards), key=lambda pair: pair[0].total / pair[1].memory_bytes)[0].rank

    def fits(self, found: Estimate) -> bool:
        """Whether there are cards enough, and each has the memory for its ranks."""
        return self.enough_cards(found) and self.pressure(found) <= 1


def most_ranks_per_gpu(experiment: Experiment) -> int:
    """How many ranks may share a card."""
    return experiment.parallel.ranks_per_gpu if isinstance(experiment.parallel, Pipeline) else 1
