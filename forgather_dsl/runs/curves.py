"""Results over steps, tokens and seconds: one curve per group, the mean of its seeds with a band of one standard deviation.

Seeds are averaged step by step, where all of the group's runs have a value; tokens and seconds at a step are means as well.
The training loss is smoothed run by run before that, by a running mean over `smooth` records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .groups import Group
from .record import Record
from .results import TRAIN_LOSS
from .verdicts import counted

__all__ = ["AXES", "Curve", "Point", "curves", "usual_smoothing"]

AXES = ("steps", "tokens", "seconds")
SMOOTHED = 50  # a curve is smoothed over about a so-manieth of its records,
MOST_POINTS = 240  # and drawn with at most so many points


class Point(NamedTuple):
    """One step of a group."""

    x: tuple[float, float, float]  # step, tokens, seconds
    mean: float
    low: float  # mean less and plus one standard deviation over the seeds; the mean itself of one run
    high: float


class Curve(NamedTuple):
    """One group's."""

    group: int
    runs: int
    points: list[Point]


def usual_smoothing(groups: Sequence[Group]) -> int:
    """Over how many records the training loss is averaged unless told otherwise: an odd number, 1 for short runs."""
    longest = max((len(record.steps) for group in groups for record in group.records), default=0)
    return 2 * (longest // SMOOTHED // 2) + 1


def curves(groups: Sequence[Group], name: str, smooth: int, step: int | None) -> list[Curve]:
    """Of every group that has a result of this name."""
    out = []
    for index, group in enumerate(groups):
        records = counted(group, step) or group.records
        series = [dict(_series(record, name, smooth)) for record in records]
        records = [record for record, values in zip(records, series) if values]
        series = [values for values in series if values]
        if not series:
            continue
        steps = sorted(set.intersection(*(set(values) for values in series)))
        points = [_point(at, [values[at] for values in series], records) for at in _thinned(steps)]
        if points:
            out.append(Curve(index, len(records), points))
    return out


def _series(record: Record, name: str, smooth: int) -> list[tuple[int, float]]:
    found = [(step, value) for step, value in record.series(name) if math.isfinite(value)]
    if name != TRAIN_LOSS or smooth < 2:
        return found
    values, half = [value for _, value in found], smooth // 2
    out = []
    for index, (step, _) in enumerate(found):
        reach = min(
            half, index, len(found) - 1 - index
        )  # as far on both sides, so that a slope is not bent at the ends
        part = values[index - reach : index + reach + 1]
        out.append((step, math.fsum(part) / len(part)))
    return out


def _point(step: int, values: list[float], records: list[Record]) -> Point:
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
    clocks = [record.at(step) for record in records]
    tokens, seconds = (math.fsum(column) / len(clocks) for column in zip(*clocks))
    return Point((float(step), tokens, seconds), mean, mean - spread, mean + spread)


def _thinned(steps: list[int]) -> list[int]:
    if len(steps) <= MOST_POINTS:
        return steps
    every = (len(steps) - 1) / (MOST_POINTS - 1)
    return [steps[round(i * every)] for i in range(MOST_POINTS)]
