"""Which differences to a base are real and which are noise: one metric, all groups, seeds as the measure of noise.

Only runs that can be compared count: those that are finished, or have been evaluated at the step that is compared. A seed that
ran twice counts once, and a group with a run whose loss is not finite gets no test: the survivors would flatter it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .groups import Group
from .record import Record
from .results import Metric, value_of
from .student import LEVEL, Difference, Mean, compared, holm, mean_of

__all__ = ["Outcome", "Verdict", "counted", "judged", "outcome"]

ALPHA = 1 - LEVEL


class Outcome(NamedTuple):
    """What a group has reached in a metric."""

    by_seed: dict[str, float]  # finite ones
    diverged: int  # runs whose value is not finite
    mean: Mean | None


class Verdict(NamedTuple):
    """A group against the base."""

    kind: str  # better, worse, noise, identical, unknown, diverged, apart
    text: str
    difference: Difference | None
    corrected: float | None  # p, by Holm's method among all comparisons of the report


def counted(group: Group, step: int | None) -> list[Record]:
    """The runs of a group that results are taken from; of a seed that ran more than once, the last."""
    chosen = [record for record in group.records if record.finished or step is not None]
    return list({record.seed: record for record in chosen}.values())


def outcome(group: Group, metric: Metric, step: int | None) -> Outcome:
    """Values of the runs that count, by seed."""
    values = {record.seed: value_of(record, metric.name, step) for record in counted(group, step)}
    there = {seed: value for seed, value in values.items() if value is not None}
    finite = {seed: value for seed, value in there.items() if math.isfinite(value)}
    return Outcome(finite, len(there) - len(finite), mean_of(list(finite.values())) if finite else None)


def judged(base: int, outcomes: Sequence[Outcome], metric: Metric, apart: dict[int, str]) -> list[Verdict | None]:
    """A verdict for each group but the base. `apart`: groups whose values are not comparable to the base's, and why."""
    differences: dict[int, Difference] = {}
    for index, found in enumerate(outcomes):
        whole = not (found.diverged or outcomes[base].diverged) and index not in apart
        if index != base and whole and found.by_seed and outcomes[base].by_seed:
            differences[index] = compared(outcomes[base].by_seed, found.by_seed)
    tested = [index for index, difference in differences.items() if difference.p is not None]
    corrected = dict(zip(tested, holm([differences[index].p or 0.0 for index in tested])))
    return [
        None if index == base else _verdict(index, base, outcomes, metric, apart, differences, corrected)
        for index in range(len(outcomes))
    ]


def _verdict(
    index: int,
    base: int,
    outcomes: Sequence[Outcome],
    metric: Metric,
    apart: dict[int, str],
    differences: dict[int, Difference],
    corrected: dict[int, float],
) -> Verdict:
    found, difference, p = outcomes[index], differences.get(index), corrected.get(index)
    if index in apart:
        return Verdict("apart", f"not comparable: {apart[index]}", None, None)
    lost = next((o for o in (found, outcomes[base]) if o.diverged), None)
    if lost is not None:
        whose = "" if lost is found else " of the base"
        return Verdict(
            "diverged", f"{lost.diverged} of {lost.diverged + len(lost.by_seed)} runs{whose} diverged", None, None
        )
    if difference is None:
        return Verdict(
            "unknown", "no result yet" if outcomes[base].by_seed else "no result of the base yet", None, None
        )
    if found.by_seed == outcomes[base].by_seed:
        return Verdict("identical", "the same numbers, bit for bit", difference, p)
    if p is None or difference.p is None or difference.low is None or difference.high is None:
        return Verdict("unknown", "unknown: one run says nothing of noise", difference, None)
    if p < ALPHA:
        better = (difference.value < 0) == metric.lower_is_better
        return Verdict("better" if better else "worse", f"{'better' if better else 'worse'}: real", difference, p)
    if difference.p < ALPHA:
        many = f"within noise: p {difference.p:.2g} alone, but {len(corrected)} were compared"
        return Verdict("noise", many, difference, p)
    half = (difference.high - difference.low) / 2
    return Verdict(
        "noise", f"within noise: less than {half:.{max(2, metric.digits - 1)}f} would not show", difference, p
    )
