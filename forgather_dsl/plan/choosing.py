"""`AutoParallel`: the strategy that is fastest by plan on some hardware, with all that it was compared with.

In: an experiment, its hardware or other cards, how many ranks were started where that is settled. Out: `Choice`. Nothing but the
inputs counts, so every rank of a run that was started elsewhere comes to the same; nothing is random or timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import replace as replaced
from functools import lru_cache
from typing import Any

from ..dsl import ConfigError, explain, replace
from ..specs import DDP, FSDP2, Auto, AutoParallel, Experiment, OneFOneB, Parallel, Pipeline, Single
from ..specs.experiment import num_replicas, world_size
from . import hardware as machines
from .advice import written
from .hardware import Hardware
from .prediction import predict
from .strategies import SEARCHED, Strategy, best, compared, over

__all__ = ["Choice", "choose", "chosen", "ranks_of"]

NEAR = 1.15  # a pipeline this close to the fastest is planned with its whole schedule searched too
MOST_MICROBATCHES = 64  # in a step of a replica, when microbatch sizes are tried


@dataclass(frozen=True)
class Choice:
    """What an experiment becomes, what else there was, and why in one sentence."""

    experiment: Experiment
    rows: tuple[Strategy, ...]
    reason: str
    fits: bool


def chosen(experiment: Experiment, ranks: int | None = None) -> Experiment:
    """The experiment with its strategy chosen; itself where its class says which."""
    wanted: Any = experiment  # to type checkers it has no hash
    return _chosen(wanted, ranks, machines.gpus()) if isinstance(experiment.parallel, AutoParallel) else experiment


@lru_cache(maxsize=64)  # the members of a sweep are asked for several times
def _chosen(experiment: Experiment, ranks: int | None, _: tuple[machines.Device, ...]) -> Experiment:
    return choose(experiment, ranks=ranks).experiment


def ranks_of(experiment: Experiment, started: int | None = None) -> int:
    """How many ranks a choice is for: as many as were started, else one for each card of the hardware, else one."""
    return started or max(1, len(machines.parse(experiment.hardware).devices))


def choose(
    experiment: Experiment,
    gpus: str | None = None,
    ranks: int | None = None,
    profile: Mapping[str, Any] | None = None,
) -> Choice:
    """The fastest strategy that fits on `gpus` (default: the experiment's hardware), one rank a card; what comes nearest where
    none fits. Without cards it is one process. `ranks`: so many were started, perhaps on several machines.

    Raises:
        ConfigError: the hardware is not understood or has fewer cards than ranks, or no strategy is possible at all.
    """
    text = experiment.hardware if gpus is None else gpus
    found = machines.parse(text)
    count = ranks or max(1, len(found.devices))
    found = _everywhere(found, text, count)
    wanted, free = replace(experiment, hardware=text), _is_free(experiment)
    if count == 1:
        rows = _alone(wanted, found, profile, free)
    else:
        rows = compared(wanted, count, found, profile, sizes=every if free else None)
        rows = [row for row in rows if ranks is None or world_size(row.experiment) == ranks]
        rows = _with_searched(rows, found, profile, keeping=not free)
    winner = best(rows, keeping=not free)
    if winner is None:
        possible = [row for row in rows if row.run is not None]
        if not possible:
            raise ConfigError("\n".join([f"parallel: no strategy is possible on {text}:", *map(_why_not, rows)]))
        nearest = min(possible, key=over)
        reason = f"nothing fits on {text}; {written(nearest.experiment.parallel)} comes nearest"
        return Choice(nearest.experiment, _marked(rows, nearest), reason, False)
    return Choice(winner.experiment, _marked(rows, winner), _reason(winner, rows, not free, count, text), True)


def _everywhere(found: Hardware, text: str, count: int) -> Hardware:
    """With a card for each rank: of ranks on several machines, cards found here stand for those of the others."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    here = found.devices
    if len(here) >= count or not here:
        return found
    if here[0].kind == "gpu" and local < count and len(here) >= local:
        return replaced(found, devices=tuple(here[rank % local] for rank in range(count)))
    raise ConfigError(
        f"hardware = {text!r} is {len(here)} card{'s' * (len(here) > 1)}, and {count} ranks were started; "
        f"name a card for each rank, or start {len(here)}"
    )


def _is_free(experiment: Experiment) -> bool:
    """Whether no class, overlay or argument sets `microbatch_size`."""
    return len(explain(experiment, "microbatch_size")) == 1


def every(experiment: Experiment, parallel: Parallel, row: Callable[[int], Strategy]) -> list[Strategy]:
    """With any microbatch size: the largest that fits where there is no pipeline to fill; else those that leave at least a
    microbatch for each stage, tried under 1F1B, and other schedules with what is best there.
    """
    if isinstance(parallel, (DDP, FSDP2, Single)):
        return _downwards(experiment, parallel, row)
    assert isinstance(parallel, Pipeline)
    share = experiment.batch_size // parallel.replicas
    counts = [
        n for n in range(1, min(share, MOST_MICROBATCHES) + 1) if share % n == 0 and n >= min(share, parallel.stages)
    ]
    if parallel.schedule == OneFOneB():
        return [row(share // n) for n in counts]
    return [row(share // n) for n in counts if n & (n - 1) == 0 or len(counts) == 1]


def _downwards(experiment: Experiment, parallel: Parallel, row: Callable[[int], Strategy]) -> list[Strategy]:
    share = experiment.batch_size // num_replicas(replace(experiment, parallel=parallel))
    tried: list[Strategy] = []
    for size in (n for n in range(share, 0, -1) if share % n == 0):
        tried.append(row(size))
        if tried[-1].fits:
            break
    return tried or [row(1)]


def _alone(wanted: Experiment, found: Hardware, profile: Mapping[str, Any] | None, free: bool) -> list[Strategy]:
    """One process."""

    def row(size: int) -> Strategy:
        plain = replace(wanted, parallel=Single())
        keeps = size == plain.microbatch_size
        candidate = plain if keeps else replace(plain, microbatch_size=size)
        return Strategy("Single", candidate, predict(candidate, found, profile), keeps_microbatch=keeps)

    tried = _downwards(wanted, Single(), row) if free and profile is None else [row(wanted.microbatch_size)]
    return tried[-1:]


def _with_searched(
    rows: list[Strategy], found: Hardware, profile: Mapping[str, Any] | None, keeping: bool
) -> list[Strategy]:
    """And the best pipeline with `Auto`, which searches split and order together, where pipelines are near the fastest."""
    fastest = best(rows, keeping)
    piped = best([row for row in rows if isinstance(row.experiment.parallel, Pipeline)], keeping)
    if fastest is None or piped is None or piped.seconds > NEAR * fastest.seconds:
        return rows
    parallel: Any = piped.experiment.parallel
    candidate = replace(
        piped.experiment, parallel=Pipeline(stages=parallel.stages, schedule=Auto(), replicas=parallel.replicas)
    )
    try:
        run = predict(candidate, found, profile)
    except (ConfigError, ValueError):
        return rows
    row = Strategy(SEARCHED, candidate, run, keeps_microbatch=piped.keeps_microbatch)
    return sorted([*rows, row], key=lambda row: (not row.fits, row.run is None, row.seconds))


def _marked(rows: list[Strategy], winner: Strategy) -> tuple[Strategy, ...]:
    return tuple(replaced(row, own=row is winner) for row in rows)


def _why_not(row: Strategy) -> str:
    return f"  {written(row.experiment.parallel)}: {row.why}"


def _reason(winner: Strategy, rows: list[Strategy], keeping: bool, count: int, text: str) -> str:
    """One sentence."""
    name, kind = written(winner.experiment.parallel), type(winner.experiment.parallel)
    if count == 1:
        return f"{name}: there is one rank to run on ({text})"
    if winner.run is None or not winner.run.times_known:
        return f"{name}: the first that fits on {text}; nothing is known of the layers' arithmetic"
    others = [row for row in rows if type(row.experiment.parallel) is not kind]
    second, any_size = best(others, keeping), best(rows)
    if second is None:
        told = f"{name}: nothing of another kind fits on {text}"
    else:
        faster, other = second.seconds / winner.seconds, written(second.experiment.parallel)
        told = f"{name}: {faster:.2f} times as fast by plan as {other}, the best of another kind"
    if any_size is None or any_size.seconds >= winner.seconds:
        return told
    return f"{told}; {', '.join(any_size.lines)} would be {winner.seconds / any_size.seconds:.2f} times as fast as that"
