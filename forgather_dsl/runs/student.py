"""How sure a difference is, from few runs: Student's t, paired where the seeds are the same, Welch's test else; Holm's correction.

In: results by seed. Out: means with intervals, differences with a p value, or None where there are too few runs to say.
A. W. Welch 1947 (Biometrika 34), S. Holm 1979 (Scand. J. Statist. 6); the t distribution from DLMF 8.17.22.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["LEVEL", "Difference", "Mean", "compared", "holm", "mean_of", "t_quantile", "two_sided"]

LEVEL = 0.95  # of intervals; a difference is called real where the corrected p is below 1 - LEVEL
TERMS = 400  # of the continued fraction: more than double precision needs below a million degrees of freedom
MOST_SHARED = 3  # seeds in common from which on a paired test is made whatever else was run


class Mean(NamedTuple):
    """Of one group."""

    value: float
    deviation: float | None  # of the sample; None of one run
    half: float | None  # half the width of the interval of the mean
    runs: int


class Difference(NamedTuple):
    """Of two groups: the other less the base."""

    value: float
    low: float | None
    high: float | None
    p: float | None  # two-sided, of this comparison alone; None where too few runs were made
    test: str  # its name and the number of runs


def mean_of(values: Sequence[float]) -> Mean:
    """Mean, sample deviation and t interval. Raises ValueError for no values."""
    if not values:
        raise ValueError("the mean of nothing")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Mean(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Mean(mean, deviation, t_quantile(LEVEL, n - 1) * deviation / math.sqrt(n), n)


def compared(base: Mapping[Any, float], other: Mapping[Any, float]) -> Difference:
    """`other` against `base`, both by seed: paired when they share enough seeds, Welch's test when not."""
    shared = [seed for seed in base if seed in other]
    if len(shared) >= max(2, min(MOST_SHARED, len(base), len(other))):
        return _paired([other[seed] - base[seed] for seed in shared])
    return _welch(list(base.values()), list(other.values()))


def _paired(differences: list[float]) -> Difference:
    found = mean_of(differences)
    assert found.deviation is not None
    error = found.deviation / math.sqrt(found.runs)
    return _tested(found.value, error, found.runs - 1, f"paired t, {found.runs} seeds")


def _welch(base: list[float], other: list[float]) -> Difference:
    a, b = mean_of(base), mean_of(other)
    value = b.value - a.value
    if a.deviation is None or b.deviation is None:
        return Difference(value, None, None, None, f"none: {a.runs} and {b.runs} runs")
    va, vb = a.deviation**2 / a.runs, b.deviation**2 / b.runs
    total = va + vb
    freedom = total**2 / (va**2 / (a.runs - 1) + vb**2 / (b.runs - 1)) if total else float(a.runs + b.runs - 2)
    return _tested(value, math.sqrt(total), freedom, f"Welch t, {a.runs} and {b.runs} runs")


def _tested(value: float, error: float, freedom: float, test: str) -> Difference:
    half = t_quantile(LEVEL, freedom) * error
    p = two_sided(abs(value) / error, freedom) if error else float(value == 0)
    return Difference(value, value - half, value + half, p, test)


def holm(p: Sequence[float]) -> list[float]:
    """p values of several comparisons, corrected so that one false alarm among all of them is as rare as with one."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, most = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[index]))
        out[index] = most
    return out


def two_sided(t: float, freedom: float) -> float:
    """The probability that |t| is at least this large when there is no difference."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


@functools.cache
def t_quantile(level: float, freedom: float) -> float:
    """The |t| that is exceeded with probability 1 - level."""
    low, high = 0.0, 1.0
    while two_sided(high, freedom) > 1 - level:
        high *= 2
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > 1 - level else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), by the continued fraction on the side where it converges quickly."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    log = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - math.log(a)
    tail = 1.0
    for index in range(TERMS, 0, -1):
        m = index // 2
        if index % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        tail = 1 + d / tail
    return math.exp(log) / tail
