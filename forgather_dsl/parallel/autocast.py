"""Autocast as it is now, to be entered again later: a backward runs outside of it, on a GPU in another thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

__all__ = ["autocast_now"]


def autocast_now(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Makes a context that sets autocast for `device` to what it is at this moment."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype, enabled, cache_enabled=False)
