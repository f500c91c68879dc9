"""What one microbatch costs on every stage, those that are alike gone through once: planning asks for it hundreds of times."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..specs import Experiment
from .memory import State
from .sharded_cost import is_cut, of_shards
from .sizes import ModelSize
from .stage_cost import StageCost

__all__ = ["each_stage"]


def each_stage(
    experiment: Experiment, size: ModelSize, ranges: Sequence[range], state: State, policies: Sequence[str]
) -> list[StageCost]:
    """In the order of the stages, which have these layers and keep what these policies say."""
    asked: Any = experiment  # experiments can be hashed, which type checkers do not see
    found = _known(asked, state.on_gpu)
    cost_of = of_shards if is_cut(experiment) else StageCost.of
    keys = [
        (tuple(size.blocks[index] for index in layers), stage == 0, stage == len(ranges) - 1, policies[stage])
        for stage, layers in enumerate(ranges)
    ]
    for stage, key in enumerate(keys):
        if key not in found:
            found[key] = cost_of(experiment, size, ranges, stage, state, policies[stage])
    return [found[key] for key in keys]


@lru_cache(maxsize=64)
def _known(experiment: Any, on_gpu: bool) -> dict[tuple[Any, ...], StageCost]:
    """Filled as they are found; the same dictionary for an experiment that is equal."""
    return {}
