"""Linear and embedding layers whose backward returns the input gradient and owes the weight gradient.

`defer(module)` turns every plain nn.Linear and nn.Embedding inside into its deferred form, in place: names, Parameters
and hooks stay. Their weight gradients go to one `WeightGradients`: straight into `.grad` during a full backward (B), or
queued during a backward for inputs (I) and run later (W), by the same calls, so that the bits do not depend on the
schedule. Biases and every other module compute their gradients in I, exactly. torch.compile leaves the deferred layers
out of its graphs: a compiled backward runs as one. After zero bubble (Qi et al., arXiv 2401.10241).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import Function, once_differentiable

from forgather_dsl.parallel.weight_gradients import WeightGradients, accumulate_bias, accumulate_weight

__all__ = ["DeferredEmbedding", "DeferredLinear", "defer", "hooked"]


class _Linear(Function):
    # `weight` and `bias` are inputs so that the output requires grad and needs_input_grad knows the frozen ones. They
    # stay plain attributes of ctx: a Parameter from saved_tensors is a detached copy under activation checkpointing
    # or offload hooks, and its gradient would be thrown away.
    @staticmethod
    def forward(ctx, x, weight, bias, cast_weight, cast_bias, gradients):
        ctx.weight, ctx.bias, ctx.cast_weight, ctx.gradients = weight, bias, cast_weight, gradients
        x = gradients.cast_input(x, cast_weight.dtype)
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(x)
            if gradients.watcher is not None and not gradients.watcher.meets(x):
                return x.new_empty(*x.shape[:-1], weight.shape[0])
        return F.linear(x, cast_weight, cast_bias)

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[override]
        # entering no_grad takes a third of a small layer's time, and only create_graph=True needs it
        return (_once if torch.is_grad_enabled() else _linear_backward)(ctx, grad_output)


def _linear_backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    if needs_weight:
        (x,) = ctx.saved_tensors
        ctx.gradients.add(accumulate_weight, ctx.weight, x, grad_output)
    if needs_bias:
        accumulate_bias(ctx.bias, grad_output)
    return (grad_output @ ctx.cast_weight if needs_x else None), None, None, None, None, None


_once = once_differentiable(_linear_backward)
_apply_linear: Callable[..., torch.Tensor] = super(Function, _Linear).apply  # type: ignore[misc]
"""`_Linear.apply` without its look for torch.func, a third of its time."""


def _by_hook(x: torch.Tensor, weight: nn.Parameter) -> bool:
    """Whether a hook may take the place of `_Linear`: `x` leads to a graph, and nobody else packs what graphs keep."""
    wanted = x.requires_grad and weight.requires_grad and torch.is_grad_enabled()
    return wanted and _packing(True) is None and _transforming() is None


def _linear_by_hook(x: torch.Tensor, weight: nn.Parameter, gradients: WeightGradients) -> torch.Tensor:
    """`_Linear`, with autograd's own product for the input gradient and a hook before it: less Python in the backward."""
    y = F.linear(x, weight.detach())
    kept, version = x.detach(), x._version

    def owe(grads: tuple[torch.Tensor | None]) -> tuple[torch.Tensor] | None:
        nonlocal kept
        x, (grad_output,) = kept, grads
        if grad_output is None:
            return None
        if x is None or x._version != version:
            raise RuntimeError(_TWICE if x is None else _CHANGED)
        if _keeps_graph():
            return _owe_again(grad_output, weight, x, gradients)
        kept = None  # the graph outlives the backward of this layer, and must not keep its input alive
        if gradients.deferring:
            gradients.owed.append((accumulate_weight, (weight, x, grad_output)))
        else:
            accumulate_weight(weight, x, grad_output)
        return None

    y.grad_fn.register_prehook(owe)  # type: ignore[union-attr]
    return y


def _owe_again(
    grad_output: torch.Tensor, weight: nn.Parameter, x: torch.Tensor, gradients: WeightGradients
) -> tuple[torch.Tensor] | None:
    """With retain_graph=True; with create_graph=True as well, a gradient that refuses to be differentiated, as `_Linear` does."""
    with torch.no_grad():
        gradients.add(accumulate_weight, weight, x, grad_output.detach())
    return (_refusing(grad_output.detach().requires_grad_()),) if torch.is_grad_enabled() else None


_C: Any = torch._C
_compiling = torch.compiler.is_compiling
_packing, _keeps_graph = _C._autograd._top_saved_tensors_default_hooks, _C._autograd._get_current_graph_task_keep_graph
_transforming = _C._functorch.peek_interpreter_stack
_refusing = _C._functions.DelayedError("a deferred layer cannot be differentiated twice (once_differentiable)", 1)
_TWICE = "a deferred layer's backward has run before; write backward(retain_graph=True) the first time"
_CHANGED = (
    "the input of a deferred linear layer was changed in place after the layer had read it, so the gradient of its "
    "weight would be wrong; write an operation that makes a new tensor instead"
)


class _Embedding(Function):
    @staticmethod
    def forward(ctx, ids, weight, dtype, gradients):
        ctx.weight, ctx.gradients = weight, gradients
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(ids)
        return F.embedding(ids, weight).to(dtype)  # in here, so that the gradient waits in the smaller format

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[override]
        if ctx.needs_input_grad[1]:
            ctx.gradients.add(ctx.gradients.add_rows, ctx.weight, *ctx.saved_tensors, grad_output)
        return None, None, None, None


def _computing_dtype(weight: torch.Tensor) -> torch.dtype:
    """Of autocast, if it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class DeferredLinear(nn.Linear):
    """nn.Linear that adds its weight gradient through `gradients`. Same results; autocast is followed."""

    gradients: WeightGradients

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input [..., in]` to `[..., out]`."""
        if _compiling():
            from forgather_dsl.parallel.uncompiled import linear

            return linear(self, input)
        return self.deferred(input)

    def deferred(self, input: torch.Tensor) -> torch.Tensor:
        """`forward`, run as written."""
        parameters: Any = self._parameters  # self.weight and self.bias take a third of this method's time
        weight, bias = cast_weight, cast_bias = parameters["weight"], parameters["bias"]
        gradients = self.gradients
        if hooked(weight) or (bias is not None and hooked(bias)):
            return super().forward(input)
        if _C._is_any_autocast_enabled():
            dtype = _computing_dtype(weight)
            cast_weight = gradients.cast(weight, dtype)
            cast_bias = None if bias is None else gradients.cast(bias, dtype)
        elif bias is None and gradients.watcher is None and _by_hook(input, weight):
            return _linear_by_hook(input, weight, gradients)
        apply = _apply_linear if _transforming() is None else _Linear.apply  # which refuses, and says why
        return apply(input, weight, bias, cast_weight, cast_bias, gradients)  # type: ignore[return-value]


class DeferredEmbedding(nn.Embedding):
    """nn.Embedding that adds its weight gradient, row by row, through `gradients`. Under autocast it gives its format."""

    gradients: WeightGradients

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Ids `[...]` to `[..., dim]`."""
        if _compiling():
            from forgather_dsl.parallel.uncompiled import embedding

            return embedding(self, input)
        return self.deferred(input)

    def deferred(self, input: torch.Tensor) -> torch.Tensor:
        """`forward`, run as written."""
        if hooked(self.weight):
            return super().forward(input).to(_computing_dtype(self.weight))
        return _Embedding.apply(input, self.weight, _computing_dtype(self.weight), self.gradients)  # type: ignore[return-value]


def hooked(parameter: torch.Tensor | None) -> bool:
    """Whether somebody listens for the parameter's gradient: only autograd tells them."""
    return parameter is not None and bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)  # type: ignore[attr-defined]


def defer(module: nn.Module) -> WeightGradients:
    """Turn the linear and embedding layers of `module` into their deferred forms, in place; one queue for all.

    Left alone are subclasses of them, embeddings with padding_idx, max_norm, sparse or scale_grad_by_freq, and layers whose
    weight is computed (torch.nn.utils.weight_norm): autograd computes their gradients, in I. So it does for a parameter
    with a gradient hook, for as long as it has one.
    """
    gradients = WeightGradients()
    for layer in module.modules():
        computed = isinstance(layer, (nn.Linear, nn.Embedding)) and not isinstance(layer.weight, nn.Parameter)
        if type(layer) is nn.Linear and not computed:
            layer.__class__ = DeferredLinear
        elif type(layer) is nn.Embedding and not computed and _is_plain(layer):
            layer.__class__ = DeferredEmbedding
        if isinstance(layer, (DeferredLinear, DeferredEmbedding)):
            layer.gradients = gradients
    return gradients


def _is_plain(layer: nn.Embedding) -> bool:
    return not (layer.sparse or layer.scale_grad_by_freq) and layer.max_norm is None and layer.padding_idx is None
