"""Times and bytes of a schedule on paper, against sums done by hand."""

from __future__ import annotations

import pytest

from forgather_dsl.plan.actions import from_csv
from forgather_dsl.plan.costs import Costs, uniform
from forgather_dsl.plan.schedules import gpipe, one_f_one_b, zero_bubble_h1
from forgather_dsl.plan.simulate import simulate

INF = float("inf")


def costs(*, kept=(3.0,), owed=(2.0,), working=(1.0,), capacity=(INF,)) -> Costs:
    times = ((1.0,) * len(kept),) * 3
    return Costs(*times, kept, owed, working, capacity)


def test_messages_queue_on_a_link_and_arrive_after_its_latency():
    """Forwards of 1 end at 1 and 2; each takes the link for 3, then 0.5: they arrive at 4.5 and 7.5."""
    schedule = from_csv("0F0,0F1\n1F0,1F1", "forwards")
    found = simulate(schedule, uniform(2, 2, latency=0.5, transfer=3.0))
    assert [interval.start for interval in found.timeline[1]] == [4.5, 7.5]
    assert found.makespan == 8.5
    assert found.span == (2.0, 4.0)


def test_each_direction_has_a_link_of_its_own():
    """F1 leaves rank 0 while the gradient of microbatch 0 comes back; neither waits for the other."""
    found = simulate(gpipe(2, 2), uniform(2, 2, transfer=1.0))
    assert [interval.start for interval in found.timeline[1]] == [2.0, 3.0, 4.0, 6.0]
    assert [interval.start for interval in found.timeline[0]] == [0.0, 1.0, 7.0, 9.0]


def test_a_message_between_stages_of_one_rank_takes_no_time():
    schedule = from_csv("0F0,1F0,1B0,0B0", "both here")
    assert simulate(schedule, uniform(2, 1, latency=5.0, transfer=5.0)).makespan == 6.0


@pytest.mark.parametrize(
    ("row", "most"),
    [
        ("0F0,0B0", 4.0),  # kept 3, working 1
        ("0F0,0I0,0W0", 4.0),
        ("0F0,0I0,0F1,0I1,0W0,0W1", 2 + 3 + 1),  # one W owed while the second microbatch works
        ("0F0,0F1,0B0,0B1", 2 * 3 + 1),
        ("0F0,0F1,0I0,0I1,0F2,0W0,0W1,0B2", 2 * 2 + 3 + 1),
    ],
)
def test_bytes_are_kept_until_the_backward_and_owed_until_w(row, most):
    found = simulate(from_csv(row), costs())
    assert found.peak_bytes == (most,)
    assert simulate(from_csv(row), costs(capacity=(most,))).fits
    assert simulate(from_csv(row), costs(capacity=(most - 0.5,))).within == (False,)


def test_under_recomputing_it_is_the_owed_weight_gradients_that_fill_the_memory():
    """F keeps 0.06 of a microbatch, I leaves 0.75: a W later costs more than many a forward ahead."""
    small, large = (0.06,), (0.75,)
    lazy = from_csv("0F0,0F1,0I0,0I1,0W0,0W1")
    eager = from_csv("0F0,0F1,0I0,0W0,0I1,0W1")
    found = [simulate(s, costs(kept=small, owed=large, working=(0.0,))).peak_bytes[0] for s in (lazy, eager)]
    assert found == pytest.approx([1.5, 0.81])


def test_the_longest_span_is_shorter_than_the_step_where_ranks_start_late():
    """Rank r of ZB-H1 starts r forwards late and ends without waiting for the others."""
    found = simulate(zero_bubble_h1(4, 8), uniform(4, 4))
    assert found.makespan == 3 * 8 + 3
    assert found.span == tuple(interval[-1].end - interval[0].start for interval in found.timeline)
    assert found.span[-1] == 24.0 < found.makespan


def test_costs_of_other_stages_are_refused():
    with pytest.raises(ValueError, match="costs of 3 stages on 3 ranks do not go with 4 stages on 4 ranks"):
        simulate(one_f_one_b(4, 4), uniform(3, 3))
