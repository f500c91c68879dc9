"""What may change when a run goes on, what is refused and how that is said, and what a longer stop does to the learning rate."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgather_dsl import (
    AdamW,
    Bytes,
    Checkpoints,
    Constant,
    Experiment,
    FullRecompute,
    Guard,
    Llama,
    Muon,
    Pipeline,
    Sampling,
    Spike,
    TextFiles,
    UserError,
    WarmupCosine,
    patch,
    replace,
)
from forgather_dsl.train import directory
from forgather_dsl.train.changes import FREE, refuse_changes
from forgather_dsl.train.checkpoint import manifest


class Mine(Experiment):
    seq_len, batch_size, microbatch_size, steps, sampling = 32, 8, 4, 100, None
    tokenizer, optimizer, save_every = Bytes(), AdamW(lr=1e-3), 10
    data = TextFiles(paths="corpus", held_out=0.2)
    model = patch(Llama, dim=32, num_layers=4, num_heads=2)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A run of `Mine`, stopped at step 50 after 1,000 tokens and 20 seconds."""
    folder = tmp_path / "run"
    directory.write(Mine(), str(folder), None, None)
    reached(folder, 50)
    return str(folder)


def reached(folder: Path, step: int) -> None:
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    state = {"tokens": 1000, "seconds": 20.0}
    written = {"step": step, "saved": 0.0, "state": state, "files": {}, "slices": {}, "scalars": {}, "rng": []}
    (place / manifest.NAME).write_bytes(manifest.encode(written))


FREELY: dict[str, Any] = {
    "parallel": Pipeline(stages=2),
    "recompute": FullRecompute(),
    "deterministic": False,
    "hardware": "2x24GB",
    "loggers": (),
    "checkpoints": Checkpoints(keep_last=7),
    "sampling": Sampling(),
    "eval_sets": {"more": TextFiles(paths="corpus", held_out=0.5)},
    "watchdog": None,
    "log_every": 3,
    "eval_every": 5,
    "save_every": None,
    "sample_every": 4,
}


def test_every_free_field_is_here() -> None:
    assert set(FREELY) == set(FREE)


@pytest.mark.parametrize("name", FREELY)
def test_what_changes_nothing_that_is_learned_may_change(path: str, name: str) -> None:
    lines = refuse_changes(replace(Mine(), **{name: FREELY[name]}), path, False)
    assert lines
    assert all(line.split(":")[0].split(".")[0].split("[")[0] == name for line in lines), lines


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda: replace(Mine(), seed=1), "seed: 0 -> 1"),
        (lambda: replace(Mine(), optimizer=Muon()), "optimizer: AdamW -> Muon"),
        (lambda: replace(Mine(), optimizer=AdamW(lr=0.5)), "optimizer.lr: 0.001 -> 0.5"),
        (lambda: replace(Mine(), model=patch(Llama, dim=64)), "model.dim: 32 -> 64"),
        (lambda: replace(Mine(), batch_size=16), "batch_size: 8 -> 16"),
        (lambda: replace(Mine(), microbatch_size=2), "microbatch_size: 4 -> 2"),
        (lambda: replace(Mine(), data=TextFiles(paths="other", held_out=0.2)), "data.paths: ('corpus',) -> ('other',)"),
        (lambda: replace(Mine(), clip_norm=None), "clip_norm: 1.0 -> None"),
        (lambda: replace(Mine(), lr_schedule=Constant()), "lr_schedule: WarmupCosine -> Constant"),
        (lambda: replace(Mine(), steps=99), "steps: 100 -> 99; only a later stop is free"),
        (lambda: replace(Mine(), tokens=10), "tokens: None -> 10; only a later stop is free"),
        (
            lambda: replace(Mine(), guard=Guard(spike=Spike(rollback=True))),
            "guard.spike.rollback: False -> True; a run that goes back to a checkpoint learns from other data",
        ),
    ],
)
def test_what_makes_it_another_run_is_refused_and_may_be_allowed(
    path: str, changed: Callable[[], Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        refuse_changes(changed(), path, False)
    assert caught.value.exit_code == 2
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path} holds a run of another configuration:"
    assert any(
        line.startswith(f"  {said.partition(';')[0]}") and line.endswith(said.partition(";")[2]) for line in lines
    )
    assert "--resume never" in lines[-1]
    assert "--allow-change" in lines[-1]
    assert any(line.startswith(said.partition(";")[0]) for line in refuse_changes(changed(), path, True))


def test_all_differences_are_said_at_once_with_the_lines_that_made_them(path: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent(
            """
            from forgather_dsl import *

            class Mine(Experiment):
                seq_len, batch_size, microbatch_size, steps, sampling = 32, 8, 4, 100, None
                tokenizer, save_every = Bytes(), 10
                data = TextFiles(paths="corpus", held_out=0.2)
                model = patch(Llama, dim=32, num_layers=4, num_heads=2)
                seed = 3
                optimizer = AdamW(lr=2e-3)
                log_every = 7
            """
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "forgather_dsl", "run", f"{file}:Mine", "--out", path],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"  seed: 0 -> 3 ({file}:9)" in done.stderr
    assert f"  optimizer.lr: 0.001 -> 0.002 ({file}:10)" in done.stderr
    assert "these may change, and would:" in done.stderr
    assert f"  log_every: 10 -> 7 ({file}:11)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_guard_that_never_goes_back_may_change(path: str) -> None:
    for guard in (Guard(max_skipped=9), Guard(spike=None), Guard(spike=Spike(threshold=8.0, steps=4))):
        assert refuse_changes(replace(Mine(), guard=guard), path, False)


def test_where_rollbacks_are_on_only_the_number_of_skipped_steps_may_change(tmp_path: Path) -> None:
    on = Guard(spike=Spike(rollback=True))
    directory.write(replace(Mine(), guard=on), str(tmp_path), None, None)
    assert refuse_changes(replace(Mine(), guard=replace(on, max_skipped=7)), str(tmp_path), False)
    for spike in (Spike(rollback=True, threshold=9.0), Spike(), None):
        with pytest.raises(UserError, match="learns from other data"):
            refuse_changes(replace(Mine(), guard=Guard(spike=spike)), str(tmp_path), False)


def test_a_longer_stop_says_what_becomes_of_the_learning_rate(path: str) -> None:
    change, effect = refuse_changes(replace(Mine(), steps=200), path, False)
    assert change.startswith("steps: 100 -> 200")
    # half a cosine from 1 to 0.1 after a warm-up of 2 %: at 50 % and at 25 % of the run
    before, after = 0.1 + 0.9 * 0.5 * 1.0320515, 0.1 + 0.9 * 0.5 * 1.7402  # 1 + cos(pi * 0.48 / 0.98), of 0.23 / 0.98
    assert effect == (
        "WarmupCosine follows the new stop: step 50 is 50 % of the old run, 25 % of the new one; the learning rate there "
        f"goes from {before:.3g} to {after:.3g} of its peak"
    )
    assert refuse_changes(Mine(), path, False) == []


def test_without_a_checkpoint_or_an_effect_no_more_is_said_than_there_is(tmp_path: Path) -> None:
    constant = replace(Mine(), lr_schedule=Constant())
    directory.write(constant, str(tmp_path / "run"), None, None)
    assert len(refuse_changes(replace(constant, steps=200), str(tmp_path / "run"), False)) == 1
    reached(tmp_path / "run", 50)
    reached(tmp_path / "run", 60)
    (tmp_path / "run" / "checkpoints" / "step-00000060" / "manifest.json").write_text("{")  # the one before counts
    _, effect = refuse_changes(replace(constant, steps=None, tokens=4000), str(tmp_path / "run"), True)[-2:]
    assert effect == (
        "Constant: step 50 is 50 % of the old run, 25 % of the new one; the learning rate there stays 1 of its peak"
    )


def test_the_default_schedule_is_the_one_above() -> None:
    assert Mine().lr_schedule == WarmupCosine(warmup=0.02, final=0.1)
