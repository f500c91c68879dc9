"""What one change each would save where memory ran out, the most first, as lines to paste into the class body. No torch.

In: an experiment that did run, where, and the rank that failed. Out: `Saving`s by the plan's own estimate. Advice (see
`advice`) looks for what fits by this estimate; here reality has shown that the estimate is too low, so only differences count.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..dsl import ConfigError
from ..specs import Experiment
from .advice import written
from .changes import KINDS
from .estimate import Estimate, Site, estimate
from .layout import Layout

__all__ = ["Saving", "savings"]

LEAST_SHARE = 0.01  # of what is needed now: a change that saves less is not worth a line
_STEPWISE = ("microbatch_size", "seq_len")  # of these the mildest change is told, of others the one that saves most


@dataclass(frozen=True)
class Saving:
    """A line of code, and what it saves."""

    line: str
    saved: int  # bytes: of the rank on a card, of all ranks together on a host
    left: int  # bytes that are needed then, without what a process takes before it trains anything


def savings(experiment: Experiment, site: Site, rank: int, layout: Layout | None = None) -> list[Saving]:
    """One saving for each kind of change that helps rank `rank` and puts no other card beyond what is used now.

    `layout` is the one that runs; None: as laid out anew.
    """
    now = estimate(experiment, on_gpu=site.on_gpu, layout=layout)
    found: list[Saving] = []
    for kind in KINDS:
        options: list[Saving] = []
        try:
            for candidate in kind(experiment, site):
                saving = _saving(experiment, candidate, site, rank, now, layout)
                options += [saving] if saving is not None else []
                if options and options[0].line.startswith(_STEPWISE):
                    break
        except (ConfigError, ValueError):  # this kind of change does not go with the experiment
            pass
        if options:
            found.append(max(options, key=lambda option: option.saved))
    best: dict[str, Saving] = {}  # one line for a field: the second would take the first one's place
    for option in sorted(found, key=lambda option: -option.saved):
        best.setdefault(option.line.partition(" = ")[0], option)
    return list(best.values())


def _saving(
    experiment: Experiment, candidate: Experiment, site: Site, rank: int, now: Estimate, layout: Layout | None
) -> Saving | None:
    """None for a change that saves nothing, or is not possible."""
    changed = [name for name in type(experiment).__fields__ if getattr(experiment, name) != getattr(candidate, name)]
    stays = not {"parallel", "microbatch_size", "batch_size"} & set(changed)
    try:
        then = estimate(candidate, on_gpu=site.on_gpu, layout=layout if stays else None)
    except (ConfigError, ValueError):
        return None
    before, after = (_need(found, site, rank) for found in (now, then))
    if before - after < LEAST_SHARE * before or site.pressure(then) > max(1.0, site.pressure(now)):
        return None
    lines = "; ".join(f"{name} = {written(getattr(candidate, name))}" for name in changed)
    return Saving(lines, before - after, after)


def _need(found: Estimate, site: Site, rank: int) -> int:
    """Without what every process takes before it trains anything."""
    return sum(m.total - m.overhead for m in ([found.ranks[rank]] if site.on_gpu else site.here(found)))
