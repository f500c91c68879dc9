"""Processes of a sweep: as many side by side as there are places for, none outliving this one, each with a log file.

In: jobs in order. Out: exit codes, seconds and reasons. The first Ctrl-C or SIGTERM asks all of them to save and stop, and
nothing new begins; a second Ctrl-C kills. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..parallel.launch import CRASHED, INTERRUPTED, Signals
from ..parallel.lifeline import bound_to_this
from ..specs import Experiment
from .places import Place, Places

__all__ = ["Job", "run_jobs"]

COMMAND = (sys.executable, "-m", "forgather_dsl.runs.member")
POLL_SECONDS = 0.05
TELL_SECONDS = 30.0  # between lines on what is running
MOST_OF_LOG = 1 << 16  # bytes at its end, where the reason of a failure stands
REASON_LINES = 6


@dataclass
class Job:
    """A member to be trained; `code` and `reason` are there once it has ended."""

    experiment: Experiment
    log: str
    said: Callable[[Place], dict[str, Any]]  # for its stdin
    env: Mapping[str, str]
    code: int | None = None
    reason: str | None = None
    seconds: float = 0.0
    place: Place | None = None
    process: subprocess.Popen[str] | None = None
    began: float = 0.0
    logged: int = 0  # bytes of earlier starts

    def start(self, place: Place) -> None:
        """Begin."""
        self.place, self.began = place, time.monotonic()
        os.makedirs(os.path.dirname(self.log), exist_ok=True)
        with open(self.log, "a", encoding="utf-8") as log:
            self.logged = log.tell()
            self.process = subprocess.Popen(
                COMMAND,
                env={**os.environ, **self.env, **place.variables()},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on
                preexec_fn=bound_to_this(),
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:  # it has died, and its code says so
            json.dump(self.said(place), pipe)

    def send(self, number: int) -> None:
        """A signal to its process: to a SIGTERM it answers by saving."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def ended(self, stopping: bool) -> bool:
        """Whether it is over; then code, reason and seconds are filled in."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        self.seconds = time.monotonic() - self.began
        asked = stopping and -code in (signal.SIGINT, signal.SIGTERM)  # before it could handle them
        self.code = INTERRUPTED if asked else CRASHED if code < 0 else code
        if self.code:
            self.reason = _reason(self.log, self.logged) or (
                _killed(-code) if code < 0 else f"it ended with exit code {code}"
            )
        return True


def _killed(number: int) -> str:
    often = ", often by the system when memory is full" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{often}"


def _reason(log: str, after: int) -> str | None:
    """The last error that a member has told in this start, its first lines."""
    with open(log, "rb") as file:
        file.seek(max(after, os.fstat(file.fileno()).st_size - MOST_OF_LOG))
        lines = file.read().decode(errors="replace").splitlines()
    begins = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if not begins:
        return None
    text = lines[begins[-1] : begins[-1] + REASON_LINES]
    return "\n".join(text).removeprefix("error: ")


def run_jobs(
    jobs: Sequence[Job],
    places: Places,
    begun: Callable[[Job], None],
    over: Callable[[Job], None],
    tell: Callable[[Job], None],
) -> bool:
    """Run them to their ends. Returns whether it was interrupted; jobs without a code were not begun then.

    `begun` and `over` are called as things happen, `tell` now and then for each that is running.
    """
    waiting, running = list(jobs), []
    told = time.monotonic()
    with Signals() as signals:
        try:
            while running or (waiting and not signals.interrupted):
                while waiting and not signals.interrupted and (place := places.take(waiting[0].experiment)) is not None:
                    running.append(job := waiting.pop(0))
                    job.start(place)
                    begun(job)
                if signals.received:
                    signals.received.clear()
                    _send(running, signal.SIGTERM)
                if signals.interrupts > 1:
                    break
                for job in [job for job in running if job.ended(signals.interrupted)]:
                    running.remove(job)
                    assert job.place is not None
                    places.give_back(job.place)
                    over(job)
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    for job in running:
                        tell(job)
                time.sleep(POLL_SECONDS)
        finally:
            _send(running, signal.SIGKILL)  # after a second Ctrl-C, or an error of our own
            for job in running:
                assert job.process is not None
                job.process.wait()
                job.code, job.reason = INTERRUPTED, "killed before it could save"
                job.seconds = time.monotonic() - job.began
                over(job)
        return signals.interrupted


def _send(jobs: Sequence[Job], number: int) -> None:
    for job in jobs:
        job.send(number)
