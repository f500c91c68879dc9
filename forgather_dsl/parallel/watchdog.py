"""Ends a run that hangs: a thread per rank that looks whether anything moves, and says what stands still. Imports no torch.

In: `PROGRESS`, the other ranks' pulses, two limits in seconds. Out: one line on stderr, the stack of every thread in a file,
exit code 4. A rank that computes speaks at the limit; one that waits does so a little later, and only if nobody anywhere
has moved, so that the rank to blame is heard. Where C code keeps the interpreter's lock no thread of Python runs: there
faulthandler's timer, armed anew at every look, prints the stacks and ends the process, with code 1.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .lifeline import end_agent
from .progress import PROGRESS, Progress
from .pulse import Pulse

__all__ = ["HUNG", "Watchdog", "gloo_timeout"]

HUNG = 4  # exit code
LOCKED_SECONDS = 30.0  # beyond the limit, for code that does not let go of the interpreter's lock
AGENT_SECONDS = 3.0  # for the agent of torchrun to end: it, too, has had its time
OFF_SECONDS = 7 * 86400.0  # how long messages are waited for without a watchdog


def gloo_timeout(seconds: float, first_step_seconds: float) -> float:
    """Seconds that messages may take: longer than the watchdog waits, which says more."""
    longest = 3 * max(seconds, first_step_seconds) + 600
    return min(OFF_SECONDS, max(1800.0, longest))


class Watchdog(threading.Thread):
    """Watches from `start` to `stop`.

    Args:
        seconds, first_step_seconds: without progress, after and before the first step; infinity for no limit.
        speaks: whether this rank is the one that should speak, asked once.
        also: what to do before the process ends, given the line that was said.
    """

    def __init__(
        self,
        seconds: float,
        first_step_seconds: float,
        rank: int,
        speaks: Callable[[], bool] = lambda: True,
        also: Callable[[str], None] = lambda text: None,
        progress: Progress = PROGRESS,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.limits, self.rank, self.speaks, self.also, self.progress = (
            (seconds, first_step_seconds),
            rank,
            speaks,
            also,
            progress,
        )
        self.poll = min(0.5, max(0.05, min(seconds, first_step_seconds) / 20))
        self.pulse: Pulse | None = None
        self.folder: str | None = None  # for stacks
        self.idle = 0.0
        self._ends = threading.Event()
        self._told = False

    def run(self) -> None:
        """Until `stop`, or the end of the process."""
        last, before = time.monotonic(), None
        while not self._ends.wait(self.poll):
            now = time.monotonic()
            seen, last, passed = self._seen(), now, now - last
            self.idle = 0.0 if seen != before else self.idle + min(passed, 4 * self.poll)  # it may itself be stopped
            before = seen
            limit = self._limit()
            _arm(limit - self.idle)
            if self.idle > limit and self._due(limit) and not self._told:
                self._fire()

    def stop(self) -> None:
        """End the thread."""
        self._ends.set()
        faulthandler.cancel_dump_traceback_later()
        if self is not threading.current_thread():
            self.join(timeout=1.0)
        faulthandler.cancel_dump_traceback_later()

    def _seen(self) -> Any:
        """Another value whenever something has moved: a mark of the host's, or an action that a GPU has finished."""
        run = self.progress.run() if self.progress.run else None
        return self.progress.count, id(run), run.on_device()[0] if run is not None else 0

    def _limit(self) -> float:
        if self.progress.paused:
            return math.inf
        seconds, first = self.limits
        return first if self.progress.patient or not self.progress.stepped else seconds

    def _due(self, limit: float) -> bool:
        """Whether it is this rank's turn to speak: at once if it computes, later if it waits."""
        waits = self._where()[1]
        if waits is None:
            return True
        grace = 2 * self.poll
        if self.pulse is None:
            return self.idle > limit + 2 * grace
        later = grace if self.pulse.silent(waits[0]) else 2 * grace
        return min(self.idle, self.pulse.idle()) > limit + later

    def _where(self) -> tuple[Any, tuple[str, Any] | None]:
        """What this rank does, and what it waits for: the GPU, which runs behind the host, knows better."""
        run = self.progress.run() if self.progress.run else None
        if run is not None:
            _, action, started = run.on_device()
            if action is not None:
                return action, None if started else run.awaits(action)
        return self.progress.doing, self.progress.awaited

    def said(self) -> str:
        """The line."""
        doing, waits = self._where()
        run = self.progress.run() if self.progress.run else None
        what = run.described(doing) if run is not None and not isinstance(doing, str) else str(doing)
        seconds = f"{self.idle:.0f} s"
        if waits is None:
            return f"rank {self.rank} has been busy with {what} for {seconds}"
        text = f"rank {self.rank} has waited {seconds} for {waits[0]}'s {waits[1]}, in {what}"
        gone = self.pulse.silent(waits[0]) if self.pulse is not None else []
        return text + "".join(f"; rank {n} has shown no sign of life for {age:.0f} s" for n, age in gone)

    def _fire(self) -> None:
        self._told = True
        text = self.said()
        if hasattr(sys, "ps1"):  # at a prompt or in a notebook: the process is the user's
            _write(f"warning: {text}; interrupt it if it hangs\n")
            return
        signal.alarm(10)  # whatever blocks from here on
        faulthandler.cancel_dump_traceback_later()
        if self.speaks():
            field = "seconds" if self._limit() == self.limits[0] else "first_step_seconds"
            where = self._stacks()
            _write(f"error: {text}, so it hangs{where} (watchdog.{field} = {self._limit():g} allows no more)\n")
        else:
            self._stacks()
        with contextlib.suppress(Exception):
            self.also(text)
        end_agent(AGENT_SECONDS)
        flush = threading.Thread(target=_flush, daemon=True)
        flush.start()
        flush.join(timeout=1.0)  # whoever reads may have stopped
        os._exit(HUNG)

    def _stacks(self) -> str:
        """Write every thread's stack; where to, for the line."""
        if self.folder is None:
            return ""
        path = os.path.join(self.folder, f"stack-{self.rank}.txt")
        try:
            with open(path, "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            return ""
        return f"; its stack: {path}"


def _arm(seconds: float) -> None:
    """Have the process ended unless we come here again in time."""
    if math.isinf(seconds) or hasattr(sys, "ps1"):
        faulthandler.cancel_dump_traceback_later()
        return
    with contextlib.suppress(ValueError, OSError, AttributeError, RuntimeError):  # a stderr without a file
        faulthandler.dump_traceback_later(max(0.0, seconds) + LOCKED_SECONDS, exit=True, file=sys.__stderr__ or 2)


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
