"""Saves of a run, one at a time, beside training; and what becomes of those that fail.

In: contents from every rank. Out: committed checkpoints. `save` talks to the other ranks once, to agree on the place and that
there is room; the rest goes through files (parts.py). Rank 0 knows how a save ended; the others learn it with the next step
(`outcome`, `heed`) or when they wait for it together (`finish`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from typing import Any

import torch

from ...errors import UserError
from . import folder
from .parts import Contents, Failed, Place, finish, said, write_part
from .reading import Ranks
from .retention import Keep
from .snapshot import Snapshot
from .writing import ordered, size_of

__all__ = ["COMMITTED", "FAILED", "Contents", "Saver"]

ROOM = 1.2  # times the size of a checkpoint has to be free
MOST_FAILURES = 3  # in a row
NOTHING, COMMITTED, FAILED = 0, 1, 2  # how a save ended that nobody was told of yet
NICE = 10  # of the writing thread, on Linux: training goes first


class Saver:
    """Writes checkpoints into `where`. All methods but `outcome` and `before_update` are for all ranks together."""

    def __init__(
        self,
        where: str,
        ranks: Ranks,
        keep: Keep | None = None,
        background: bool = True,
        device: Any = "cpu",
    ) -> None:
        self.where, self.ranks, self.keep, self.background = where, ranks, keep or Keep(), background
        self.device = torch.device(device)
        self.failures = 0  # in a row, of those that all ranks know of
        self._writing: _Writing | None = None
        self._told = True
        if ranks.rank == 0:
            folder.sweep(where)

    def save(self, contents: Contents, wait: bool = False) -> str:
        """Save; returns the path, as soon as training may go on. A save under way is waited for first.

        Args:
            wait: until it is committed; then a failure is an error, and otherwise a warning at the next step.

        Raises:
            UserError: not written, and `wait`; or the third failure in a row.
        """
        last = self._writing
        if wait and last is not None and last.step == contents.step and self.finish() is None:
            return last.place.final  # the same step was just saved
        begun = self._begin(contents)
        if isinstance(begun, str):
            return self._lost(contents.step, begun, wait)
        self._writing, self._told = _Writing(begun, contents, self.device), False
        self._writing.start(self.background and not wait)
        if (wait or not self.background) and (failure := self._join()[0]) is not None:
            return self._lost(contents.step, failure, wait)
        return begun.final

    def before_update(self) -> None:
        """To be called before weights or optimizer state change."""
        if self._writing is not None:
            self._writing.snapshot.detach()

    def outcome(self) -> int:
        """How a save ended, once, on rank 0: for it to tell the others with the step."""
        if self.ranks.rank or self._told or self._writing is None or not self._writing.over.is_set():
            return NOTHING
        self._told = True
        return COMMITTED if self._writing.failure is None else FAILED

    def heed(self, outcome: int) -> None:
        """What rank 0 has told, on every rank. Raises UserError for the third failure in a row."""
        if outcome != NOTHING:
            self._told = True
        if outcome == COMMITTED:
            self.failures = 0
        elif outcome == FAILED:
            failed = self._writing
            self._warn(failed.step if failed else 0, failed.failure if failed else None)

    def finish(self) -> str | None:
        """Wait until the save under way is committed. Why it was not, with a warning if that is news, or None.

        Raises UserError for the third failure in a row.
        """
        failure, news = self._join()
        if failure is not None and news:
            self._warn(self._writing.step if self._writing else 0, failure)
        return failure

    def forget(self) -> None:
        """The run goes on from elsewhere: the same step will not be the same again."""
        self.finish()
        self._writing, self._told = None, True

    def settle(self, seconds: float) -> None:
        """When training has failed: let a save under way end. Other ranks need not take part."""
        if self._writing is not None:
            self._writing.over.wait(seconds)

    def _join(self) -> tuple[str | None, bool]:
        """Wait for the save under way on all ranks: why it failed, and whether nobody was told of that yet."""
        if self._writing is None:
            return None, False
        self._writing.over.wait()
        failure, news = self.ranks.gather((self._writing.failure, not self._told))[0]
        if failure is None:
            self.failures = 0
        self._told = True
        return failure, news

    def _begin(self, contents: Contents) -> Place | str:
        """Wait for an earlier save, agree on a place and make it; or why there can be none."""
        self.finish()
        partial, final, free, error = "", "", 0, None
        if self.ranks.rank == 0:
            try:
                os.makedirs(self.where, exist_ok=True)
                partial, final = folder.names_for(self.where, contents.step)
                if os.path.isdir(partial):
                    folder.discard(partial)
                os.mkdir(partial)
                free = shutil.disk_usage(self.where).free
            except OSError as failure:
                error = said(failure)
        everyone = self.ranks.gather((size_of(contents.sources), partial, final, free, error))
        size = sum(entry[0] for entry in everyone)
        _, partial, final, free, error = everyone[0]
        if error is None and free < ROOM * size:
            error = f"{gigabytes(free)} free in {self.where}, {gigabytes(ROOM * size)} needed ({ROOM:g} x its size)"
            if self.ranks.rank == 0:
                with contextlib.suppress(OSError):
                    os.rmdir(partial)
        return error or Place(partial, final, self.ranks.rank, self.ranks.world, self.keep)

    def _lost(self, step: int, failure: str, wait: bool) -> str:
        if wait:
            self.failures += 1
            raise UserError(f"the checkpoint of step {step} was not written ({failure}){self._kept()}", exit_code=4)
        self._warn(step, failure)
        return ""

    def _warn(self, step: int, failure: str | None) -> None:
        self.failures += 1
        if self.failures >= MOST_FAILURES:
            why = self.ranks.gather(failure)[0]
            raise UserError(
                f"{self.failures} checkpoints in a row were not written, the last of step {step} ({why}){self._kept()}; "
                "make room there, and start again with the same command",
                exit_code=4,
            )
        if self.ranks.rank == 0:
            text = f"the checkpoint of step {step} was not written ({failure}); training goes on{self._kept()}"
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def _kept(self) -> str:
        there = folder.listed(self.where)
        return f"; {there[0]} is kept" if there else ""


class _Writing:
    """One save, on this rank."""

    def __init__(self, place: Place, contents: Contents, device: torch.device) -> None:
        sources = ordered(contents.sources)
        self.place, self.step = place, contents.step
        self._contents: Contents | None = contents._replace(sources=sources)
        self.snapshot = Snapshot(sources, device)
        self.over = threading.Event()
        self.failure: str | None = None  # on rank 0

    def start(self, background: bool) -> None:
        if background:
            threading.Thread(target=self._beside, name="checkpoint", daemon=True).start()
        else:
            self._run()

    def _beside(self) -> None:
        if sys.platform.startswith("linux"):  # there a thread has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        self._run()

    def _run(self) -> None:
        contents = self._contents
        assert contents is not None
        try:
            write_part(self.place, contents, self.snapshot)
            finish(self.place, contents)
        except Failed as failure:
            self.failure = str(failure)
        except Exception as error:
            self.failure = said(error)
        finally:
            self._contents = None  # holds tensors that training may have replaced
            self.snapshot.close()
            self.over.set()


def gigabytes(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 1e6 else f"{size / 1000:.0f} TB"
