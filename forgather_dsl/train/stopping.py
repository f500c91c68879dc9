"""Who may ask a run to stop or save: Ctrl-C and SIGTERM, and `control` from another shell. The step that runs is finished first.

A second Ctrl-C stops at once. `terminable` is for the time before there is anything to save.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..errors import Interrupted


class StopRequest:
    """While entered, signals are noted instead of ending the process (in the main thread: elsewhere Python cannot)."""

    def __init__(self, control: Any = None) -> None:
        self.asked = False
        self.control = control  # a Control; None on ranks other than 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if signal.SIGTERM in self._old and _ends_with(error):
            self._old[signal.SIGTERM] = signal.SIG_IGN
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        from ..parallel.failures import failed

        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked and not failed():  # the launcher ends the others too when one rank has failed
            print(
                "stopping: saving a checkpoint after this step; Ctrl-C again stops at once", file=sys.stderr, flush=True
            )
        self.asked = True
        if number == signal.SIGINT and "RANK" in os.environ:  # at once, even while it waits for another rank
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def poll(self) -> tuple[bool, bool]:
        """Once a step: whether this rank was asked to stop, and whether to save."""
        stop, save = self.control.poll() if self.control is not None else (False, False)
        self.asked = self.asked or stop
        return self.asked, save

    def answer(self, step: int, checkpoint: str) -> str:
        """A checkpoint is committed; returns it."""
        if self.control is not None:
            self.control.answer(step, checkpoint)
        return checkpoint


def _ends_with(error: BaseException | None) -> bool:
    """Whether this rank goes on to say what went wrong, and ends.

    A launcher that has seen another rank end terminates the rest; it must not cut off the one that says whom it has lost.
    """
    from ..parallel.failures import PeerLost
    from ..parallel.launch import STORE

    if isinstance(error, Interrupted) or not isinstance(error, Exception):
        return False
    return STORE in os.environ or isinstance(error, PeerLost)


@contextmanager
def terminable() -> Iterator[None]:
    """Have SIGTERM raise Interrupted, as Ctrl-C raises KeyboardInterrupt, unless the caller has a handler of its own."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interrupted("terminated before the first step: nothing to save")

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
