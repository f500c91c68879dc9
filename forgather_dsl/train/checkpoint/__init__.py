"""Checkpoints: safetensors and one JSON manifest, committed by a rename, verified by hash before anything is loaded.

Every rank writes the tensors it owns under full parameter names, and of a slice of a tensor the manifest says where it
belongs, so a checkpoint loads into any number of stages, shards and replicas. No pickle anywhere.
`checkpoints/step-00000100/` holds `rank-0.safetensors`, ... and `manifest.json`. These names are loaded when they are first
used: what looks at checkpoints without tensors (folder, manifest, retention, verify) imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .reading import Saved, newest, open_checkpoint
    from .retention import Keep
    from .saver import Contents, Saver
    from .slices import Slice
    from .snapshot import Source
    from .verify import problem

__all__ = ["Contents", "Keep", "Saved", "Saver", "Slice", "Source", "newest", "open_checkpoint", "problem"]

_PLACES = {"problem": "verify", "Keep": "retention", "Slice": "slices", "Source": "snapshot"}
_PLACES |= {
    "Contents": "saver",
    "Saver": "saver",
    "Saved": "reading",
    "newest": "reading",
    "open_checkpoint": "reading",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
