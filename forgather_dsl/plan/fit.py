"""Refuses what the machine at hand cannot hold, before anything is allocated, and says what to change."""

from __future__ import annotations

import os
from dataclasses import replace

from ..errors import UserError
from ..specs import Experiment, OnHost
from ..specs.experiment import world_size
from . import hardware
from .advice import advise, written
from .estimate import Estimate, RankMemory, Site, estimate, most_ranks_per_gpu
from .hardware import GIB

__all__ = ["described", "gib", "host_need", "require_fit"]


def require_fit(experiment: Experiment) -> None:
    """Refuse what this machine cannot hold, or has too few cards for. On GPUs each rank has a card to itself unless
    `ranks_per_gpu` lets them share; without GPUs any number of ranks runs and all share the host's memory. Under torchrun
    the ranks of this machine count.

    Raises:
        UserError: (exit code 3) what each rank needs, what there is, and what to change.
        ConfigError: `hardware` is not understood.
    """
    hardware.parse(experiment.hardware)  # a wrong one is an error wherever the run is
    site = Site(hardware.gpus(), hardware.host_memory(), _ranks_here(world_size(experiment)))
    site = replace(site, ranks_per_gpu=most_ranks_per_gpu(experiment))
    found = estimate(experiment, on_gpu=site.on_gpu)
    if site.fits(found):
        return
    options = advise(experiment, site)
    advice = ["try, in the class body:", *(f"  {line}" for line in options[0].lines)] if options else []
    advice += _sharing(found, site)
    if not advice:
        advice = ["a smaller model (dim, num_layers, vocab_size) or a shorter seq_len would take less"]
    if not site.cards and experiment.hardware != "auto":
        advice.append(
            "to try all of it here with a small model, stages and schedule as they are: the same with --smoke"
        )
    raise UserError("\n".join([_problem(experiment, found, site), *advice]), exit_code=3)


def host_need(experiment: Experiment) -> int:
    """Bytes that all of its ranks need in the memory of a host without GPUs."""
    return Site((), hardware.host_memory()).need(estimate(experiment, on_gpu=False))


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
    elif not site.enough_cards(found):
        each = site.ranks_per_gpu
        needed = f"{-(-len(ranks) // each)} GPUs, one for each {'rank' if each == 1 else f'{each} ranks'}"
        head = f"{name} needs {needed}, this machine has {len(cards)}:"
    elif site.pressure_of_cards(found) <= 1:
        states = "optimizer states, masters and gradients" if _leaving(experiment) else "optimizer states and masters"
        head = (
            f"{name} keeps {gib(site.need_of_host(found))} of {states} in the host's memory (update = "
            f"{written(experiment.update)}), this machine has {gib(site.host_memory_bytes)}:"
        )
    else:
        full = [share for share, card in site.shares(found) if sum(m.total for m in share) > card.memory_bytes]
        over = sorted(memory.rank for share in full for memory in share)
        what = ", ".join(f"{gib(card.memory_bytes)} ({card.name})" for card in cards[: len(ranks)])
        ranks_over = f"rank{'s' if len(over) > 1 else ''} {', '.join(map(str, over))}"
        shared = f" on {len(cards)} shared" if len(ranks) > len(cards) else ""
        head = f"{name} does not fit: {ranks_over} of {len(ranks)}{shared} need more than there is, {what}:"
    lines = [f"  {described(memory)}" for memory in ranks]
    if found.left_out:
        lines.append(f"  not counted: {', '.join(found.left_out)}")
    return "\n".join([head, *lines])


def _sharing(found: Estimate, site: Site) -> list[str]:
    """The line that keeps all ranks on fewer cards, if they fit there together."""
    if site.enough_cards(found):
        return []
    shared = replace(site, ranks_per_gpu=-(-len(site.here(found)) // len(site.cards)))
    if not shared.fits(found):
        return []
    line = f"parallel = patch(Pipeline, ranks_per_gpu={shared.ranks_per_gpu})"
    return ["or let ranks share a GPU, with messages through host memory, which is slower:", f"  {line:<55} # fits"]


def _leaving(experiment: Experiment) -> bool:
    return isinstance(experiment.update, OnHost) and experiment.update.gradients == "host"


def described(memory: RankMemory) -> str:
    """A rank's memory in one line."""
    kinds = ", ".join(f"{kind} {size / GIB:.1f}" for kind, size in memory.kinds().items() if size >= 0.05 * GIB)
    host = f", and {gib(memory.host)} of the host's" if memory.host else ""
    return f"rank {memory.rank}: {gib(memory.total)} ({kinds}){host}"


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / GIB:.1f} GiB"
