"""What to change so that an experiment fits: the smallest change first, as lines to paste into its class body.

In: an experiment, where it is to run, perhaps how fast a candidate would be. Out: `Option`s. Changes are tried one alone,
then in pairs, then all together less what is not needed; first those that leave the results alone (where layers are cut,
the order of actions, recomputing), then the microbatch, the number format, the optimizer, at last the length of sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from .. import specs
from ..dsl import ConfigError, missing, replace
from ..specs import BF16, Experiment, FullRecompute, Muon, Pipeline, Single
from ..specs.experiment import world_size
from .estimate import Estimate, Site, estimate
from .hardware import GIB, Device, Hardware
from .layout import Layout, lay_out

__all__ = ["Option", "advise", "for_cards", "more_cards", "schedules", "written"]

MOST_OPTIONS = 3
MOST_CARDS = 64
MOST_MOVES = 24  # of layers between stages, in search of cuts that fit
Rate = Callable[[Experiment], float | None]  # tokens per second of a candidate, None when that is not known
Found = tuple[Experiment, Estimate]


@dataclass(frozen=True)
class Option:
    """One way out: the changed experiment, and the lines that change it, each with what is needed once it is written."""

    experiment: Experiment
    lines: tuple[str, ...]


def advise(experiment: Experiment, site: Site, rate: Rate | None = None) -> list[Option]:
    """At most three ways to make it fit, of the mildest kind that does, the fastest first; empty when nothing does."""
    start = experiment
    if (
        site.on_gpu
        and not len(site.cards) <= world_size(experiment) <= len(site.cards) * site.ranks_per_gpu
        and site.ranks_here in (None, range(world_size(start)))
    ):
        start = for_cards(experiment, len(site.cards))
        site = Site(site.cards, site.host_memory_bytes)
    return [_option(experiment, changed, site, rate) for changed in _ways(start, site, rate)]


def more_cards(experiment: Experiment, found: Hardware, text: str, rate: Callable[..., Any]) -> Option | None:
    """With twice as many cards of the same kind, four times, and so on until it fits; None when cards differ or nothing
    does. `rate(candidate, hardware)` as above; `text` is what `found` was read from.
    """
    kind, options = found.devices[0], text.partition(",")[1] + text.partition(",")[2]
    if len(set(found.devices)) > 1:
        return None
    count = 2 * len(found.devices)
    while count <= min(MOST_CARDS, experiment.model.num_layers):
        site = Site((kind,) * count, found.host_memory_bytes)
        named = kind.name.removesuffix(" card").replace(" ", "")
        start = replace(for_cards(experiment, count), hardware=f"{count}x{named}{options}")

        def on_these(candidate: Experiment, devices: tuple[Device, ...] = site.cards) -> float | None:
            return rate(candidate, dataclasses.replace(found, devices=devices))

        if ways := _ways(start, site, on_these):
            return _option(replace(experiment, hardware=text), ways[0], site, on_these)
        count *= 2
    return None


def _ways(start: Experiment, site: Site, rate: Rate | None) -> list[Experiment]:
    """Experiments that fit: `start` itself, or with changes of the mildest kinds, the fastest first."""
    if (found := _estimated(start, site)) is not None and site.fits(found):
        return [start]
    for kinds in _kinds():
        fitting = [best for kind in kinds if (best := _best(kind(start, site), site, rate)) is not None]
        for one, two in combinations(kinds, 2) if not fitting else ():
            for first, _ in _milder(one(start, site), site)[:MOST_OPTIONS]:
                if (best := _best(two(first, site), site, rate)) is not None:
                    fitting.append(best)
                    break
        if not fitting and (changed := _all_but_needless(start, kinds, site)) is not None:
            fitting.append(changed)
        if fitting:
            if rate is not None:
                fitting.sort(key=lambda candidate: -(rate(candidate) or 0.0))
            unique = {_lines_of(start, candidate): candidate for candidate in reversed(fitting)}
            return [*reversed(unique.values())][:MOST_OPTIONS]
    return []


def for_cards(experiment: Experiment, count: int) -> Experiment:
    """On `count` cards: a pipeline of as many ranks, or one process."""
    if count == 1:
        return replace(experiment, parallel=Single())
    parallel = experiment.parallel
    if isinstance(parallel, Pipeline):
        return replace(experiment, parallel=replace(parallel, stages=count, cuts=None, replicas=1, ranks_per_gpu=1))
    return replace(experiment, parallel=Pipeline(stages=count))


def schedules() -> list[specs.Schedule[Any]]:
    """One of each class of schedule that there is, with its defaults; those that need to be told more are left out."""
    found = [getattr(specs, name) for name in specs.__all__]
    made = [
        cls() for cls in found if isinstance(cls, type) and issubclass(cls, specs.Schedule) and not cls.__abstract__
    ]
    return [schedule for schedule in made if not missing(schedule)]


Kind = Callable[
    [Experiment, Site], Iterator[Experiment]
]  # candidates with one field changed, the smallest change first


def _kinds() -> Iterator[tuple[Kind, ...]]:
    """Kinds of changes, each time with those that do more to the results."""
    harmless = (_cuts, _schedule, _recompute)
    yield harmless
    yield (*harmless, _microbatch)
    yield (*harmless, _microbatch, _precision)
    yield (*harmless, _microbatch, _precision, _optimizer)
    yield (*harmless, _microbatch, _precision, _optimizer, _seq_len)


def _recompute(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    yield replace(experiment, recompute=FullRecompute())


def _microbatch(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    size = experiment.microbatch_size
    yield from (replace(experiment, microbatch_size=n) for n in range(size - 1, 0, -1) if size % n == 0)


def _precision(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    if site.on_gpu:
        yield replace(experiment, precision=BF16())


def _optimizer(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    if type(experiment.optimizer).__target__ != Muon.__target__:
        yield replace(experiment, optimizer=Muon())


def _seq_len(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    length = experiment.seq_len
    while length % 2 == 0 and length > 128:
        length //= 2
        yield replace(experiment, seq_len=length)


def _schedule(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """A tighter cap on the same schedule, or another one."""
    parallel = experiment.parallel
    if not isinstance(parallel, Pipeline):
        return
    own: Any = parallel.schedule
    if "memory_cap" in type(own).__fields__:
        most = own.memory_cap or parallel.stages
        if isinstance(most, int):
            yield from (_with(experiment, schedule=replace(own, memory_cap=n)) for n in range(most - 1, 0, -1))
    yield from (_with(experiment, schedule=other) for other in schedules() if type(other) is not type(own))


def _cuts(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Layers moved one at a time from the stages of the tightest rank to where they are needed least."""
    if not isinstance(experiment.parallel, Pipeline) or not site.on_gpu:
        return
    schedule, layers = lay_out(experiment)
    counts, pressure = [len(each) for each in layers], float("inf")
    for _ in range(MOST_MOVES):
        options = []
        for source, target in _moves(schedule.placement, counts, experiment, site):
            moved = [n + (stage == target) - (stage == source) for stage, n in enumerate(counts)]
            stops = [sum(moved[: stage + 1]) for stage in range(len(moved))]
            layout = Layout(schedule, tuple(range(stop - n, stop) for n, stop in zip(moved, stops)))
            options.append((site.pressure(estimate(experiment, on_gpu=True, layout=layout)), moved))
        if not options or min(options)[0] >= pressure:
            break
        pressure, counts = min(options)
        if pressure <= 1:
            break
    if pressure < float("inf"):
        yield _with(experiment, cuts=tuple(counts))


def _moves(
    placement: Sequence[int], counts: Sequence[int], experiment: Experiment, site: Site
) -> Iterator[tuple[int, int]]:
    """(from, to) for every layer that the stages could exchange between ranks."""
    for source, target in ((a, b) for a in range(len(counts)) for b in range(len(counts)) if a != b):
        if counts[source] > 1 and placement[source] != placement[target]:
            yield source, target


def _with(experiment: Experiment, **values: Any) -> Experiment:
    return replace(experiment, parallel=replace(experiment.parallel, **values))


def _estimated(candidate: Experiment, site: Site) -> Estimate | None:
    """None for a change that does not go with this experiment."""
    try:
        return estimate(candidate, on_gpu=site.on_gpu)
    except (ConfigError, ValueError):
        return None


def _milder(candidates: Iterator[Experiment], site: Site) -> list[Found]:
    """Those that can be laid out, the one that needs least first."""
    found = [(c, e) for c in _possible(candidates) if (e := _estimated(c, site)) is not None]
    return sorted(found, key=lambda pair: site.pressure(pair[1]))


def _possible(candidates: Iterator[Experiment]) -> Iterator[Experiment]:
    try:
        yield from candidates
    except (ConfigError, ValueError):
        return


def _best(candidates: Iterator[Experiment], site: Site, rate: Rate | None) -> Experiment | None:
    """The fastest that fits, or the smallest change that does."""
    fitting = []
    for candidate in _possible(candidates):
        found = _estimated(candidate, site)
        if found is not None and site.fits(found):
            if rate is None:
                return candidate
            fitting.append(candidate)
    return max(fitting, key=lambda c: rate(c) or 0.0, default=None) if rate is not None else None


def _all_but_needless(start: Experiment, kinds: Sequence[Kind], site: Site) -> Experiment | None:
    """Every kind of change, each the one that needs least, and then without those that it fits without."""
    changed = start
    for kind in kinds:
        found = _estimated(changed, site)
        best = _milder(kind(changed, site), site)[:1]
        if best and (found is None or site.pressure(best[0][1]) < site.pressure(found)):
            changed = best[0][0]
            if site.fits(best[0][1]):
                break
    if (found := _estimated(changed, site)) is None or not site.fits(found):
        return None
    for name in _FIELDS:
        without = replace(changed, **{name: getattr(start, name)})
        if (found := _estimated(without, site)) is not None and site.fits(found):
            changed = without
    return changed


_FIELDS = ("seq_len", "optimizer", "precision", "recompute", "microbatch_size", "parallel", "hardware")


def _lines_of(experiment: Experiment, changed: Experiment) -> tuple[str, ...]:
    names = [name for name in reversed(_FIELDS) if getattr(experiment, name) != getattr(changed, name)]
    return tuple(f"{name} = {written(getattr(changed, name))}" for name in names)


def _option(experiment: Experiment, changed: Experiment, site: Site, rate: Rate | None) -> Option:
    """With the effect of each line, after those before it."""
    lines, partly = [], experiment
    names = [name for name in reversed(_FIELDS) if getattr(experiment, name) != getattr(changed, name)]
    for name, line in zip(names, _lines_of(experiment, changed)):
        partly = replace(partly, **{name: getattr(changed, name)})
        found = _estimated(partly, site)
        effects = []
        if found is not None:
            effects.append(f"{site.need(found) / GIB:.1f} GiB{' for the fullest rank' if site.on_gpu else ''}")
        if name == names[-1]:
            speed = None if rate is None else rate(changed)
            effects += ([f"{speed:,.0f} tokens/s"] if speed else []) + ["fits"]
        lines.append(f"{line:<55} # {', '.join(effects)}")
    return Option(changed, tuple(lines))


def written(value: Any) -> str:
    """A value as one writes it: a spec by its class and what differs from its defaults."""
    if not isinstance(value, specs.Parallel | specs.Schedule | specs.Recompute):
        return f'"{value}"' if isinstance(value, str) else repr(value)
    plain = type(value)()
    told = {"stages", *missing(plain)}  # whatever they are
    differing = [
        name for name in type(value).__fields__ if name in told or getattr(value, name) != getattr(plain, name)
    ]
    return f"{type(value).__name__}({', '.join(f'{name}={written(getattr(value, name))}' for name in differing)})"
