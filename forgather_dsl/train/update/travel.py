"""Gradients on their way to the host and weights on their way back, piece by piece through pinned buffers.

On a GPU each direction has a stream of its own: copies wait for the kernels that made what they carry, and nothing else
waits for them. On a CPU the same steps are plain copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .worker import PIECE, Buffers

__all__ = ["Lane", "round_to"]


class Lane:
    """One direction of one device."""

    def __init__(self, device: torch.device, buffers: int) -> None:
        self.device, self.buffers = device, Buffers(buffers, device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def mark(self) -> Any:
        """What the current stream has been given so far, as an event; None on a CPU."""
        return None if self._stream is None else torch.cuda.current_stream(self.device).record_event()

    def pieces(self, tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(position of the first, numbers) of a tensor, in order."""
        flat = tensor.detach().reshape(-1)
        for start in range(0, len(flat), PIECE):
            yield start, flat[start : start + PIECE]

    def down(self, piece: Tensor, after: Any) -> tuple[Tensor, Tensor, Any]:
        """Copy from the device, once `after` has passed: the buffer, its part that holds the piece, the event of arrival."""
        buffer = self.buffers.take()
        there = buffer[: piece.nbytes].view(piece.dtype)
        with self._on_stream():
            if after is not None and self._stream is not None:
                self._stream.wait_event(after)
            there.copy_(piece, non_blocking=True)
            return buffer, there, None if self._stream is None else self._stream.record_event()

    def up(self, piece: Tensor, after: Any, fill: Callable[[Tensor], None]) -> Any:
        """Have a buffer filled, and copy it into a piece of a tensor on the device; the event of arrival."""
        buffer = self.buffers.take()
        here = buffer[: piece.nbytes].view(piece.dtype)
        fill(here)
        with self._on_stream():
            if after is not None and self._stream is not None:
                self._stream.wait_event(after)
            piece.copy_(here, non_blocking=True)
            done = None if self._stream is None else self._stream.record_event()
        self.buffers.give(buffer, done)
        return done

    def let_go(self, tensor: Tensor) -> None:
        """Its memory may be used again when what this direction has been given so far is done."""
        if self._stream is not None:
            tensor.record_stream(self._stream)

    def wait(self) -> None:
        """Until everything has arrived."""
        if self._stream is not None:
            self._stream.synchronize()

    def _on_stream(self) -> Any:
        return contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def round_to(master: Tensor, into: Tensor) -> None:
    """fp32 `master` into `into`, fp32 or bfloat16: to nearest, ties away from zero, as `optim.weights.split` rounds."""
    if into.dtype == torch.float32:
        into.copy_(master)
    else:
        into.view(torch.int16).copy_(master.view(torch.int32).add(0x8000).bitwise_right_shift_(16))
