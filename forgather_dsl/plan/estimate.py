"""A first estimate of memory, from the specs alone: which rank holds what, and whether it fits, before anything is allocated.

In: an experiment. Out: bytes per rank by kind at the rank's peak (`estimate`), an error that says what to change
(`require_fit`). Formulas: `sizes` per part, `memory` per rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..dsl import ConfigError, replace
from ..errors import UserError
from ..specs import Experiment, FullRecompute, Muon, Pipeline, Single
from ..specs.experiment import world_size
from . import hardware
from .hardware import GIB, Device
from .layout import Layout, balanced, lay_out
from .memory import Held, StageCost, State, peak
from .resident import overhead, resident
from .sizes import model_size

__all__ = ["Estimate", "RankMemory", "estimate", "require_fit"]

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

    @property
    def total(self) -> int:
        """Everything."""
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
    """Memory per rank. `layout` replaces `lay_out(experiment)`.

    On a CPU mixed precision is fp32, and a rank costs a process of Python instead of a CUDA context.
    """
    size = model_size(experiment.model, experiment.seq_len)
    state = State(experiment, on_gpu)
    schedule, ranges = lay_out(experiment) if layout is None else layout
    stages = [StageCost.of(experiment, size, ranges, stage, state.number_bytes) for stage in range(len(ranges))]
    ranks = []
    for rank in range(schedule.num_ranks):
        own = schedule.stages_of(rank)
        weights, gradients, optimizer, buffers, step = resident(experiment, size, ranges, own, state)
        at_peak = peak(schedule.actions[rank], stages)
        if step > at_peak.activations + at_peak.loss:  # the optimizer's step is the peak: activations are gone by then
            at_peak, optimizer = Held(0, 0), optimizer + step
        used = weights + gradients + optimizer + at_peak.activations + at_peak.loss + buffers
        kinds = (weights, gradients, optimizer, at_peak.activations, buffers, at_peak.loss, overhead(used, on_gpu))
        ranks.append(RankMemory(rank, tuple((stage, ranges[stage]) for stage in own), *kinds))
    return Estimate(size.parameters, tuple(ranks), (*size.left_out, *state.left_out))


def require_fit(experiment: Experiment) -> None:
    """Refuse what this machine cannot hold, or has too few cards for. On GPUs each rank has a card to itself; without
    GPUs any number of ranks runs and all share the host's memory. Under torchrun the ranks of this machine count.

    Raises:
        UserError: (exit code 3) what each rank needs, what there is, and what to change.
        ConfigError: `hardware` is not understood.
    """
    hardware.parse(experiment.hardware)  # a wrong one is an error wherever the run is
    cards, host = hardware.gpus(), hardware.host_memory()
    here = _ranks_here(world_size(experiment))
    problem = _problem(experiment, estimate(experiment, on_gpu=bool(cards)), here, cards, host)
    if problem is None:
        return
    advice = [f"  {line}" for line in _advice(experiment, here, cards, host)]
    if advice:
        advice.insert(0, "try, in the class body:")
    else:
        advice = ["a smaller model (dim, num_layers, vocab_size) or a shorter seq_len would take less"]
    raise UserError("\n".join([problem, *advice]), exit_code=3)


def _ranks_here(world: int) -> range:
    """The ranks that run on this machine: all, unless torchrun says otherwise."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    first = int(os.environ.get("RANK", 0)) - int(os.environ.get("LOCAL_RANK", 0))
    return range(first, first + local) if first >= 0 and first + local <= world else range(world)


def _problem(experiment: Experiment, found: Estimate, here: range, cards: Sequence[Device], host: int) -> str | None:
    """Why it does not fit, with numbers; None when it does."""
    name, ranks = type(experiment).__qualname__, [found.ranks[rank] for rank in here]
    lines = [f"  {_described(memory)}" for memory in ranks]
    if found.left_out:
        lines.append(f"  not counted: {', '.join(found.left_out)}")
    if not cards:
        total = sum(memory.total for memory in ranks)
        if total <= host:
            return None
        named = "" if experiment.hardware == "auto" else f" (hardware = {experiment.hardware!r} is not here)"
        head = f"{name} needs {_gib(total)} of memory, this machine has {_gib(host)} and no GPU{named}:"
    elif len(ranks) > len(cards):
        head = f"{name} needs {len(ranks)} GPUs, one for each rank, this machine has {len(cards)}:"
    elif over := [m.rank for m, card in zip(ranks, cards) if m.total > card.memory_bytes]:
        what = ", ".join(f"{_gib(card.memory_bytes)} ({card.name})" for card in cards[: len(ranks)])
        ranks_over = f"rank{'s' if len(over) > 1 else ''} {', '.join(map(str, over))}"
        head = f"{name} does not fit: {ranks_over} of {len(ranks)} need more than there is, {what}:"
    else:
        return None
    return "\n".join([head, *lines])


def _described(memory: RankMemory) -> str:
    kinds = ", ".join(f"{kind} {size / GIB:.1f}" for kind, size in memory.kinds().items() if size >= 0.05 * GIB)
    return f"rank {memory.rank}: {_gib(memory.total)} ({kinds})"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _advice(experiment: Experiment, here: range, cards: Sequence[Device], host: int) -> Iterator[str]:
    """Lines of code, each with what the run needs with it and those before it; ends with the first that fits."""
    changed, needed = experiment, _need(estimate(experiment, on_gpu=bool(cards)), bool(cards))
    for line, change in _changes(experiment, here, cards):
        try:
            values = change(changed)
            if all(getattr(changed, name) == value for name, value in values.items()):
                continue
            candidate = replace(changed, **values)
            found = estimate(candidate, on_gpu=bool(cards))
        except (ConfigError, ValueError):  # this change does not go with this experiment
            continue
        need = _need(found, bool(cards))
        if need >= needed and world_size(candidate) == world_size(changed):
            continue
        changed, needed = candidate, need
        fits = _problem(candidate, found, range(world_size(candidate)), cards, host) is None
        yield f"{line(candidate):<55} # {_gib(need)}{' for the fullest rank' if cards else ''}{', fits' if fits else ''}"
        if fits:
            return


def _need(found: Estimate, on_gpu: bool) -> int:
    """Bytes of the fullest rank on GPUs, of all ranks together without."""
    totals = [memory.total for memory in found.ranks]
    return max(totals) if on_gpu else sum(totals)


_Change = tuple[Callable[[Experiment], str], Callable[[Experiment], dict[str, Any]]]


def _changes(experiment: Experiment, here: range, cards: Sequence[Device]) -> Iterator[_Change]:
    """What could help, cheapest first: the line to write, from the changed experiment, and how to change it."""
    if cards and len(here) != len(cards) and len(cards) <= experiment.model.num_layers:
        yield from _for_cards(experiment, len(cards))
    yield lambda x: f"microbatch_size = {x.microbatch_size}", lambda x: {"microbatch_size": 1}
    yield lambda x: "recompute = FullRecompute()", lambda x: {"recompute": FullRecompute()}
    if cards and isinstance(experiment.parallel, Pipeline):
        yield (
            lambda x: f"parallel = patch(Pipeline, cuts={x.parallel.cuts})",  # type: ignore[attr-defined]
            lambda x: {
                "parallel": replace(x.parallel, cuts=tuple(map(len, balanced(x, world_size(x), time_share=0.0))))
            },
        )
    yield lambda x: "optimizer = Muon()", lambda x: {"optimizer": Muon()}


def _for_cards(experiment: Experiment, count: int) -> Iterator[_Change]:
    if count == 1:
        yield lambda x: "parallel = Single()", lambda x: {"parallel": Single()}
    elif isinstance(experiment.parallel, Pipeline):
        stages = {"stages": count, "cuts": None}
        line = f"parallel = patch(Pipeline, stages={count})"
        yield lambda x: line, lambda x: {"parallel": replace(x.parallel, **stages)}
    else:
        yield lambda x: f"parallel = Pipeline(stages={count})", lambda x: {"parallel": Pipeline(stages=count)}
