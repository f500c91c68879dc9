"""`AutoRecompute`: the policy of every stage, the least recomputing that fits the memory of its rank's card.

In: an experiment, a function that lays it out under one policy for all stages. Out: a `Layout` that says the policy of each
stage. The layers are split for the least policy under which every rank fits; then each rank takes the least under which
it fits, as the last ones hold fewer microbatches; then single stages of a rank. Nothing random: the same experiment on the
same cards gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..dsl import replace
from ..specs import Experiment
from ..specs.experiment import world_size
from ..specs.recompute import POLICIES, Recompute
from . import hardware as machines

if TYPE_CHECKING:
    from .layout import Layout

__all__ = ["SHARE", "least_recomputing"]

SHARE = 0.95  # of a card's memory that a choice may fill: what is sold as 24 GiB shows half a GiB less


def least_recomputing(experiment: Experiment, lay_out: Callable[[Experiment], Layout]) -> Layout:
    """The layout with a policy for each stage; under full recomputing where nothing fits."""
    names = list(POLICIES)
    uniform, base = experiment, None
    for name in names:
        uniform = replace(experiment, recompute=_spec(experiment, name))
        base = lay_out(uniform)
        base = base._replace(recompute=(name,) * len(base.layers))
        if all(_fits(uniform, base)):
            break
    assert base is not None
    chosen = list(base.recompute)
    for lesser in reversed(names[: names.index(chosen[0])]):
        tried = base._replace(recompute=(lesser,) * len(chosen))
        for rank, fit in enumerate(_fits(uniform, tried)):
            for stage in base.schedule.stages_of(rank) if fit else ():
                chosen[stage] = lesser
    return _each_less(uniform, base._replace(recompute=tuple(chosen)))


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


def _spec(experiment: Experiment, name: str) -> Recompute:
    own = experiment.recompute
    return POLICIES[name](offload=own.offload, mlp_tiles=own.mlp_tiles)


def _fits(experiment: Experiment, layout: Layout) -> list[bool]:
    """Whether each rank of the first replica fits its card, or its share of the host."""
    from .estimate import estimate  # which lays out what it is not given a layout of

    found = machines.for_ranks(machines.parse(experiment.hardware), world_size(experiment))
    on_gpu = found.devices[0].kind != "host"
    ranks = estimate(experiment, on_gpu=on_gpu, layout=layout).ranks[: layout.schedule.num_ranks]
    return [rank.total <= SHARE * device.memory_bytes for rank, device in zip(ranks, found.devices)]
