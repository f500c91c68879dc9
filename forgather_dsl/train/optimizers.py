"""Parameter groups, Muon beside AdamW, and optimizer state by parameter name.

Every parameter has a role: `matrix` (2-D weights inside layers), `embedding` (embedding and head), `vector` (norms, biases).
Weight decay is for the first two; Muon takes the matrices (https://kellerjordan.github.io/posts/muon/).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

ROLES = ("matrix", "embedding", "vector")


def role(name: str, parameter: Tensor) -> str:
    """`matrix`, `embedding` or `vector`."""
    if parameter.ndim < 2:
        return "vector"
    return "embedding" if "embed" in name or name.startswith("lm_head") else "matrix"


def parameter_groups(named: Iterable[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: `params` as (name, parameter) pairs, the role, no decay for vectors."""
    by_role: dict[str, list[tuple[str, Tensor]]] = {kind: [] for kind in ROLES}
    for name, parameter in named:
        if parameter.requires_grad:
            by_role[role(name, parameter)].append((name, parameter))
    groups = [{"params": pairs, "role": kind} for kind, pairs in by_role.items() if pairs]
    for group in groups:
        if group["role"] == "vector":
            group["weight_decay"] = 0.0
    return groups


class MuonAdamW:
    """torch.optim.Muon for the matrices of the layers, torch.optim.AdamW for everything else.

    Args:
        params: groups as `parameter_groups` makes them.
        lr, momentum, nesterov, ns_steps, weight_decay: Muon's; weight_decay is AdamW's too.
        adamw_lr, betas, eps: AdamW's.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        adamw_lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        muon = [group for group in params if group["role"] == "matrix"]
        rest = [group for group in params if group["role"] != "matrix"]
        self.parts: list[torch.optim.Optimizer] = []
        if muon:
            self.parts.append(
                torch.optim.Muon(
                    muon, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps
                )
            )
        if rest:
            self.parts.append(torch.optim.AdamW(rest, lr=adamw_lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """One update of every parameter."""
        for part in self.parts:
            part.step()


def parts(optimizer: Any) -> list[torch.optim.Optimizer]:
    """The torch optimizers that an optimizer consists of."""
    return getattr(optimizer, "parts", [optimizer])


def named_states(optimizer: Any) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """(name, parameter, its state) for every parameter; the state is the optimizer's own dict, empty before the first step."""
    for part in parts(optimizer):
        for group in part.param_groups:
            for name, parameter in zip(group["param_names"], group["params"]):
                yield name, parameter, part.state[parameter]
