"""What a rank holds over its actions, against the simulation's count of live microbatches."""

from __future__ import annotations

import pytest

from forgather_dsl.plan import schedules
from forgather_dsl.plan.memory import Held
from forgather_dsl.plan.occupancy import LOOKAHEAD, Occupancy
from forgather_dsl.plan.schedules import Schedule
from forgather_dsl.plan.stage_cost import StageCost

ONE, NOTHING = Held(activations=1), Held()
UNIT = StageCost(*[NOTHING] * len(StageCost._fields))._replace(kept=ONE, owed=ONE, forward=ONE)

SCHEDULES = {
    "gpipe": lambda: schedules.gpipe(4, 8),
    "1f1b": lambda: schedules.one_f_one_b(4, 8),
    "zb-h1": lambda: schedules.zero_bubble_h1(4, 8),
    "zb-h2": lambda: schedules.zero_bubble_h2(4, 8),
    "interleaved": lambda: schedules.interleaved(4, 8, 2),
    "zb-v": lambda: schedules.zero_bubble_v(4, 8),
    "v-min": lambda: schedules.v_min(4, 8),
    "dualpipe-v": lambda: schedules.dualpipe_v(4, 8),
}


def alive(schedule: Schedule, rank: int) -> int:
    """The most microbatches, over the stages of a rank, between F and B or W."""
    now = most = 0
    for action in schedule.actions[rank]:
        now += action.kind == "F"
        most = max(most, now)
        now -= action.kind in "BW"
    return most


@pytest.mark.parametrize("name", SCHEDULES)
def test_live_microbatches_are_those_between_forward_and_weight_gradient(name):
    schedule = SCHEDULES[name]()
    for rank in range(4):
        found = Occupancy(schedule, rank, [UNIT] * schedule.num_stages)
        assert found.peak.activations == alive(schedule, rank)
        assert found.now.activations == 0  # all of it is given back


@pytest.mark.parametrize("name", SCHEDULES)
def test_receives_are_posted_ahead_from_each_rank_that_sends(name):
    schedule = SCHEDULES[name]()
    for rank in range(4):
        found = Occupancy(schedule, rank, [UNIT] * schedule.num_stages)
        posted = [dict(state[0]) for state in found.states]  # per source, before every action
        beside = [
            schedule.placement[s + d]
            for s in schedule.stages_of(rank)
            for d in (-1, 1)
            if 0 <= s + d < len(schedule.placement)
        ]
        assert {source for counts in posted for source in counts} == set(beside) - {rank}
        assert max(max(counts.values()) for counts in posted) == LOOKAHEAD


def test_more_microbatches_lead_through_the_same_states():
    few, many = (Occupancy(schedules.one_f_one_b(4, m), 1, [UNIT] * 4) for m in (8, 64))
    assert few.states == many.states
    assert Occupancy(schedules.one_f_one_b(4, 3), 1, [UNIT] * 4).states != many.states
