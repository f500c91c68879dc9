"""`AutoRecompute`: the least recomputing that fits, per stage, recorded in the layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgather_dsl import MLP, AutoRecompute, Experiment, FullRecompute, Llama, Pipeline, patch
from forgather_dsl.dsl import ConfigError, check, replace
from forgather_dsl.plan import hardware
from forgather_dsl.plan.contract import to_dict as plan_to_dict
from forgather_dsl.plan.estimate import estimate
from forgather_dsl.plan.hardware import GIB
from forgather_dsl.plan.layout import Layout, from_dict, lay_out, to_dict
from forgather_dsl.plan.planner import Plan
from forgather_dsl.plan.prediction import predict
from forgather_dsl.plan.recompute import _found
from forgather_dsl.specs.recompute import POLICIES

GALLERY = Path(__file__).parents[2] / "experiments"
NAMES = list(POLICIES)


class Wide(Experiment):
    """Four cards whose memory decides."""

    steps = 1
    seq_len = 2048
    batch_size = 16
    microbatch_size = 1
    hardware = "4x3GB"
    recompute = AutoRecompute(leave_gib=0.1)
    parallel = Pipeline(stages=4)
    model = patch(Llama, vocab_size=8000, dim=1024, num_layers=16, num_heads=16, ffn_dim=2816)


def with_cards(gib: float) -> Experiment:
    return Wide(hardware=f"4x{gib:g}GB")


def test_large_cards_recompute_nothing_and_small_ones_everything() -> None:
    assert lay_out(with_cards(80)).recompute == ("none",) * 4
    assert lay_out(with_cards(0.7)).recompute == ("full",) * 4


def test_last_ranks_hold_fewer_microbatches_and_recompute_no_more_than_the_first() -> None:
    layout = lay_out(with_cards(2.5))
    ranks = [NAMES.index(name) for name in layout.recompute]
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) > 1
    _found.cache_clear()
    assert layout == lay_out(with_cards(2.5))


def test_what_is_chosen_fits_and_leaves_what_it_should() -> None:
    experiment = with_cards(3)
    assert all(rank.total <= 2.9 * GIB for rank in estimate(experiment, on_gpu=True).ranks)


def test_a_choice_is_at_least_as_fast_as_full_recomputing_everywhere() -> None:
    found = hardware.parse("4x3GB")
    chosen, full = (predict(e, found) for e in (with_cards(3), replace(with_cards(3), recompute=FullRecompute())))
    assert chosen.step_seconds < full.step_seconds


def test_the_choice_is_in_the_layout_and_in_the_plan() -> None:
    experiment = with_cards(3)
    layout = lay_out(experiment)
    assert from_dict(to_dict(layout)) == layout
    data = plan_to_dict(Plan(predict(experiment, hardware.parse("4x3GB")), "4x3GB"))
    assert tuple(rank["stages"][0]["recompute"] for rank in data["ranks"]) == layout.recompute
    broken = to_dict(layout) | {"recompute": ["none"]}
    with pytest.raises(ValueError, match="1 recompute policies for 4 stages"):
        from_dict(broken)
    with pytest.raises(ConfigError, match="this layout was made without it"):
        Layout(layout.schedule, layout.layers).policies(experiment)


class Mine(MLP["nowhere.MLP"]):
    """Somebody's own."""


class Wise(MLP["nowhere.MLP"]):
    """Somebody's own, a token at a time."""

    __token_wise__ = True


def test_tiles_are_refused_for_what_is_not_known_to_go_token_by_token() -> None:
    def tiled(mlp: MLP) -> Experiment:
        return Wide(recompute=FullRecompute(mlp_tiles=2), model=replace(Wide().model, mlp=mlp))

    with pytest.raises(ConfigError, match="Mine is not known to treat each token by itself"):
        check(tiled(Mine()))
    check(tiled(Wise()))
    check(tiled(Wide().model.mlp))
