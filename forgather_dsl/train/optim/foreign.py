"""Any optimizer of torch's kind as one of ours: state by parameter name, one parameter at a time, exact fp32 masters.

In: groups of named parameters and a function that makes the optimizer from groups. Of bfloat16 parameters it is given fp32
copies that exist one at a time, so that updates far below bfloat16's resolution add up as in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .weights import Weights, weights_of

__all__ = ["Foreign"]


class _Entry(NamedTuple):
    """A parameter, how it is kept, what the optimizer takes for it (itself, where it is fp32), and what that is in between."""

    parameter: Tensor
    weights: Weights
    shadow: Tensor
    empty: Tensor | None


class Foreign:
    """An optimizer that knows nothing of this package.

    Args:
        groups: as `parameter_groups` makes them.
        make: builds the optimizer from groups of fp32 parameters, one group for each.
    """

    def __init__(self, groups: list[dict[str, Any]], make: Callable[[list[dict[str, Any]]], Any]) -> None:
        self._entries: dict[str, _Entry] = {}
        singles = []
        for group in groups:
            plain = {key: value for key, value in group.items() if key != "keeping"}
            for name, parameter in group["params"]:
                entry = self._entries[name] = _entry(parameter)
                singles.append({**plain, "params": [(name, entry.shadow)]})
        self.inner = make(singles)
        self._places = {group["param_names"][0]: group for group in self.inner.param_groups}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, one for each parameter."""
        return self.inner.param_groups

    def step(self) -> None:
        """One update of every parameter that has a gradient; one fp32 copy of a parameter at a time."""
        for name, entry in self._entries.items():
            if entry.parameter.grad is not None:
                self.step_one(name)

    @torch.no_grad()
    def step_one(self, name: str) -> None:
        """One update of the parameter `name`, which has its gradient."""
        entry = self._entries[name]
        if entry.empty is None:
            return self._alone(name)
        master, gradient = entry.weights.master(), entry.parameter.grad
        assert master is not None
        assert gradient is not None
        entry.shadow.data, entry.shadow.grad = master, gradient.float()
        del master
        self._alone(name)
        entry.shadow.grad = None
        entry.weights.take(entry.shadow.data)
        entry.shadow.data = entry.empty

    def _alone(self, name: str) -> None:
        """The others have no gradient or had their turn; and a look at every group for every parameter takes long."""
        everyone, self.inner.param_groups = self.inner.param_groups, [self._places[name]]
        try:
            self.inner.step()
        finally:
            self.inner.param_groups = everyone

    def named_states(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """(name, parameter, its state) for every parameter."""
        for name, entry in self._entries.items():
            yield name, entry.parameter, self.inner.state[entry.shadow]

    @property
    def extra_bytes(self) -> int:
        """Of what exact masters keep beside the parameters and the state."""
        return sum(entry.weights.extra_bytes for entry in self._entries.values())

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 master) of every narrower parameter: a new tensor each."""
        for name in self._entries:
            master = self.master(name)
            if master is not None:
                yield name, master

    def has_master(self, name: str) -> bool:
        """Whether the parameter is the rounded form of an exact fp32 master."""
        return name in self._entries and self._entries[name].empty is not None

    def master(self, name: str, device: torch.device | None = None) -> Tensor | None:
        """The exact fp32 master of a parameter, made on `device` (its own if None); None where there is none."""
        return self._entries[name].weights.master(device) if name in self._entries else None

    @torch.no_grad()
    def set_master(self, name: str, master: Tensor) -> None:
        """Take a value of any format."""
        self._entries[name].weights.take(master)


def _entry(parameter: Tensor) -> _Entry:
    weights = weights_of(parameter, {}, "exact")
    if parameter.dtype == torch.float32:
        return _Entry(parameter, weights, parameter, None)
    empty = torch.zeros((), dtype=torch.float32, device=parameter.device).expand(parameter.shape)  # no memory
    return _Entry(parameter, weights, nn.Parameter(empty), empty)
