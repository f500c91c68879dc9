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
from ..specs import Experiment
from ..specs.experiment import world_size
from .changes import KINDS, MILDEST, Kind, for_cards
from .estimate import Estimate, Site, estimate
from .hardware import GIB, Device, Hardware

__all__ = ["Option", "advise", "more_cards", "written"]

MOST_OPTIONS = 3
MOST_CARDS = 64
Rate = Callable[[Experiment], float | None]  # tokens per second of a candidate, None when that is not known
Found = tuple[Experiment, Estimate]


@dataclass(frozen=True)
class Option:
    """One way out: the changed experiment, and the lines that change it, each with what is needed once it is written."""

    experiment: Experiment
    lines: tuple[str, ...]


def advise(
    experiment: Experiment, site: Site, rate: Rate | None = None, written_as: Experiment | None = None
) -> list[Option]:
    """At most three ways to make it fit, of the mildest kind that does, the fastest first; empty when nothing does. The
    lines change `written_as` (default: the experiment) into what fits.
    """
    start = experiment
    if (
        site.on_gpu
        and not len(site.cards) <= world_size(experiment) <= len(site.cards) * site.ranks_per_gpu
        and site.ranks_here in (None, range(world_size(start)))
    ):
        start = for_cards(experiment, len(site.cards))
        site = Site(site.cards, site.host_memory_bytes)
    return [_option(written_as or experiment, changed, site, rate) for changed in _ways(start, site, rate)]


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
    if _all_but_needless(start, KINDS, site) is None:  # not even all changes together
        return []
    for known in range(MILDEST, len(KINDS) + 1):
        kinds = KINDS[:known]
        new = set(kinds if known == MILDEST else kinds[-1:])
        fitting = [best for kind in kinds if kind in new and (best := _best(kind(start, site), site, rate)) is not None]
        for one, two in combinations(kinds, 2) if not fitting else ():
            if new & {one, two} and (best := _best(_both(start, one, two, site), site, rate)) is not None:
                fitting.append(best)
        if not fitting and (changed := _all_but_needless(start, kinds, site)) is not None:
            fitting.append(changed)
        if fitting:
            if rate is not None:
                fitting.sort(key=lambda candidate: -(rate(candidate) or 0.0))
            unique = {_lines_of(start, candidate): candidate for candidate in reversed(fitting)}
            return [*reversed(unique.values())][:MOST_OPTIONS]
    return []


def _both(start: Experiment, one: Kind, two: Kind, site: Site) -> Iterator[Experiment]:
    """Both kinds of change, the first of the second in the few forms that need least."""
    for first, _ in _milder(one(start, site), site)[:MOST_OPTIONS]:
        yield from two(first, site)


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
