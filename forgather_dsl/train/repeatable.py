"""Kernels that give the same bits every time: torch's deterministic algorithms, on GPUs, while a run lasts.

By default CUDA adds some sums in the order in which its threads happen to arrive: an embedding's gradient, and the backward of
attention. Then no two runs are alike, and none is resumed exactly. On CPUs everything is repeatable as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import UserError

__all__ = ["repeatable"]

CONFIG, FIXED = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


@contextmanager
def repeatable(wanted: bool, device: torch.device) -> Iterator[None]:
    """While entered on a GPU, operators without a repeatable form raise RuntimeError, if that is `wanted`.

    Raises UserError where the process has multiplied matrices on the GPU before, and torch trusts cuBLAS no more.
    """
    if device.type != "cuda":
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted)
    settings.fill_uninitialized_memory = False  # else every new tensor is written once more, to find who reads it unset
    try:
        if wanted and CONFIG not in os.environ:
            _trust_cublas(device)
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def _trust_cublas(device: torch.device) -> None:
    """Show torch the variable that it asks for at its first product, and take it away again.

    cuBLAS repeats its sums if each stream has a workspace of its own (its manual, "Results reproducibility"), which torch
    always gives it. While the variable is set, torch 2.11 parses it with a regular expression in every product
    (benchmarks/LOG.md).
    """
    os.environ[CONFIG] = FIXED
    try:
        _multiply(device)
    except RuntimeError as error:
        del os.environ[CONFIG]
        raise UserError(
            "this process has multiplied matrices on the GPU before, so torch cannot be told any more that they are to repeat "
            f"their bits; start Python with {CONFIG}={FIXED}, train in a process of its own, or write deterministic = False"
        ) from error
    del os.environ[CONFIG]
    try:
        _multiply(device)
    except RuntimeError:  # a torch that asks every time
        os.environ[CONFIG] = FIXED


def _multiply(device: torch.device) -> None:
    one = torch.ones(8, 8, device=device)
    torch.mm(one, one)
