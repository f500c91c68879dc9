"""Every schedule is complete, ordered and free of deadlock, and costs what its paper says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl.plan.schedules import (
    Action,
    Schedule,
    accumulate,
    check,
    draw,
    forwards,
    from_csv,
    from_rows,
    gpipe,
    one_f_one_b,
    simulate,
    to_csv,
    zero_bubble,
    zero_bubble_h1,
)

GENERATORS = [gpipe, one_f_one_b, zero_bubble_h1, zero_bubble]
RANKS, MICROBATCHES = st.integers(1, 8), st.integers(1, 24)


@pytest.mark.parametrize("generator", GENERATORS)
@given(RANKS, MICROBATCHES)
@settings(max_examples=25, deadline=None)
def test_every_generator_yields_a_valid_schedule(generator, stages, microbatches):
    schedule = generator(stages, microbatches)
    check(schedule)
    assert (schedule.num_stages, schedule.num_microbatches) == (stages, microbatches)
    assert schedule.placement == tuple(range(stages))
    assert from_csv(to_csv(schedule), schedule.name) == schedule


@given(
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 8),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=60, deadline=None)
def test_the_search_keeps_to_its_memory_cap(stages, microbatches, cap, duration, communication):
    schedule = zero_bubble(stages, microbatches, duration, 1.0, duration, memory_cap=cap, communication=communication)
    check(schedule)
    assert max(simulate(schedule, duration, 1.0, duration, communication).peak) <= cap


@given(st.sampled_from(GENERATORS), st.integers(1, 4), st.integers(1, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_dropping_doubling_or_misplacing_an_action_is_rejected(generator, stages, microbatches, data):
    rows = [list(row) for row in generator(stages, microbatches).actions]
    rank = data.draw(st.integers(0, stages - 1))
    index = data.draw(st.integers(0, len(rows[rank]) - 1))
    action = rows[rank][index]
    mutation = data.draw(st.sampled_from(["drop", "double", "other rank", "other microbatch"]))
    if mutation == "drop":
        del rows[rank][index]
    elif mutation == "double":
        rows[rank].insert(index, action)
    elif mutation == "other rank":
        rows[(rank + 1) % stages].append(rows[rank].pop(index))
        if stages == 1:
            return
    else:
        rows[rank][index] = action._replace(microbatch=(action.microbatch + 1) % (microbatches + 1))
    broken = Schedule("broken", stages, microbatches, tuple(range(stages)), tuple(map(tuple, rows)))
    with pytest.raises(ValueError, match=r"\d[FBIW]\d"):
        check(broken)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0F1,0F0,0B0,0B1", "0F0 comes after the forward of microbatch 1"),
        ("0F0,0F1,0B1,0B0", "0B0 comes after the input gradient of microbatch 1"),
        ("0F0,0F1,0I0,0B1,0W0", "0W0 comes after the weight gradient of microbatch 1"),
        ("0F0,0W0,0I0", "rank 0 at 0W0"),
        ("0F0,0B0,0W0", "0B0 occurs 1 times, its I 0 and its W 1"),
        ("0B0,0F0", "rank 0 at 0B0"),
    ],
)
def test_a_wrong_order_is_rejected_by_name(row, message):
    with pytest.raises(ValueError, match=message):
        check(from_csv(row))


def test_a_deadlock_between_ranks_names_both():
    with pytest.raises(ValueError, match="rank 0 at 0B0, rank 1 at 1F1"):
        check(from_csv("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1"))


@pytest.mark.parametrize("generator", [gpipe, one_f_one_b])
@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 8), (8, 16)])
def test_the_bubble_is_the_textbook_formula(generator, stages, microbatches):
    bubble = simulate(generator(stages, microbatches)).bubble
    assert bubble == pytest.approx([(stages - 1) / (microbatches + stages - 1)] * stages)


@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 8), (8, 16)])
def test_zero_bubble_h1_has_a_third_of_the_bubble_time_at_the_memory_of_1f1b(stages, microbatches):
    result = simulate(zero_bubble_h1(stages, microbatches))
    assert result.makespan == 3 * microbatches + (stages - 1)
    assert max(result.peak) == stages == max(simulate(one_f_one_b(stages, microbatches)).peak)


def test_peak_memory_per_rank():
    assert simulate(gpipe(4, 8)).peak == (8, 8, 8, 8)
    assert simulate(one_f_one_b(4, 8)).peak == (4, 3, 2, 1)
    assert simulate(accumulate(8)).peak == (1,)


@pytest.mark.parametrize(
    "costs", [(1.0, 1.0, 0.67), (1.0, 2.0, 0.8), (1.0, 1.0, 1.0), ([1, 1, 1, 2], [1, 1, 1, 2], 1.0)]
)
def test_the_search_is_at_least_as_good_as_h1_and_better_with_memory(costs):
    fixed = simulate(zero_bubble_h1(4, 8), *costs).makespan
    same_memory = simulate(zero_bubble(4, 8, *costs), *costs).makespan
    more_memory = simulate(zero_bubble(4, 8, *costs, memory_cap=8), *costs).makespan
    assert more_memory <= same_memory <= fixed + 1e-9
    if costs in [(1.0, 1.0, 0.67), (1.0, 2.0, 0.8)]:
        assert more_memory < fixed


def test_the_search_reaches_the_bound_of_a_synchronous_optimizer():
    found = simulate(zero_bubble(4, 16, weight_grad=0.67, memory_cap=8), weight_grad=0.67)
    assert found.makespan == pytest.approx(3 + 16 * 2.67)  # (stages - 1) F, then work without a gap


def test_communication_delays_the_next_rank_only():
    assert simulate(gpipe(2, 1), communication=0.5).makespan == 1 + 0.5 + 3 + 0.5 + 2
    v_shape = from_rows("V", [[Action(0, "F", 0), Action(1, "F", 0), Action(1, "B", 0), Action(0, "B", 0)]])
    assert simulate(v_shape, communication=0.5).makespan == 6


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 8), (4, 6)])
def test_1f1b_and_zero_bubble_h1_order_equal_torch(split, stages, microbatches):
    """torch's own tables, its interleaved schedules at one stage per rank (multiply_factor 1)."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    ours = (zero_bubble_h1 if split else one_f_one_b)(stages, microbatches)
    for rank, row in enumerate(ours.actions):
        warm_up = stages - 1 - rank

        def stage_of(_, rank=rank):
            return rank

        sizes = (1, stages, warm_up, microbatches - warm_up, warm_up)
        theirs = schedules._get_1f1b_rank_ops(*sizes, rank, stage_of, stage_of, rank, split)
        assert [str(action) for action in row] == [str(action) for action in theirs if action is not None]


def test_torch_reads_our_csv(tmp_path):
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    for line, row in zip(to_csv(zero_bubble_h1(3, 5)).splitlines(), zero_bubble_h1(3, 5).actions):
        theirs = [schedules._Action.from_str(cell) for cell in line.split(",")]
        assert [(a.stage_index, a.computation_type.value, a.microbatch_index) for a in theirs] == [
            tuple(a) for a in row
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0SEND_F0", "row 1: '0SEND_F0'"),
        ("0F0,0B0\n0F1,0B1", "0F1 is on rank 1, but stage 0 lives on rank 0"),
        ("1F0,1B0", "no rank runs stage 0 of 2"),
        ("", "no actions"),
    ],
)
def test_csv_that_is_not_a_schedule_says_where(text, message):
    with pytest.raises(ValueError, match=message):
        from_csv(text)


def test_csv_skips_empty_cells():
    assert from_csv("0F0,,0B0,\n").actions == ((Action(0, "F", 0), Action(0, "B", 0)),)


@given(st.sampled_from([(0,), (0, 1, 2), (0, 1, 1, 0), (0, 1, 0, 1)]), st.integers(1, 6))
def test_forwards_alone_run_under_any_placement(placement, microbatches):
    schedule = forwards(placement, microbatches)
    assert schedule.placement == placement
    assert sum(map(len, simulate(schedule).timeline)) == len(placement) * microbatches


def test_drawing_shows_time_and_idleness():
    picture = draw(one_f_one_b(2, 2)).splitlines()
    assert picture[0].startswith("rank 0 |F0 F1 ......B0--- ...B1--- |")
    assert picture[1].startswith("rank 1 |...F0 B0--- F1 B1--- ......|")
    assert picture[0].endswith("bubble 33.3%, peak 2")


def test_the_module_prints_its_schedules():
    command = [sys.executable, "-m", "forgather_dsl.plan.schedules", "2", "3"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert draw(zero_bubble_h1(2, 3)) in printed


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="not 0 and 4"):
        gpipe(0, 4)
    with pytest.raises(ValueError, match="memory_cap is 0"):
        zero_bubble(2, 4, memory_cap=0)
    with pytest.raises(ValueError, match="forward has 2 durations for 4 stages"):
        zero_bubble(4, 4, forward=[1, 1])
    with pytest.raises(ValueError, match="outside 1 stages x 1 microbatches"):
        check(replace(accumulate(2), num_microbatches=1))
