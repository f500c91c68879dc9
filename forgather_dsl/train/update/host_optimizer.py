"""An optimizer over fp32 masters in the host's memory, of parameters that are on a device.

In: named parameters and a function that makes the optimizer. Out: what the session, checkpoints and guards ask of any
optimizer; whatever they ask waits until an update under way is done. Checkpoints hold the same names and formats as those
of an optimizer on the device with exact masters, so a run may go on with either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .travel import round_to

__all__ = ["HostOptimizer"]


class HostOptimizer:
    """`inner` steps over `hosts`, the masters by name. `param_groups` are for setting rates: they count from the next
    `take_rates` on, so that an update under way keeps its own."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], make: Callable[[dict[str, nn.Parameter]], Any]) -> None:
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.hosts = {
            name: nn.Parameter(p.detach().to("cpu", torch.float32, copy=True)) for name, p in self.parameters.items()
        }
        self.inner = make(self.hosts)
        self.param_groups: list[dict[str, Any]] = [dict(group) for group in self.inner.param_groups]
        self.settle: Callable[[], None] = lambda: None
        """Waits for an update under way."""

    def take_rates(self) -> None:
        """What was set in `param_groups` holds for the updates that follow."""
        for told, group in zip(self.param_groups, self.inner.param_groups):
            group["lr"] = told["lr"]

    def step(self) -> None:
        """Not the way to update: gradients have to come to the host first, see `OnHost`. Raises RuntimeError."""
        raise RuntimeError("the optimizer of OnHost steps parameter by parameter, as gradients arrive")

    def named_states(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """(name, master, its state) of every parameter."""
        self.settle()
        yield from self.inner.named_states()

    @property
    def extra_bytes(self) -> int:
        """Nothing on the device."""
        return 0

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 master) of every parameter: a new tensor each."""
        self.settle()
        for name, master in self.hosts.items():
            yield name, master.detach().clone()

    def has_master(self, name: str) -> bool:
        """Whether the parameter is trained."""
        return name in self.hosts

    def master(self, name: str, device: torch.device | None = None) -> Tensor | None:
        """The fp32 master itself, on the host; None of a parameter that is not trained."""
        self.settle()
        master = self.hosts.get(name)
        return None if master is None else master.detach().to(device or "cpu")

    @torch.no_grad()
    def set_master(self, name: str, master: Tensor) -> None:
        """Take a value of any format, and bring it to the device."""
        self.settle()
        host, parameter = self.hosts[name].detach(), self.parameters[name].detach()
        host.copy_(master)
        rounded = torch.empty_like(host, dtype=parameter.dtype)
        round_to(host.view(-1), rounded.view(-1))
        parameter.copy_(rounded)
