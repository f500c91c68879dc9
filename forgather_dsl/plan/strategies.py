"""The strategies that could train an experiment on the same cards, each at its best: `Single`, `DDP`, `FSDP2`, pipelines.

In: the `Run` that is planned, its hardware. Out: `Strategy` rows, the fastest that fits first. Of every family the fastest that
fits is a row; weights that are gathered for every microbatch (FSDP2) like large ones, so that where a larger `microbatch_size`
makes a family faster that is a row too. What cannot be is a row with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import partial
from typing import Any

from ..dsl import ConfigError, problems, replace
from ..specs import DDP, FSDP2, Experiment, OneFOneB, Parallel, Pipeline, Schedule, ScheduleFile, Single
from ..specs.experiment import num_replicas
from ..specs.parallel import Searched
from .advice import written
from .changes import schedules
from .hardware import Hardware
from .prediction import Run, predict

__all__ = ["SEARCHED", "Sizes", "Strategy", "best", "compared", "larger", "over"]

FASTER = 0.02  # by which another microbatch_size has to be, to be a row of its own
PIPELINE, SEARCHED, BOTH = "Pipeline", "Pipeline, searched", "Pipeline x replicas"  # families
QUICKEST = 3  # schedules that are tried with replicas too
_CONCERNED = (
    "parallel",
    "batch_size",
    "microbatch_size",
    "update",
    "recompute",
    "optimizer",
    "precision",
    "loss",
    "compile",
)
Sizes = Callable[[Experiment, Parallel, Callable[[int], "Strategy"]], "list[Strategy]"]


@dataclass(frozen=True)
class Strategy:
    """One row: what it would do, or why it cannot."""

    family: str
    experiment: Experiment
    run: Run | None
    why: str = ""
    keeps_microbatch: bool = True
    own: bool = False

    @property
    def fits(self) -> bool:
        """Whether it can be, and every rank has the memory."""
        return self.run is not None and self.run.fits

    @property
    def seconds(self) -> float:
        """Of a step; infinite where that is not known."""
        return self.run.step_seconds if self.run is not None and self.run.times_known else float("inf")

    @property
    def lines(self) -> tuple[str, ...]:
        """What to write in the class body."""
        parallel = f"parallel = {written(self.experiment.parallel)}"
        size = f"microbatch_size = {self.experiment.microbatch_size}"
        return (parallel,) if self.keeps_microbatch else (parallel, size)


def compared(
    experiment: Experiment,
    ranks: int,
    found: Hardware,
    profile: Mapping[str, Any] | None = None,
    known: Iterable[Run] = (),
    sizes: Sizes | None = None,
) -> list[Strategy]:
    """The rows on so many ranks; none on one. `known` are runs of this experiment that were planned already; `sizes` tries a
    strategy with one microbatch size or several.
    """
    if ranks == 1:
        return []
    have = {repr(run.experiment.parallel): run for run in known}

    def tried(family: str, members: Iterable[Parallel]) -> list[Strategy]:
        others = [run for run in have.values() if _family(run.experiment.parallel) == family]
        out = [Strategy(family, run.experiment, run) for run in others if run.experiment.parallel not in members]
        for member in members:
            row = partial(_row, family, experiment, member, found, profile, have)
            out += (sizes or larger)(experiment, member, row)
        return out

    every = [tried(family, members) for family, members in _families(ranks)]
    runs = [row.run for rows in every for row in rows if row.run is not None and row.keeps_microbatch]
    parts = [n for n in range(2, ranks) if ranks % n == 0]
    both = [Pipeline(stages=n, schedule=made, replicas=ranks // n) for n in parts for made in _quickest(runs)]
    every.append(tried(BOTH, both) if both else [])
    rows = [row for some in every for row in _best_of(some)]
    mine = have.get(repr(experiment.parallel))
    if mine is not None and not any(row.run is mine for row in rows):
        rows.append(Strategy(_family(experiment.parallel), experiment, mine))
    rows = [replaced(row, own=mine is not None and row.run is mine) for row in rows]
    return sorted(rows, key=lambda row: (not row.fits, row.run is None, row.seconds))


def _families(ranks: int) -> Iterator[tuple[str, list[Parallel]]]:
    """The members of each family on so many ranks; searched schedules, which take time, are a family of their own."""
    parts = [n for n in range(2, ranks) if ranks % n == 0]
    yield "DDP", [DDP(replicas=ranks)]
    sharded: list[Parallel] = [FSDP2(shards=ranks), FSDP2(shards=ranks, reshard_after_forward=False)]
    yield "FSDP2", sharded + [FSDP2(shards=n, replicas=ranks // n) for n in parts]
    drawn = [schedule for schedule in schedules() if not isinstance(schedule, Searched)]
    yield PIPELINE, [Pipeline(stages=ranks, schedule=schedule) for schedule in drawn]
    searched = [schedule for schedule in schedules() if isinstance(schedule, Searched)]
    yield SEARCHED, [Pipeline(stages=ranks, schedule=schedule) for schedule in searched]
    yield "Single", [Single()]


def best(rows: Iterable[Strategy], keeping: bool = False) -> Strategy | None:
    """The fastest that fits, of equal ones the first; `keeping`: of those that leave `microbatch_size` alone."""
    fitting = [row for row in rows if row.fits and (row.keeps_microbatch or not keeping)]
    return min(fitting, key=lambda row: row.seconds, default=None)


def larger(experiment: Experiment, parallel: Parallel, row: Callable[[int], Strategy]) -> list[Strategy]:
    """The own microbatch size; and, without a pipeline to fill, the largest of twice that and so on that fits."""
    with_it = replace(experiment, parallel=parallel)
    own, share = with_it.microbatch_size, experiment.batch_size // num_replicas(with_it)
    tried = [row(own)]
    if isinstance(parallel, (DDP, FSDP2)):
        for size in (own * 2**power for power in range((share // own).bit_length() - 1, 0, -1)):
            if share % size == 0:
                tried.append(row(size))
                if tried[-1].fits:
                    break
    return tried


def over(row: Strategy) -> float:
    """The fullest rank's memory over what its device has."""
    assert row.run is not None
    pairs = zip(row.run.memory.ranks, row.run.hardware.devices)
    return max(memory.total / device.memory_bytes for memory, device in pairs)


def _quickest(runs: Iterable[Run]) -> list[Schedule[Any]]:
    """The schedules of the fastest runs that fit, drawn ones; and 1F1B."""
    found: list[Schedule[Any]] = []
    for run in sorted(runs, key=lambda run: (not run.fits, run.step_seconds)):
        parallel = run.experiment.parallel
        if isinstance(parallel, Pipeline) and not isinstance(parallel.schedule, Searched | ScheduleFile):
            found.append(parallel.schedule)
    few = [schedule for index, schedule in enumerate(found) if schedule not in found[:index]][:QUICKEST]
    return [*few, *[OneFOneB()] * (OneFOneB() not in few)]


def _row(
    family: str,
    experiment: Experiment,
    parallel: Parallel,
    found: Hardware,
    profile: Mapping[str, Any] | None,
    have: Mapping[str, Run],
    size: int,
) -> Strategy:
    candidate = replace(experiment, parallel=parallel)
    keeps = size == candidate.microbatch_size
    if keeps and repr(parallel) in have:
        run = have[repr(parallel)]
        return Strategy(family, run.experiment, run)
    candidate = candidate if keeps else replace(candidate, microbatch_size=size)
    if refused := _refused(candidate):
        return Strategy(family, candidate, None, refused, keeps)
    if profile is not None and not keeps:
        return Strategy(family, candidate, None, "seconds were measured with another microbatch_size", keeps)
    try:
        run = predict(replace(candidate, model=experiment.model), found, profile)  # one object, whose sizes are known
        return Strategy(family, candidate, run, keeps_microbatch=keeps)
    except (ConfigError, ValueError) as error:
        return Strategy(family, candidate, None, str(error), keeps)


def _refused(candidate: Experiment) -> str:
    """The first of the problems that this strategy makes, without its path."""
    for problem in problems(candidate):
        path, _, text = str(problem).partition(": ")
        if (head := re.match(r"\w+", path)) and head[0] in _CONCERNED:
            return text or path
    return ""


def _best_of(tried: Sequence[Strategy]) -> list[Strategy]:
    """The fastest that fits as it is, and a faster one with another microbatch size; else what comes nearest, or one reason."""
    possible = [row for row in tried if row.run is not None]
    if not possible:
        return list(tried[:1])
    fitting = sorted((row for row in possible if row.fits), key=lambda row: row.seconds)
    if not fitting:
        return [min(possible, key=over)]
    plain = next((row for row in fitting if row.keeps_microbatch), None)
    if plain is None or fitting[0].seconds >= plain.seconds * (1 - FASTER):
        return [plain or fitting[0]]
    return [fitting[0], plain]


def _family(parallel: Parallel) -> str:
    if not isinstance(parallel, Pipeline):
        return type(parallel).__name__
    if parallel.replicas > 1:
        return BOTH
    return SEARCHED if isinstance(parallel.schedule, Searched) else PIPELINE
