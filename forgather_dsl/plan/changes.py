"""The changes that advice tries, a kind after the other, the mildest first: where layers are and in which order their actions
run, here; what is traded for memory, in `trades`. Each takes an experiment and yields candidates, the smallest change first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

from .. import specs
from ..dsl import missing, replace
from ..specs import DDP, FSDP2, Experiment, Pipeline, Single
from ..specs.parallel import Searched
from .estimate import Site, estimate
from .layout import lay_out
from .trades import EXACT, INEXACT, Kind

__all__ = ["KINDS", "MILDEST", "Kind", "for_cards", "schedules", "with_schedule"]

MOST_MOVES = 24  # of layers between stages, in search of cuts that fit


def for_cards(experiment: Experiment, count: int) -> Experiment:
    """On `count` cards: as many replicas or shards of a strategy that has them, a pipeline of as many ranks, or one process."""
    if count == 1:
        return replace(experiment, parallel=Single())
    parallel = experiment.parallel
    if isinstance(parallel, DDP):
        return replace(experiment, parallel=replace(parallel, replicas=count))
    if isinstance(parallel, FSDP2):
        return replace(experiment, parallel=replace(parallel, shards=count, replicas=1))
    if isinstance(parallel, Pipeline):
        alone = replace(parallel, stages=count, cuts=None, replicas=1, shard_replicas=False, ranks_per_gpu=1)
        return replace(experiment, parallel=alone)
    return replace(experiment, parallel=Pipeline(stages=count))


def with_schedule(experiment: Experiment, schedule: specs.Schedule[Any]) -> Experiment:
    """A pipeline under another schedule; the cuts stay where it has as many stages."""
    parallel: Any = experiment.parallel
    keeps = parallel.cuts is not None and len(parallel.cuts) == len(schedule.__placement__(parallel.stages))
    return _with(experiment, schedule=schedule, cuts=parallel.cuts if keeps else None)


def schedules() -> list[specs.Schedule[Any]]:
    """One of each class of schedule that there is, with its defaults."""
    found = [
        getattr(specs, name) for name in specs.__all__ if name != "Auto"
    ]  # one of the others, on a split of its own
    classes = [c for c in found if isinstance(c, type) and issubclass(c, specs.Schedule) and not c.__abstract__]
    return [schedule for schedule in (cls() for cls in classes) if not missing(schedule)]


def _schedule(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """What memory holds in place of a cap of its own, or another order that needs no search."""
    parallel = experiment.parallel
    if not isinstance(parallel, Pipeline):
        return
    own = parallel.schedule
    if getattr(own, "memory_cap", None) is not None:
        yield _with(experiment, schedule=replace(own, memory_cap=None))
    for other in schedules():
        if type(other) is not type(own) and not isinstance(other, Searched):
            yield with_schedule(experiment, other)


def _cuts(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Layers moved one at a time from the stages of the tightest rank to where they are needed least."""
    if not isinstance(experiment.parallel, Pipeline) or not site.on_gpu:
        return
    laid_out = lay_out(experiment)
    schedule, counts, pressure = laid_out.schedule, [len(each) for each in laid_out.layers], float("inf")
    found = estimate(experiment, on_gpu=True)
    for _ in range(MOST_MOVES):
        options = []
        for moved in _moves(schedule.placement, counts, site.tightest(found)):
            stops = [sum(moved[: stage + 1]) for stage in range(len(moved))]
            layout = laid_out._replace(layers=tuple(range(stop - n, stop) for n, stop in zip(moved, stops)))
            options.append((estimate(experiment, on_gpu=True, layout=layout), moved))
        best = min(options, key=lambda option: site.pressure(option[0]), default=None)
        if best is None or site.pressure(best[0]) >= pressure:
            break
        found, counts = best
        pressure = site.pressure(found)
        if pressure <= 1:
            break
    if pressure < float("inf"):
        yield _with(experiment, cuts=tuple(counts))


def _moves(placement: Sequence[int], counts: Sequence[int], rank: int) -> Iterator[list[int]]:
    """Layers per stage after one has gone from a stage of `rank` to a stage of another rank."""
    for source, target in permutations(range(len(counts)), 2):
        if counts[source] > 1 and placement[source] == rank != placement[target]:
            yield [n + (stage == target) - (stage == source) for stage, n in enumerate(counts)]


KINDS: tuple[Kind, ...] = (_cuts, _schedule, *EXACT, *INEXACT)
MILDEST = len(KINDS) - len(INEXACT)  # of them leave the results alone; the others do more and more to them


def _with(experiment: Experiment, **values: Any) -> Experiment:
    return replace(experiment, parallel=replace(experiment.parallel, **values))
