"""Cross entropy that never holds the logits of a whole microbatch: the head's product, the loss and both gradients, a chunk of
tokens at a time.

In: the normed hidden states, the head, targets. Out: the loss. In training everything is computed where its backward runs (B
or I), so three products are enough and nothing but hidden states waits from F; until then the loss is NaN. The weight
gradient goes straight into `.grad` and is not left to W: it would take the logits' gradients there, or a fourth product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from ..data.loader import IGNORED
from ..errors import UserError
from ..parallel.deferred import DeferredLinear, hooked
from ..parallel.weight_gradients import WeightGradients, accumulate_bias, accumulate_weight
from ..plan.stage_cost import LOSS_ROWS
from . import liger

__all__ = ["ChunkedCrossEntropy", "check_head", "loss_of"]

aten = torch.ops.aten


class ChunkedCrossEntropy:
    """The sum that `CrossEntropy` gives, from hidden states; `chunk` tokens at a time have logits.

    The bits are those of `CrossEntropy` where a product's rows do not depend on how many there are, as with one chunk.
    """

    takes_head = True

    def __init__(self, chunk: int, kernel: str) -> None:
        self.chunk, self.kernel = chunk, kernel

    def require(self, device: torch.device) -> None:
        """Raises UserError when the kernel cannot run on a device."""
        if self.kernel == "liger":
            liger.require_liger(device)

    def from_hidden(self, hidden: Tensor, head: Any, targets: Tensor) -> Tensor:
        """hidden [batch, seq, dim] in the format to compute in, targets [batch, seq] -> scalar, fp32.

        Where a backward is to come it is NaN until that has run.
        """
        gradients = head.gradients if isinstance(head, DeferredLinear) else WeightGradients()
        flat, wanted = hidden.flatten(0, -2), targets.flatten()
        parameters = (head.weight, head.bias)
        casts = [None if p is None else gradients.cast(p, hidden.dtype) for p in parameters]
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (flat, *parameters)):
            return _Chunked.apply(flat, *parameters, *casts, wanted, self)  # type: ignore[return-value]
        losses = []
        for rows, logits in self.logits(flat, *casts):
            losses.append(self.loss_of(logits, wanted[rows], None))
            del logits
        return torch.cat(losses).sum()

    def logits(self, hidden: Tensor, weight: Any, bias: Any) -> Iterator[tuple[slice, Tensor]]:
        """Rows of `hidden` and their logits, in turn; only the caller keeps one."""
        for start in range(0, len(hidden), self.chunk):
            rows = slice(start, start + self.chunk)
            yield rows, F.linear(hidden[rows], weight, bias)

    def loss_of(self, logits: Tensor, targets: Tensor, scale: Tensor | None) -> Tensor:
        """The losses [n] of logits [n, vocab]; given `scale`, the logits become the gradient of their sum times it."""
        if self.kernel == "liger" and logits.is_cuda:  # plans are made on fake tensors of a CPU
            return liger.loss_of(logits, targets, scale)
        return loss_of(logits, targets, scale)


class _Chunked(Function):
    # Weight and bias stay plain attributes of ctx, as in parallel.deferred.
    @staticmethod
    def forward(ctx, hidden, weight, bias, cast_weight, cast_bias, targets, loss_fn):
        ctx.weight, ctx.bias, ctx.casts = weight, bias, (cast_weight, cast_bias)
        ctx.loss_fn = loss_fn
        ctx.save_for_backward(hidden, targets)
        loss = torch.full((), torch.nan, dtype=torch.float32, device=hidden.device)
        ctx.loss = loss.detach()  # the same memory, without the graph that ends in this context
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[override]
        hidden, targets = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        into = torch.empty_like(hidden) if needs_hidden else None
        asked = [p for p, needed in ((ctx.weight, needs_weight), (ctx.bias, needs_bias)) if needed and hooked(p)]
        before = [p.grad for p in asked]  # autograd has to see these gradients, for somebody listens
        for parameter in asked:
            parameter.grad = None

        losses = []
        for rows, logits in ctx.loss_fn.logits(hidden, *ctx.casts):
            losses.append(ctx.loss_fn.loss_of(logits, targets[rows], grad_output))
            if needs_weight:
                accumulate_weight(ctx.weight, hidden[rows], logits)
            if needs_bias:
                accumulate_bias(ctx.bias, logits)
            if into is not None:
                torch.mm(logits, ctx.casts[0], out=into[rows])
            del logits
        ctx.loss.copy_(torch.cat(losses).sum())
        made: dict[int, Tensor | None] = {}
        for parameter, gradient in zip(asked, before):
            made[id(parameter)], parameter.grad = parameter.grad, gradient
        return into, made.get(id(ctx.weight)), made.get(id(ctx.bias)), None, None, None, None


def loss_of(logits: Tensor, targets: Tensor, scale: Tensor | None) -> Tensor:
    """The losses [n] of logits [n, vocab]; given `scale`, the logits become the gradient of their sum times it.

    By the operators of F.cross_entropy and its backward, a few rows at a time: these need fp32 copies.
    """
    losses = []
    for rows, wanted in zip(logits.split(LOSS_ROWS), targets.split(LOSS_ROWS)):
        scores = torch.log_softmax(rows.float(), 1)
        loss, weight = aten.nll_loss_forward(scores, wanted, None, 0, IGNORED)
        losses.append(loss)
        if scale is not None:
            start = aten.nll_loss_backward(scale.expand_as(loss), scores, wanted, None, 0, IGNORED, weight)
            rows.copy_(aten._log_softmax_backward_data(start, scores, 1, torch.float32))
            del start
        del scores
    return torch.cat(losses)


def check_head(head: Any, name: str) -> None:
    """Raises UserError for a head that is not a plain linear layer: its weight alone would not give its output."""
    if type(head) not in (nn.Linear, DeferredLinear) or not isinstance(head.weight, nn.Parameter):
        raise UserError(
            f"loss: {name} multiplies by the head's weight itself, which takes a plain nn.Linear, and the head is {head}; "
            "write loss=CrossEntropy()"
        )
