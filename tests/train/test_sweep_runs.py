"""A sweep whose members really train: each is the run that Trainer makes, side by side or not, and goes on after a stop."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import losses, weights

from forgather_dsl import Sweep, Trainer, UserError, replace

pytestmark = pytest.mark.exhaustive


def test_members_are_the_runs_that_the_trainer_makes(small: Any, tmp_path: Path) -> None:
    one, two = small.Small(steps=3), small.HardPP2(steps=3)
    wrong = small.Small(steps=3, optimizer=small.AdamW(lr=1e30), clip_norm=None, guard=small.Guard(max_skipped=1))
    sweep = Sweep({"one": one, "wrong": wrong, "two": two}, out=str(tmp_path / "sweep"), jobs=3, model=False)
    with pytest.raises(UserError, match="1 of 3 failed:\nwrong: diverged"):
        sweep.fit()
    for run, experiment in zip(sweep.runs, (one, two), strict=True):
        alone = Trainer(experiment, out=str(tmp_path / type(experiment).__name__)).fit()
        assert losses(run.path) == losses(alone.path)
        assert run.environment["sweep"]["jobs"] == 3
        assert "sweep" not in alone.environment


def test_a_sweep_that_was_stopped_goes_on_with_the_same_bits(small: Any, tmp_path: Path) -> None:
    experiment, out = small.Small(steps=400, log_every=1), tmp_path / "sweep"

    def stop() -> None:
        for _ in range(2000):
            for metrics in out.glob("*/metrics.jsonl"):
                if metrics.read_text().count("\n") > 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(UserError) as stopped:
        Sweep([experiment], out=str(out), model=False).fit()
    thread.join()
    assert stopped.value.exit_code == 130
    (member,) = json.loads((out / "sweep.json").read_text())["members"]
    assert member["state"] == "interrupted"
    assert "saved" in member["reason"]
    (run,) = Sweep([experiment], out=str(out), model=False).fit()
    whole = Trainer(experiment, out=str(tmp_path / "whole")).fit()
    assert losses(run.path) == losses(whole.path)
    again, first = weights(run.path), weights(whole.path)
    assert all(again[name].equal(first[name]) for name in first)
    assert replace(experiment, seed=1) != run.experiment
