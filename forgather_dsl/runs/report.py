"""`report`: any number of runs compared. In: run directories. Out: a `Report`, which prints as text, Markdown or a page.

Runs that differ in their seed alone are a group. One group is the base; each other one gets its difference with an interval, and
a verdict: real, or within what seeds change. What makes the comparison unfair is said beside it.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from . import fairness
from .curves import usual_smoothing
from .finding import find_runs
from .groups import Change, Group, changes, differing, grouped
from .record import Record
from .results import TRAIN_LOSS, Metric, known, metric, value_of
from .verdicts import Outcome, Verdict, judged, outcome

__all__ = ["Report", "report"]

BASES = ("base", "baseline")  # names, in small letters, of what others are held against


def report(
    *places: str, base: str | None = None, by: str | None = None, step: int | None = None, smooth: int | None = None
) -> Report:
    """Compare runs: run directories, folders of them, patterns.

    Args:
        base: the group, class or run that the others are held against; None: one called Base or Baseline, or the first.
        by: the result that verdicts are about; None: held-out loss, bits per byte where tokenizers differ.
        step: compare what runs had reached at this step; None: at their ends, finished runs alone.
        smooth: records over which the curves of the training loss are averaged; None: a fiftieth of the run.

    Raises:
        UserError: a place leads to no run, or there is no such base, result or step.
    """
    groups = grouped([Record(path) for path in find_runs(places)])
    return Report(groups, _base(groups, base), by, step, smooth)


def _base(groups: Sequence[Group], asked: str | None) -> int:
    if asked is None:
        named = [i for i, group in enumerate(groups) if group.name.lower() in BASES]
        return named[0] if named else 0
    exact = [i for i, group in enumerate(groups) if group.name == asked]
    place = os.path.realpath(asked)
    found = exact or [i for i, g in enumerate(groups) if any(os.path.realpath(r.path) == place for r in g.records)]
    found = found or [i for i, group in enumerate(groups) if group.records[0].name == asked]
    if len(found) == 1:
        return found[0]
    names = ", ".join(repr(groups[i].name) for i in (found or range(min(len(groups), 12))))
    what = "is several of these groups" if found else "is none of these groups and none of their runs"
    raise UserError(f"--base {asked!r} {what}: write one of {names}")


class Report:
    """Groups of runs held against one of them."""

    def __init__(
        self, groups: list[Group], base: int, by: str | None = None, step: int | None = None, smooth: int | None = None
    ) -> None:
        self.groups, self.base = groups, base
        self.records = [record for group in groups for record in group.records]
        self.names = known(self.records)
        self.metric = metric(self._chosen(by))
        self.note = ""
        self.step = self._step(step)
        self.smooth = max(1, usual_smoothing(groups) if smooth is None else smooth)
        self.outcomes = self.outcomes_of(self.metric)
        told = {i: fairness.apart(groups[base], group, self.metric) for i, group in enumerate(groups) if i != base}
        self.verdicts: list[Verdict | None] = judged(
            base, self.outcomes, self.metric, {i: why for i, why in told.items() if why}
        )

    def _chosen(self, by: str | None) -> str:
        if by is not None:
            if by not in self.names:
                raise UserError(f"--metric {by!r}: no run has it; write one of {', '.join(self.names) or '(none yet)'}")
            return by
        held_out = [name for name in self.names if name.startswith("eval_")]
        if not fairness.same_tokenizer(self.groups):
            held_out = [name for name in held_out if "bits_per_byte" in name] or held_out
        return (held_out or [TRAIN_LOSS])[0]

    def _step(self, asked: int | None) -> int | None:
        """The step to compare at: the one asked for; the last that all have reached when no run is finished."""
        reached = [set(dict(record.series(self.metric.name))) for record in self.records]
        if asked is not None:
            if not any(asked in steps for steps in reached):
                every = sorted(set().union(*reached))
                told = ", ".join(map(str, every[-8:])) or "none yet"
                raise UserError(f"--step {asked}: no run has {self.metric.name} at it; the last there are: {told}")
            return asked
        common = set.intersection(*(steps for steps in reached if steps)) if any(reached) else set()
        if any(record.finished for record in self.records) or not common:
            return None
        self.note = f"no run is finished: all are compared at step {max(common):,}, the last that they have in common"
        return max(common)

    def outcomes_of(self, asked: Metric) -> list[Outcome]:
        """What every group has reached in a metric."""
        return [outcome(group, asked, self.step) for group in self.groups]

    @functools.cached_property
    def order(self) -> list[int]:
        """Groups, the best first, those without a result last."""
        sign = 1 if self.metric.lower_is_better else -1
        places = [math.inf if found.mean is None else sign * found.mean.value for found in self.outcomes]
        return sorted(range(len(places)), key=lambda index: places[index])

    @functools.cached_property
    def differing(self) -> list[str]:
        """Paths of the settings that are not the same in all groups."""
        return differing(self.groups)

    @functools.cached_property
    def changes(self) -> list[list[Change]]:
        """Of every group, what it has other than the base."""
        return [changes(self.groups[self.base], group) for group in self.groups]

    @functools.cached_property
    def warnings(self) -> list[str]:
        """What makes the comparison unfair, or numbers not mean what they seem to."""
        found = fairness.warnings(self.groups, self.metric, self.step)
        return [self.note, *found] if self.note else found

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """As JSON can hold it: what `report --json` prints."""
        from .report_json import to_dict

        return to_dict(self)

    def text(self, width: int = 100, with_samples: bool = False) -> str:
        """For a terminal or a log, `width` characters wide where that is up to it."""
        from .report_text import text

        return text(self, width, with_samples)

    def markdown(self) -> str:
        """For a README, an issue or a pull request."""
        from .markdown import markdown

        return markdown(self)

    def html(self) -> str:
        """One page that needs nothing else: figures, tables, samples."""
        from .page import page

        return page(self)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        from .page import fragment

        return fragment(self)


def finite(value: float | None) -> float | None:
    """A number that JSON has, or None."""
    return value if value is not None and math.isfinite(value) else None


def value_at_end(record: Record, name: str, step: int | None) -> float | None:
    """A result of one run, as the comparison takes it; None for what is not finite."""
    return finite(value_of(record, name, step))
