"""The search: within its bytes, never worse than what it starts from, and where the theory says it can be."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl.plan import cached
from forgather_dsl.plan import search as module
from forgather_dsl.plan.actions import from_csv
from forgather_dsl.plan.climb import climb, merge
from forgather_dsl.plan.costs import Costs, uniform
from forgather_dsl.plan.schedules import drawn, one_f_one_b, simulate, to_and_fro, zero_bubble, zero_bubble_h1
from forgather_dsl.plan.search import least_room, lower_bound, search
from forgather_dsl.plan.timing import Timing
from forgather_dsl.plan.validity import check

INF = float("inf")


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path_factory.mktemp("cache")))


def of_rank(ranks: int, chunks: int, times, memory, capacity: float, transfer: float = 0.0) -> Costs:
    """Equal stages; `times` of F, I, W and `memory` (kept, owed) of all layers of one rank."""
    stages = ranks * chunks
    f, i, w, kept, owed = ((x / chunks,) * stages for x in (*times, *memory))
    latency = 0.003 if transfer else 0.0
    return Costs(f, i, w, kept, owed, (0.0,) * stages, (capacity,) * ranks, latency, transfer)


def bubble(costs: Costs, chunks: int, microbatches: int) -> float:
    """Of the busiest rank of the order found, in percent."""
    placement = to_and_fro(len(costs.capacity), chunks)
    found = search(costs, placement, microbatches, drawn(placement, microbatches))
    check(found)
    result = simulate(found, costs)
    assert result.fits
    return 100 * min(result.bubble)


# Bubbles in percent with a synchronous optimizer, by an independent prototype of the search, and the bound by its formula
# (p - 1) (F / chunks + message) / step. Costs of one rank: F, I, W; messages take 2 % of F at 4 ranks. Memory in
# microbatches of one rank: all of it from F to I, three quarters from I to W; with recomputing 0.06 and three quarters.
PLAIN, RECOMPUTING = (1.0, 0.75), (0.06, 0.75)
KNOWN = {
    "F = I = W, memory of 1F1B": ((4, 2, (1, 1, 1), PLAIN, 4.26, 0.0), 8, 5.9, 5.9),
    "F = I = W, one stage on each rank": ((4, 1, (1, 1, 1), PLAIN, 4.26, 0.0), 16, 5.9, 5.9),
    "cheap W, memory of 1F1B": ((4, 2, (1, 1, 0.67), PLAIN, 4.26, 0.02), 8, 7.6, 6.84),
    "cheap W, twice the memory": ((4, 2, (1, 1, 0.67), PLAIN, 8.26, 0.02), 16, 3.54, 3.54),
    "recomputing, 4 microbatches": ((4, 2, (1, 2, 0.8), RECOMPUTING, 4.01, 0.02), 16, 2.5, 2.5),
    "recomputing, 1.3 microbatches": ((4, 2, (1, 2, 0.8), RECOMPUTING, 1.31, 0.02), 16, 5.95, 2.5),
    "recomputing, a short step": ((4, 2, (1, 2, 0.8), RECOMPUTING, 3.01, 0.02), 8, 6.4, 4.9),
    "recomputing, one stage on each rank": ((4, 1, (1, 2, 0.8), RECOMPUTING, 4.01, 0.02), 16, 8.95, 4.8),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_search_is_as_good_as_its_prototype(name):
    sizes, microbatches, prototype, bound = KNOWN[name]
    costs = of_rank(*sizes)
    assert bubble(costs, sizes[1], microbatches) <= prototype + 0.05
    floor = lower_bound(costs, to_and_fro(sizes[0], sizes[1]), microbatches)
    assert 100 * (1 - microbatches * sum(sizes[2]) / floor) == pytest.approx(bound, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "microbatches", "prototype"),
    [
        ((8, 2, (1, 1, 0.67), PLAIN, 8.26, 0.04), 16, 10.3),
        ((8, 2, (1, 1, 0.67), PLAIN, 16.26, 0.04), 16, 8.5),
        ((8, 2, (1, 2, 0.8), RECOMPUTING, 8.01, 0.04), 16, 5.9),
        ((8, 2, (1, 2, 0.8), RECOMPUTING, 4.01, 0.04), 16, 11.0),
        ((4, 2, (1, 1, 0.67), PLAIN, 4.26, 0.02), 16, 4.0),
    ],
)
def test_eight_ranks_and_long_steps_too(sizes, microbatches, prototype):
    assert bubble(of_rank(*sizes), sizes[1], microbatches) <= prototype + 0.05  # given to a tenth


durations = st.lists(st.sampled_from([0.3, 1.0, 1.7, 3.0]), min_size=9, max_size=9)
byte_counts = st.lists(st.sampled_from([0.1, 0.5, 1.0]), min_size=9, max_size=9)


@st.composite
def problems(draw):
    """A placement, costs that differ from stage to stage, and a number of microbatches."""
    ranks = draw(st.integers(1, 3))
    chunks = draw(st.integers(1, 3))
    placement = draw(st.sampled_from([to_and_fro(ranks, chunks), tuple(range(ranks)) * chunks]))
    stages = ranks * chunks
    rows = [tuple(draw(durations)[:stages]) for _ in range(3)] + [tuple(draw(byte_counts)[:stages]) for _ in range(3)]
    hop = draw(st.sampled_from([0.0, 0.4]))
    costs = Costs(*rows, (INF,) * ranks, hop, hop / 2)
    more = draw(st.sampled_from([0.0, 0.3, 1.5, 20.0]))  # bytes beyond what one microbatch takes
    costs = replace(costs, capacity=tuple(x + more for x in least_room(costs, placement)))
    return costs, placement, draw(st.integers(1, 6))


@given(problems())
@settings(max_examples=10, deadline=None)
def test_orders_are_valid_within_their_bytes_and_no_worse_than_the_drawn_ones(problem):
    costs, placement, microbatches = problem
    seeds = list(drawn(placement, microbatches))
    found = search(costs, placement, microbatches, seeds, effort=60_000)
    check(found)
    assert (found.placement, found.num_microbatches) == (placement, microbatches)
    result = simulate(found, costs)
    assert result.fits
    assert result.makespan >= lower_bound(costs, placement, microbatches) * (1 - 1e-9)
    for seed in seeds:
        other = simulate(seed, costs)
        assert not other.fits or result.makespan <= other.makespan * (1 + 1e-9)


def test_a_rank_too_small_for_one_microbatch_gets_an_order_that_says_so():
    costs = uniform(4, 4, memory_cap=0.5)
    found = search(costs, tuple(range(4)), 3)
    check(found)
    assert simulate(found, costs).within == (False,) * 4
    assert max(simulate(found, costs).peak_bytes) == 1.0


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 2), st.integers(1, 5))
@settings(max_examples=6, deadline=None)
def test_the_memory_cap_counts_live_microbatches_of_a_rank(ranks, microbatches, chunks, cap):
    costs = of_rank(ranks, chunks, (1, 1.3, 0.6), RECOMPUTING, INF, 0.1)
    schedule = zero_bubble(ranks, microbatches, costs, chunks, cap, None)
    check(schedule, memory_cap=cap * chunks)
    assert max(simulate(schedule).peak) <= cap * chunks


def test_more_memory_is_never_worse_and_pays():
    steps = [
        simulate(zero_bubble(4, 8, costs, 1, cap, None), costs).makespan
        for costs in [of_rank(4, 1, (1, 2, 0.8), PLAIN, INF)]
        for cap in (1, 2, 4, 8)
    ]
    assert steps == sorted(steps, reverse=True)
    assert steps[3] < steps[2] < steps[1] < steps[0]


def test_a_cap_of_nothing_is_refused():
    with pytest.raises(ValueError, match="memory_cap is 0"):
        zero_bubble(2, 4, uniform(2, 2), 1, 0, None)


def numbers(timing: Timing, schedule) -> list[list[int]]:
    return [[timing.number(action) for action in row] for row in schedule.actions]


def test_climbing_betters_an_order_and_leaves_the_argument_alone():
    """From 1F1B with its backward split, W directly behind I: 30; the least is 27."""
    split = [[a for action in row for a in both(action)] for row in one_f_one_b(4, 8).actions]
    timing = Timing(uniform(4, 4), range(4), 8)
    rows = [[timing.number(action) for action in row] for row in split]
    before = [list(row) for row in rows]
    ends = timing.run(climb(timing, rows, 2000))
    assert rows == before
    assert max(timing.run(rows)) == 30
    assert max(ends) == 27


def both(action):
    return [action] if action.kind == "F" else [action._replace(kind="I"), action._replace(kind="W")]


def test_i_and_w_become_b_only_where_nobody_waits_for_the_gradient():
    timing = Timing(uniform(2, 2), range(2), 2)
    rows = numbers(timing, from_csv("0F0,0F1,0I0,0W0,0I1,0W1\n1F0,1I0,1W0,1F1,1I1,1W1"))
    merged = [[str(timing.action(number)) for number in row] for row in merge(timing, rows)]
    assert merged[0] == ["0F0", "0F1", "0B0", "0B1"]
    assert "1I1" in merged[1]  # rank 0 waits for it
    assert max(timing.run(merge(timing, rows))) == max(timing.run(rows))


def test_the_bound_counts_ways_there_and_back():
    """One microbatch through three ranks: three F, two hops, three I, two hops; no rank's work is more."""
    assert lower_bound(uniform(3, 3, 1.0, 2.0, 0.5, latency=0.1, transfer=0.2), range(3), 1) == pytest.approx(9 + 1.2)
    assert lower_bound(uniform(4, 4), range(4), 8) == 3 + 24
    assert lower_bound(of_rank(4, 2, (1, 1, 1), PLAIN, INF), to_and_fro(4, 2), 8) == 1.5 + 24


@given(problems())
@settings(max_examples=40, deadline=None)
def test_no_drawn_schedule_is_under_the_bound(problem):
    costs, placement, microbatches = problem
    bound = lower_bound(costs, placement, microbatches) * (1 - 1e-9)
    assert all(simulate(one, costs).makespan >= bound for one in drawn(placement, microbatches))


def test_an_order_is_found_once_and_then_read(monkeypatch):
    costs, seeds = uniform(3, 3, 1.0, 1.5, 0.5), [zero_bubble_h1(3, 5)]
    first = search(costs, range(3), 5, seeds)
    monkeypatch.setattr(module, "_find", lambda *_: pytest.fail("searched again"))
    assert search(costs, range(3), 5, seeds) == first
    for changed in ({"costs": replace(costs, latency=0.1)}, {"microbatches": 6}, {"seeds": []}):
        with pytest.raises(pytest.fail.Exception, match="searched again"):
            search(**{"costs": costs, "placement": range(3), "microbatches": 5, "seeds": seeds, **changed})
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        search(costs, range(3), 5, seeds)


@pytest.mark.parametrize("damage", [b"", b"{", b'{"sum": "0", "value": [1]}', b"[]", b"\xff\xfe"])
def test_a_damaged_file_counts_as_none(damage):
    made = []
    for _ in range(2):
        value = cached.remembered("tests", {"a": 1}, lambda: made.append(1) or [len(made)])
    (file,) = (cached.cache_root() / "tests").iterdir()
    assert value == [1]
    file.write_bytes(damage)
    assert cached.remembered("tests", {"a": 1}, lambda: [2]) == [2]
    assert json.loads(file.read_text())["value"] == [2]


def test_where_nothing_can_be_written_results_are_made_each_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "file"))
    assert [cached.remembered("tests", {}, lambda n=n: [n]) for n in (1, 2)] == [[1], [2]]
