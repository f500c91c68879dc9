"""Linear layers whose three products have float8 factors: each tensor is scaled by its largest number, and rounded.

In: stages whose linear layers are deferred already; weights, activations and gradients stay bfloat16. Out: the same layers
with products by torch._scaled_mm, e4m3 forward and e5m2 for output gradients (Micikevicius et al., arXiv 2209.05433). The
weight gradient waits for W like any other. Scales are powers of two, so that scaling itself rounds nothing.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn as nn
from torch.autograd.function import Function, once_differentiable

from forgather_dsl.errors import UserError
from forgather_dsl.parallel.deferred import DeferredLinear, hooked
from forgather_dsl.parallel.weight_gradients import WeightGradients, accumulate_bias, gradient_of

__all__ = ["MULTIPLE", "Float8Linear", "require_float8", "to_float8"]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of sizes that torch._scaled_mm adds over, and of the rows of weights
SMALLEST = 1e-12  # what a tensor of zeros is taken for


def to_float8(layers: nn.Module) -> None:
    """Turn the deferred linear layers in `layers`, whose sizes are multiples of 16, into float8 ones, in place.

    Raises UserError when there is none.
    """
    plain = [layer for layer in layers.modules() if type(layer) is DeferredLinear]
    fitting = [layer for layer in plain if not layer.in_features % MULTIPLE and not layer.out_features % MULTIPLE]
    if not fitting:
        raise UserError(
            f"precision: FP8() multiplies matrices whose sizes are multiples of {MULTIPLE}, and no linear layer of the blocks "
            "has such; change the sizes, or write precision=BF16()"
        )
    for layer in fitting:
        layer.__class__ = Float8Linear


def require_float8(device: torch.device, emulate: bool) -> None:
    """Raises UserError on a device without float8 products; a CPU works them out in fp32, for tests, if `emulate`."""
    instead = "write precision=BF16()"
    if device.type != "cuda":
        if not emulate:
            raise UserError(
                f"precision: FP8() takes a GPU with float8 products, and this rank is on {device.type}; {instead}"
            )
        return
    found = torch.cuda.get_device_capability(device)
    if found < (8, 9):
        raise UserError(
            f"precision: FP8() takes compute capability 8.9 or more (RTX 4090, L4, L40S, H100 and later), and "
            f"{torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}; {instead}"
        )


class Float8Linear(DeferredLinear):
    """DeferredLinear with float8 factors in its products; its parameters are bfloat16."""

    def deferred(self, input: torch.Tensor) -> torch.Tensor:
        """`input [..., in]` to `[..., out]`."""
        scales = _scale(input, E4M3, self.gradients), self.gradients.once(self.weight, _weight_scale)
        return _Float8.apply(input, self.weight, self.bias, *scales, self.gradients)  # type: ignore[return-value]


class _Float8(Function):
    # As parallel.deferred._Linear. What is kept is bfloat16, and rounded again in the backward: the same bits.
    @staticmethod
    def forward(ctx, x, weight, bias, x_scale, weight_scale, gradients):
        ctx.weight, ctx.bias, ctx.weight_scale, ctx.gradients = weight, bias, weight_scale, gradients
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(x, x_scale)
            if gradients.watcher is not None and not gradients.watcher.meets(x):
                return x.new_empty(*x.shape[:-1], weight.shape[0])
        rows = _rounded(x.flatten(0, -2), x_scale, E4M3)
        y = _product(rows, _rounded(weight, weight_scale, E4M3).t(), x_scale, weight_scale, x.dtype, True, bias)
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[override]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        scale = _scale(grad_output, E5M2)
        made = None
        if needs_weight:
            x, x_scale = ctx.saved_tensors
            if hooked(ctx.weight):  # somebody listens for it, which autograd has to tell
                made = _weight_gradient(x, grad_output, x_scale, scale)
            else:
                ctx.gradients.add(_accumulate, ctx.weight, x, grad_output, x_scale, scale)
        if needs_bias:
            accumulate_bias(ctx.bias, grad_output)
        if not needs_x:
            return None, made, None, None, None, None
        weight = _columns(_rounded(ctx.weight, ctx.weight_scale, E4M3))
        rows = _rounded(grad_output.flatten(0, -2), scale, E5M2)
        x_gradient = _product(rows, weight, scale, ctx.weight_scale, grad_output.dtype, False)
        return x_gradient.unflatten(0, grad_output.shape[:-1]), made, None, None, None, None


def _accumulate(weight: torch.Tensor, x: torch.Tensor, grad_output: torch.Tensor, *scales: torch.Tensor) -> None:
    gradient_of(weight).add_(_weight_gradient(x, grad_output, *scales))


def _weight_gradient(
    x: torch.Tensor, grad_output: torch.Tensor, x_scale: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """`grad_output^T x`, bfloat16."""
    rows = _rounded(grad_output.flatten(0, -2), scale, E5M2).t().contiguous()
    columns = _columns(_rounded(x.flatten(0, -2), x_scale, E4M3))
    return _product(rows, columns, scale, x_scale, x.dtype, False)


def _product(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    dtype: torch.dtype,
    fast: bool,
    bias: Any = None,
) -> torch.Tensor:
    """`a b / (a_scale b_scale) + bias`, of rows and columns that lie together. `fast`: sums not all in fp32, on Hopper."""
    options = {"scale_a": a_scale.reciprocal(), "scale_b": b_scale.reciprocal(), "bias": bias, "out_dtype": dtype}
    multiply: Any = torch._scaled_mm  # type: ignore[attr-defined]  # private, and the only one there is
    return multiply(a, b, **options, use_fast_accum=fast and a.is_cuda)


def _columns(matrix: torch.Tensor) -> torch.Tensor:
    """The same numbers, columns together in memory."""
    return matrix.t().contiguous().t()


def _rounded(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (x * scale).to(dtype)


def _scale(x: torch.Tensor, dtype: torch.dtype, gradients: WeightGradients | None = None) -> torch.Tensor:
    """The largest power of two that takes no number of x beyond what `dtype` holds, fp32, as a tensor without dimensions.

    With `gradients`, layers that share an input in turn look through it once.
    """
    if gradients is not None and gradients.last_scaled[0]() is x and gradients.last_scaled[1] == x._version:
        return gradients.last_scaled[2]
    largest = torch.linalg.vector_norm(x.detach(), float("inf"), dtype=torch.float32).clamp_(min=SMALLEST)
    # without its fraction a number is a power of two
    scale = (torch.finfo(dtype).max / largest).view(torch.int32).bitwise_and_(-(1 << 23)).view(torch.float32)
    if gradients is not None:
        gradients.last_scaled = (weakref.ref(x), x._version, scale)
    return scale


def _weight_scale(weight: torch.Tensor) -> torch.Tensor:
    return _scale(weight, E4M3)
