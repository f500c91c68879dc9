"""Linear and embedding layers whose backward returns the input gradient and owes the weight gradient.

`defer(module)` turns every plain nn.Linear and nn.Embedding inside into its deferred form, in place: names, Parameters
and hooks stay. Their weight gradients go to one `WeightGradients`: straight into `.grad` during a full backward (B), or
queued during a backward for inputs (I) and run later (W), by the same calls, so that the bits do not depend on the
schedule. Biases and every other module compute their gradients in I, exactly. torch.compile leaves the deferred layers
out of its graphs: a compiled backward runs as one. After zero bubble (Qi et al., arXiv 2401.10241).
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import Function, once_differentiable

__all__ = [
    "DeferredEmbedding",
    "DeferredLinear",
    "WeightGradients",
    "accumulate_bias",
    "accumulate_weight",
    "defer",
    "gradient_of",
    "hooked",
]


class Watcher(Protocol):
    """Told of each linear layer that is about to multiply."""

    def meets(self, x: torch.Tensor) -> bool:
        """Whether anybody needs the product; `x` is what the layer has saved for its backward. May end the forward."""
        ...


Owed = deque[tuple[Callable[..., None], tuple[Any, ...]]]
"""Weight gradients not yet computed: calls and their arguments (activations and output gradients)."""


class WeightGradients:
    """What the backward of one stage owes its weights, and its weights in the dtype of autocast."""

    def __init__(self) -> None:
        self.deferring = False
        self.owed: Owed = deque()
        self.watcher: Watcher | None = None
        self.add_rows: Callable[..., None] = _accumulate_embedding
        """What adds the rows of an embedding's gradient: (weight, ids, rows)."""
        self._casts: dict[torch.Tensor, torch.Tensor] | None = None
        self.last_scaled: tuple[Any, int, Any] = (lambda: None, 0, None)  # input, its version, its scale (float8)
        self._last_input: tuple[Any, int, Any] = (lambda: None, 0, lambda: None)  # input, its version, its cast

    def add(
        self, accumulate: Callable[..., None], parameter: torch.Tensor, x: torch.Tensor, *others: torch.Tensor
    ) -> None:
        """Run `accumulate(parameter, x, *others)` now, or queue it while `deferring`; `x` was saved in the forward."""
        if self.deferring:
            # detached: an activation's graph ends in the stage's input, which would stay alive with it
            self.owed.append((accumulate, (parameter, x.detach(), *others)))
        else:
            accumulate(parameter, x, *others)

    def take(self) -> Owed:
        """Hand over what one backward has queued; for `settle`."""
        owed, self.owed = self.owed, deque()
        return owed

    @staticmethod
    @torch.no_grad()  # as in a backward: else `.grad` would join a graph and keep what it was added from alive
    def settle(owed: Owed, done: Callable[[nn.Parameter], None] | None = None) -> None:
        """Compute queued weight gradients into `.grad`, letting go of each one's tensors as soon as it is done.

        The latest first, as its tensors may still be in the cache; in the order of the backward where a parameter occurs
        twice, for the bits of its sum. `done` is called with each parameter that is owed nothing more.
        """
        left = Counter(id(arguments[0]) for _, arguments in owed)
        take = owed.pop if len(left) == len(owed) else owed.popleft
        while owed:
            accumulate, arguments = take()
            accumulate(*arguments)
            parameter = arguments[0]
            del arguments
            left[id(parameter)] -= 1
            if done is not None and not left[id(parameter)]:
                done(parameter)

    @contextmanager
    def step(self) -> Iterator[None]:
        """While weights do not change: cast each to the dtype of autocast once, not once per microbatch."""
        self.deferring, self.owed, self._casts = False, deque(), {}
        try:
            yield
        finally:
            self._casts = None

    @contextmanager
    def watched_by(self, watcher: Watcher | None) -> Iterator[None]:
        """Linear layers tell this `watcher`."""
        before, self.watcher = self.watcher, watcher
        try:
            yield
        finally:
            self.watcher = before

    def cast(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`parameter` in `dtype`, outside the graph; itself when it has that dtype."""
        return parameter if parameter.dtype == dtype else self.once(parameter, lambda weight: weight.to(dtype))

    def once(self, parameter: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What `make` makes of a parameter, once while weights do not change; each has one such thing."""
        if self._casts is None:
            return make(parameter.detach())
        if parameter not in self._casts:
            self._casts[parameter] = make(parameter.detach())
        return self._casts[parameter]

    def cast_input(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` in `dtype`, outside the graph; the layers that share an input in turn (q, k, v) keep one copy of it."""
        if x.dtype == dtype:
            return x
        last, version, cast = self._last_input
        found = cast() if last() is x and version == x._version else None
        if found is None or found.dtype != dtype:
            found = x.detach().to(dtype)
            self._last_input = (weakref.ref(x), x._version, weakref.ref(found))
        return found


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """`.grad`, zero at first: adding the first microbatch to zero is the same call as adding the others."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
    return parameter.grad


def accumulate_weight(weight: torch.Tensor, x: torch.Tensor, grad_output: torch.Tensor) -> None:
    """`weight.grad [out, in] += grad_output^T x`, under no_grad. With autocast the product is bf16, the sum fp32."""
    gradient, x, grad_output = gradient_of(weight), x.flatten(0, -2), grad_output.flatten(0, -2)
    if gradient.dtype == x.dtype:
        gradient.addmm_(grad_output.t(), x)  # one GEMM that adds: no temporary, no second pass
    else:
        gradient.add_(grad_output.t() @ x)


def accumulate_bias(bias: torch.Tensor, grad_output: torch.Tensor) -> None:
    """`bias.grad [out] +=` the sum of grad_output [..., out] over all but the last."""
    gradient_of(bias).add_(grad_output.flatten(0, -2).sum(0, dtype=bias.dtype))


def _accumulate_embedding(weight: torch.Tensor, ids: torch.Tensor, grad_output: torch.Tensor) -> None:
    """Rows are added one by one; on CUDA their order is fixed only by torch.use_deterministic_algorithms(True)."""
    gradient = gradient_of(weight)
    gradient.index_add_(0, ids.flatten(), grad_output.flatten(0, -2).to(gradient.dtype))


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
"""`_Linear.apply` without its look for torch.func, a third of its time. Under torch.func torch refuses both."""


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
        if torch.compiler.is_compiling():
            from forgather_dsl.parallel.uncompiled import linear

            return linear(self, input)
        return self.deferred(input)

    def deferred(self, input: torch.Tensor) -> torch.Tensor:
        """`forward`, run as written."""
        parameters: Any = self._parameters  # self.weight and self.bias take a third of this method's time
        weight, bias = cast_weight, cast_bias = parameters["weight"], parameters["bias"]
        gradients = self.gradients
        if hooked(weight) or hooked(bias):
            return super().forward(input)
        if torch._C._is_any_autocast_enabled():
            dtype = _computing_dtype(weight)
            cast_weight = gradients.cast(weight, dtype)
            cast_bias = None if bias is None else gradients.cast(bias, dtype)
        return _apply_linear(input, weight, bias, cast_weight, cast_bias, gradients)


class DeferredEmbedding(nn.Embedding):
    """nn.Embedding that adds its weight gradient, row by row, through `gradients`. Under autocast it gives its format."""

    gradients: WeightGradients

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Ids `[...]` to `[..., dim]`."""
        if torch.compiler.is_compiling():
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
