"""`AutoParallel`: the fastest row that fits and no slower, what it may change, one rank, refusals."""

from __future__ import annotations

import pytest

from forgather_dsl import (
    DDP,
    FP32,
    FSDP2,
    AutoParallel,
    Experiment,
    InBackward,
    Llama,
    Muon,
    Pipeline,
    Single,
    patch,
)
from forgather_dsl.dsl import ConfigError, UnknownField, check, replace
from forgather_dsl.plan import hardware as machines
from forgather_dsl.plan.choosing import choose, chosen
from forgather_dsl.plan.contract import to_dict
from forgather_dsl.plan.layout import lay_out
from forgather_dsl.plan.planner import plan
from forgather_dsl.specs.experiment import world_size


class Free(Experiment):
    """Neither strategy nor microbatch size is said."""

    steps = 1
    seq_len = 256
    batch_size = 8
    hardware = "2x24GB,link=3GB/s"
    precision = FP32()
    parallel = AutoParallel()
    model = patch(Llama, vocab_size=4096, dim=256, num_layers=4, num_heads=8)


class Kept(Free):
    """A microbatch size that stays."""

    microbatch_size = 1


class Large(Kept):
    """More to compute."""

    seq_len = 512
    model = patch(Llama, dim=1024, num_layers=8, num_heads=16)


FAST = "2x24GB,link=900GB/s,latency=1us"


@pytest.mark.parametrize(("experiment", "gpus"), [(Free(), FAST), (Kept(), None)])
def test_it_is_never_slower_than_the_best_row_that_it_may_take(experiment, gpus):
    found = choose(experiment, gpus)
    assert found.fits
    assert world_size(found.experiment) <= 2
    check(found.experiment)
    kept = isinstance(experiment, Kept)
    rows = [row for row in found.rows if row.fits and (row.keeps_microbatch or not kept)]
    (own,) = [row for row in found.rows if row.own]
    assert own.experiment == found.experiment
    assert own.seconds == min(row.seconds for row in rows)
    assert found.experiment.microbatch_size == 1 or not kept
    assert {row.family for row in rows} >= {"Single", "Pipeline", "DDP", "FSDP2"}
    assert choose(experiment, gpus) == found


@pytest.mark.slow
def test_the_link_decides_between_pipelines_and_sharing_the_batch():
    assert isinstance(chosen(replace(Large(), hardware="2x24GB,link=3GB/s")).parallel, Pipeline)
    assert isinstance(choose(replace(Large(), batch_size=32), FAST).experiment.parallel, (DDP, FSDP2))


def test_one_card_or_none_is_one_process(monkeypatch):
    assert choose(Free(), "24GB").experiment == replace(Free(), hardware="24GB", parallel=Single())
    monkeypatch.setattr(machines, "gpus", lambda: ())
    assert chosen(Free(hardware="auto")).parallel == Single()
    assert "one rank" in choose(Free(), "auto").reason


def test_one_card_that_is_too_small_for_the_whole_batch_gets_smaller_microbatches():
    found = choose(Free(batch_size=64, seq_len=1024), "3GB")
    assert found.fits
    assert found.experiment.microbatch_size < 64
    assert not choose(Free(batch_size=64, seq_len=1024, microbatch_size=64), "3GB").fits


def test_ranks_that_were_started_elsewhere_are_all_used(monkeypatch):
    card = machines.Device("NVIDIA GeForce RTX 4090", 24 * 2**30, "gpu")
    monkeypatch.setattr(machines, "gpus", lambda: (card, card))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    found = choose(Kept(hardware="auto"), ranks=4)  # two machines of two cards each
    assert {world_size(row.experiment) for row in found.rows} == {4}
    with pytest.raises(ConfigError, match=r"is 2 cards, and 3 ranks were started"):
        choose(Free(), ranks=3)


def test_what_a_strategy_refuses_is_left_to_others():
    rows = {row.family: row for row in choose(Kept(optimizer=Muon(), parallel=AutoParallel())).rows}
    assert "Muon makes a whole matrix orthogonal" in rows["FSDP2"].why
    assert rows["DDP"].fits
    assert choose(Kept(update=InBackward(), clip_norm=None)).fits


def test_nothing_fits_and_the_plan_says_what_to_change():
    found = choose(Large(), "2x1500MB")
    assert not found.fits
    assert "nothing fits on 2x1500MB" in found.reason
    data = to_dict(plan(Large(), "2x1500MB"))
    assert not data["fits"]
    assert any(line.startswith("parallel = ") for line in data["advice"])
    assert data["advice"][-1].endswith("fits")
    assert data["choice"].startswith("nothing fits")


def test_its_plan_marks_what_it_became():
    data = to_dict(plan(Kept()))
    (own,) = [row for row in data["strategies"] if row["this"]]
    assert own["parallel"] in data["choice"]
    assert data["notes"][0] == f"AutoParallel: {data['choice']}"
    assert own["tokens_per_second"] == pytest.approx(data["tokens_per_second"])


def test_it_is_not_laid_out_before_it_is_chosen():
    with pytest.raises(ConfigError, match="AutoParallel"):
        lay_out(Free())
    assert chosen(Free(parallel=Single())) == Free(parallel=Single())


def test_it_has_no_fields_to_contradict():
    with pytest.raises(UnknownField, match="AutoParallel: no field 'stages'"):
        AutoParallel(stages=4)  # type: ignore[call-arg]
