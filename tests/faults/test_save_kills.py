"""Killed while saving: at every file operation in turn, and at random moments with two ranks. A whole checkpoint is always left."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest
from saving_ranks import Alone, Wired, contents, forked, kill, save_one, tensors, value_of

from forgather_dsl.train.checkpoint import Keep, Saver, newest, problem

OPERATIONS = ("rename", "unlink", "rmdir", "mkdir", "fsync", "open")


class Operations:
    """Counts file operations of this process and dies before the n-th."""

    def __init__(self, die_before: int | None) -> None:
        self.count, self.die_before = 0, die_before
        for name in OPERATIONS:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, real):
        def call(*arguments, **options):
            if self.count == self.die_before:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            return real(*arguments, **options)

        return call


def saves(folder: Path, die_before: int | None, said: int) -> None:
    """Four saves that keep one, one of them of a step that is there already; says what is committed, and the count."""
    operations = Operations(die_before)
    saver = Saver(str(folder), Alone(), Keep(1), background=False)
    for value, step in enumerate((1, 2, 2, 3), start=1):
        saver.save(contents(step, tensors(0, float(value))), wait=step == 3)
        os.write(said, bytes([value]))
    os.write(said, operations.count.to_bytes(2, "little"))


def run_saves(folder: Path, die_before: int | None) -> tuple[int, bytes]:
    """(Signal or exit code of the child, what it said.)"""
    read, write = os.pipe()
    child = forked(lambda: saves(folder, die_before, write))
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def test_killed_before_any_file_operation_a_whole_checkpoint_is_left(tmp_path: Path) -> None:
    save_one(tmp_path / "count", 0, 0.0)
    code, said = run_saves(tmp_path / "count", None)
    assert (code, said[:4]) == (0, b"\1\2\3\4")
    number = int.from_bytes(said[4:], "little")
    assert number > 40
    for moment in range(number):
        folder = tmp_path / str(moment)
        save_one(folder, 0, 0.0)
        code, said = run_saves(folder, moment)
        assert code == -signal.SIGKILL
        committed = max(said, default=0)
        saved = newest(str(folder), Alone())
        assert saved is not None, moment
        assert value_of(saved) in (committed, committed + 1), moment
        save_one(folder, 9, keep=Keep(1))  # a later start cleans up
        assert sorted(os.listdir(folder)) == ["step-00000009"], moment


def train(folder: Path, ranks: Wired, first: int, same_step: bool, log: int) -> None:
    """Steps that change the tensors in place, each of them saved; `log` gets the number of each save that has begun."""
    saver = Saver(str(folder), ranks, Keep(last=1 + first % 2, every=50))
    held = tensors(ranks.rank, 0.0, count=12)
    for number in range(first, first + 10_000):
        saver.before_update()
        for tensor in held.values():
            tensor.fill_(number)
        saver.save(contents(7 if same_step else number, held))
        if ranks.rank == 0:
            os.pwrite(log, number.to_bytes(8, "little"), 0)


def killed_at_random(folder: Path, times: int, seed: int) -> None:
    """Two forked ranks save until they are killed; each start goes on from what is left."""
    rng, log = random.Random(seed), os.open(folder / "log", os.O_RDWR | os.O_CREAT)
    number, same_step, where = 0, False, folder / "a"
    for kills in range(times):
        if kills % 10 == 0:  # from here on in a new folder, of ever new steps or of one
            where, same_step, number = folder / str(kills), kills % 20 == 10, 0
            save_one(where, 7 if same_step else 0, 0.0)
            os.pwrite(log, bytes(8), 0)
        before = int.from_bytes(os.pread(log, 8, 0), "little")
        ends = socket.socketpair()
        about = (number + 1, same_step, log)
        children = [forked(partial(train, where, Wired(rank, end), *about)) for rank, end in enumerate(ends)]
        for end in ends:
            end.close()
        while os.pread(log, 8, 0) == before.to_bytes(8, "little"):
            assert all(os.waitpid(child, os.WNOHANG) == (0, 0) for child in children)
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)  # the moment
        rng.shuffle(children)
        kill(*children)
        begun = int.from_bytes(os.pread(log, 8, 0), "little")
        saved = newest(str(where), Alone())
        assert saved is not None, kills
        number = int(value_of(saved))
        assert begun - 1 <= number <= begun + 1, (kills, begun, number)
        assert problem(saved.path) is None
        os.pwrite(log, number.to_bytes(8, "little"), 0)
    os.close(log)


@pytest.mark.slow
def test_killed_at_random_moments_a_run_loses_at_most_one_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_at_random(tmp_path, 20, seed=1)
    assert "damaged" not in capsys.readouterr().err  # nothing half written ever has a checkpoint's name


@pytest.mark.exhaustive
def test_two_hundred_kills_leave_two_hundred_whole_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_at_random(tmp_path, 200, seed=2)
    assert "damaged" not in capsys.readouterr().err
