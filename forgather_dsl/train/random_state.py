"""The state of the random generators that everybody shares: Python's, numpy's, torch's on the host and on this rank's GPU.

Our own code draws from generators of its own; these are for users' components. In and out: JSON, no pickle.
"""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch

__all__ = ["capture", "put_back"]


def capture(device: torch.device) -> dict[str, Any]:
    """The states now."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        "python": [version, list(words), gauss],
        "numpy": [kind, _text(np.asarray(keys, "<u4").tobytes()), int(position), int(has_gauss), float(cached)],
        "torch": _text(torch.get_rng_state().numpy().tobytes()),
    }
    if device.type == "cuda":
        states["cuda"] = _text(torch.cuda.get_rng_state(device).numpy().tobytes())
    return states


def put_back(states: dict[str, Any], device: torch.device) -> None:
    """Go on drawing from there. Generators that were not saved stay as they are."""
    if "python" in states:
        version, words, gauss = states["python"]
        random.setstate((version, tuple(words), gauss))
    if "numpy" in states:
        kind, keys, *rest = states["numpy"]
        np.random.set_state((kind, np.frombuffer(base64.b64decode(keys), "<u4"), *rest))
    if "torch" in states:
        torch.set_rng_state(_bytes(states["torch"]))
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(_bytes(states["cuda"]), device)


def _text(state: bytes) -> str:
    return base64.b64encode(state).decode()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
