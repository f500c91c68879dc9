"""Live tensors, read by a writing thread while training goes on, until they are about to change: then what is left is copied.

Weights and optimizer state stay as they are from a save to the next update. So the writer takes them piece by piece through
one small buffer, and the training thread copies only what the writer has not had by then: training never waits for a disk,
and memory is needed for that rest alone.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

PIECE = 1 << 22  # bytes; the longest that the training thread waits for is one piece being copied in memory


class Source(NamedTuple):
    """A tensor to be saved."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    """The tensor itself, or a new one with its values."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def source(key: str, tensor: Tensor) -> Source:
    """A tensor as it is."""
    return Source(key, tuple(tensor.shape), tensor.dtype, lambda: tensor)


class Snapshot:
    """`sources` with the values they have now. `pieces` is for one thread, `detach` for another."""

    def __init__(self, sources: Sequence[Source], device: torch.device) -> None:
        self.sources = list(sources)
        self._lock = threading.Lock()
        self._next = 0  # the first that has not been read to its end
        self._held: dict[int, Tensor] = {}  # bytes of those begun or copied
        self._detached = False
        self._stream: Any = None
        if device.type == "cuda":  # copies run beside the training's kernels, but after those that made these values
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def pieces(self) -> Iterator[memoryview]:
        """The bytes of all tensors in order, at most PIECE at a time; a piece is good until the next one."""
        pinned = self._stream is not None
        buffer = torch.empty(PIECE, dtype=torch.uint8, pin_memory=pinned)
        numbers: Any = buffer.numpy()
        view = memoryview(numbers)
        for number, one in enumerate(self.sources):
            for start in range(0, one.size, PIECE):
                stop = min(one.size, start + PIECE)
                with self._lock, self._on_stream():
                    _copy(buffer[: stop - start], self._bytes(number)[start:stop])
                yield view[: stop - start]
            with self._lock:
                self._next = number + 1
                self._held.pop(number, None)

    def detach(self) -> None:
        """Copy what has not been read: from now on the tensors may change."""
        with self._lock, self._on_stream():
            if not self._detached:
                for number in range(self._next, len(self.sources)):
                    self._held[number] = self._bytes(number).to("cpu", copy=True)
            self._detached = True

    def close(self) -> None:
        """Nothing more is read."""
        with self._lock:
            self.sources, self._held = [], {}

    def _bytes(self, number: int) -> Tensor:
        """uint8 [size], of the live tensor or of its copy."""
        if number not in self._held:
            tensor = self.sources[number].read().detach().contiguous()
            self._held[number] = tensor.reshape(-1).view(torch.uint8)
        return self._held[number]

    def _on_stream(self) -> Any:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _copy(into: Tensor, tensor: Tensor) -> None:
    if tensor.device.type == "cpu":  # by numpy: torch would start threads beside those that train
        np.copyto(into.numpy(), tensor.numpy())
    else:
        into.copy_(tensor)
