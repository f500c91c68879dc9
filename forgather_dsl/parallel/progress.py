"""What this process is doing, for whoever watches it: a few attributes that the work sets as it goes along. Imports no torch.

In: a mark before every action and every wait. Out: `PROGRESS`, one per process as a rank is one process, read by the
watchdog's threads. A mark costs a tenth of a microsecond, so every action of every step sets some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

__all__ = ["PROGRESS", "Progress", "on_disk"]

P = ParamSpec("P")
R = TypeVar("R")


class Progress:
    """Set by the thread that trains, read by others."""

    __slots__ = ("awaited", "count", "doing", "patient", "paused", "run", "stepped")

    def __init__(self) -> None:
        self.count = 0  # of marks: it moves when anything does
        self.doing: Any = "the start"  # an Action, or words that follow "busy with"
        self.awaited: tuple[str, Any] | None = None  # whom this rank waits for, and for what
        self.run: Callable[[], Any] | None = None  # weak reference to the run of actions, or None
        self.stepped = False  # the first step of this start is done
        self.patient = False  # at work on one file, however large: the longer limit holds
        self.paused = False  # nothing is watched

    def mark(self, doing: Any) -> None:
        """Begin something."""
        self.doing, self.awaited = doing, None
        self.count += 1

    def wait(self, whom: str, what: Any) -> None:
        """Wait, for `whom`'s `what`."""
        self.awaited = whom, what
        self.count += 1

    def resume(self) -> None:
        """It is here."""
        self.awaited = None
        self.count += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Watch nothing meanwhile."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False
            self.count += 1


PROGRESS = Progress()


def on_disk(doing: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that reads or writes large files: between two marks it may take as long as a first step."""

    def around(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*arguments: P.args, **named: P.kwargs) -> R:
            PROGRESS.mark(doing)
            PROGRESS.patient = True
            try:
                return function(*arguments, **named)
            finally:
                PROGRESS.patient = False
                PROGRESS.mark("what comes after " + doing)

        return call

    return around
