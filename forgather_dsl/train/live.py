"""Which bytes are alive, storage by storage, while any torch program runs: on fake tensors, which have sizes and no memory, as
on real ones.

In: the program, run inside the mode. Out: the most bytes alive at once and of which kinds they were at that moment. What
a kernel allocates for itself and frees again is not seen. An allocation counts as a multiple of `granularity`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CUDA_BLOCK", "HOST", "LiveBytes"]

HOST = "host"  # the kind of storages that are not on the device: counted apart

CUDA_BLOCK = 512  # bytes: what torch's CUDA allocator rounds every request up to


Classify = Callable[["LiveBytes", Any, Any, Tensor], "str | None"]
"""(mode, operator, its arguments, what it made) to the kind of a new storage, or None."""


class _Entry:
    __slots__ = ("bytes", "kind", "reference")

    def __init__(self, reference: weakref.ref[torch.UntypedStorage], size: int, kind: str) -> None:
        self.reference, self.bytes, self.kind = reference, size, kind


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make while the mode is on, each from its first tensor to its end.

    `classify` may name the kind of a new storage; else it is the current `kind`.
    """

    def __init__(self, granularity: int = 1, classify: Classify | None = None) -> None:
        super().__init__()
        self.granularity, self.classify = granularity, classify
        self.kind = "other"
        self.kinds: Counter[str] = Counter()
        self.total = self.peak = 0  # without what is on the host
        self.most_on_host = 0
        self.at_peak: Counter[str] = Counter()
        self._live: dict[int, _Entry] = {}

    def hold(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor that was made outside the mode, or give the storage of one inside another kind."""
        storage = tensor.untyped_storage()
        entry = self._live.get(id(storage))
        if entry is None or entry.reference() is not storage:
            self._add(storage, kind)
        else:
            self._count(entry.kind, -entry.bytes)
            self._count(kind, entry.bytes)
            entry.kind = kind

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage has another size than before."""
        entry = self._live.get(id(storage))
        if entry is None or entry.reference() is not storage:
            return
        size = -(-storage.nbytes() // self.granularity) * self.granularity
        self._count(entry.kind, size - entry.bytes)
        entry.bytes = size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, self.kinds.copy()

    def kind_of(self, tensor: Tensor) -> str | None:
        """The kind of a tensor's storage, None when it is not counted."""
        storage = tensor.untyped_storage()
        entry = self._live.get(id(storage))
        return None if entry is None or entry.reference() is not storage else entry.kind

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Storages made in here are of this kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.at_peak, self.most_on_host = self.total, self.kinds.copy(), self.kinds[HOST]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then look at what it made. Its inputs are alive until then."""
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self._see(out, func, args)
        elif isinstance(out, (tuple, list)):
            for tensor in out:
                if isinstance(tensor, Tensor):
                    self._see(tensor, func, args)
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, self.kinds.copy()
        return out

    def _see(self, tensor: Tensor, func: Any, args: Any) -> None:
        storage = tensor.untyped_storage()
        entry = self._live.get(id(storage))
        if entry is not None and entry.reference() is storage:
            return
        self._add(storage, (self.classify and self.classify(self, func, args, tensor)) or self.kind)

    def _add(self, storage: torch.UntypedStorage, kind: str) -> None:
        size, key = -(-storage.nbytes() // self.granularity) * self.granularity, id(storage)

        def freed(reference: weakref.ref[torch.UntypedStorage]) -> None:
            entry = self._live.get(key)
            if entry is not None and entry.reference is reference:
                self._count(entry.kind, -entry.bytes)
                del self._live[key]

        self._live[key] = _Entry(weakref.ref(storage, freed), size, kind)
        self._count(kind, size)

    def _count(self, kind: str, size: int) -> None:
        self.kinds[kind] += size
        if kind == HOST:
            self.most_on_host = max(self.most_on_host, self.kinds[HOST])
        else:
            self.total += size
