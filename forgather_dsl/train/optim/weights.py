"""How the weights of a parameter are kept between updates, and read and written in fp32, some rows at a time.

fp32 as they are; bfloat16 with the sixteen bits that it lacks beside it (`Exact`: the same numbers as fp32), rounded
stochastically, with a second bfloat16 for what rounding left (`Kahan`), or to nearest, which loses small updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .noise import Noise, round_stochastically

__all__ = ["Exact", "Kahan", "Nearest", "Stochastic", "Weights", "as_matrix", "join", "split", "weights_of"]


PART_BYTES = 1 << 22  # of fp32, in which whole weights are taken over


def as_matrix(tensor: Tensor) -> Tensor:
    """A view [rows, columns]; a vector is one row."""
    return tensor.view(tensor.shape[0], -1) if tensor.ndim > 1 else tensor.view(1, -1)


def join(upper: Tensor, lower: Tensor) -> Tensor:
    """fp32 of the shape of both: the bfloat16 `upper` and what it lacks, int16 `lower`."""
    bits = upper.view(torch.int16).to(torch.int32).bitwise_left_shift_(16).add_(lower)
    return bits.view(torch.float32)


def split(master: Tensor, upper: Tensor, lower: Tensor) -> None:
    """Write fp32 `master` into bfloat16 `upper`, rounded to nearest (ties away from zero), and int16 `lower`.

    `master` is used up: its memory serves for what is between.
    """
    bits = master.view(torch.int32)
    high = (bits + 0x8000).bitwise_right_shift_(16)
    upper.view(torch.int16).copy_(high)
    lower.copy_(bits.sub_(high.bitwise_left_shift_(16)))


class Weights:
    """Of one parameter in fp32, which needs nothing beside it."""

    extra_bytes = 0

    def __init__(self, parameter: Tensor, state: dict[str, Any]) -> None:
        self.parameter, self.state = parameter, state

    def upper(self, rows: slice) -> Tensor:
        """The rows of the parameter itself [rows, columns]."""
        return as_matrix(self.parameter.detach())[rows]

    def read(self, rows: slice) -> Tensor:
        """fp32 [rows, columns], to be changed and handed to `write`."""
        return self.upper(rows)

    def write(self, rows: slice, master: Tensor, noise: Noise, numbered: range) -> None:
        """Keep `master`, which is used up; its rows are `numbered` in the whole tensor."""

    def master(self, device: torch.device | None = None) -> Tensor | None:
        """fp32 in the parameter's shape, a new tensor, where it is kept exactly beside a narrower parameter."""
        return None

    def take(self, master: Tensor) -> None:
        """Become `master`, of any format."""
        self.parameter.detach().copy_(master)


class Exact(Weights):
    """bfloat16 and the lower half of the fp32 number, after "16 low master bits" of LLMQ (arXiv 2512.15306) and others."""

    def __init__(self, parameter: Tensor, state: dict[str, Any]) -> None:
        super().__init__(parameter, state)
        self.lower = torch.zeros_like(parameter, dtype=torch.int16, requires_grad=False)
        self.extra_bytes = self.lower.nbytes

    def read(self, rows: slice) -> Tensor:
        """A new tensor."""
        return join(self.upper(rows), as_matrix(self.lower)[rows])

    def write(self, rows: slice, master: Tensor, noise: Noise, numbered: range) -> None:
        """All of it."""
        split(master, self.upper(rows), as_matrix(self.lower)[rows])

    def master(self, device: torch.device | None = None) -> Tensor | None:
        """Put together on `device`, the parameter's own if None."""
        upper, lower = (t.detach().to(device or t.device) for t in (self.parameter, self.lower))
        return join(upper, lower)

    def take(self, master: Tensor) -> None:
        """All of it."""
        for rows, part in _parts(master, self.parameter.device):
            split(part, self.upper(rows), as_matrix(self.lower)[rows])


class Nearest(Weights):
    """bfloat16 rounded to nearest. Counts in `moved`, while it is a tensor, how much of the first updates is applied."""

    moved: Tensor | None = (
        None  # fp32 [3]: weights that moved, the sum of |update| wanted, and applied in its direction
    )

    def read(self, rows: slice) -> Tensor:
        """A new tensor."""
        return self.upper(rows).float()

    def write(self, rows: slice, master: Tensor, noise: Noise, numbered: range) -> None:
        """What is left of it."""
        upper = self.upper(rows)
        if self.moved is None:
            upper.copy_(master)
            return
        before = upper.float()
        upper.copy_(master)
        wanted, applied = master.sub_(before), upper.float().sub_(before)
        moved = (applied != 0).sum().float()
        self.moved += torch.stack([moved, wanted.abs().sum(), applied.mul_(wanted.sign()).sum()])


class Stochastic(Weights):
    """bfloat16 rounded up or down by chance, so that updates are right on average (arXiv 2010.06192)."""

    def read(self, rows: slice) -> Tensor:
        """A new tensor."""
        return self.upper(rows).float()

    def write(self, rows: slice, master: Tensor, noise: Noise, numbered: range) -> None:
        """With one throw for each number."""
        upper = self.upper(rows)
        round_stochastically(master, noise.bits("weight", numbered, upper.shape[1], upper.device), upper)


class Kahan(Weights):
    """bfloat16, and what rounding left in a second bfloat16, the state `compensation` (Kahan summation; arXiv 2010.06192)."""

    KEY = "compensation"

    def _left(self, rows: slice) -> Tensor:
        if self.KEY not in self.state:
            self.state[self.KEY] = torch.zeros_like(self.parameter, requires_grad=False)
        return as_matrix(self.state[self.KEY])[rows]

    def read(self, rows: slice) -> Tensor:
        """A new tensor."""
        return self.upper(rows).float().add_(self._left(rows))

    def write(self, rows: slice, master: Tensor, noise: Noise, numbered: range) -> None:
        """To nearest, twice."""
        upper = self.upper(rows)
        upper.copy_(master)
        self._left(rows).copy_(master.sub_(upper))

    def take(self, master: Tensor) -> None:
        """As much of it as both hold; what a checkpoint had beside the weights stays."""
        saved = self.KEY in self.state
        for rows, part in _parts(master, self.parameter.device):
            self.upper(rows).copy_(part)
            if not saved:
                self._left(rows).copy_(part.sub_(self.upper(rows)))


def _parts(master: Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Rows of any format and place as new fp32 tensors on `device`, a few at a time: nobody has room for a whole copy."""
    matrix = as_matrix(master.detach().contiguous())
    count = max(1, PART_BYTES // (4 * matrix.shape[1]))
    for start in range(0, matrix.shape[0], count):
        yield slice(start, start + count), matrix[start : start + count].to(device, torch.float32, copy=True)


_KINDS = {"exact": Exact, "stochastic": Stochastic, "kahan": Kahan, "nearest": Nearest}


def weights_of(parameter: Tensor, state: dict[str, Any], rounding: str) -> Weights:
    """By the parameter's format, and if that is bfloat16 by `rounding`: exact, stochastic, kahan or nearest."""
    return Weights(parameter, state) if parameter.dtype == torch.float32 else _KINDS[rounding](parameter, state)
