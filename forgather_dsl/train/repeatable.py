"""Kernels that give the same bits every time: torch's deterministic algorithms, on GPUs, while a run lasts.

By default CUDA adds some sums in the order in which its threads happen to arrive: an embedding's gradient, and the backward of
attention. Then no two runs are alike, and none is resumed exactly. On CPUs everything is repeatable as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["repeatable"]


@contextmanager
def repeatable(wanted: bool, device: torch.device) -> Iterator[None]:
    """While entered on a GPU, operators without a repeatable form raise RuntimeError, if that is `wanted`.

    cuBLAS needs CUBLAS_WORKSPACE_CONFIG for it, which `parallel.launch.ENVIRONMENT` sets.
    """
    if device.type != "cuda":
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted)
    settings.fill_uninitialized_memory = False  # else every new tensor is written once more, to find who reads it unset
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
