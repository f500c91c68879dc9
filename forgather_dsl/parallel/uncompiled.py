"""The deferred layers as torch.compile sees them: calls that it makes and does not look into.

Its backward of a region is one piece, so a weight gradient inside could not wait; and it reuses memory that we would still
hold. Imported only while it traces, for torch.compiler.disable imports torch._dynamo, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from forgather_dsl.parallel.deferred import DeferredEmbedding, DeferredLinear

__all__ = ["embedding", "linear"]

_disable: Any = torch.compiler.disable
_REASON = "the weight gradient of a deferred layer is computed apart from the backward"


def _deferred(layer: DeferredLinear | DeferredEmbedding, input: torch.Tensor) -> torch.Tensor:
    return layer.deferred(input)


linear: Callable[[DeferredLinear, torch.Tensor], torch.Tensor] = _disable(_deferred, reason=_REASON)
embedding: Callable[[DeferredEmbedding, torch.Tensor], torch.Tensor] = linear  # type: ignore[assignment]
