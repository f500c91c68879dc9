"""Strategies side by side: bytes by hand, the break-even against simulation, rows against plans of their own, the losing corner."""

from __future__ import annotations

import pytest

from forgather_dsl import DDP, FP32, FSDP2, Experiment, GPipe, Llama, Model, OneFOneB, Pipeline, Single, patch
from forgather_dsl.dsl import replace
from forgather_dsl.plan.break_even import bounds, break_even, compute_seconds, even_factor
from forgather_dsl.plan.contract import to_dict
from forgather_dsl.plan.hardware import parse
from forgather_dsl.plan.planner import plan
from forgather_dsl.plan.prediction import predict
from forgather_dsl.plan.sizes import model_size
from forgather_dsl.plan.strategies import best, compared
from forgather_dsl.plan.tables import break_even as sentences
from forgather_dsl.plan.tables import strategies_table
from forgather_dsl.plan.verdicts import strategies_of


class Even(Experiment):
    """Eight layers alike, and hardly a head: formulas can be followed by hand."""

    steps = 1
    seq_len = 512
    batch_size = 16
    microbatch_size = 1
    hardware = "4x80GB"
    precision = FP32()
    parallel = Pipeline(stages=4, schedule=OneFOneB())
    model = patch(Llama, vocab_size=256, dim=1024, num_layers=8, num_heads=16)


class Strange(Model["nowhere.Model"]):
    """Somebody's own model."""


def run(experiment, parallel, link, **values):
    cards = parse(f"4x80GB,link={link}GB/s,latency=0.001ns")
    return predict(replace(experiment, parallel=parallel, **values), cards)


@pytest.fixture(scope="module")
def even():
    """The plan on a slow link, as JSON."""
    return to_dict(plan(Even(), "4x80GB,link=3GB/s", strategies=True))


def test_bytes_are_those_of_the_formulas():
    size = model_size(Even().model, 512)
    parameters = size.parameters * 4
    layers = sum(layer.parameters for layer in size.layers) * 4
    assert run(Even(), DDP(replicas=4), 1).traffic.bytes == pytest.approx(2 * 3 / 4 * parameters)
    passes = 16 // 4
    sharded = run(Even(), FSDP2(shards=4), 1).traffic
    assert sharded.bytes == pytest.approx(passes * 3 / 4 * (3 * layers + 2 * (parameters - layers)))
    assert sharded.seconds == pytest.approx(sharded.bytes / 1e9)
    kept = run(Even(), FSDP2(shards=4, reshard_after_forward=False), 1).traffic
    assert kept.bytes == pytest.approx(passes * 3 / 4 * 2 * parameters)
    four = run(Even(), FSDP2(shards=4), 1, microbatch_size=4).traffic
    assert four.bytes == pytest.approx(sharded.bytes / 4)
    both = run(Even(), FSDP2(shards=2, replicas=2), 1).traffic
    within = 1 / 2 * (3 * layers + 2 * (parameters - layers))
    assert both.bytes == pytest.approx(passes * (within + 2 * 1 / 2 * parameters / 2))
    assert run(Even(), Single(), 1).traffic is run(Even(), Pipeline(stages=4), 1).traffic is None


def test_no_overlap_and_perfect_overlap_bound_what_is_planned():
    for parallel in (DDP(replicas=4), FSDP2(shards=4), FSDP2(shards=4, reshard_after_forward=False)):
        for link in (0.1, 1, 10, 100):
            found = run(Even(), parallel, link)
            perfect, none = bounds(found)
            assert perfect <= found.step_seconds <= none
            beside = max(found.optimizer_seconds)
            assert none == pytest.approx(compute_seconds(found) + found.traffic.seconds + beside)
            if isinstance(parallel, FSDP2):
                longer = max(compute_seconds(found), found.traffic.seconds)
                assert perfect == pytest.approx(longer + beside)
                assert perfect == pytest.approx(found.step_seconds, rel=0.12), link  # one layer ahead hides nearly all


@pytest.mark.parametrize("count", [4, 8, 32])
@pytest.mark.parametrize("schedule", [OneFOneB(), GPipe()])
def test_the_bubble_factor_of_even_stages_is_that_of_the_simulation(count, schedule):
    parallel = Pipeline(stages=4, schedule=schedule, cuts=(2, 2, 2, 2))
    found = run(Even(), parallel, 10_000, batch_size=count)
    mean = sum(found.simulation.busy) / 4
    assert found.simulation.makespan / mean == pytest.approx(even_factor(4, count), rel=0.02)


@pytest.mark.parametrize(("size", "schedule"), [(1, OneFOneB()), (4, GPipe())])
def test_at_the_break_even_both_take_the_same_time(size, schedule):
    piped = run(Even(), Pipeline(stages=4, schedule=schedule), 3)
    sharded = run(Even(), FSDP2(shards=4), 3, microbatch_size=size)
    even = break_even(sharded, piped)
    assert even is not None
    assert even.link_perfect is not None
    assert even.link_none is not None
    assert even.link_perfect < even.link_none
    at_perfect = run(Even(), FSDP2(shards=4), even.link_perfect / 1e9, microbatch_size=size)
    at_none = run(Even(), FSDP2(shards=4), even.link_none / 1e9, microbatch_size=size)
    assert bounds(at_perfect)[0] == pytest.approx(piped.step_seconds, rel=1e-6)
    assert bounds(at_none)[1] == pytest.approx(piped.step_seconds, rel=1e-6)
    assert even.pipeline_wins == (even.rho > even.bubble_factor) == (bounds(sharded)[0] > piped.step_seconds)
    assert even.tokens_per_pass == 4 * size * 512
    assert even.tokens_perfect == pytest.approx(even.tokens_per_pass * even.rho / even.bubble_factor)


def test_every_row_is_what_its_own_plan_says(even):
    assert len(even["strategies"]) >= 6
    names = {**vars(__import__("forgather_dsl").specs)}
    for row in even["strategies"]:
        assert row["fits"], row
        values = {"microbatch_size": row["microbatch_size"]}
        alone = replace(Even(), parallel=eval(row["parallel"], names), **values)
        found = predict(replace(alone, hardware="4x80GB,link=3GB/s"), parse("4x80GB,link=3GB/s"))
        assert row["tokens_per_second"] == pytest.approx(found.tokens_per_second)
        assert row["peak_gib"] == pytest.approx(max(rank.total for rank in found.memory.ranks) / 2**30)
        assert row["tokens_per_second_none"] <= row["tokens_per_second"] <= row["tokens_per_second_perfect"] * 1.0001
        assert row["rho"] == pytest.approx(row["communication_seconds"] / row["compute_seconds"])


def test_rows_are_in_order_and_one_is_this(even):
    speeds = [row["tokens_per_second"] for row in even["strategies"]]
    assert speeds == sorted(speeds, reverse=True)
    assert [row["parallel"] for row in even["strategies"] if row["this"]] == ["Pipeline(stages=4)"]
    assert even["strategies"][0]["verdict"] == "the fastest that fits"
    kinds = {row["family"] for row in even["strategies"]}
    assert kinds == {"Single", "DDP", "FSDP2", "Pipeline", "Pipeline, searched", "Pipeline x replicas"}


def test_a_slow_link_is_a_pipelines_and_a_fast_one_with_a_large_batch_is_not():
    slow = to_dict(plan(Even(), "4x80GB,link=0.3GB/s", strategies=True))
    assert slow["strategies"][0]["family"].startswith("Pipeline")
    assert slow["break_even"]["pipeline_wins"]
    assert "the pipeline wins, however well that is hidden" in sentences(slow)[0]
    (sharded,) = [r for r in slow["strategies"] if r["family"] == "FSDP2" and r["microbatch_size"] == 1]
    assert "a pipeline waits for" in sharded["verdict"]
    fast = to_dict(plan(Even(batch_size=64, microbatch_size=16), "4x80GB,link=400GB/s", strategies=True))
    assert fast["strategies"][0]["family"] in ("DDP", "FSDP2")
    assert not fast["break_even"]["pipeline_wins"]
    assert "the pipeline loses" in sentences(fast)[0]
    (own,) = [row for row in fast["strategies"] if row["this"]]
    assert "slower" in own["verdict"]


def test_a_larger_microbatch_is_a_row_of_its_own_where_it_is_faster(even):
    sharded = [row for row in even["strategies"] if row["family"] == "FSDP2"]
    assert [len(row["lines"]) for row in sharded] == [2, 1]
    assert sharded[0]["lines"] == ["parallel = " + sharded[0]["parallel"], "microbatch_size = 4"]
    assert sharded[0]["tokens_per_second"] > 1.02 * sharded[1]["tokens_per_second"]


def test_what_cannot_be_says_why():
    experiment = Even(batch_size=6)
    rows = {row["family"]: row for row in strategies_of(compared(experiment, 4, parse("4x80GB")))}
    assert "6 sequences do not divide among 4 replicas" in rows["DDP"]["verdict"]
    assert rows["DDP"]["peak_gib"] is rows["DDP"]["rho"] is None
    assert rows["Pipeline"]["fits"]


def test_what_does_not_fit_says_by_how_much():
    cards = parse("4x1GB")
    rows = {row["family"]: row for row in strategies_of(compared(Even(), 4, cards, known=[predict(Even(), cards)]))}
    assert "does not fit: rank 0 needs" in rows["DDP"]["verdict"]
    assert "of 1.0 GiB" in rows["DDP"]["verdict"]


def test_one_card_has_nothing_to_compare():
    data = to_dict(plan(Even(parallel=Single()), "80GB", strategies=True))
    assert data["strategies"] == []
    assert data["break_even"] is None


def test_a_model_that_is_not_known_has_rows_without_times():
    experiment = Even(model=Strange(vocab_size=5000, dim=96, num_layers=4))
    data = to_dict(plan(experiment, strategies=True))
    assert all(row["tokens_per_second"] is None for row in data["strategies"])
    assert data["break_even"] is None
    assert strategies_table(data)[1]


def test_collectives_run_at_what_was_measured_for_them():
    cards = parse("4x80GB,link=8GB/s,gather=2GB/s,latency=0.001ns")
    found = predict(Even(parallel=FSDP2(shards=4)), cards)
    assert found.traffic is not None
    assert found.traffic.seconds == pytest.approx(found.traffic.bytes / 2e9)


def test_the_best_row_is_the_fastest_that_fits():
    experiment = Even()
    cards = parse("4x80GB,link=3GB/s")
    rows = compared(experiment, 4, cards, known=[predict(experiment, cards)])
    fitting = [row for row in rows if row.fits]
    chosen, kept = best(rows), best(rows, keeping=True)
    assert chosen is not None
    assert kept is not None
    assert chosen.seconds == min(row.seconds for row in fitting)
    assert kept.experiment.microbatch_size == 1
