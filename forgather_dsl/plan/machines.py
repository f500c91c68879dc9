"""How an experiment's ranks lie on machines: how many on each, and how many machines that takes. No torch.

In: an experiment, and how many cards a machine has if that is said. Out: `Machines`. Ranks are dealt out in order, so
neighbours of a pipeline share a machine where they can, and one boundary of stages crosses the network for each pair of machines.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from ..specs import Experiment
from ..specs.experiment import world_size
from . import hardware
from .estimate import most_ranks_per_gpu

__all__ = ["Machines", "on_machines"]


@dataclass(frozen=True)
class Machines:
    """`nodes` machines with `per_node` ranks each, on `gpus` cards each (None: without cards)."""

    nodes: int
    per_node: int
    gpus: int | None
    card: str | None
    """The name of the cards, where it is known or written down."""


def on_machines(experiment: Experiment, gpus_per_node: int | None) -> Machines:
    """`gpus_per_node`: cards of a machine, or its ranks where there are none; None: as many as `hardware` has.

    Raises:
        UserError: the ranks do not divide into such machines, or nothing says how many cards there are.
        ConfigError: `hardware` is not understood.
    """
    world = world_size(experiment)
    found, each = hardware.parse(experiment.hardware).devices, most_ranks_per_gpu(experiment)
    if gpus_per_node is not None and gpus_per_node < 1:
        raise UserError(f"--gpus-per-node {gpus_per_node}: a machine has 1 or more")
    cards = gpus_per_node if gpus_per_node is not None else len(found)
    if not cards:
        raise UserError(
            f"hardware = {experiment.hardware!r} and this machine has no GPU, so nothing says how many of the {world} ranks a "
            "machine takes; write --gpus-per-node N"
        )
    names = {device.name for device in found}
    card = names.pop() if len(names) == 1 else None
    per_node = min(world, cards * each)
    if world % per_node:
        fit = [n for n in range(1, world + 1) if world % min(world, n * each) == 0 and n * each <= world]
        raise UserError(
            f"{world} ranks do not divide into machines of {per_node} ranks"
            f"{f' ({cards} cards with {each} ranks each)' if each > 1 else ''}; write --gpus-per-node with one of {fit}, or "
            f"change parallel.stages or parallel.replicas"
        )
    return Machines(world // per_node, per_node, -(-per_node // each) if found else None, card)
