"""The stage split is exact: no other split has a cheaper dearest stage."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgather_dsl.plan.partition import Parts, divide, split

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


def weighed(seconds, stored, room, kept=0.0):
    """Parts without ends: a layer takes seconds[i] on every rank, and stored[i] + kept bytes for one microbatch."""
    column = (0.0, *seconds, 0.0)
    live = (0.0, *[kept] * len(seconds), 0.0)
    return Parts((column,) * len(room), (0.0, *stored, 0.0), live, (0.0,) * len(column), tuple(room))


def loads(parts, placement, layers):
    """Seconds and bytes per rank, one microbatch alive on each stage."""
    seconds, held = [0.0] * len(parts.room), [0.0] * len(parts.room)
    for rank, own in zip(placement, layers):
        seconds[rank] += sum(parts.seconds[rank][1 + i] for i in own)
        held[rank] += sum(parts.stored[1 + i] + parts.kept[1 + i] for i in own)
    return seconds, held


def every_split(layers, stages):
    for cuts in combinations(range(1, layers), stages - 1):
        yield tuple(range(a, b) for a, b in zip((0, *cuts), (*cuts, layers)))


@given(st.lists(st.tuples(st.sampled_from([1.0, 2.0]), st.sampled_from([1.0, 3.0])), min_size=3, max_size=8), st.data())
def test_with_one_stage_on_each_rank_no_split_within_the_bytes_is_better(layers, data):
    ranks = data.draw(st.integers(1, 3))
    room = data.draw(st.lists(st.sampled_from([4.0, 8.0, 30.0]), min_size=ranks, max_size=ranks))
    parts = weighed(*zip(*layers), room)
    placement = tuple(range(ranks))
    found = divide(parts, placement, [(1, 0)] * ranks)
    seconds, held = loads(parts, placement, found)
    options = [loads(parts, placement, one) for one in every_split(len(layers), ranks)]
    fitting = [times for times, sizes in options if all(a <= b for a, b in zip(sizes, room))]
    if fitting:
        assert all(a <= b for a, b in zip(held, room))
        assert max(seconds) == min(map(max, fitting))
    else:  # the one that comes nearest
        over = [max((a - b) / b for a, b in zip(sizes, room)) for _, sizes in options]
        assert max((a - b) / b for a, b in zip(held, room)) == pytest.approx(min(over))


@given(st.integers(2, 3), st.integers(6, 12), st.sampled_from([0.0, 2.4]))
def test_in_a_v_the_dearest_rank_is_as_cheap_as_it_can_be(ranks, layers, head):
    parts = weighed([1.0] * layers, [1.0] * layers, [100.0] * ranks)
    parts = parts._replace(seconds=((*parts.seconds[0][:-1], head),) * ranks)
    placement = (*range(ranks), *reversed(range(ranks)))
    if len(placement) > layers:
        return

    def dearest(split):
        seconds, _ = loads(parts, placement, split)
        return max(seconds[0] + head, *seconds[1:])

    found = divide(parts, placement, [(1, 0)] * len(placement))
    assert [i for stage in found for i in stage] == list(range(layers))
    assert dearest(found) == min(map(dearest, every_split(layers, len(placement))))


def test_a_smaller_card_gets_what_it_can_hold():
    """Twelve layers of 2 on cards of 20 and 10: time alone says 6 and 6, bytes 8 and 4 with a microbatch of 0.5 a layer."""
    parts = weighed([1.0] * 12, [2.0] * 12, [20.0, 10.0], kept=0.5)
    assert [len(s) for s in divide(parts, (0, 1), [(1, 0)] * 2)] == [8, 4]
    assert [len(s) for s in divide(parts, (0, 1), [(0, 0)] * 2)] == [7, 5]
    roomy = parts._replace(room=(100.0, 100.0))
    assert [len(s) for s in divide(roomy, (0, 1), [(1, 0)] * 2)] == [6, 6]


def test_a_slower_card_gets_fewer_layers():
    column = (0.0, *[1.0] * 9, 0.0)
    parts = weighed([1.0] * 9, [1.0] * 9, [50.0, 50.0])._replace(seconds=(column, tuple(2 * x for x in column)))
    assert [len(s) for s in divide(parts, (0, 1), [(1, 0)] * 2)] == [6, 3]


def test_a_share_of_the_bytes_moves_layers_off_a_full_card():
    parts = weighed([1.0] * 8, [5.0, *[1.0] * 7], [20.0, 20.0])
    assert [len(s) for s in divide(parts, (0, 1), [(1, 0)] * 2)] == [4, 4]
    assert [len(s) for s in divide(parts, (0, 1), [(1, 0)] * 2, time_share=0.0)] == [2, 6]
