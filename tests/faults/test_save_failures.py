"""Checkpoints that cannot be written: no room, a limit, a file in the way, a rank that fails. Old ones stay, and it is said."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from saving_experiments import small
from saving_ranks import Alone, contents, forked, on_threads, save_one, tensors, value_of

from forgather_dsl import Pipeline, Trainer, UserError
from forgather_dsl.train.checkpoint import Saver, newest, parts, saver, snapshot
from forgather_dsl.train.checkpoint.saver import COMMITTED, FAILED, NOTHING


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    pytest.skip("mounting takes root")


def saved_twice(where: Path, background: bool) -> Saver:
    """A saver of `where`, which holds steps 1 and 2."""
    made = Saver(str(where), Alone(), background=background)
    for step in (1, 2):
        made.save(contents(step, tensors(0, float(step), count=30)), wait=True)
    return made


def outcome(made: Saver) -> int:
    """How the save under way ended, when it has."""
    assert made._writing is not None
    assert made._writing.over.wait(30)
    return made.outcome()


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_gets_full_costs_one_checkpoint(
    small_disk: Path, background: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = small_disk / "checkpoints"  # three checkpoints of 72 kB have room beside one another, four have not
    made = saved_twice(where, background)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(70_000))
    monkeypatch.setattr(saver, "ROOM", 0.0)  # the disk looks large enough, and fills up while it is written
    made.save(contents(3, tensors(0, 3.0, count=30)))
    if background:
        assert capsys.readouterr().err == ""
        made.heed(outcome(made))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the checkpoint of step 3 was not written (rank 0: No space left on device")
    assert line.endswith(f"training goes on; {where}/step-00000002 is kept")
    assert sorted(os.listdir(where)) == ["step-00000001", "step-00000002"]
    with pytest.raises(
        UserError, match=r"step 4 was not written \(rank 0: No space left.*step-00000002 is kept"
    ) as caught:
        made.save(contents(4, tensors(0, 4.0, count=30)), wait=True)
    assert caught.value.exit_code == 4
    ballast.unlink()
    made.save(contents(4, tensors(0, 4.0, count=30)), wait=True)
    saved = newest(str(where), Alone())
    assert saved is not None
    assert value_of(saved) == 4.0
    assert made.failures == 0
    assert sorted(os.listdir(where)) == ["step-00000002", "step-00000004"]


def test_too_little_room_is_refused_with_both_numbers_before_anything_is_written(
    small_disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = small_disk / "checkpoints"
    made = saved_twice(where, background=True)
    (small_disk / "ballast").write_bytes(bytes(40_000))

    def never(*_: object) -> None:
        raise AssertionError("written")

    monkeypatch.setattr(parts, "write", never)
    made.save(contents(3, tensors(0, 3.0, count=30)))
    (line,) = capsys.readouterr().err.splitlines()
    told = re.search(
        r"step 3 was not written \((\S+) kB free in \S+, (\S+) kB needed \(1.2 x its size\)\); training", line
    )
    assert told is not None, line
    needed = 1.2 * sum(file.stat().st_size for file in (where / "step-00000002").glob("*.safetensors"))
    assert float(told[1]) < float(told[2]) == pytest.approx(needed / 1000, rel=0.01)
    assert sorted(os.listdir(where)) == ["step-00000001", "step-00000002"]


def test_all_ranks_together_need_room(small_disk: Path) -> None:
    def save(ranks: Any) -> str:
        made = Saver(str(small_disk / "checkpoints"), ranks)
        with pytest.raises(UserError, match=r"262 kB free.*, 308 kB needed") as caught:
            made.save(contents(1, tensors(ranks.rank, 1.0, count=50)), wait=True)
        return str(caught.value)

    one, other = on_threads(2, save)  # each of them alone would have had room
    assert one == other


def test_on_a_disk_that_cannot_be_written_a_damaged_one_is_passed_over(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_twice(small_disk, background=False)
    file = small_disk / "step-00000002" / "rank-0.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    saved = newest(str(small_disk), Alone())
    assert saved is not None
    assert value_of(saved) == 1.0
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(UserError, match=r"step 3 was not written \(Read-only file system"):
        Saver(str(small_disk), Alone()).save(contents(3, tensors(0, 3.0)), wait=True)


@pytest.mark.parametrize("background", [False, True])
def test_a_limit_on_the_size_of_files_is_told(tmp_path: Path, background: bool) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        made = Saver(str(tmp_path), Alone(), background=background)
        made.save(contents(2, tensors(0, 2.0, count=30)))
        if background:
            assert outcome(made) == FAILED
        made.save(contents(3, tensors(0, 3.0, count=1)), wait=True)
        assert made._writing is not None
        assert made._writing.failure is None

    save_one(tmp_path, 1)
    assert os.waitpid(forked(work), 0)[1] == 0
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", "step-00000003"]


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    made = Saver(str(tmp_path / "checkpoints"), Alone())
    with pytest.raises(UserError, match=r"step 1 was not written \(File exists: .*checkpoints\)"):
        made.save(contents(1, tensors(0, 1.0)), wait=True)


def test_one_rank_that_fails_is_told_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = parts.write

    def write(path: str, taken: snapshot.Snapshot) -> dict[str, Any]:
        if path.endswith("rank-1.safetensors"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, taken)

    def save(ranks: Any) -> str:
        made = Saver(str(tmp_path), ranks)
        made.save(contents(1, tensors(ranks.rank, 1.0)))
        failure = made.finish()
        assert made.failures == 1
        return str(failure)

    monkeypatch.setattr(parts, "write", write)
    one, other = on_threads(2, save)
    assert one == other
    assert one.startswith("rank 1: Input/output error: ")
    assert os.listdir(tmp_path) == []


def test_a_failure_is_told_once_at_the_next_step_and_the_third_in_a_row_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = saved_twice(tmp_path, background=True)
    real = parts.write

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step, fails in enumerate((True, True, False, True, True), start=3):
        monkeypatch.setattr(parts, "write", full if fails else real)
        made.save(contents(step, tensors(0, float(step))))
        told = outcome(made)
        assert told == (FAILED if fails else COMMITTED)
        assert made.outcome() == NOTHING  # told once
        made.heed(told)
        assert len(capsys.readouterr().err.splitlines()) == fails
    made.save(contents(8, tensors(0, 8.0)))
    with pytest.raises(
        UserError, match=r"3 checkpoints in a row .* step 8 \(rank 0: No space left on device\)"
    ) as caught:
        made.heed(outcome(made))
    assert caught.value.exit_code == 4
    assert f"{tmp_path}/step-00000005 is kept" in str(caught.value)


@pytest.mark.parametrize("post_validation", [False, True])
def test_a_run_trains_on_past_two_failures_and_stops_at_the_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], post_validation: bool
) -> None:
    real, calls = parts.write, []

    def sometimes(path: str, taken: snapshot.Snapshot) -> dict[str, Any]:
        calls.append(path)
        if len(calls) in failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, taken)

    monkeypatch.setattr(parts, "write", sometimes)
    parallel = Pipeline(stages=1, post_validation=post_validation)
    experiment = small(tmp_path, parallel=parallel, steps=6, save_every=1)
    failing = (1, 2, 4)
    Trainer(experiment, out=str(tmp_path / "goes-on")).fit()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert [line.split(" was")[0] for line in lines] == [f"warning: the checkpoint of step {n}" for n in failing]
    calls.clear()
    failing = (1, 3, 4, 5)
    with pytest.raises(UserError, match="3 checkpoints in a row were not written, the last of step 5") as caught:
        Trainer(experiment, out=str(tmp_path / "stops")).fit()
    assert caught.value.exit_code == 4
    saved = newest(str(tmp_path / "stops" / "checkpoints"), Alone())
    assert saved is not None
    assert saved.step == 2
    calls.clear()
    failing = (6,)
    with pytest.raises(UserError, match="the checkpoint of step 6 was not written") as caught:  # the last one has to be
        Trainer(experiment, out=str(tmp_path / "last")).fit()
    assert caught.value.exit_code == 4
