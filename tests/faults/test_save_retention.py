"""Which checkpoints stay, by themselves and in runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saving_experiments import small
from saving_ranks import Alone, contents, save_one, tensors, value_of

from forgather_dsl import Checkpoints, Run, Trainer
from forgather_dsl.cli.app import run_command
from forgather_dsl.train.checkpoint import Keep, Saver, newest, retention
from forgather_dsl.train.checkpoint.retention import Entry, reasons

keeps = st.builds(Keep, st.integers(1, 4), st.none() | st.integers(1, 7), st.integers(0, 3))
losses = st.none() | st.floats(0, 9) | st.sampled_from([1.0, 2.0])


@given(st.dictionaries(st.integers(1, 40), st.lists(losses, min_size=1, max_size=2), min_size=1), keeps)
def test_what_stays_is_the_last_the_nth_and_the_best(written: dict[int, list[float | None]], keep: Keep) -> None:
    entries = [
        Entry(f"{step}-{copy}", step, loss)
        for step in sorted(written, reverse=True)
        for copy, loss in reversed(list(enumerate(written[step])))
    ]
    stay = {entry for entry in entries if reasons(entries, keep)[entry.path]}
    current = {step: copies[-1] for step, copies in written.items()}  # the later of two
    steps = sorted(current)
    expected = set(steps[-keep.last :])
    expected |= {step for step in steps if keep.every and step % keep.every == 0}
    evaluated = [step for step in steps if current[step] is not None]
    expected |= set(sorted(evaluated, key=lambda step: (current[step], -step))[: keep.best])
    assert {entry.step for entry in stay} == expected
    assert all(entry.path == f"{entry.step}-{len(written[entry.step]) - 1}" for entry in stay)
    assert entries[0] in stay


@settings(deadline=None, max_examples=20)
@given(st.data(), keeps)
def test_after_every_save_the_newest_is_whole(tmp_path_factory: pytest.TempPathFactory, data: Any, keep: Keep) -> None:
    """Saves in any order of steps, as runs that go on from an older checkpoint make them."""
    where = tmp_path_factory.mktemp("kept")
    saver = Saver(str(where), Alone(), keep)
    for number, step in enumerate(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))):
        saver.forget()
        loss = data.draw(losses)
        path = saver.save(contents(step, tensors(0, float(number), count=1), eval_loss=loss), wait=True)
        saved = newest(str(where), Alone())
        assert saved is not None
        assert (saved.path, saved.step, value_of(saved)) == (path, step, number)
        entries = retention.complete(str(where))
        assert len(os.listdir(where)) == len(entries)
        assert all(reasons(entries, keep).values())


def test_what_is_damaged_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_one(tmp_path, step)
    (tmp_path / "step-00000003" / "rank-0.safetensors").unlink()
    save_one(tmp_path, 4, keep=Keep(2))
    assert sorted(os.listdir(tmp_path)) == ["step-00000002", "step-00000003", "step-00000004"]


def test_a_later_start_deletes_what_an_earlier_one_left_half_done(tmp_path: Path) -> None:
    save_one(tmp_path, 1)
    for name in (".step-00000002.partial", ".trash-step-00000000-17"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rank-0.safetensors").write_text("half")
    for name in ("notes", ".hidden", "step-00000001.bad"):
        (tmp_path / name).mkdir()
    Saver(str(tmp_path), Alone())
    assert sorted(os.listdir(tmp_path)) == [".hidden", "notes", "step-00000001", "step-00000001.bad"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps of a run, kept by all three rules."""
    folder = tmp_path_factory.mktemp("runs")
    out = folder / "run"
    checkpoints = Checkpoints(keep_last=1, keep_every=5, keep_best=2)
    experiment = small(folder, steps=8, save_every=1, eval_every=2, checkpoints=checkpoints)
    Trainer(experiment, out=str(out)).fit()
    return out


def test_a_run_keeps_the_best_by_evaluation(run: Path) -> None:
    evaluated = dict(Run(str(run)).series("eval_loss"))
    assert sorted(evaluated) == [2, 4, 6, 8]
    best = sorted(evaluated, key=lambda step: evaluated[step])[:2]
    assert {int(path.name[5:]) for path in (run / "checkpoints").iterdir()} == {*best, 5, 8}
    for entry in retention.complete(str(run / "checkpoints")):
        assert entry.eval_loss == evaluated.get(entry.step)


def test_checkpoints_are_listed_with_the_reason_they_stay(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["checkpoints", str(run), "--json", "--verify"]) == 0
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert rows[0]["step"] == 8
    assert rows[0]["kept"][0] == "last 1"
    assert {why for row in rows for why in row["kept"]} == {"last 1", "every 5", "best 2"}
    assert [row["tokens"] for row in rows] == [row["step"] * 4 * 32 for row in rows]
    assert all(row["problem"] is None and row["bytes"] > 100_000 and row["age_seconds"] < 600 for row in rows)
    assert run_command(["checkpoints", str(run)]) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["step", "size", "tokens", "eval", "loss", "age", "path", "kept"]
    assert first.startswith("8 ")
    assert f"{run}/checkpoints/step-00000008  last 1" in first


def test_verify_finds_damage_and_says_so_with_the_exit_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / "step-00000008" / "rank-0.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert run_command(["checkpoints", str(run)]) == 0  # without reading everything nothing is seen
        assert run_command(["checkpoints", str(run), "--verify"]) == 4
        out, err = capsys.readouterr()
        assert "rank-0.safetensors does not match its hash" in out
        assert (
            f"error: 1 of {out.count(str(run)) // 2} checkpoints cannot be used: {run}/checkpoints/step-00000008" in err
        )
    finally:
        file.write_bytes(whole)


def test_a_folder_that_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["checkpoints", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
