"""The stage split is exact: no other split has a cheaper dearest stage."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgather_dsl.plan.partition import split

COSTS = st.lists(st.sampled_from([0.25, 1.0, 1.5, 4.0]), min_size=1, max_size=9)


def dearest(costs, ranges, embedding, head) -> float:
    stages = [sum(costs[layer] for layer in layers) for layers in ranges]
    stages[0] += embedding
    stages[-1] += head
    return max(stages)


@given(COSTS, st.data(), st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from([0.0, 2.0, 8.0]))
def test_no_other_split_is_better(costs, data, embedding, head):
    stages = data.draw(st.integers(1, len(costs)))
    found = split(costs, stages, embedding, head)
    assert [layer for layers in found for layer in layers] == list(range(len(costs)))
    assert all(len(layers) >= 1 for layers in found)
    every = [
        [range(a, b) for a, b in zip((0, *cuts), (*cuts, len(costs)))]
        for cuts in combinations(range(1, len(costs)), stages - 1)
    ]
    assert dearest(costs, found, embedding, head) == min(dearest(costs, one, embedding, head) for one in every)


def test_a_heavy_head_takes_layers_off_the_last_stage():
    assert [len(layers) for layers in split([1.0] * 16, 4, head=3.0)] == [4, 5, 5, 2]
    assert [len(layers) for layers in split([1.0] * 9, 4)] == [2, 2, 2, 3]


def test_more_stages_than_layers_names_both_numbers():
    with pytest.raises(ValueError, match="3 layers cannot be split into 4 stages"):
        split([1.0] * 3, 4)
