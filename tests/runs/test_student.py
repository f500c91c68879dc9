"""Tests of significance against published numbers and against the integral of the density."""

from __future__ import annotations

import math

import pytest

from forgather_dsl.runs.student import compared, holm, mean_of, t_quantile, two_sided

SLEEP = (  # W. S. Gosset, "The probable error of a mean", 1908: extra hours of sleep with two drugs
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


def test_paired_where_the_seeds_are_the_same_and_welch_where_they_are_not():
    first, second = (dict(enumerate(values)) for values in SLEEP)
    paired = compared(first, second)
    assert paired.test == "paired t, 10 seeds"
    assert paired.value == pytest.approx(1.58)
    assert paired.p == pytest.approx(0.002833, abs=1e-6)
    assert (paired.low, paired.high) == (pytest.approx(0.7001142, abs=1e-6), pytest.approx(2.4598858, abs=1e-6))
    welch = compared(first, {f"other {seed}": value for seed, value in second.items()})
    assert welch.test == "Welch t, 10 and 10 runs"
    assert welch.p == pytest.approx(0.07939, abs=1e-5)
    assert (welch.low, welch.high) == (pytest.approx(-0.2054832, abs=1e-6), pytest.approx(3.3654832, abs=1e-6))


def test_what_few_runs_say_nothing_about():
    assert compared({0: 1.0}, {0: 2.0}).p is None
    assert compared({0: 1.0, 1: 1.5}, {0: 2.0}).p is None
    assert compared({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.7, 2: 9.0}).test == "paired t, 2 seeds"
    assert compared({0: 1.0, 1: 2.0}, {1: 1.5, 2: 2.5}).test == "Welch t, 2 and 2 runs"
    assert compared({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p == 1.0
    assert mean_of([2.0]) == (2.0, None, None, 1)
    with pytest.raises(ValueError, match="nothing"):
        mean_of([])


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706205), (2, 4.302653), (4, 2.776445), (30, 2.042272), (1e6, 1.959966)]
)
def test_quantiles_of_tables(freedom: float, quantile: float):
    assert t_quantile(0.95, freedom) == pytest.approx(quantile, abs=2e-6)


@pytest.mark.parametrize("freedom", [1.0, 2.5, 7.0, 40.0])
@pytest.mark.parametrize("t", [0.3, 1.0, 4.0])
def test_the_probability_is_the_integral_of_the_density(freedom: float, t: float):
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    width, total = t / 2000, 0.0
    for index in range(2001):  # Simpson's rule from 0 to t
        weight = 1 if index in (0, 2000) else 4 if index % 2 else 2
        total += weight * (1 + (index * width) ** 2 / freedom) ** (-(freedom + 1) / 2)
    assert two_sided(t, freedom) == pytest.approx(1 - 2 * scale * total * width / 3, abs=1e-9)


def test_holm_corrects_each_and_keeps_their_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
