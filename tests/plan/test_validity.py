"""What cannot run, or would sum gradients in another order, is refused: all of it at once, by action and rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schedules import everything

from forgather_dsl.plan.schedules import Schedule, accumulate, check, from_csv, simulate, zero_bubble_v
from forgather_dsl.plan.validity import problems

SIZES = (st.sampled_from([*everything()]), st.integers(1, 4), st.integers(1, 6))


def wrong(text):
    return problems(from_csv(text))


@given(*SIZES, st.data())
@settings(max_examples=100, deadline=None)
def test_dropping_doubling_or_misplacing_an_action_is_rejected(name, ranks, microbatches, data):
    good = everything()[name](ranks, microbatches)
    rows = [list(row) for row in good.actions]
    rank = data.draw(st.integers(0, ranks - 1))
    index = data.draw(st.integers(0, len(rows[rank]) - 1))
    action = rows[rank][index]
    mutation = data.draw(
        st.sampled_from(["drop", "double", "other microbatch", "other stage"] + ["other rank"] * (ranks > 1))
    )
    if mutation == "drop":
        del rows[rank][index]
    elif mutation == "double":
        rows[rank].insert(data.draw(st.integers(0, len(rows[rank]))), action)
    elif mutation == "other rank":
        rows[(rank + 1) % ranks].append(rows[rank].pop(index))
    elif mutation == "other microbatch":
        rows[rank][index] = action._replace(microbatch=(action.microbatch + 1) % (microbatches + 1))
    else:
        rows[rank][index] = action._replace(stage=(action.stage + 1) % (good.num_stages + 1))
    with pytest.raises(ValueError, match=r"\d[FBIW]\d.*rank \d"):
        check(replace(good, actions=tuple(map(tuple, rows))))


def by_brute_force(schedule: Schedule) -> bool:
    """Whether a schedule with the right actions is valid: order per stage read off the rows, and played tick by tick."""
    for row in schedule.actions:
        for stage in {action.stage for action in row}:
            for kinds in ("F", "IB", "WB"):
                order = [action.microbatch for action in row if action.stage == stage and action.kind in kinds]
                if order != sorted(order):
                    return False
    last, done, rows = schedule.num_stages - 1, set(), [list(row) for row in schedule.actions]
    while any(rows):
        played = []
        for row in filter(None, rows):
            s, kind, k = row[0]
            needs = {"F": {("F", s - 1, k)} if s else set(), "W": {("I", s, k)}}.get(
                kind, {("F", s, k)} | ({("I", s + 1, k)} if s < last else set())
            )
            if needs <= done:
                played.append(row.pop(0))
        if not played:
            return False
        for s, kind, k in played:
            done |= {(result, s, k) for result in {"B": "IW"}.get(kind, kind)}
    return True


@given(*SIZES, st.data())
@settings(max_examples=200, deadline=None)
def test_a_moved_or_swapped_action_is_rejected_or_harmless(name, ranks, microbatches, data):
    good = everything()[name](ranks, microbatches)
    rows = [list(row) for row in good.actions]
    row = rows[data.draw(st.integers(0, ranks - 1))]
    for _ in range(data.draw(st.integers(1, 2))):
        i, j = (data.draw(st.integers(0, len(row) - 1)) for _ in range(2))
        if data.draw(st.booleans()):
            row[i], row[j] = row[j], row[i]
        else:
            row.insert(j, row.pop(i))
    changed = replace(good, actions=tuple(map(tuple, rows)))
    assert (problems(changed) == []) == by_brute_force(changed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F1,0F0,0B0,0B1", "0F0 on rank 0 comes after the forward of microbatch 1"),
        ("0F0,0F1,0B1,0B0", "0B0 on rank 0 comes after the input gradient of microbatch 1"),
        ("0F0,0F1,0I0,0B1,0W0", "0W0 on rank 0 comes after the weight gradient of microbatch 1"),
        ("0F0,0W0,0I0", "rank 0 stops at 0W0, which waits for 0I0"),
        ("0F0,0B0,0W0", "0B0 of rank 0 occurs 1 times, its I 0 and its W 1"),
        ("0B0,0F0", "rank 0 stops at 0B0, which waits for 0F0"),
    ],
)
def test_a_wrong_order_is_rejected_by_name(text, message):
    assert message in "; ".join(wrong(text))


def test_a_deadlock_between_ranks_names_both_and_what_they_wait_for():
    assert wrong("0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1") == [
        "deadlock: rank 0 stops at 0B0, which waits for 1B0",
        "deadlock: rank 1 stops at 1F1, which waits for 0F1",
    ]


def test_problems_of_every_kind_are_told_at_once():
    found = wrong("0F1,0F0,0B0\n1B0,1F0,1B1,1F1")
    assert any("0F0 on rank 0 comes after" in text for text in found)
    assert any("0B1 of rank 0 occurs 0 times" in text for text in found)
    assert any("rank 1 stops at 1B0" in text for text in found)


def test_of_each_kind_the_first_few_are_told_and_the_others_counted():
    good = zero_bubble_v(2, 8)
    found = problems(replace(good, actions=((), good.actions[1])))
    assert len(found) == 4
    assert found[0] == "0F0 of rank 0 occurs 0 times, not once"
    assert found[3] == "and 29 more of this kind"  # two stages of eight microbatches, F and B each
    with pytest.raises(ValueError, match=r"schedule ZeroBubbleV: 0F0 of rank 0.*; and 29 more"):
        check(replace(good, actions=((), good.actions[1])))


def test_an_action_outside_the_schedule_is_named():
    with pytest.raises(ValueError, match="0F1 on rank 0 is outside 1 stages x 1 microbatches"):
        check(replace(accumulate(2), num_microbatches=1))


@given(*SIZES, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_the_memory_cap_counts_what_the_simulation_counts(name, ranks, microbatches, cap):
    schedule = everything()[name](ranks, microbatches)
    over = [rank for rank, peak in enumerate(simulate(schedule).peak) if peak > cap]
    found = problems(schedule, memory_cap=cap)
    told = [text for text in found if "holds" in text]
    assert len(told) == min(len(over), 3)
    assert all(f"rank {rank} holds {cap + 1}" in text for rank, text in zip(over, told))
