"""A thread that does the host's part of a step, in the order it is told, and the buffers that travel to and from it.

Buffers are few, made once and pinned where there is a GPU, so that copies run beside its kernels; whoever needs one waits
until one is free: that is how a device that is ahead of the host is held back.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError

__all__ = ["PIECE", "Buffers", "Worker"]

PIECE = 1 << 21  # numbers that travel at a time: 8 MiB of fp32


class Buffers:
    """`count` buffers of PIECE fp32 numbers, for one device.

    Raises UserError (exit code 3) when they cannot be pinned.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._free: queue.Queue[tuple[Tensor, Any]] = queue.Queue()
        pinned = device.type == "cuda"
        try:
            for _ in range(count):
                self._free.put((torch.empty(4 * PIECE, dtype=torch.uint8, pin_memory=pinned), None))
        except RuntimeError as error:
            raise UserError(
                f"update = OnHost(): {count * 4 * PIECE >> 20} MiB of host memory cannot be pinned ({error}); raise the limit "
                "of locked memory (ulimit -l), free memory, or write update = AfterBackward()",
                exit_code=3,
            ) from error

    def take(self) -> Tensor:
        """uint8 [4 * PIECE]; waits until one is free, and until what was last copied out of it has arrived."""
        buffer, done = self._free.get()
        if done is not None:
            done.synchronize()
        return buffer

    def give(self, buffer: Tensor, done: Any = None) -> None:
        """Back; `done` is the event after which it may be written to."""
        self._free.put((buffer, done))


class Worker:
    """Runs jobs one after the other. When one fails, those that follow are left out, and `check` and `wait` raise."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], Callable[[], None] | None]] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def put(self, job: Callable[[], None], always: Callable[[], None] | None = None) -> None:
        """Do `job` after those before it, and then `always`, even when the job is left out."""
        self.check()
        if self._thread is None:  # not before it is needed: ranks may be forked
            self._thread = threading.Thread(target=self._run, name="update on the host", daemon=True)
            self._thread.start()
        self._jobs.put((job, always))

    def wait(self) -> None:
        """Until everything is done."""
        done = threading.Event()
        if self._thread is not None:
            self._jobs.put((lambda: None, done.set))
            done.wait()
        self.check()

    def check(self) -> None:
        """Raises what a job has raised."""
        if self._failure is not None:
            raise self._failure

    @torch.no_grad()
    def _run(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        while True:
            job, always = self._jobs.get()
            try:
                if self._failure is None:
                    job()
            except BaseException as failure:
                self._failure = failure
            finally:
                if always is not None:
                    always()
                del job, always
