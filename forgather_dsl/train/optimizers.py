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


class MuonFP32(torch.optim.Muon):
    """torch.optim.Muon with its Newton-Schulz iteration in 32 bits: torch's runs in bfloat16, which processors without
    bfloat16 units emulate (there, most of a step of a small model goes into it)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; the arithmetic of torch.optim.Muon but for the number format."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient, momentum = self.state[parameter], parameter.grad, group["momentum"]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        rows, columns = parameter.shape
        update = orthogonal(direction, group["ns_coefficients"], group["ns_steps"], group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The nearest semi-orthogonal matrix [rows, columns], roughly: singular values come out within 0.5 to 1.5.

    A quintic Newton-Schulz iteration in the matrix's own format (https://kellerjordan.github.io/posts/muon/).
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


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
            on_host = any(p.device.type == "cpu" for group in muon for _, p in group["params"])
            kind = MuonFP32 if on_host else torch.optim.Muon
            self.parts.append(
                kind(muon, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps)
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


def step_one(optimizer: Any, name: str) -> None:
    """The update of one parameter, from its `.grad`: as `step` makes it, and of no other."""
    own = getattr(optimizer, "step_one", None)
    if own is not None:
        own(name)
        return
    part, group = next((part, g) for part in parts(optimizer) for g in part.param_groups if name in g["param_names"])
    alone = {**group, "params": [group["params"][group["param_names"].index(name)]], "param_names": [name]}
    everyone, part.param_groups = part.param_groups, [alone]
    try:
        part.step()
    finally:
        part.param_groups = everyone


def named_states(optimizer: Any) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """(name, parameter, its state) for every parameter; the state is the optimizer's own dict, empty before the first step."""
    own = getattr(optimizer, "named_states", None)
    if own is not None:
        yield from own()
        return
    for part in parts(optimizer):
        for group in part.param_groups:
            for name, parameter in zip(group["param_names"], group["params"]):
                yield name, parameter, part.state[parameter]
