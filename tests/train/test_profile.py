"""Measured times of a model's parts: what is measured, once each, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import losses

from forgather_dsl import Cycle, GroupedQueryAttention, SlidingWindow, Trainer, patch
from forgather_dsl.train import profile
from forgather_dsl.train.profile import measure


def test_layers_that_are_built_alike_are_measured_once(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians of the rounds after the first; embedding and head are what the ends take more than a layer."""
    asked = []
    told = {(0, "middle"): 2.0, (1, "middle"): 3.0, (0, "first"): 2.5, (0, "last"): 6.0}

    def runner(experiment: Any, layer: int, where: str, device: Any) -> Any:
        asked.append((layer, where))
        factors = iter([100.0, 1.0, 9.0, 1.0])  # the first run and one slow one do not count
        return lambda: (
            dict.fromkeys("FIW", told[layer, where]) if (f := next(factors)) == 1 else dict.fromkeys("FIW", f)
        )

    monkeypatch.setattr(profile, "_runner", runner)
    attention = Cycle(SlidingWindow(window=8), GroupedQueryAttention())
    experiment = small.Small(model=patch(small.Llama, attention=attention))
    found = measure(experiment, torch.device("cpu"), rounds=3)
    assert sorted(asked) == sorted(told)
    seconds = found["seconds"]
    assert [layer["F"] for layer in seconds["layers"]] == [2.0, 3.0, 2.0, 3.0]
    assert seconds["embedding"] == dict.fromkeys("FIW", 0.5)
    assert seconds["head"] == dict.fromkeys("FIW", 4.0)


def test_a_window_makes_layers_different(small: Any) -> None:
    windows = Cycle(SlidingWindow(window=8), SlidingWindow(window=16))
    signs = profile._signs(small.Small(model=patch(small.Llama, attention=windows)))
    assert signs[0] != signs[1]
    assert signs[0] == signs[2]


@pytest.mark.slow
def test_a_run_measures_first_and_is_planned_with_that(small: Any, tmp_path: Path) -> None:
    """Every kind of action takes time in every layer, recomputing and tied weights included; numerics stay."""
    Trainer(small.HardPP4(), out=str(tmp_path / "modelled")).fit()
    run = Trainer(small.HardPP4(), out=str(tmp_path / "measured"), profile=True).fit()
    file = tmp_path / "measured" / "profile.json"
    found = json.loads(file.read_text())
    assert (found["seq_len"], found["microbatch_size"], found["num_layers"]) == (32, 2, 4)
    assert all(layer[kind] > 0 for layer in found["seconds"]["layers"] for kind in "FIW")
    assert found["seconds"]["head"]["F"] >= 0
    assert run.experiment.parallel.schedule.profile == str(file)  # type: ignore[attr-defined]
    plan = json.loads((tmp_path / "measured" / "plan.json").read_text())
    assert plan["assumptions"]["seconds_measured_on"] == found["device"]
    assert losses(tmp_path / "modelled") == losses(tmp_path / "measured")
