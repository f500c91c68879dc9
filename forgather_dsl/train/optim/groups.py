"""Parameter groups: which parameters an optimizer has, by role, and how their weights are kept.

Every parameter has a role: `matrix` (2-D weights inside layers), `embedding` (embedding and head), `vector` (norms, biases).
Weight decay is for the first two; Muon takes the matrices (https://kellerjordan.github.io/posts/muon/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["ROLES", "Keeping", "parameter_groups", "role"]

ROLES = ("matrix", "embedding", "vector")


class Keeping(NamedTuple):
    """How weights narrower than fp32 are kept, and what chance depends on."""

    rounding: str = "exact"
    seed: int = 0
    first_rows: Mapping[str, int] = MappingProxyType({})
    """Of parameters that are some rows of a larger tensor: the number of the first."""


def role(name: str, parameter: Tensor) -> str:
    """`matrix`, `embedding` or `vector`."""
    if parameter.ndim < 2:
        return "vector"
    return "embedding" if "embed" in name or name.startswith("lm_head") else "matrix"


def parameter_groups(named: Iterable[tuple[str, Tensor]], keeping: Keeping = Keeping()) -> list[dict[str, Any]]:  # noqa: B008
    """Groups for an optimizer: `params` as (name, parameter) pairs, `role`, `keeping`; no decay for vectors."""
    by_role: dict[str, list[tuple[str, Tensor]]] = {kind: [] for kind in ROLES}
    for name, parameter in named:
        if parameter.requires_grad:
            by_role[role(name, parameter)].append((name, parameter))
    groups = [{"params": pairs, "role": kind, "keeping": keeping} for kind, pairs in by_role.items() if pairs]
    for group in groups:
        if group["role"] == "vector":
            group["weight_decay"] = 0.0
    return groups
