"""The planner: its JSON, sums that must agree, advice that is applied and then fits, other numbers of cards, other schedules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forgather_dsl
from forgather_dsl import (
    Experiment,
    GPipe,
    Llama,
    Model,
    OneFOneB,
    Pipeline,
    Single,
    ZeroBubble,
    ZeroBubbleH1,
    patch,
)
from forgather_dsl.dsl import ConfigError, load, replace
from forgather_dsl.plan.changes import schedules
from forgather_dsl.plan.contract import to_dict
from forgather_dsl.plan.hardware import parse
from forgather_dsl.plan.planner import plan
from forgather_dsl.plan.prediction import predict

GALLERY = Path(__file__).parents[2] / "experiments"
KINDS = {"weights", "gradients", "optimizer", "activations", "buffers", "loss", "overhead"}


class Wide(Experiment):
    """A pipeline whose memory and time can be followed by hand."""

    steps = 1
    seq_len = 1024
    batch_size = 16
    microbatch_size = 1
    hardware = "4x24GB"
    parallel = Pipeline(stages=4, schedule=OneFOneB())
    model = patch(Llama, vocab_size=32_000, dim=2048, num_layers=16, num_heads=16)


class Strange(Model["nowhere.Model"]):
    """Somebody's own model."""


def gallery(name):
    return load(f"{GALLERY / 'llama7b.py'}:{name}")()


def test_the_json_has_what_was_promised():
    data = json.loads(json.dumps(to_dict(plan(Wide()), "wide.py:Wide")))
    promised = {"target", "gpus", "schedule", "fits", "bubble", "step_seconds", "tokens_per_second", "assumptions"}
    assert promised | {"ranks", "comparison", "advice"} <= set(data)
    assert (data["target"], data["gpus"], data["schedule"]) == ("wide.py:Wide", "4x24GB", "OneFOneB()")
    assert [rank["rank"] for rank in data["ranks"]] == [0, 1, 2, 3]
    for rank in data["ranks"]:
        assert set(rank["memory_gib"]) == KINDS
        assert sum(rank["memory_gib"].values()) == pytest.approx(rank["peak_gib"])
        assert {"stage", "layers", "cost"} <= set(rank["stages"][0])
        assert rank["busy_seconds"] > 0
    assert sum(stage["layers"] for rank in data["ranks"] for stage in rank["stages"]) == 16
    for row in data["comparison"]:
        assert {"schedule", "bubble", "peak_gib", "tokens_per_second", "fits"} <= set(row)


def test_time_is_the_pipeline_and_then_the_optimizer():
    data = to_dict(plan(Wide()))
    seconds = [sum(stage["cost"] for stage in rank["stages"]) for rank in data["ranks"]]
    assert [rank["busy_seconds"] for rank in data["ranks"]] == pytest.approx([16 * s for s in seconds])
    pipeline = data["step_seconds"] - max(rank["optimizer_seconds"] for rank in data["ranks"])
    assert data["ranks"][0]["busy_seconds"] == pytest.approx(pipeline * (1 - data["ranks"][0]["bubble"]))
    assert data["tokens_per_second"] == pytest.approx(16 * 1024 / data["step_seconds"])
    assert data["bubble"] == pytest.approx(sum(rank["bubble"] for rank in data["ranks"]) / 4)


def test_adamw_moves_its_state_once():
    """By hand: fp32 weights with a bf16 copy of the matrices, fp32 gradients and two moments, read and written."""
    data = to_dict(plan(Wide(hardware="4x24GB,bandwidth=1TB/s")))
    layer = 4 * 2048**2 + 3 * 2048 * 5632
    moved = 2 * 4 * (layer * (4 + 2 + 4 + 8) + 2 * 2048 * (4 + 4 + 8))
    assert data["ranks"][1]["stages"][0]["layers"] == 4
    assert data["ranks"][1]["optimizer_seconds"] == pytest.approx(moved / 0.8e12)


def test_the_floor_is_that_of_a_synchronous_optimizer():
    """Stages alike and no head to speak of: (ranks - 1) * (forward + message) beside what a rank has to do."""
    experiment = Wide(model=replace(Wide().model, vocab_size=16_000), parallel=Pipeline(stages=4, cuts=(4, 4, 4, 4)))
    run = predict(experiment, parse("4x24GB"))
    message = run.costs.latency + run.costs.transfer
    least, _ = run.floor
    waiting = sum(run.costs.forward[:3]) + 3 * message
    assert least == pytest.approx(waiting + run.simulation.busy[3])
    for schedule in (OneFOneB(), ZeroBubbleH1(), GPipe()):
        other = predict(replace(experiment, parallel=replace(experiment.parallel, schedule=schedule)), parse("4x24GB"))
        assert other.simulation.makespan >= least


@pytest.mark.parametrize(("gpus", "parallel"), [("1x24GB", Single), ("2x24GB", Pipeline), ("16x24GB", Pipeline)])
def test_another_number_of_cards_is_another_number_of_ranks_and_says_so(gpus, parallel):
    found = plan(Wide(), gpus)
    count = int(gpus.partition("x")[0])
    assert len(found.run.memory.ranks) == count
    assert isinstance(found.run.experiment.parallel, parallel)
    assert f"{gpus} is {count} card" in found.notes[0]
    assert not plan(Wide()).notes


def test_more_cards_than_layers_are_refused():
    with pytest.raises(ConfigError, match=r"16 layers.*name 16 cards or fewer"):
        plan(Wide(), "17x24GB")
    with pytest.raises(ConfigError, match="not a card"):
        plan(Wide(), "many")


def test_every_schedule_is_compared_and_the_impossible_ones_say_why(monkeypatch):
    from forgather_dsl.plan import planner

    class Picky(forgather_dsl.Schedule["nowhere.picky"]):
        """Takes no fewer than a thousand microbatches."""

        def __build__(self, build, **runtime):
            raise ValueError("it takes 1000 microbatches; write microbatch_size=...")

    listed = schedules()
    monkeypatch.setattr(planner, "schedules", lambda: [*listed, Picky()])
    rows = {row["schedule"]: row for row in to_dict(plan(Wide()))["comparison"]}
    assert {"GPipe()", "OneFOneB()", "ZeroBubbleH1()", "ZeroBubble()"} <= set(rows)
    assert rows["GPipe()"]["peak_gib"] > rows["OneFOneB()"]["peak_gib"]
    assert rows["ZeroBubbleH1()"]["bubble"] < rows["OneFOneB()"]["bubble"]
    assert rows["Picky()"] == {
        "schedule": "Picky()",
        "bubble": None,
        "peak_gib": None,
        "tokens_per_second": None,
        "fits": False,
        "why": "it takes 1000 microbatches; write microbatch_size=...",
    }


def test_the_comparison_has_the_experiments_own_schedule_as_it_is_written():
    schedule = ZeroBubble(memory_cap=2)
    data = to_dict(plan(Wide(parallel=Pipeline(stages=4, schedule=schedule))))
    (own,) = [row for row in data["comparison"] if row["schedule"].startswith("ZeroBubble(")]
    assert own["schedule"] == data["schedule"] == "ZeroBubble(memory_cap=2)"
    assert own["bubble"] == data["bubble"]


def test_a_model_that_is_not_known_has_no_times():
    data = to_dict(plan(Wide(model=Strange(vocab_size=5000, dim=96, num_layers=4))))
    assert data["tokens_per_second"] is data["step_seconds"] is data["mfu"] is None
    assert data["left_out"] == ["the layers of Strange"]


def applied(experiment, lines):
    """The lines pasted into a class body below the experiment's own class."""
    names = {name: getattr(forgather_dsl, name) for name in ("patch", *forgather_dsl.specs.__all__)}
    body = "\n".join(f"    {line}" for line in lines)
    exec(f"class Better(Base):\n{body}", {**names, "Base": type(experiment)}, names)
    return names["Better"]()


class Large(Wide):
    """Does not fit four cards of 24 GB."""

    seq_len = 4096
    batch_size = 32
    microbatch_size = 8
    parallel = Pipeline(stages=4, schedule=ZeroBubbleH1())


class Crowded(Wide):
    """The last rank of four has no room for its share of the layers."""

    parallel = Pipeline(stages=4, cuts=(2, 2, 3, 9))


@pytest.mark.parametrize(
    ("cls", "gpus"),
    [
        pytest.param(Large, "4x24GB", marks=pytest.mark.slow),
        (Large, "2x24GB"),
        pytest.param(Large, "24GB+12GB+24GB+24GB", marks=pytest.mark.slow),
        pytest.param(Large, "4x8GB", marks=pytest.mark.slow),
        (Crowded, "4x8GB"),
    ],
)
def test_advice_can_be_pasted_and_then_it_fits(cls, gpus):
    data = to_dict(plan(cls(), gpus))
    assert not data["fits"]
    assert data["advice"]
    for lines in (data["advice"], *data["alternatives"]):
        changed = applied(cls(), lines)
        on = changed.hardware if any(line.startswith("hardware") for line in lines) else gpus
        again = to_dict(plan(changed, on))
        assert again["fits"], lines
        told = lines[-1].rpartition("#")[2]
        assert f"{max(rank['peak_gib'] for rank in again['ranks']):.1f} GiB for the fullest rank" in told
        assert f"{again['tokens_per_second']:,.0f} tokens/s" in told


def test_the_mildest_change_comes_first():
    """Where layers are and the order of actions leave every number alone, so nothing else is touched where that is enough."""
    data = to_dict(plan(Crowded(), "4x8GB"))
    options = [data["advice"], *[lines for lines in data["alternatives"] if not lines[0].startswith("hardware")]]
    assert {len(lines) for lines in options} == {1}
    assert any(lines[0].startswith("parallel = Pipeline(stages=4, cuts=(") for lines in options)
    assert not any("precision" in line or "optimizer" in line for lines in options for line in lines)


def test_seven_billion_parameters_on_one_card_may_use_the_host_or_more_cards():
    """Both ways are told, as lines that fit when they are pasted."""
    data = to_dict(plan(gallery("PP4OneFOneB"), "1x24GB"))
    assert not data["fits"]
    options = [data["advice"], *data["alternatives"]]
    assert any(line.startswith("update = OnHost(") for line in options[0])
    [hardware] = [lines for lines in options if lines[0].startswith("hardware")]
    assert plan(applied(gallery("PP4OneFOneB"), hardware)).run.fits
    assert plan(applied(gallery("PP4OneFOneB"), options[0]), "1x24GB").run.fits
