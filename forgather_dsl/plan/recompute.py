"""`AutoRecompute`: the policy of every stage, the least recomputing that fits the memory of its rank's card.

In: an experiment, a function that lays it out under one policy for all stages. Out: a `Layout` that says the policy of each
stage. For each split of the layers that is tried, every rank takes the least policy under which it fits, as the last ones
hold fewer microbatches, and of what fits the shortest step wins. Tried: the splits that each policy alone would get, then
single layers moved. Nothing random: the same experiment on the same cards gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..dsl import replace
from ..specs import Experiment, Pipeline
from ..specs.experiment import world_size
from ..specs.recompute import POLICIES
from . import hardware as machines
from .hardware import Hardware
from .model_costs import model_costs
from .resident import room
from .simulate import simulate

if TYPE_CHECKING:
    from .layout import Layout

__all__ = ["least_recomputing"]

MOVES = 8  # of single layers, that are tried
SHARED = ("offload", "mlp_tiles", "leave_gib")  # fields of every policy


def least_recomputing(experiment: Experiment, lay_out: Callable[[Experiment], Layout]) -> Layout:
    """The layout with a policy for each stage; under full recomputing where nothing fits."""
    asked: Any = experiment  # experiments can be hashed, which type checkers do not see
    return _found(asked, machines.parse(experiment.hardware), lay_out)


@lru_cache(maxsize=64)  # a plan asks many times for the same; `auto` hardware is what is here now
def _found(experiment: Any, found: Hardware, lay_out: Callable[[Experiment], Layout]) -> Layout:
    best: _Tried | None = None
    bases: list[Layout] = []
    for name in POLICIES:
        base = lay_out(_uniform(experiment, name))
        if any(base.layers == other.layers and base.schedule == other.schedule for other in bases):
            continue
        bases.append(base)
        tried = _chosen(experiment, base)
        best = tried if best is None or tried[0] < best[0] else best
        if set(tried[1].recompute) == {"none"}:
            return tried[1]
    assert best is not None
    parallel = experiment.parallel
    if isinstance(parallel, Pipeline) and parallel.cuts is None and not best[0][0]:
        best = _with_layers_moved(experiment, best)
    return best[1]


_Tried = tuple[tuple[int, float], "Layout"]
"""How many ranks do not fit, and the seconds of a step; the layout."""


def _chosen(experiment: Experiment, base: Layout) -> _Tried:
    """With the least policies that fit."""
    chosen: dict[int, str] = {}
    for name in POLICIES:
        for rank, fit in enumerate(_fits(experiment, base._replace(recompute=(name,) * len(base.layers)))):
            for stage in base.schedule.stages_of(rank) if fit else ():
                chosen.setdefault(stage, name)
        if len(chosen) == len(base.layers):
            break
    policies = tuple(chosen.get(stage, "full") for stage in range(len(base.layers)))
    layout = _each_less(experiment, base._replace(recompute=policies))
    return (len(policies) - len(chosen), _seconds(experiment, layout)), layout


def _with_layers_moved(experiment: Experiment, best: _Tried) -> _Tried:
    """As long as one layer given to a neighbour makes the step shorter."""
    tries, improved = 0, True
    while improved and tries < MOVES:
        improved = False
        for boundary in range(len(best[1].layers) - 1):
            for step in (-1, 1):
                stops = [layers.stop + step * (i == boundary) for i, layers in enumerate(best[1].layers)]
                moved = tuple(range(start, stop) for start, stop in zip((0, *stops), stops))
                if not all(moved) or tries >= MOVES:
                    continue
                tries += 1
                found = _chosen(experiment, best[1]._replace(layers=moved))
                if found[0] < best[0]:
                    best, improved = found, True
    return best


def _seconds(experiment: Experiment, layout: Layout) -> float:
    """Of the pipeline's part of a step."""
    costs = model_costs(experiment, layout.schedule.placement, layout.layers, policies=layout.recompute)
    return simulate(layout.schedule, costs).makespan


def _each_less(experiment: Experiment, layout: Layout) -> Layout:
    """Single stages of ranks that have several, the last ones first, as they live shortest."""
    names = list(POLICIES)
    schedule = layout.schedule
    if schedule.num_stages == schedule.num_ranks:
        return layout
    for stage in reversed(range(schedule.num_stages)):
        for name in names[: names.index(layout.recompute[stage])]:
            tried = layout._replace(recompute=(*layout.recompute[:stage], name, *layout.recompute[stage + 1 :]))
            if _fits(experiment, tried)[schedule.rank_of(stage)]:
                layout = tried
                break
    return layout


def _uniform(experiment: Experiment, name: str) -> Experiment:
    own = experiment.recompute
    return replace(experiment, recompute=POLICIES[name](**{field: getattr(own, field) for field in SHARED}))


def _fits(experiment: Experiment, layout: Layout) -> list[bool]:
    """Whether each rank of the first replica fits its card, with what is to be left of it, or its share of the host."""
    from .estimate import estimate  # which lays out what it is not given a layout of

    found = machines.for_ranks(machines.parse(experiment.hardware), world_size(experiment))
    on_gpu = found.devices[0].kind != "host"
    ranks = estimate(experiment, on_gpu=on_gpu, layout=layout).ranks[: layout.schedule.num_ranks]
    return [rank.total <= room(experiment, device) for rank, device in zip(ranks, found.devices)]
