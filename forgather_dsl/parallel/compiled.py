"""Layers through torch.compile: one function of (layer, input, context), so that layers built alike share what is compiled.

Their linear layers stay outside of the graphs (`uncompiled`), which are what lies between: norms, positions, attention,
activation functions. In: a device. Out: the function, or UserError when nothing on this machine could compile.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch

from forgather_dsl.errors import UserError
from forgather_dsl.plan.cached import cache_root

__all__ = ["compiled_layer", "require_compiler", "run_layer"]

Layer = Callable[[Any, torch.Tensor, Any], torch.Tensor]


def run_layer(layer: Any, x: torch.Tensor, context: Any) -> torch.Tensor:
    """`x [batch, seq, dim]` through one layer, as written."""
    return layer(x, context, None)


@functools.cache
def compiled_layer(backend: str = "inductor") -> Layer:
    """`run_layer`, compiled for each shape of its input; the same object in the whole process."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "inductor"))  # the next start finds it there
    compile_: Any = torch.compile
    return compile_(run_layer, dynamic=False, backend=backend)


def require_compiler(device: torch.device) -> None:
    """Raises UserError where torch.compile has no compiler for `device`: Triton for a GPU, a C++ compiler for a CPU."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(
                "compile: torch.compile needs Triton for this GPU: pip install triton, or write compile = False"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        raise UserError(
            "compile: torch.compile needs a C++ compiler on this machine and none was found: apt install g++ (or name one "
            "in the environment variable CXX), or write compile = False"
        ) from error
