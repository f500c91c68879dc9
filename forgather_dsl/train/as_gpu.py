"""What torch would keep and make on a GPU, on fake tensors of a CPU: where its CUDA operators differ from its CPU ones.

In: a program run inside `as_on_gpu`. RMS norm is one kernel there, which keeps its input and one number per row; autocast
runs norms and softmax in fp32; attention under a mask, or in fp32, takes its keys and values repeated. Layers are expected
to call these through torch.nn.functional. Only sizes are right, values are not computed: for fake tensors alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_variadic

__all__ = ["as_on_gpu"]

IN_FP32 = ("layer_norm", "group_norm", "softmax", "log_softmax")  # under CUDA's autocast, not under the CPU's


@contextmanager
def as_on_gpu() -> Iterator[None]:
    """Functions of torch.nn.functional make and keep what they would on CUDA, in the whole process, while this lasts."""
    stand_ins: dict[str, Callable[..., Tensor]] = {name: partial(_in_fp32, getattr(F, name)) for name in IN_FP32}
    stand_ins["rms_norm"] = partial(_in_fp32, rms_norm)
    stand_ins["scaled_dot_product_attention"] = partial(_attention, F.scaled_dot_product_attention)
    originals = {name: getattr(F, name) for name in stand_ins}
    try:
        for name, function in stand_ins.items():
            setattr(F, name, function)
        yield
    finally:
        for name, function in originals.items():
            setattr(F, name, function)


def _in_fp32(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        args = tuple(_wide(value) for value in args)
        kwargs = {name: _wide(value) for name, value in kwargs.items()}
    return function(*args, **kwargs)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def rms_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Seen by modes as one function, as torch's own is."""
    if has_torch_function_variadic(x, weight):
        return handle_torch_function(rms_norm, (x, weight), x, normalized_shape, weight, eps)
    return _FusedRMSNorm.apply(x, weight)  # type: ignore[return-value]


class _FusedRMSNorm(Function):
    """What CUDA's aten::_fused_rms_norm keeps and makes (aten/src/ATen/native/cuda/layer_norm_kernel.cu), unfilled."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[override]
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


def _attention(
    function: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Flash attention alone shares keys and values among heads: for 16-bit numbers, at most 256 a head, and no mask."""
    shares = attn_mask is None and q.dtype != torch.float32 and q.shape[-1] <= 256
    if kwargs.get("enable_gqa") and not shares:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        kwargs["enable_gqa"] = False
    return function(q, k, v, attn_mask, *args, **kwargs)
