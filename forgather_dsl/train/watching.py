"""Watching one start of a run from its first moment to its end: the watchdog on every rank, heartbeat and requests on rank 0.

In: the experiment's `watchdog`, and the run directory as soon as it is known. Out: while entered, a hang ends the process, and
`control` knows of the run; how it ended is written down.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from typing import Any

from ..errors import Interrupted
from ..parallel.failures import speaks_first
from ..parallel.progress import PROGRESS
from ..parallel.pulse import Pulse
from ..parallel.watchdog import Watchdog, gloo_timeout
from ..specs import Experiment
from .control import FOLDER, Control

PULSE_SECONDS = 1.0


class Watch:
    """Entered for the time of a run. `timeout_seconds` is for the process group."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        spec: Any = experiment.watchdog
        limits = [spec and spec.seconds, spec and spec.first_step_seconds]
        seconds, first = (math.inf if limit is None else limit for limit in limits)
        self.timeout_seconds = gloo_timeout(seconds, first)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.watchdog = Watchdog(seconds, first, self.rank, speaks_first, self._hung)
        self.control: Control | None = None
        self.pulse: Pulse | None = None

    def __enter__(self) -> Watch:
        PROGRESS.__init__()
        PROGRESS.mark("joining the other ranks")
        self.watchdog.start()
        return self

    def open(self, path: str) -> None:
        """The run directory is there."""
        folder = os.path.join(path, FOLDER)
        os.makedirs(folder, exist_ok=True)
        if self.rank == 0:
            self.control = Control(path, self.experiment.steps)
        if self.world > 1 or self.control is not None:
            also = self.control.beat if self.control is not None else lambda: None
            seconds = min(PULSE_SECONDS, self.watchdog.poll)
            self.pulse = Pulse(PROGRESS, folder, self.rank, self.world, seconds, also)
            self.pulse.start()
        self.watchdog.folder = folder
        self.watchdog.pulse = self.pulse if self.world > 1 else None

    def _hung(self, text: str) -> None:
        if self.control is not None:
            self.control.end("failed", text)

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        self.watchdog.stop()
        if self.pulse is not None:
            self.pulse.stop()
        if self.control is not None:
            if error is None:
                self.control.end("finished")
            else:
                stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
                with contextlib.suppress(Exception):
                    self.control.end("stopped" if stopped else "failed", str(error) or type(error).__name__)


def die_by_signals() -> None:
    """Until training begins nothing is to be saved: have signals end this rank at once, wherever it waits.

    Python's own handlers run between two instructions of Python, not inside a wait for the other ranks.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(number, signal.SIG_DFL)
