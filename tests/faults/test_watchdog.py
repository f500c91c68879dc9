"""A process that stands still is ended and named; one that moves, or whose neighbours move, is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from launched import ROOT, state

from forgather_dsl.parallel.progress import Progress, on_disk
from forgather_dsl.parallel.pulse import Pulse
from forgather_dsl.parallel.watchdog import Watchdog, gloo_timeout

WATCHED = """
import math, sys, time, threading, re
from forgather_dsl.parallel.progress import PROGRESS, on_disk
from forgather_dsl.parallel.pulse import Pulse
from forgather_dsl.parallel import watchdog
from forgather_dsl.parallel.watchdog import Watchdog
watchdog.LOCKED_SECONDS = 1.0
dog = Watchdog(SECONDS, 30.0, 2)
dog.folder = "."
PROGRESS.stepped = True
def move(seconds, what="a step"):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        PROGRESS.mark(what)
        time.sleep(0.02)
def loop():
    while True:
        pass
"""


def process(body: str, folder: Path, seconds: float | str = 0.5) -> subprocess.Popen[str]:
    code = WATCHED.replace("SECONDS,", f"{seconds},") + body
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_loop_is_ended_named_and_its_stack_written_down(tmp_path: Path) -> None:
    done = process("dog.start(); move(0.7); PROGRESS.mark('reading a batch'); loop()", tmp_path)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 4
    assert err.startswith("error: rank 2 has been busy with reading a batch for ")
    assert "watchdog.seconds = 0.5" in err
    assert len(err.splitlines()) == 1
    assert "in loop" in (tmp_path / "stack-2.txt").read_text()


def test_code_that_keeps_the_interpreters_lock_is_ended_too_with_its_stack(tmp_path: Path) -> None:
    done = process("dog.start(); move(0.3)\nre.match('(a+)+$', 'a' * 60 + 'b')", tmp_path)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 1  # faulthandler's own; the launcher makes 4 of it
    assert "Timeout" in err
    assert "re/__init__.py" in err


def test_a_reader_that_has_stopped_does_not_keep_the_process(tmp_path: Path) -> None:
    body = "dog.start(); move(0.2); PROGRESS.mark('telling')\nwhile True: sys.stdout.write('x' * 10000)"
    done = process(body, tmp_path)  # whose stdout nobody reads
    done.wait(timeout=120)
    assert done.returncode == 4
    assert "busy with telling" in done.communicate()[1]


def test_work_on_a_file_has_the_longer_limit(tmp_path: Path) -> None:
    body = "dog.start(); on_disk('saving')(time.sleep)(0.9); print('saved', flush=True); loop()"
    done = process(body, tmp_path)
    out, err = done.communicate(timeout=120)
    assert (out, done.returncode) == ("saved\n", 4)
    assert "what comes after saving" in err


WORKS = """
dog.start()
print('on', flush=True)
while True:
    PROGRESS.mark('work')
    start = time.process_time()
    while time.process_time() - start < 0.2:  # its own time: work that was stopped is not over when it goes on
        pass
"""


def test_a_process_that_was_stopped_and_goes_on_is_not_ended(tmp_path: Path) -> None:
    with process(WORKS, tmp_path, seconds=1.0) as done:
        assert done.stdout is not None
        assert done.stdout.readline() == "on\n"
        time.sleep(0.5)  # until it has looked a few times
        os.kill(done.pid, signal.SIGSTOP)
        while state(done.pid) != "T":
            time.sleep(0.01)
        time.sleep(1.8)  # longer than the limit, on its clock too
        os.kill(done.pid, signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            done.wait(timeout=0.6)
        done.kill()


def test_no_limit_no_end(tmp_path: Path) -> None:
    done = process("dog.start(); time.sleep(0.5); dog.stop(); print('well')", tmp_path, seconds="math.inf")
    assert done.communicate(timeout=120)[0] == "well\n"


class Neighbour:
    """Another rank's pulse, in this process."""

    def __init__(self, folder: Path, rank: int, world: int, seconds: float = 0.05) -> None:
        self.progress = Progress()
        self.pulse = Pulse(self.progress, str(folder), rank, world, seconds, lambda: None)
        self.pulse.start()


def fired(dog: Watchdog, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not dog._told:
        time.sleep(0.01)
    return dog._told


@pytest.fixture
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """A watchdog of rank 0, which waits for rank 1, and says instead of ending."""
    dog = Watchdog(0.4, 0.4, 0, progress=Progress())
    dog.lines = []  # type: ignore[attr-defined]

    def fire() -> None:
        dog._told = True
        dog.lines.append(dog.said())  # type: ignore[attr-defined]

    monkeypatch.setattr(dog, "_fire", fire)
    monkeypatch.setattr("forgather_dsl.parallel.watchdog._arm", lambda seconds: None)
    dog.pulse = Pulse(dog.progress, str(tmp_path), 0, 3, 0.05, lambda: None)
    dog.progress.mark("action 0B0")
    dog.progress.wait("rank 1", "gradient of microbatch 3")
    return dog


def test_a_rank_that_waits_does_so_as_long_as_any_other_moves(tmp_path: Path, waits: Watchdog) -> None:
    assert waits.pulse is not None
    others = [Neighbour(tmp_path, rank, 3) for rank in (1, 2)]
    waits.pulse.start()
    waits.start()
    ends = threading.Event()

    def work() -> None:
        while not ends.wait(0.02):
            others[1].progress.mark("a long save")

    threading.Thread(target=work, daemon=True).start()
    assert not fired(waits, 1.2)  # three limits
    ends.set()
    assert fired(waits, 10.0)
    assert "no sign of life" not in waits.lines[0]  # type: ignore[attr-defined]
    assert waits.lines[0].startswith("rank 0 has waited ")  # type: ignore[attr-defined]
    assert "s for rank 1's gradient of microbatch 3, in action 0B0" in waits.lines[0]  # type: ignore[attr-defined]
    for part in (waits, waits.pulse, *(o.pulse for o in others)):
        part.stop()
    assert not list(tmp_path.glob("pulse-*"))


def test_a_rank_without_a_sign_of_life_is_named(tmp_path: Path, waits: Watchdog) -> None:
    assert waits.pulse is not None
    waits.pulse.silent_seconds = 0.3
    other = Neighbour(tmp_path, 2, 3)
    (tmp_path / "pulse-1").write_text("17 1")  # of an earlier start
    waits.pulse.start()
    waits.start()
    assert fired(waits, 15.0)
    assert waits.lines[0].count("has shown no sign of life") == 1  # type: ignore[attr-defined]
    assert "rank 1 has shown no sign of life" in waits.lines[0]  # type: ignore[attr-defined]
    for part in (waits, waits.pulse, other.pulse):
        part.stop()


def test_on_a_gpu_what_the_gpu_does_counts() -> None:
    class Run:
        """A run whose GPU has finished 7 actions and is at the next."""

        done, started = 7, True

        def on_device(self):
            return self.done, "2F1", self.started

        def awaits(self, action):
            return "rank 1", f"activation for {action}"

        def described(self, action):
            return f"action {action}" if action == "2F1" else str(action)

    run, dog = Run(), Watchdog(1, 1, 3, progress=Progress())
    dog.progress.run = lambda: run
    dog.progress.doing = "the end of the step"  # the host is ahead
    before = dog._seen()
    assert dog._seen() == before
    assert dog.said() == "rank 3 has been busy with 2F1 for 0 s"
    run.started = False
    assert dog.said() == "rank 3 has waited 0 s for rank 1's activation for 2F1, in 2F1"
    run.done = 8
    assert dog._seen() != before


def test_messages_are_waited_for_longer_than_the_watchdog_waits() -> None:
    for limits in ((120, 600), (5, 5), (7200, 100), (float("inf"), 600)):
        assert gloo_timeout(*limits) >= 1800
        assert gloo_timeout(*limits) > min(max(limits), 86400 * 6)


def test_on_disk_hands_on_what_the_function_returns() -> None:
    assert on_disk("reading")(lambda a, *, b: a + b)(1, b=2) == 3
