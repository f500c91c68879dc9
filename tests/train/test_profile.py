"""Measured times of a model's parts: what is measured, once each, and what is made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from forgather_dsl import Cycle, GroupedQueryAttention, SlidingWindow, patch
from forgather_dsl.dsl import replace, to_dict
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


def test_a_process_of_its_own_measures_a_run(small: Any, tmp_path: Path) -> None:
    """Every kind of action takes time in every layer, recomputing and tied weights included."""
    experiment = replace(small.Hard(), microbatch_size=4)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(experiment)))
    files = [str(tmp_path / "config.json"), str(tmp_path / "profile.json")]
    subprocess.run([sys.executable, "-m", "forgather_dsl.train.profile", *files], check=True, timeout=240)
    found = json.loads((tmp_path / "profile.json").read_text())
    assert (found["seq_len"], found["microbatch_size"], found["num_layers"]) == (32, 4, 4)
    assert all(layer[kind] > 0 for layer in found["seconds"]["layers"] for kind in "FIW")
    assert found["seconds"]["head"]["F"] >= 0
