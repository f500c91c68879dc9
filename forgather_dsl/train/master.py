"""Exact fp32 master weights for bfloat16 parameters, at two bytes a weight: bfloat16 is the upper half of fp32, and the
lower half is kept beside it.

In: groups of named bfloat16 parameters and a function that makes an optimizer. Out: the same optimizer, stepping on fp32
copies that exist one parameter at a time, so that updates far below bfloat16's resolution add up as in fp32.
After "16 low master bits" of LLMQ (arXiv 2512.15306) and others; no noise, unlike stochastic rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["ExactMaster", "join", "split"]


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


class _Entry(NamedTuple):
    """A parameter, the lower half of its master, and what the optimizer takes for the parameter."""

    parameter: Tensor
    lower: Tensor
    shadow: nn.Parameter
    empty: Tensor


class ExactMaster:
    """An optimizer of fp32 masters.

    Args:
        groups: as `optimizers.parameter_groups` makes them, of bfloat16 parameters.
        make: builds the optimizer from groups of fp32 parameters; it steps when each has its gradient in turn.
    """

    def __init__(self, groups: list[dict[str, Any]], make: Callable[[list[dict[str, Any]]], Any]) -> None:
        self._entries: dict[str, _Entry] = {}
        singles = []
        for group in groups:
            for name, parameter in group["params"]:
                entry = _entry(parameter)
                self._entries[name] = entry
                singles.append({**group, "params": [(name, entry.shadow)]})
        self.inner = make(singles)
        self._places = {
            name: (part, group)
            for part in self.parts
            if isinstance(part, torch.optim.Optimizer)
            for group in part.param_groups
            for name in group["param_names"]
        }

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, one for each parameter."""
        return self.inner.param_groups

    @property
    def parts(self) -> list[torch.optim.Optimizer]:
        """The torch optimizers that hold the state."""
        return getattr(self.inner, "parts", [self.inner])

    @property
    def extra_bytes(self) -> int:
        """Of the halves that the parameters lack, beside the optimizer's state."""
        return sum(entry.lower.nbytes for entry in self._entries.values())

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient; one fp32 copy of a parameter at a time."""
        for name, entry in self._entries.items():
            if entry.parameter.grad is not None:
                self.step_one(name)

    @torch.no_grad()
    def step_one(self, name: str) -> None:
        """The update of one parameter that has a gradient."""
        entry = self._entries[name]
        assert entry.parameter.grad is not None
        entry.shadow.data = join(entry.parameter, entry.lower)
        entry.shadow.grad = entry.parameter.grad.float()
        self._step_alone(name)
        entry.shadow.grad = None
        split(entry.shadow.data, entry.parameter, entry.lower)
        entry.shadow.data = entry.empty

    def _step_alone(self, name: str) -> None:
        """The others have no gradient now and would be passed over, but one by one: there are as many groups as parameters."""
        if name not in self._places:
            self.inner.step()
            return
        part, group = self._places[name]
        everyone, part.param_groups = part.param_groups, [group]
        try:
            part.step()
        finally:
            part.param_groups = everyone

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 master) of every parameter: a new tensor each."""
        for name, entry in self._entries.items():
            yield name, join(entry.parameter.detach(), entry.lower)

    def master(self, name: str) -> Tensor | None:
        """The fp32 master of a parameter, a new tensor; None for one that is not trained."""
        entry = self._entries.get(name)
        return None if entry is None else join(entry.parameter.detach(), entry.lower)

    @torch.no_grad()
    def set_master(self, name: str, master: Tensor) -> None:
        """Take an fp32 master as it is."""
        entry = self._entries[name]
        split(master.to(entry.parameter.device, torch.float32, copy=True), entry.parameter, entry.lower)


def _entry(parameter: Tensor) -> _Entry:
    lower = torch.zeros_like(parameter, dtype=torch.int16, requires_grad=False)
    empty = torch.zeros((), dtype=torch.float32, device=parameter.device).expand(parameter.shape)  # no memory
    return _Entry(parameter, lower, nn.Parameter(empty), empty)
