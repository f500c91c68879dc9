"""Where the members of a sweep train side by side: each on cards of its own, or on its share of the processor's cores.

In: how many may run at once. Out: for a member its environment, or nothing while there is no room. Imports no torch.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ..parallel.launch import environment
from ..plan.choosing import chosen
from ..plan.estimate import most_ranks_per_gpu
from ..plan.hardware import gpus
from ..specs import Experiment
from ..specs.experiment import world_size

__all__ = ["Place", "Places"]


class Place(NamedTuple):
    """What a member may use."""

    cards: tuple[str, ...]  # as CUDA_VISIBLE_DEVICES names them; none on a machine without GPUs
    threads: int | None  # of each rank; None: as a run alone has them
    jobs: int  # how many members may train at once

    def variables(self) -> dict[str, str]:
        """For the environment of its processes."""
        cards = {"CUDA_VISIBLE_DEVICES": ",".join(self.cards)} if self.cards else {}
        return cards | ({} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)})

    def facts(self) -> dict[str, object]:
        """For the record: times of a run beside others are not those of a run alone."""
        return {"jobs": self.jobs, "threads": self.threads, "devices": ",".join(self.cards) or None}


class Places:
    """Hands out places. `jobs` None: on GPUs as many as there are cards for, otherwise one."""

    def __init__(self, jobs: int | None) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        here = len(gpus())
        names = visible.split(",")[:here] if visible is not None else map(str, range(here))
        self.cards = tuple(name.strip() for name in names)
        self.jobs = jobs if jobs is not None else max(1, len(self.cards))
        self._free = list(self.cards)
        self._taken = 0

    def narrow(self, members: int) -> None:
        """No more at once than there are members: those that do run get the cores of the others."""
        self.jobs = max(1, min(self.jobs, members))

    def take(self, experiment: Experiment) -> Place | None:
        """A place with as many cards as the experiment has ranks for, or all of them; None while too few are free."""
        if self._taken >= self.jobs:
            return None
        experiment = chosen(experiment)
        needed = min(len(self.cards), -(-world_size(experiment) // most_ranks_per_gpu(experiment)))
        if len(self._free) < needed:
            return None
        cards, self._free = self._free[:needed], self._free[needed:]
        self._taken += 1
        return Place(tuple(cards), self._threads(experiment), self.jobs)

    def _threads(self, experiment: Experiment) -> int | None:
        if self.jobs == 1 or "OMP_NUM_THREADS" in os.environ:
            return None
        return int(environment(self.jobs * world_size(experiment))["OMP_NUM_THREADS"])

    def give_back(self, place: Place) -> None:
        """The member that was there has ended."""
        self._free = [card for card in self.cards if card in self._free or card in place.cards]
        self._taken -= 1
