"""What all ranks have to know of a step before they may update: one all-reduce of one vector.

Each rank fills in what it has (norms of its parameters, the loss, its memory) and zeros elsewhere; adding zeros is exact, so
every rank then holds the same numbers, whatever the layout, and sums the norms in the order of names. Replicas have the
same parameters: those of the first count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..parallel.failures import PeerLost
from ..parallel.group import World
from ..parallel.progress import PROGRESS


class Said(NamedTuple):
    """What one rank brings to the exchange of a step, beside its gradients' norms."""

    loss_sum: float | None = None  # nats; None on ranks that do not hold the loss
    seconds: float = 0.0  # of training so far; rank 0's counts
    stop: bool = False  # this rank was asked to stop,
    save: bool = False  # or to save
    memory: int = 0  # peak bytes
    busy: float = 0.0  # seconds in actions,
    span: float = 0.0  # and of the whole schedule on this rank
    saved: int = 0  # how a save in the background ended (checkpoint/saver.py); rank 0's counts


class Agreed(NamedTuple):
    """The same on every rank."""

    loss_sum: float  # nats
    grad_norm: float
    seconds: float  # since the start, by rank 0's clock
    stop: bool  # some rank was asked to stop,
    save: bool  # or to save
    memory: list[int]  # peak bytes per rank
    saved: int  # how a save in the background ended
    bubbles: tuple[float, ...]  # share that each rank waited of the step, which lasts until all ranks have finished
    bad_gradients: tuple[str, ...] = ()  # names of parameters whose gradient is not finite
    bad_losses: tuple[int, ...] = ()  # ranks whose part of the loss is not finite

    @property
    def bubble(self) -> float:
        """The mean over ranks."""
        return sum(self.bubbles) / len(self.bubbles)

    @property
    def finite(self) -> bool:
        """Whether the step may be applied."""
        return math.isfinite(self.loss_sum) and math.isfinite(self.grad_norm)


class Ranks:
    """This process among the ranks of a run, and what they tell one another.

    `names` are this rank's parameters; `counted` those of which its numbers stand for all ranks that have the same: None for
    all, none on later replicas.
    """

    def __init__(self, world: World, names: list[str], counted: Collection[str] | None = None) -> None:
        self.world_info, self.rank, self.world = world, world.rank, world.size
        self.counted = frozenset(names if counted is None else counted)
        self.first = counted is None or bool(counted)  # whether it belongs to the first replica
        everyone = self.gather(names)
        self.names = sorted(
            {name for part in everyone for name in part}
        )  # of what is cut by rows, several ranks have some: squares add up
        self._slot = {name: i for i, name in enumerate(self.names)}

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, on every rank."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        with _together():
            dist.all_gather_object(out, value)
        return out

    def total(self, value: float) -> float:
        """Sum over ranks."""
        return sum(self.gather(value))

    def agree(self, squares: Mapping[str, Tensor], said: Said) -> Agreed:
        """Exchange one step's gradient norms (`squares`: their sums of squares, by name) and numbers.

        Raises PeerLost when a rank is gone.
        """
        return self.start(squares, said).wait()

    def start(self, squares: Mapping[str, Tensor], said: Said) -> Exchange:
        """`agree` without waiting for the others."""
        tail = len(self.names)
        vector = torch.zeros(tail + 4 + 4 * self.world, dtype=torch.float64)
        mine = {name: square for name, square in squares.items() if name in self.counted}
        if mine:
            values = torch.stack(list(mine.values())).cpu()  # one transfer for all parameters
            vector[[self._slot[name] for name in mine]] = values
        vector[tail] = said.seconds if self.rank == 0 else 0.0
        vector[tail + 1] = float(said.stop)
        vector[tail + 2] = float(said.save)
        vector[tail + 3] = said.saved if self.rank == 0 else 0
        for part, mine in enumerate((said.loss_sum or 0.0, said.memory, said.span, said.busy)):  # a place for each rank
            vector[tail + 4 + part * self.world + self.rank] = mine
        own, work = self._agreed(vector), None
        if self.world > 1:
            vector = vector.to(self.world_info.device if self.world_info.backend == "nccl" else "cpu")
            with _together():
                work = dist.all_reduce(vector, async_op=True)
        return Exchange(own, vector, work, self._agreed)

    def _agreed(self, vector: Tensor) -> Agreed:
        tail, numbers = len(self.names), vector.tolist()
        squares = numbers[:tail]
        norm = math.sqrt(sum(squares))
        seconds, stops, saves, saved, *rest = numbers[tail:]
        losses, memories, spans, busy = (rest[i : i + self.world] for i in range(0, 4 * self.world, self.world))
        longest = max(spans)
        bubbles = tuple(max(0.0, 1 - worked / longest) if longest else 0.0 for worked in busy)
        lost = tuple(rank for rank, loss in enumerate(losses) if not math.isfinite(loss))
        bad = () if math.isfinite(norm) else tuple(n for n, s in zip(self.names, squares) if not math.isfinite(s))
        peaks = [int(n) for n in memories]
        return Agreed(sum(losses), norm, seconds, stops > 0, saves > 0, peaks, int(saved), bubbles, bad, lost)


class Exchange(NamedTuple):
    """Numbers under way."""

    own: Agreed  # what this rank has put in: its part of each sum
    vector: Tensor
    work: Any  # of the all-reduce; None on one rank
    read: Callable[[Tensor], Agreed]

    def wait(self) -> Agreed:
        """Everybody's. Raises PeerLost when a rank is gone."""
        if self.work is not None:
            with _together():
                self.work.wait()
        return self.read(self.vector.cpu())


@contextmanager
def _together() -> Iterator[None]:
    """Around a collective: all ranks take part, or none goes on."""
    PROGRESS.wait("the other ranks", "numbers")
    try:
        yield
        PROGRESS.resume()
    except RuntimeError as error:
        raise PeerLost("another rank", "exchanging the numbers of a step", error) from error
