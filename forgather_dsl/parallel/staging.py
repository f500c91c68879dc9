"""Messages of ranks that share a GPU go through pinned host memory: NCCL takes one rank per GPU, and gloo sends from the host.

In: a tensor on the GPU, and what starts a send from host memory. Out: work to wait for. The copy runs on a stream of its own,
behind what is queued so far. gloo reads at once and knows nothing of streams, so a send starts when an event tells that its
copy is done; the host asks for that when it has to wait for a message anyway, and never blocks earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

__all__ = ["HostCopy", "Send", "Staging", "Waitable", "copier"]


class Waitable(Protocol):
    """A transfer under way."""

    def wait(self) -> object:
        """Until it is done."""
        ...


class Event(Protocol):
    """A point on a stream."""

    def synchronize(self) -> object:
        """Until the GPU has passed it."""
        ...


class HostCopy(NamedTuple):
    """A copy in host memory; valid once `finished` has been waited for."""

    tensor: torch.Tensor
    finished: Event


def copier(device: torch.device) -> Callable[[torch.Tensor], HostCopy]:
    """How tensors of a GPU are copied: into pinned memory, without waiting."""
    stream = torch.cuda.Stream(device)

    def copy(tensor: torch.Tensor) -> HostCopy:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            host.copy_(tensor, non_blocking=True)
            finished = torch.cuda.Event()
            finished.record(stream)
        tensor.record_stream(stream)  # its memory may be given away only after the copy
        return HostCopy(host, finished)

    return copy


class Staging:
    """Sends of one rank whose copies are under way, in their order."""

    def __init__(self, copy: Callable[[torch.Tensor], HostCopy]) -> None:
        self.copy = copy
        self._waiting: list[tuple[Event, Callable[[torch.Tensor], Waitable], Send]] = []

    def send(self, tensor: torch.Tensor, start: Callable[[torch.Tensor], Waitable]) -> Send:
        """Copy `tensor`, and `start` sending the copy when it is there. Does not wait."""
        copy = self.copy(tensor)
        send = Send(self, copy.tensor)
        self._waiting.append((copy.finished, start, send))
        return send

    def receiving(self, work: Waitable) -> Waitable:
        """A receive: before waiting for it, our own sends have to be on their way, as the other end may wait for them."""
        return _Receive(self, work)

    def flush(self) -> None:
        """Start every send, waiting for its copy."""
        waiting, self._waiting = self._waiting, []
        for finished, start, send in waiting:
            finished.synchronize()
            send.work = start(send.host)


class Send:
    """A send that starts later; `host` is what gloo reads, and lives as long."""

    def __init__(self, staging: Staging, host: torch.Tensor) -> None:
        self.staging, self.host = staging, host
        self.work: Waitable | None = None

    def wait(self) -> object:
        """Until it has arrived."""
        if self.work is None:
            self.staging.flush()
        assert self.work is not None  # unless starting it failed, and that was raised then
        return self.work.wait()


class _Receive:
    def __init__(self, staging: Staging, work: Waitable) -> None:
        self.staging, self.work = staging, work

    def wait(self) -> object:
        self.staging.flush()
        return self.work.wait()
