"""Spreading the head over the ranks of a schedule, on paper: valid, in order, within memory, and when it pays."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl import AdamW, Experiment, GPipe, Llama, OneFOneB, Pipeline, ZeroBubble, ZeroBubbleH1, patch, replace
from forgather_dsl.plan import schedules
from forgather_dsl.plan.actions import Action, from_csv, from_rows, to_csv
from forgather_dsl.plan.costs import Costs, uniform, with_shards
from forgather_dsl.plan.hardware import parse
from forgather_dsl.plan.layout import from_dict, lay_out, to_dict
from forgather_dsl.plan.prediction import predict
from forgather_dsl.plan.simulate import simulate
from forgather_dsl.plan.spread import spread_head
from forgather_dsl.plan.validity import problems

INF = float("inf")
NAMED = {
    "gpipe": schedules.gpipe,
    "1f1b": schedules.one_f_one_b,
    "interleaved": lambda p, m: schedules.interleaved(p, m, 2),
    "zb-h1": schedules.zero_bubble_h1,
    "zb-v": schedules.zero_bubble_v,
}


def costs_of(schedule, head=2.0, capacity=INF, latency=0.01, transfer=0.02) -> Costs:
    """A rank's layers take 1, 1 and 1 and hold 1 until W; a head takes `head` as long, and holds half a microbatch."""
    ranks, unit = schedule.num_ranks, schedule.num_ranks / schedule.num_stages
    costs = uniform(schedule.num_stages, ranks, unit, unit, unit, capacity, latency, transfer)
    return with_shards(costs, 2 * head / ranks, head / ranks, kept=0.5 / ranks)


@pytest.mark.parametrize("name", NAMED)
@settings(max_examples=5, deadline=None)
@given(ranks=st.integers(2, 4), more=st.integers(0, 3), head=st.sampled_from([0.0, 0.3, 2.0]))
def test_every_schedule_takes_shards_and_stays_valid(name, ranks, more, head):
    microbatches = 2 * ranks * (1 + more // 2) if name == "interleaved" else 2 * ranks + more
    bare = NAMED[name](ranks, microbatches)
    found = spread_head(bare, costs_of(bare, head))
    assert problems(found) == []
    assert found.num_shards == ranks
    layers = [[a for a in row if a.stage < bare.num_stages] for row in found.actions]
    assert [sorted(row) for row in layers] == [sorted(row) for row in bare.actions]
    shards = [[a for a in row if a.stage >= bare.num_stages] for row in found.actions]
    for rank, row in enumerate(shards):
        wanted = [Action(bare.num_stages + rank, kind, k) for kind in "FW" for k in range(microbatches)]
        assert sorted(row) == sorted(wanted)
    assert from_csv(to_csv(found), found.name, ranks) == found


def test_a_schedule_that_splits_some_backwards_stays_in_order():
    bare = schedules.dualpipe_v(4, 10)
    assert {a.kind for row in bare.actions for a in row} == set("FBIW")
    assert problems(spread_head(bare, costs_of(bare))) == []


def test_the_last_backward_waits_for_every_shard_and_a_shard_for_it():
    """Layers take 1, 1 and 1; a shard 1 and 1; a message 0.5, a shard's partial of 2 ranks 1.5 times as long on the link."""
    rows = from_csv("0F0,2F0,0B0,2W0\n1F0,3F0,1B0,3W0", num_shards=2)
    costs = with_shards(uniform(2, 2, latency=0.1, transfer=0.4), 1.0, 1.0)
    found = simulate(rows, costs)
    starts = {str(interval.action): round(interval.start, 6) for line in found.timeline for interval in line}
    # 1F0 from 1.5 to 2.5; its hidden states are on rank 0 at 3; 2F0 is done at 4, its partial there after 0.6 + 0.1
    assert starts == {"0F0": 0, "1F0": 1.5, "3F0": 2.5, "2F0": 3, "1B0": 4.7, "0B0": 7.2, "3W0": 6.7, "2W0": 9.2}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("0F0,2F0,0B0\n1F0,3F0,1B0,3W0", "2 is a shard of the head, on rank 0: it takes W0 once"),
        ("0F0,2F0,2W0,0B0\n1F0,3F0,1B0,3W0", None),
        ("0F0,0B0,2F0,2W0\n1F0,3F0,1B0,3W0", "deadlock: rank 0 stops at 0B0, which waits for 1B0"),
        ("0F0,2W0,2F0,0B0\n1F0,3F0,1B0,3W0", "deadlock: rank 0 stops at 2W0, which waits for 1B0"),
    ],
)
def test_shards_that_cannot_run_are_told(rows, said):
    found = problems(from_csv(rows, num_shards=2))
    assert (not found) if said is None else any(said in problem for problem in found), found


def test_a_shard_on_another_rank_than_its_own_is_refused():
    with pytest.raises(ValueError, match="there has to be one on each, in order"):
        from_rows("swapped", [[Action(0, "F", 0), Action(3, "F", 0)], [Action(1, "F", 0), Action(2, "F", 0)]], 2)


def test_memory_that_is_there_is_kept_to_and_makes_the_step_longer():
    bare = schedules.zero_bubble_h1(4, 12)
    roomy, tight = (simulate(spread_head(bare, c), c) for c in (costs_of(bare), costs_of(bare, capacity=4.6)))
    assert tight.fits
    assert max(roomy.peak_bytes) > 4.6
    assert roomy.makespan < tight.makespan


def vocab_costs(layers, spread):
    """Llama 3.1 8B, 4 ranks, 16 microbatches: the head costs 2.4 layers; a unit is 8 layers (the planner's `vocab` case)."""
    ranks, head = 4, 2.4 / 8
    units = [count / 8 for count in layers]
    if not spread:
        units[-1] += head
    costs = Costs(
        tuple(units), tuple(1.05 * u for u in units), tuple(0.9 * u for u in units), tuple(units),
        tuple(0.75 * u for u in units), (0.0,) * len(units), (INF,) * ranks, 0.003, 0.02,
    )  # fmt: skip
    return with_shards(costs, 2.05 * head / ranks, 0.9 * head / ranks, kept=0.2) if spread else costs


@pytest.mark.parametrize(
    ("make", "whole", "layers", "least"),
    [
        (schedules.one_f_one_b, [9, 9, 8, 6], [8] * 4, 0.86),
        (schedules.zero_bubble_h1, [9, 9, 8, 6], [8] * 4, 0.93),
        (schedules.zero_bubble_v, [3, 4, 4, 5, 4, 5, 4, 3], [4] * 8, 0.955),
    ],
)
def test_a_large_vocabulary_is_used_better_spread_than_on_a_balanced_last_stage(make, whole, layers, least):
    """Share of the ranks' time that is work; messages are counted."""
    bare, work = make(4, 16), 16 * (32 + 2.4) / 8 * 2.95 / 4
    costs = vocab_costs(layers, spread=True)
    spread = work / simulate(spread_head(bare, costs), costs).makespan
    assert spread >= least
    assert spread > work / simulate(bare, vocab_costs(whole, spread=False)).makespan + 0.03


class Large(Experiment):
    """Llama 3.1 8B's sizes on four cards."""

    seq_len, batch_size, microbatch_size, steps = 2048, 16, 1, 1
    hardware = "4x80GB"
    model = patch(Llama, dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_dim=14_336, vocab_size=128_256)
    optimizer = AdamW()
    parallel = Pipeline(stages=4, schedule=OneFOneB())


@pytest.mark.parametrize("schedule", [OneFOneB(), ZeroBubbleH1()])
def test_a_large_vocabulary_is_predicted_to_train_faster_and_a_small_one_is_not(schedule):
    assert 0.03 < saved(patched(schedule=schedule)) < 0.15
    assert saved(replace(patched(schedule=schedule), model=patch(Llama, vocab_size=4096))) < 0.02


def test_layers_are_cut_evenly_under_a_spread_head_and_it_survives_the_plan_file():
    layout = lay_out(patched(schedule=GPipe(), spread_head=True))
    assert [len(layers) for layers in layout.layers] == [8, 8, 8, 8]
    assert layout.schedule.num_shards == 4
    assert from_dict(to_dict(layout)) == layout


@pytest.mark.slow
def test_a_searched_order_is_no_worse_spread_than_a_drawn_one():
    searched, drawn = (predicted(patched(schedule=s, spread_head=True)) for s in (ZeroBubble(), ZeroBubbleH1()))
    assert searched <= drawn * 1.001
    assert predicted(patched(schedule=ZeroBubble(chunks=2), spread_head=True)) < 0.98 * drawn


def patched(**changes):
    return replace(Large(), parallel=replace(Large().parallel, **changes))


def predicted(experiment):
    """Seconds of a step."""
    return predict(experiment, parse(experiment.hardware)).step_seconds


def saved(experiment):
    """What spreading the head saves, as a share of the step."""
    return 1 - predicted(replace(experiment, parallel=replace(experiment.parallel, spread_head=True))) / predicted(
        experiment
    )
