"""The ends of a model that a pipeline cuts off: `embed`, `norm` and `head`, under these names or those of transformers."""

from __future__ import annotations

import operator
from typing import Any

import torch.nn as nn

_NAMES = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def part_path(model: Any, part: str) -> str:
    """The dotted name under which a model keeps `part`."""
    return part if hasattr(model, part) else _NAMES[part]


def part_of(model: Any, part: str) -> Any:
    """The module that is `part` of a model; None where it was dropped."""
    return operator.attrgetter(part_path(model, part))(model)


def drop_part(model: Any, part: str) -> None:
    """Set `part` of a model to None: something else holds it."""
    owner, _, name = part_path(model, part).rpartition(".")
    setattr(operator.attrgetter(owner)(model) if owner else model, name, None)


def largest_dropout(model: Any) -> float:
    """The largest probability of dropout in a model; 0.0 says that a training forward draws no random numbers.

    A model that draws them in another way has an attribute `dropout` that says so.
    """
    found = [getattr(model, "dropout", 0.0)]
    for module in model.modules():
        found.append(module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0))
    return max((p for p in found if isinstance(p, float)), default=0.0)
