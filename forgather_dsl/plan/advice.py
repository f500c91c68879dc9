"""What to change so that an experiment fits: the smallest change first, as lines to paste into its class body.

In: an experiment, where it is to run, perhaps how fast a candidate would be. Out: `Option`s. Changes are tried one alone,
then in pairs, then all together less what is not needed; first those that leave the results alone (where layers are cut,
the order of actions, the loss in parts, recomputing), then the microbatch, number formats, where states lie, the optimizer, at
last the length of sequences.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from .. import specs
from ..dsl import ConfigError, missing, problems, replace
from ..specs import Experiment
from ..specs.experiment import world_size
from .changes import KINDS, MILDEST, for_cards
from .estimate import Estimate, Site, estimate
from .hardware import GIB, Device, Hardware
from .trades import Kind

__all__ = ["Option", "advise", "more_cards", "written"]

MOST_OPTIONS = 3
MOST_RATED = 4  # candidates of one kind whose speed is looked at
MOST_CARDS = 64
Rate = Callable[[Experiment], float | None]  # tokens per second of a candidate, None when that is not known


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
    ways = _Search(start, site, rate).ways()
    return [_option(written_as or experiment, changed, site, rate) for changed in ways]


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

        if ways := _Search(start, site, on_these).ways(KINDS[:MILDEST]):
            return _option(replace(experiment, hardware=text), ways[0], site, on_these)
        count *= 2
    return None


class _Search:
    """For changes of one experiment that fit a site; what was estimated is kept, as pairs ask for much of it again."""

    def __init__(self, start: Experiment, site: Site, rate: Rate | None) -> None:
        self.start, self.site, self.rate = start, site, rate
        self._known: dict[str, Estimate | None] = {}  # by how it is written: to compare experiments takes longer
        self._candidates: dict[tuple[str, Kind], list[Experiment]] = {}

    def ways(self, kinds: Sequence[Kind] = KINDS) -> list[Experiment]:
        """Experiments that fit: the start itself, or with changes of the mildest kinds, the fastest first."""
        if self.fits(self.start):
            return [self.start]
        for known in range(MILDEST, len(kinds) + 1):
            together = self._all_but_needless(kinds[:known])
            if together is None:  # no one or two of them do it either
                continue
            new = kinds[:known] if known == MILDEST else kinds[known - 1 : known]
            fitting = self._few(kinds[:known], new) or [together]
            if self.rate is not None:
                rate = self.rate
                fitting.sort(key=lambda candidate: -(rate(candidate) or 0.0))
            unique = {_lines_of(self.start, candidate): candidate for candidate in reversed(fitting)}
            return [*reversed(unique.values())][:MOST_OPTIONS]
        return []

    def estimated(self, candidate: Experiment) -> Estimate | None:
        """None for a change that does not go with this experiment."""
        written_so = repr(candidate)
        if written_so not in self._known:
            self._known[written_so] = _estimated(candidate, self.site)
        return self._known[written_so]

    def fits(self, candidate: Experiment) -> bool:
        """Whether it goes together and has the memory."""
        found = self.estimated(candidate)
        return found is not None and self.site.fits(found)

    def _changed(self, start: Experiment, kind: Kind) -> list[Experiment]:
        """What one kind of change makes of an experiment, where it goes with it."""
        if (key := (repr(start), kind)) not in self._candidates:
            try:
                found = [candidate for candidate in kind(start, self.site) if self.estimated(candidate) is not None]
            except (ConfigError, ValueError):
                found = []
            self._candidates[key] = found
        return self._candidates[key]

    def _pressure(self, candidate: Experiment) -> float:
        found = self.estimated(candidate)
        return float("inf") if found is None else self.site.pressure(found)

    def _least(self, start: Experiment, kind: Kind) -> list[Experiment]:
        """The one that needs least first."""
        return sorted(self._changed(start, kind), key=self._pressure)

    def _few(self, kinds: Sequence[Kind], new: Sequence[Kind]) -> list[Experiment]:
        """One of the `new` kinds alone, else with another one."""
        alone = [self._best([self.start], kind) for kind in new]
        if found := [best for best in alone if best is not None]:
            return found
        pairs = []
        for one, two in combinations(kinds, 2):
            least = {kind: (self._least(self.start, kind) or [self.start])[0] for kind in (one, two)}
            if new is not kinds and not {one, two} & set(new):
                continue
            if any(self.fits(both) for both in self._least(least[one], two)[:1]):  # else no pair of these kinds does
                pairs.append(self._best(self._least(self.start, one)[:MOST_OPTIONS], two))
        return [best for best in pairs if best is not None]

    def _best(self, starts: Sequence[Experiment], kind: Kind) -> Experiment | None:
        """The fastest that fits of the few smallest changes that do, or the smallest."""
        fitting = []
        for candidate in (changed for start in starts for changed in self._changed(start, kind)):
            if self.fits(candidate):
                fitting.append(candidate)
                if self.rate is None or len(fitting) == MOST_RATED:
                    break
        if self.rate is None or len(fitting) < 2:
            return fitting[0] if fitting else None
        rate = self.rate
        return max(fitting, key=lambda candidate: rate(candidate) or 0.0)

    def _all_but_needless(self, kinds: Sequence[Kind]) -> Experiment | None:
        """Every kind of change, each the one that needs least, and then without those that it fits without."""
        changed = self.start
        for kind in kinds:
            best = self._least(changed, kind)[:1]
            if best and self._pressure(best[0]) < self._pressure(changed):
                changed = best[0]
                if self.fits(changed):
                    break
        if not self.fits(changed):
            return None
        for name in _FIELDS:
            without = replace(changed, **{name: getattr(self.start, name)})
            if without != changed and self.fits(without):
                changed = without
        return changed


def _estimated(candidate: Experiment, site: Site) -> Estimate | None:
    try:
        return estimate(candidate, on_gpu=site.on_gpu) if _goes(candidate) else None
    except (ConfigError, ValueError):
        return None


def _goes(candidate: Experiment) -> bool:
    """Whether what advice changes goes together."""
    told = (re.match(r"\w+", str(problem)) for problem in problems(candidate))
    return not any(found and found[0] in _FIELDS for found in told)


_FIELDS = (
    "seq_len",
    "update",
    "clip_norm",
    "batch_size",
    "optimizer",
    "precision",
    "microbatch_size",
    "recompute",
    "loss",
)
_FIELDS += ("parallel", "hardware")


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
        lines.append(f"{line:<55} # {', '.join(effects)}" if effects else line)
    return Option(changed, tuple(lines))


def written(value: Any) -> str:
    """A value as one writes it: a spec by its class and what differs from its defaults."""
    if not isinstance(value, specs.Parallel | specs.Schedule | specs.Recompute):
        return f'"{value}"' if isinstance(value, str) else repr(value)
    plain = type(value)()
    sizes = (
        {"shards"}
        if isinstance(value, specs.FSDP2)
        else {"stages"}
        if isinstance(value, specs.Pipeline)
        else {"replicas"}
    )
    told = {*sizes, *missing(plain)}  # whatever they are
    differing = [
        name for name in type(value).__fields__ if name in told or getattr(value, name) != getattr(plain, name)
    ]
    return f"{type(value).__name__}({', '.join(f'{name}={written(getattr(value, name))}' for name in differing)})"
