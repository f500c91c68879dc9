"""Where a tensor waits from F to B. `Hold` puts it there, `Held` brings it back, any number of times."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["CHANGED", "Held", "Hold", "on_device"]

CHANGED = (
    "a tensor that a layer needs in its backward was changed in place after the layer had used it: write that layer without "
    "an operation in place"
)
Held = Callable[[], Tensor]
Hold = Callable[[Tensor], Held]


def on_device(tensor: Tensor) -> Held:
    """Keeps a tensor where it is. Bringing it back raises RuntimeError when it was changed in place, as autograd would."""
    kept, version = tensor.detach(), tensor._version

    def bring() -> Tensor:
        if kept._version != version:
            raise RuntimeError(CHANGED)
        return kept

    return bring
