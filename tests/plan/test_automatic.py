"""`Auto` and searched orders in an experiment: from its hardware and its profile, written to the plan, refused where impossible."""

from __future__ import annotations

import json

import pytest

from forgather_dsl import Auto, Experiment, Llama, Pipeline, ZeroBubble, patch
from forgather_dsl.dsl import ConfigError, check, replace
from forgather_dsl.plan import automatic
from forgather_dsl.plan.layout import from_dict, lay_out, to_dict
from forgather_dsl.plan.model_costs import model_costs
from forgather_dsl.plan.simulate import simulate
from forgather_dsl.plan.validity import problems


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path_factory.mktemp("cache")))


class Eight(Experiment):
    """Eight layers on two cards."""

    hardware = "2x24GB,link=12GB/s"
    steps = 1
    seq_len = 512
    batch_size = 8
    microbatch_size = 1
    model = patch(Llama, vocab_size=4096, dim=1024, num_layers=8, num_heads=8)
    parallel = Pipeline(stages=2, schedule=Auto())


def test_the_choice_is_valid_fits_and_goes_into_the_plan(monkeypatch):
    check(Eight())
    layout = lay_out(Eight())
    assert problems(layout.schedule) == []
    assert simulate(layout.schedule, model_costs(Eight(), layout.schedule.placement, layout.layers)).fits
    assert layout.schedule.name in layout.reason or "searched" in layout.reason
    assert from_dict(json.loads(json.dumps(to_dict(layout)))) == layout
    monkeypatch.setattr(automatic, "choose", lambda *_: pytest.fail("searched again"))
    assert lay_out(Eight()) == layout


def test_cuts_are_kept_and_wrong_ones_refused():
    def cut(*cuts):
        return replace(Eight(), parallel=replace(Eight().parallel, cuts=cuts))

    assert [len(layers) for layers in lay_out(cut(1, 3, 2, 2)).layers] == [1, 3, 2, 2]
    with pytest.raises(ConfigError, match=r"3 numbers; under Auto give 2 \(one stage on each rank\) or 4 \(two\)"):
        lay_out(cut(3, 3, 2))
    with pytest.raises(ConfigError, match="9 stages for 8 layers"):
        lay_out(replace(Eight(), parallel=Pipeline(stages=9, schedule=Auto())))


@pytest.mark.parametrize("schedule", [Auto, ZeroBubble])
def test_measured_times_change_the_plan(schedule, tmp_path):
    """By the profile the last layer takes ten times as long as the others, so its rank gets few of them."""
    fast, slow = dict.fromkeys("FIW", 0.001), dict.fromkeys("FIW", 0.01)
    seconds = {"embedding": dict.fromkeys("FIW", 0.0), "layers": [fast] * 7 + [slow], "head": dict.fromkeys("FIW", 0.0)}
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"device": "x", "seq_len": 512, "microbatch_size": 1, "seconds": seconds}))

    def on_slow_rank(profile):
        layout = lay_out(replace(Eight(), parallel=Pipeline(stages=2, schedule=schedule(profile=profile))))
        rank = layout.schedule.placement[-1]
        return sum(len(s) for s, r in zip(layout.layers, layout.schedule.placement) if r == rank)

    assert on_slow_rank(str(file)) <= 2 < on_slow_rank(None)
    with pytest.raises(ConfigError, match=r"no.json: No such file.*write one with run --profile"):
        on_slow_rank(str(tmp_path / "no.json"))
    file.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        on_slow_rank(str(file))
