"""Refuses what the machine at hand cannot hold, before anything is allocated, and says what to change."""

from __future__ import annotations

import os

from ..errors import UserError
from ..specs import Experiment
from ..specs.experiment import world_size
from . import hardware
from .advice import advise
from .estimate import Estimate, RankMemory, Site, estimate
from .hardware import GIB

__all__ = ["described", "gib", "require_fit"]


def require_fit(experiment: Experiment) -> None:
    """Refuse what this machine cannot hold, or has too few cards for. On GPUs each rank has a card to itself; without
    GPUs any number of ranks runs and all share the host's memory. Under torchrun the ranks of this machine count.

    Raises:
        UserError: (exit code 3) what each rank needs, what there is, and what to change.
        ConfigError: `hardware` is not understood.
    """
    hardware.parse(experiment.hardware)  # a wrong one is an error wherever the run is
    site = Site(hardware.gpus(), hardware.host_memory(), _ranks_here(world_size(experiment)))
    found = estimate(experiment, on_gpu=site.on_gpu)
    if site.fits(found):
        return
    options = advise(experiment, site)
    if options:
        advice = ["try, in the class body:", *(f"  {line}" for line in options[0].lines)]
    else:
        advice = ["a smaller model (dim, num_layers, vocab_size) or a shorter seq_len would take less"]
    raise UserError("\n".join([_problem(experiment, found, site), *advice]), exit_code=3)


def _ranks_here(world: int) -> range:
    """The ranks that run on this machine: all, unless torchrun says otherwise."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    first = int(os.environ.get("RANK", 0)) - int(os.environ.get("LOCAL_RANK", 0))
    return range(first, first + local) if first >= 0 and first + local <= world else range(world)


def _problem(experiment: Experiment, found: Estimate, site: Site) -> str:
    """Why it does not fit, with numbers."""
    name, ranks, cards = type(experiment).__qualname__, site.here(found), site.cards
    if not cards:
        named = "" if experiment.hardware == "auto" else f" (hardware = {experiment.hardware!r} is not here)"
        has = f"this machine has {gib(site.host_memory_bytes)} and no GPU{named}"
        head = f"{name} needs {gib(site.need(found))} of memory, {has}:"
    elif len(ranks) > len(cards):
        head = f"{name} needs {len(ranks)} GPUs, one for each rank, this machine has {len(cards)}:"
    else:
        over = [m.rank for m, card in zip(ranks, cards) if m.total > card.memory_bytes]
        what = ", ".join(f"{gib(card.memory_bytes)} ({card.name})" for card in cards[: len(ranks)])
        ranks_over = f"rank{'s' if len(over) > 1 else ''} {', '.join(map(str, over))}"
        head = f"{name} does not fit: {ranks_over} of {len(ranks)} need more than there is, {what}:"
    lines = [f"  {described(memory)}" for memory in ranks]
    if found.left_out:
        lines.append(f"  not counted: {', '.join(found.left_out)}")
    return "\n".join([head, *lines])


def described(memory: RankMemory) -> str:
    """A rank's memory in one line."""
    kinds = ", ".join(f"{kind} {size / GIB:.1f}" for kind, size in memory.kinds().items() if size >= 0.05 * GIB)
    return f"rank {memory.rank}: {gib(memory.total)} ({kinds})"


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / GIB:.1f} GiB"
