"""Signs of life between the ranks of a run, in small files of a folder that all of them see. Imports no torch.

In: this rank's progress. Out: of every other rank, how long ago it last showed progress, and how long ago any life. Times
are those at which a change was seen here, so hosts need not agree on the time. A thread of its own: where the folder's
server is gone the files block, and the watchdog must not.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from .progress import Progress

__all__ = ["Pulse"]


class Pulse(threading.Thread):
    """Tells the others, and listens, every `seconds`; then calls `also`."""

    def __init__(
        self, progress: Progress, folder: str, rank: int, world: int, seconds: float, also: Callable[[], None]
    ) -> None:
        super().__init__(name="pulse", daemon=True)
        self.progress, self.folder, self.rank, self.seconds, self.also = progress, folder, rank, seconds, also
        self.others = [other for other in range(world) if other != rank]
        self.silent_seconds = max(2.0, 5 * seconds)  # without a beat, before a rank counts as silent
        self._last: dict[int, tuple[bytes, bytes]] = {}  # of each: its count of marks, and of beats
        now = time.monotonic()
        self.moved, self.alive = dict.fromkeys(self.others, now), dict.fromkeys(self.others, now)
        self._ends = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        beats = 0
        while not self._ends.wait(self.seconds):
            beats += 1
            with contextlib.suppress(OSError):
                if self.others:
                    self._tell(f"{self.progress.count} {os.getpid()}.{beats}")
                    self._listen()
                self.also()

    def stop(self) -> None:
        """End the thread; a run that is over leaves no pulse."""
        self._ends.set()
        self.join(timeout=1.0)
        with contextlib.suppress(OSError):
            os.unlink(self._file(self.rank))

    def idle(self) -> float:
        """Seconds since any other rank has moved; infinity when there is none."""
        return time.monotonic() - max(self.moved.values()) if self.others else float("inf")

    def silent(self, whom: str) -> list[tuple[int, float]]:
        """Those of `whom` ("rank 3", or words for several) without a sign of life, and for how many seconds."""
        now, several = time.monotonic(), not whom.startswith("rank ")
        ages = [(n, now - self.alive[n]) for n in self.others if several or whom == f"rank {n}"]
        return [(n, age) for n, age in ages if age > self.silent_seconds]

    def _file(self, rank: int) -> str:
        return os.path.join(self.folder, f"pulse-{rank}")

    def _tell(self, text: str) -> None:
        with open(self._file(self.rank), "w", encoding="ascii") as file:
            file.write(text)

    def _listen(self) -> None:
        for other in self.others:
            try:
                with open(self._file(other), "rb") as file:
                    count, _, beats = file.read().partition(b" ")
            except FileNotFoundError:
                continue
            if not beats:  # being written
                continue
            before = self._last.get(other)
            self._last[other] = count, beats
            now = time.monotonic()
            if before is None or before[0] != count:
                self.moved[other] = now
            if before is None or before[1] != beats:
                self.alive[other] = now
