"""What layers keep from F to B, in the memory of the host meanwhile; the device holds that of two layers.

In: tensors that a layer's graph keeps. Out: how to have them again (`Held`). On a GPU they travel on a stream of their own,
into pinned memory, beside the kernels: out while the next layer runs, and back while the layer behind it, in the order of
the forward, goes backward. A layer may begin when those of the layer two before it are gone. On a CPU the same code makes
plain copies. Exact: the bytes come back as they left.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from forgather_dsl.parallel.holding import CHANGED, Held, on_device

__all__ = ["SMALLEST", "Offload"]

SMALLEST = 1 / 16  # of a layer's input, in bytes: what is smaller stays on the device
AHEAD = 1  # layers that may run while a layer's tensors still leave


class Offload:
    """The travelling tensors of one stage."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.empty = empty_on_host
        """Makes the host's memory for a tensor."""
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._leaving: deque[list[_Parcel]] = deque()  # by layer: tensors that may still be on the device
        self._latest: weakref.ref[_Layer] | None = None

    def begin(self) -> None:
        """A microbatch enters the stage."""
        self._latest = None

    def layer(self, x: Tensor) -> _Layer:
        """For what the next layer keeps, whose input is `x`."""
        self.let_go(AHEAD)
        layer = _Layer(self, None if self._latest is None else self._latest(), x)
        self._leaving.append(layer.leaving)
        self._latest = weakref.ref(layer)
        return layer

    def let_go(self, layers: int) -> None:
        """Free the device of all that leaves but for the last `layers` layers, after it has left."""
        while len(self._leaving) > layers:
            leaving = self._leaving.popleft()
            while leaving:
                leaving.pop().gone()

    def on_stream(self) -> AbstractContextManager[Any]:
        """Copies run in here, in turn, once what was asked of the device so far is done."""
        if self.stream is None:
            return nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(self.stream)

    def mark(self) -> Any:
        """The moment when the copies so far are done."""
        return None if self.stream is None else self.stream.record_event()

    def wait(self, moment: Any) -> None:
        """Have the device wait for a moment, not the host."""
        if moment is not None:
            torch.cuda.current_stream(self.device).wait_event(moment)


class _Layer:
    """What one layer keeps; `before` is the layer whose backward comes next."""

    def __init__(self, offload: Offload, before: _Layer | None, x: Tensor) -> None:
        self.offload, self.before = offload, before
        self.smallest = SMALLEST * x.numel() * x.element_size()
        self.leaving: list[_Parcel] = []
        self._parcels: list[weakref.ref[_Parcel]] = []
        self._by_storage: dict[int, weakref.ref[_Parcel]] = {}  # by its id, while the layer runs forward

    def hold(self, tensor: Tensor) -> Held:
        """Sends a tensor away, unless it is small, a weight, or nothing that a gradient comes by, as masks are."""
        storage = tensor.untyped_storage()
        shared = isinstance(tensor, nn.Parameter) or not tensor.requires_grad
        if shared or storage.nbytes() < self.smallest:
            return on_device(tensor)
        found = self._by_storage.get(id(storage))
        parcel = None if found is None else found()
        if parcel is None or not parcel.is_of(storage):
            parcel = _Parcel(self, tensor.detach())
            self._by_storage[id(storage)] = weakref.ref(parcel)
            self._parcels.append(weakref.ref(parcel))
            self.leaving.append(parcel)
        layout = tensor.shape, tensor.stride(), tensor.storage_offset()
        return lambda: parcel.take().as_strided(*layout)

    def fetch(self) -> None:
        """Start bringing everything back."""
        for reference in self._parcels:
            parcel = reference()
            if parcel is not None:
                parcel.fetch()


class _Parcel:
    """A storage that travels; its host memory lasts as long as this."""

    def __init__(self, layer: _Layer, tensor: Tensor) -> None:
        self.layer, self._storage = layer, weakref.ref(tensor.untyped_storage())
        offload = layer.offload
        whole = tensor.untyped_storage().nbytes() // tensor.element_size()
        self._here: Tensor | None = tensor.as_strided((whole,), (1,), 0)
        self._version = tensor._version
        self.host = offload.empty(self._here)
        with offload.on_stream():
            self.host.copy_(self._here, non_blocking=True)
        self._moment = offload.mark()
        self._back: Tensor | None = None

    def is_of(self, storage: Any) -> bool:
        """Whether it is this storage's."""
        return self._storage() is storage

    def gone(self) -> None:
        """Let go of the device's memory, which is read until the copy is done."""
        if self._here is not None:
            if self._here._version != self._version:
                raise RuntimeError(CHANGED)
            self.layer.offload.wait(self._moment)
            self._here = None

    def fetch(self) -> None:
        """Start bringing it back."""
        if self._back is None:
            self._back = torch.empty_like(self.host, device=self.layer.offload.device)
            with self.layer.offload.on_stream():
                self._back.copy_(self.host, non_blocking=True)
            self._moment = self.layer.offload.mark()

    def take(self) -> Tensor:
        """It, on the device; that of the layer before sets out."""
        offload = self.layer.offload
        offload.let_go(0)
        self.layer.fetch()
        if self.layer.before is not None:
            self.layer.before.fetch()
        assert self._back is not None
        offload.wait(self._moment)
        return self._back


def empty_on_host(tensor: Tensor) -> Tensor:
    """Memory of the host for a tensor; pinned where it is on a GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
