"""Ctrl-C and SIGTERM: the first asks the run to save and stop at the next step, a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from ..parallel.failures import failed


class StopRequest:
    """While entered, signals set `asked` instead of ending the process. Elsewhere than the main thread it does nothing."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked and not failed():  # the launcher ends the others too when one rank has failed
            print(
                "stopping: saving a checkpoint after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True
            )
        self.asked = True
